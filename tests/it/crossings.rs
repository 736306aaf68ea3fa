//! What the agent tells of flows that cross the threshold, where a flowtable can take them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Layout, Nat, Topology},
    traffic::Proto,
    wait_until,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// `flows --follow`, read on a thread of its own.
struct Follow {
    child: Child,
    records: Arc<Mutex<Vec<Value>>>,
}

impl Follow {
    /// From the moment that it hears everything.
    #[track_caller]
    fn start(node: &Netns, agent: &Agent) -> Self {
        let socket = std::path::Path::new("/run/fastpath/events.sock");
        wait_until("the agent's socket", LIMIT, || socket.exists());
        let mut command = agent::command(&["flows", "--follow", "-o", "json"]);
        let mut child = node.spawn(command.stdout(Stdio::piped()));
        let stdout = child.stdout.take().expect("piped");
        let records = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&records);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let record = serde_json::from_str(&line.expect("readable")).expect("a JSON object a line");
                sink.lock().expect("no panic").push(record);
            }
        });
        // Connected: its end of the socket, besides the agent's two.
        wait_until("a reader", LIMIT, || {
            let sockets = node.run(|| std::fs::read_to_string("/proc/thread-self/net/unix")).expect("procfs");
            sockets.lines().filter(|line| line.ends_with("/run/fastpath/events.sock")).count() >= 2
        });
        // It has noticed: from then on it has offloaded flows signal too.
        agent.wait_until_idle();
        Self { child, records }
    }

    /// The one record of the flow to `port`, after some time for a second one.
    #[track_caller]
    fn only(&self, port: u16) -> Value {
        let of_port = || -> Vec<Value> {
            let records = self.records.lock().expect("no panic");
            records.iter().filter(|r| r["original"]["destination_port"] == port).cloned().collect()
        };
        wait_until(&format!("word of the flow to {port}"), LIMIT, || !of_port().is_empty());
        thread::sleep(Duration::from_millis(500));
        let found = of_port();
        assert_eq!(found.len(), 1, "{found:#?}");
        found[0].clone()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // It may have ended with the agent.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fate(record: &Value) -> (&str, &Value) {
    (record["state"].as_str().expect("a state"), &record["cause"])
}

#[test]
fn offloaded_flows_are_told_once_with_nat_or_without() {
    for nat in [Nat::Plain, Nat::Masquerade] {
        let topology = Topology::build(Layout { nat, ..Layout::default() });
        let node = &topology.node;
        let agent = Agent::start_with(node, &[]);
        agent::wait_for_programs(node, &["c0", "s0"]);
        let follow = Follow::start(node, &agent);
        for (port, proto, family) in [
            (7001, Proto::Udp, Family::V4),
            (7002, Proto::Tcp, Family::V4),
            (7003, Proto::Udp, Family::V6),
            (7004, Proto::Tcp, Family::V6),
        ] {
            let mut flow = topology.open(proto, family, port);
            assert_eq!(flow.rounds(60), 60);
            topology.assert_accelerated(&mut flow);
            let record = follow.only(port);
            assert_eq!(fate(&record), ("offloaded", &Value::Null), "{record:#}");
            assert_eq!(record["event"], "crossed");
        }
        agent.stop();
    }
}

#[test]
fn what_is_not_offloaded_is_told_with_its_cause() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(
        "table inet helpers {
            ct helper reader { type \"ftp\" protocol tcp; l3proto inet; }
            chain pre { type filter hook prerouting priority 0; tcp dport 7002 ct helper set \"reader\"; }
        }",
    );
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let follow = Follow::start(node, &agent);

    let mut one_way = topology.open(Proto::Udp, Family::V4, 7001);
    for _ in 0..30 {
        assert!(one_way.request());
    }
    let record = follow.only(7001);
    assert_eq!(fate(&record), ("stalled", &"one-way".into()), "{record:#}");

    let mut helped = topology.open(Proto::Tcp, Family::V4, 7002);
    assert_eq!(helped.rounds(60), 60);
    let record = follow.only(7002);
    assert_eq!(fate(&record), ("never", &serde_json::json!({"helper": "ftp"})), "{record:#}");

    // It was on the way when conntrack forgot it.
    let mut gone = topology.open(Proto::Udp, Family::V6, 7003);
    agent.signal(Signal::SIGSTOP);
    for _ in 0..30 {
        assert!(gone.request());
    }
    node.output("conntrack", &["-F"]);
    agent.signal(Signal::SIGCONT);
    assert_eq!(fate(&follow.only(7003)), ("gone", &Value::Null));

    let mut closed = topology.open(Proto::Tcp, Family::V4, 7004);
    agent.signal(Signal::SIGSTOP);
    assert_eq!(closed.rounds(60), 60);
    closed.close_gracefully();
    agent.signal(Signal::SIGCONT);
    let record = follow.only(7004);
    assert_eq!(fate(&record), ("closing", &Value::Null), "{record:#}");
    agent.stop();
}

#[test]
fn a_flow_through_an_interface_that_is_left_out_is_told_with_its_cause() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &["--exclude-interfaces=s0"]);
    agent::wait_for_programs(node, &["c0"]);
    let follow = Follow::start(node, &agent);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(60), 60);
    let record = follow.only(7001);
    assert_eq!(fate(&record), ("stalled", &"not-watched".into()), "{record:#}");
    agent.stop();
}
