//! `flows`: what became of each flow and why, with counts that go on for offloaded ones.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Topology},
    traffic::Proto,
};
use serde_json::Value;

/// A flow younger than this may be called crossed, not stalled.
pub(crate) const NO_LONGER_JUST_CROSSED: Duration = Duration::from_millis(1_100);

/// All that `flows` with these flags says.
#[track_caller]
pub(crate) fn flows(node: &Netns, flags: &[&str]) -> Vec<Value> {
    let text = agent::output(node, &[&["flows", "-o", "json"], flags].concat());
    let flows: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    flows.as_array().expect("a list").clone()
}

/// The one flow to this port.
#[track_caller]
pub(crate) fn flow(node: &Netns, port: u16) -> Value {
    let found = flows(node, &[&format!("--port={port}")]);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].clone()
}

fn packets(flow: &Value) -> [Option<u64>; 2] {
    [0, 1].map(|direction| flow["ingress"][direction]["packets"].as_u64())
}

#[test]
fn states_counts_and_filters() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);

    let mut long = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(long.rounds(100), 100);
    topology.assert_accelerated(&mut long);
    let shown = flow(node, 7001);
    assert_eq!((shown["state"].as_str(), shown["protocol"].as_str()), (Some("offloaded"), Some("udp")));
    assert_eq!(shown["interfaces"], serde_json::json!(["c0", "s0"]));
    let before = packets(&shown);
    assert_eq!(long.rounds(500), 500);
    let after = packets(&flow(node, 7001));
    assert_eq!(after, before.map(|count| count.map(|count| count + 500)), "exact, though no rule saw them");
    let conntrack = flow(node, 7001)["conntrack"]["packets"].clone();
    assert_eq!(conntrack, serde_json::json!(after), "conntrack counts the same");

    let mut short = topology.open(Proto::Tcp, Family::V6, 7002);
    assert_eq!(short.rounds(3), 3);
    assert_eq!(flow(node, 7002)["state"], "below-threshold");

    let mut one_way = topology.open(Proto::Udp, Family::V4, 7003);
    for _ in 0..30 {
        assert!(one_way.request());
    }
    thread::sleep(NO_LONGER_JUST_CROSSED);
    let shown = flow(node, 7003);
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("stalled"), Some("one-way")));

    let states = |flags: &[&str]| {
        let mut ports: Vec<u64> = flows(node, flags)
            .iter()
            .filter_map(|flow| flow["original"]["destination_port"].as_u64())
            .filter(|port| (7001..=7003).contains(port))
            .collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(states(&[]), [7001, 7002, 7003]);
    assert_eq!(states(&["--state=offloaded"]), [7001]);
    assert_eq!(states(&["--protocol=tcp"]), [7002]);
    assert_eq!(states(&["--address=0.0.0.0/0", "--state=stalled"]), [7003]);
    assert_eq!(states(&["--sort=packets", "--limit=1"]), [7001]);

    let table = agent::output(node, &["flows", "--port=7003"]);
    assert!(table.contains("stalled") && table.contains("one direction only"), "{table}");

    // Out of the flowtable, with nothing that keeps it out, it isn't stalled.
    agent::output(node, &["revalidate"]);
    thread::sleep(NO_LONGER_JUST_CROSSED);
    assert_eq!(flow(node, 7001)["state"], "idle");
    assert_eq!(long.rounds(5), 5);
    assert_eq!(flow(node, 7001)["state"], "offloaded");
}

#[test]
fn a_flow_through_an_interface_that_is_left_out_is_stalled_and_says_so() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &["--exclude-interfaces=s0"]);
    agent::wait_for_programs(node, &["c0"]);
    let mut flow_through = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow_through.rounds(50), 50);
    thread::sleep(NO_LONGER_JUST_CROSSED);
    topology.assert_forwarded(&mut flow_through);
    let shown = flow(node, 7001);
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("stalled"), Some("not-watched")));
}

#[test]
fn crossings_are_followed_at_high_verbosity() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &["--v=5", "--fastpath-threshold=6"]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(20), 20);
    agent.wait_for("crossed the threshold", Duration::from_secs(3));
    let log = agent.stop();
    let crossed: Vec<_> = log.iter().filter(|line| line.contains("crossed the threshold")).collect();
    assert_eq!(crossed.len(), 1, "one for both directions: {crossed:#?}");
    assert!(crossed.iter().all(|line| line.contains(r#"fate="offloaded""#)), "{crossed:#?}");
}
