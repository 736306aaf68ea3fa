//! A flow with exactly N packets is not offloaded, with N + 1 it is; conntrack counts both directions together.

use fastpath_tests::{
    agent::{self, Agent},
    table,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
};

/// Sends exactly `count` datagrams, request and response in turn.
fn send(flow: &mut Flow, count: usize) {
    for number in 0..count {
        let arrived = if number % 2 == 0 { flow.request() } else { flow.response() };
        assert!(arrived, "datagram {number} of {flow:?}");
    }
}

#[track_caller]
fn exactly(topology: &Topology, threshold: usize, port: u16) {
    assert!(threshold.is_multiple_of(2), "the next datagram must be a request");
    let mut flow = topology.open(Proto::Udp, Family::V4, port);
    send(&mut flow, threshold);
    assert!(!topology.marked_offloaded(port), "offloaded after {threshold} packets");
    assert_eq!(topology.forwarded(port).total(), threshold as u64);
    assert!(flow.request());
    assert!(topology.marked_offloaded(port), "not offloaded after {threshold} + 1 packets");
    assert_eq!(topology.forwarded(port).total(), threshold as u64 + 1);
    assert!(flow.response());
    topology.assert_accelerated(&mut flow);
    assert_eq!(topology.forwarded(port).total(), threshold as u64 + 1, "none since");
}

#[test]
fn default_is_20() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    exactly(&topology, 20, 7001);
}

#[test]
fn set_to_6_as_in_the_manifest() {
    let topology = Topology::routed();
    let args = ["--ebpf=off", "--hostname-override=node-1", "--fastpath-threshold=6", "--v=2"];
    let _agent = Agent::start_with(&topology.node, &args);
    exactly(&topology, 6, 7001);
}

#[test]
fn set_by_environment_and_changed_by_restart() {
    let topology = Topology::routed();
    let mut command = agent::command(&["--ebpf=off"]);
    command.env("FASTPATH_THRESHOLD", "30");
    let mut agent = Agent::spawn(&topology.node, &mut command);
    agent.wait_for_ruleset();
    exactly(&topology, 30, 7001);
    agent.stop();
    let _agent = Agent::start(&topology.node, &["--fastpath-threshold=4"]);
    exactly(&topology, 4, 7002);
}

#[test]
fn zero_removes_the_table_and_offloads_nothing() {
    let topology = Topology::routed();
    Agent::start(&topology.node, &[]).stop();
    assert!(table::listing(&topology.node).is_some(), "it stays after the agent's end");
    let agent = Agent::start(&topology.node, &["--fastpath-threshold=0"]);
    assert_eq!(table::listing(&topology.node), None);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_forwarded(&mut flow);
    agent.stop();
}

#[test]
fn one_way_datagrams_are_not_established() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    for _ in 0..60 {
        assert!(flow.request());
    }
    assert!(!topology.marked_offloaded(7001));
    assert_eq!(topology.forwarded(7001).original, 60);
    assert!(flow.response() && flow.request());
    topology.assert_accelerated(&mut flow);
}
