//! The eBPF programs from outside: attached to every managed interface, maps pinned and typed, and counting also what
//! the flowtable forwards.

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Family, Topology},
    traffic::Proto,
};
use serde_json::Value;

const FLOWS: &str = "/sys/fs/bpf/fastpath/fastpath_flows";

/// Packets that the map has for flows with these ports.
#[track_caller]
fn counted(node: &Netns, src_port: Option<u16>, dst_port: Option<u16>) -> u64 {
    let dump = node.output("bpftool", &["-j", "map", "dump", "pinned", FLOWS]);
    let dump: Value = serde_json::from_str(&dump).expect("bpftool prints JSON");
    let entries = dump.as_array().expect("a list").iter().map(|entry| &entry["formatted"]);
    let has = |key: &Value, port: Option<u16>| port.is_none_or(|port| key.as_u64() == Some(u64::from(port)));
    entries
        .filter(|entry| has(&entry["key"]["src_port"], src_port) && has(&entry["key"]["dst_port"], dst_port))
        .map(|entry| {
            entry["value"]["packets"].as_u64().unwrap_or_else(|| panic!("no field packets: {entry}"))
        })
        .sum()
}

#[test]
fn offloaded_packets_are_counted() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    for (proto, family, port) in [(Proto::Udp, Family::V4, 7001), (Proto::Udp, Family::V6, 7002)] {
        let mut flow = topology.open(proto, family, port);
        topology.assert_becomes_accelerated(&mut flow);
        let before = (counted(node, None, Some(port)), counted(node, Some(port), None));
        assert_eq!(flow.rounds(50), 50);
        let after = (counted(node, None, Some(port)), counted(node, Some(port), None));
        assert_eq!((after.0 - before.0, after.1 - before.1), (50, 50), "{flow:?}, from {before:?}");
    }
    agent.stop();
    let pins = node.output("find", &["/sys/fs/bpf/fastpath"]);
    assert!(pins.contains(FLOWS), "maps stay with the rules: {pins}");
    agent::output(node, &["cleanup"]);
    assert!(!std::path::Path::new("/sys/fs/bpf/fastpath").exists());
}

#[test]
fn programs_come_and_go_with_interfaces() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    node.ip("link add d0 type veth peer name d1\nlink set d0 up\nlink set d1 up\n");
    agent::wait_for_programs(node, &["c0", "s0", "d0", "d1"]);
    node.ip("link set d1 down\n");
    agent::wait_for_programs(node, &["c0", "s0"]);
}

/// A restart takes the programs and the counts over.
#[test]
fn counts_survive_a_restart() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    agent.kill();
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(30), 30, "counted without an agent");
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    assert_eq!(flow.rounds(30), 30);
    assert_eq!(counted(node, None, Some(7001)), 60);
    topology.assert_accelerated(&mut flow);
}
