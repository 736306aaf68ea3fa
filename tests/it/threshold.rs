//! A flow with exactly N packets is not offloaded, with N + 1 it is; conntrack counts both directions together.

use std::time::Duration;

use fastpath_tests::{
    agent::{self, Agent},
    table,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
    wait_until,
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

/// Connections that end after 12 rounds: to offload them after 20 packets doesn't pay, after 6 it does.
#[test]
fn chosen_by_the_lengths_of_connections() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    let mut older = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut older);
    for port in 10_000..11_000 {
        let mut flow = topology.open(Proto::Tcp, Family::V4, port);
        assert_eq!(flow.rounds(12), 12);
        flow.close_gracefully();
    }
    let found = |check: &str| {
        let report = agent::run(node, &["doctor", "--no-canary", "-o", "json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        let findings = report["findings"].as_array().expect("findings");
        findings.iter().find(|finding| finding["check"] == check).cloned().unwrap_or_default()
    };
    let other = found("threshold");
    println!("{other}");
    assert_eq!(other["level"], "amber", "{other}");
    assert!(other["found"].as_str().is_some_and(|found| found.contains("; 6 saves more work")), "{other}");
    agent.stop();

    let before = topology.forwarded(7001);
    let mut agent = Agent::start_with(node, &["--fastpath-threshold=auto"]);
    agent.wait_for("threshold changed", Duration::from_secs(10));
    wait_until("the rules", Duration::from_secs(2), || {
        table::listing(node).is_some_and(|listing| listing.contains("ct packets > 5 "))
    });
    topology.assert_accelerated(&mut older);
    assert_eq!(topology.forwarded(7001), before, "{:#?}", agent.log());
    exactly(&topology, 6, 7002);
    assert_eq!(found("threshold")["level"], "green", "{}", found("threshold"));
    assert_eq!(found("ruleset")["level"], "green", "{}", found("ruleset"));
    let status = agent::output(node, &["status"]);
    assert!(status.contains("flows of more than 6 packets are offloaded (auto, for "), "{status}");

    // What is said of a flow that crossed at 20 is still true.
    let flows: serde_json::Value =
        serde_json::from_str(&agent::output(node, &["flows", "--port=7001", "-o", "json"])).expect("JSON");
    let came_in: u64 = [0, 1].iter().filter_map(|end| flows[0]["ingress"][end]["packets"].as_u64()).sum();
    assert_eq!(flows[0]["bypassed"], came_in - topology.forwarded(7001).total(), "{flows}");
    agent.stop();

    // The next agent goes on with it, and has nothing to change.
    let agent = Agent::start_with(node, &["--fastpath-threshold=auto"]);
    exactly(&topology, 6, 7003);
    assert_eq!(agent.count("threshold changed"), 0, "{:#?}", agent.log());
}
