//! The agent stops and starts again: what is right is left alone, and offloaded flows don't notice. `faults::kills` has it killed.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    table,
    topology::{Family, Topology, links},
    traffic::Proto,
    wait_until,
};
use nix::sys::signal::Signal;

#[test]
fn with_nothing_to_change_nothing_is_written() {
    let topology = Topology::routed();
    let node = &topology.node;
    Agent::start(node, &[]).stop();
    let mut flow = topology.open(Proto::Udp, Family::V6, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);
    for _ in 0..3 {
        let agent = Agent::start(node, &[]);
        thread::sleep(Duration::from_millis(300));
        agent.stop();
    }
    assert_eq!(monitor.commits_of_agent(), 0, "{:#?}", monitor.lines());
    let (flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "{flow:?}: {report:?}");
}

/// Links that changed while no agent ran are all that is written afterwards.
#[test]
fn what_changed_meanwhile_is_all_that_is_written() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    Agent::start(node, &[]).stop();
    node.ip("link del d0\nlink add d1 type dummy\nlink set d1 up\n");
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);
    let _agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0", "d1"], Duration::from_secs(2));
    assert_eq!(monitor.commits_of_agent(), 1, "{:#?}", monitor.lines());
    let (flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), before, "{flow:?}: {report:?}");
}

#[test]
fn stops_within_a_second_and_leaves_the_rules() {
    let topology = Topology::routed();
    let node = &topology.node;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut agent = Agent::start(node, &[]);
        let listing = table::listing(node);
        agent.signal(signal);
        let status = agent.wait_exit(Duration::from_secs(1));
        assert!(status.success(), "{signal}: {status}");
        assert!(listing.is_some() && table::listing(node) == listing, "{signal}");
    }
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
}

#[test]
fn once_installs_and_exits() {
    let topology = Topology::routed();
    let output = agent::run(&topology.node, &["--ebpf=off", "--once"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
}

/// Everything that could show a trace: the ruleset, the links, traffic control, and pins.
fn traces(topology: &Topology) -> String {
    let node = &topology.node;
    let mut traces = table::ruleset(node);
    traces += &node.output("ip", &["-d", "link"]);
    for link in links(node) {
        traces += &node.output("tc", &["filter", "show", "dev", &link, "ingress"]);
        traces += &node.output("tc", &["filter", "show", "dev", &link, "egress"]);
    }
    // Attached programs stay loaded; how they are attached, this bpftool may not know.
    let programs = node.output("bpftool", &["prog", "show"]);
    traces.extend(programs.lines().filter(|line| line.contains("fastpath")));
    traces + &node.output("find", &["/sys/fs/bpf", "-mindepth", "1"])
}

/// The kernel frees programs a little after their last use.
#[track_caller]
fn wait_for_traces(topology: &Topology, expected: &str) {
    let mut seen = String::new();
    let until = std::time::Instant::now() + Duration::from_secs(2);
    while std::time::Instant::now() < until && seen != expected {
        seen = traces(topology);
    }
    assert_eq!(seen, expected);
}

/// Other programs' objects, beside which the agent works.
fn add_objects_of_other_programs(topology: &Topology) {
    topology.node.nft(
        "table inet firewall { chain forward { type filter hook forward priority 0; policy accept; counter; }; }",
    );
    topology.node.output("tc", &["qdisc", "add", "dev", "c0", "clsact"]);
    topology.node.output("tc", &["filter", "add", "dev", "c0", "ingress", "matchall", "action", "ok"]);
}

#[test]
fn cleanup_leaves_no_trace_and_nothing_of_others_changed() {
    let topology = Topology::routed();
    add_objects_of_other_programs(&topology);
    let before = traces(&topology);
    let agent = Agent::start_with(&topology.node, &[]);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    agent.stop();
    assert_ne!(traces(&topology), before, "the agent left what cleanup has to remove");
    agent::output(&topology.node, &["cleanup"]);
    wait_for_traces(&topology, &before);
    // Again, with nothing there.
    agent::output(&topology.node, &["cleanup"]);
    wait_for_traces(&topology, &before);
}

#[test]
fn cleanup_beside_an_agent_says_that_it_is_in_vain() {
    let topology = Topology::routed();
    let agent = Agent::start(&topology.node, &[]);
    let output = agent::run(&topology.node, &["cleanup"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!("process {}", agent.pid())), "{said}");
    wait_until("the table is back", Duration::from_secs(5), || {
        table::listing(&topology.node).is_some_and(|listing| listing.contains("flow add"))
    });
    agent.stop();
    let output = agent::run(&topology.node, &["cleanup"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn cleanup_on_exit() {
    let topology = Topology::routed();
    add_objects_of_other_programs(&topology);
    let before = traces(&topology);
    let agent = Agent::start_with(&topology.node, &["--cleanup-on-exit"]);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    agent.stop();
    wait_for_traces(&topology, &before);
}
