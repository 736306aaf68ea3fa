//! What the agent and its commands take, on however many processors this guest has. The tier runs it on few and on many, and compares.

use std::time::Duration;

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

use super::{Node, Order, Trial};
use crate::{
    agent,
    service::{self, sh},
    terminal::Terminal,
    traffic::{Direction, Proto::Tcp},
};

pub(super) const TRIAL: Trial =
    Trial { name: "processors", orders: &[Order::AgentFirst], run: trial, ..Trial::PLAIN };

/// Calls of each command. The cheapest counts: while many emulated processors take turns, what idle ones do is counted too.
const CALLS: usize = 5;

/// What the tier reads: a name without spaces, and a number.
fn measured(name: &str, value: i64) {
    println!("measured {name} {value}");
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {});
    let mut tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    node.fast("TCP", &mut tcp);
    tcp.transfer(Direction::Upload, 1 << 20).expect("a transfer");
    let tcp = tcp.in_background_every(Duration::from_millis(100));
    measured("microseconds-of-flows", least(|| drop(agent::output(&node.topology.node, &["flows"]))));
    measured("microseconds-of-top", least(|| watch_top(node)));
    let status = format!("/proc/{}/status", service::property(service::AGENT, "MainPID"));
    for name in ["VmRSS", "RssAnon"] {
        let kib = sh(&format!("awk '/^{name}:/ {{ print $2 }}' {status}"));
        measured(&format!("kib-of-{name}"), kib.trim().parse().expect("a number"));
    }
    let (tcp, _) = tcp.stop_intact();
    node.agent_goes(tcp);
}

/// Has `top` draw for five seconds.
fn watch_top(node: &Node) {
    let words = ["timeout", "--foreground", "5", "fastpath-agent", "top"];
    let mut terminal = Terminal::run(&node.topology.node, &words, 24, 100);
    assert_eq!(terminal.wait_exit(Duration::from_secs(60)).code(), Some(124), "top ended by itself");
}

/// What the cheapest of some calls takes.
fn least(call: impl Fn()) -> i64 {
    let all: Vec<_> = (0..CALLS).map(|_| spent(&call)).collect();
    println!("  microseconds, one call after the other: {all:?}");
    all.into_iter().min().expect("some calls")
}

/// Microseconds of processors that commands take.
fn spent(commands: impl FnOnce()) -> i64 {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
    };
    let before = used();
    commands();
    used() - before
}
