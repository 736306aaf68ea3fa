//! The eBPF programs from outside: attached to every managed interface, maps pinned and typed, and counting also what
//! the flowtable forwards.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    attach::Attach,
    netns::Netns,
    topology::{Family, Layout, Topology},
    traffic::{Flow, Proto},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const FLOWS: &str = "/sys/fs/bpf/fastpath/fastpath_flows";

/// Rounds so far apart that each packet is counted in this map at once: of several in one tick of the kernel some are
/// held back in another map for a while (docs/bpftool.md).
#[track_caller]
fn one_a_tick(flow: &mut Flow, rounds: usize) {
    for _ in 0..rounds {
        assert!(flow.request(), "{flow:?}");
        thread::sleep(Duration::from_millis(11));
        assert!(flow.response(), "{flow:?}");
    }
}

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
    assert_offloaded_packets_are_counted("--ebpf=tc");
}

#[test]
fn offloaded_packets_are_counted_at_xdp_too() {
    assert_offloaded_packets_are_counted("--ebpf=xdp");
}

#[track_caller]
fn assert_offloaded_packets_are_counted(mode: &str) {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start_with(node, &[mode]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    assert_eq!(
        status(node)["ebpf"]["attachments"][0]["mechanism"]["mechanism"] == "xdp",
        mode == "--ebpf=xdp"
    );
    for (proto, family, port) in [(Proto::Udp, Family::V4, 7001), (Proto::Udp, Family::V6, 7002)] {
        let mut flow = topology.open(proto, family, port);
        one_a_tick(&mut flow, 15);
        assert!(topology.marked_offloaded(port));
        let before = topology.forwarded(port);
        one_a_tick(&mut flow, 50);
        assert_eq!(topology.forwarded(port), before, "these were offloaded");
        let counted = (counted(node, None, Some(port)), counted(node, Some(port), None));
        assert_eq!(counted, (65, 65), "{flow:?}");
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
    // From TC to XDP too.
    let modes = ["--ebpf=tc", "--ebpf=xdp", "--ebpf=xdp"];
    let topology = Topology::routed();
    let node = &topology.node;
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    for (restarts, mode) in (1..).zip(modes) {
        let agent = Agent::start_with(node, &[mode]);
        agent::wait_for_programs(node, &["c0", "s0"]);
        agent.kill();
        // Without an agent.
        one_a_tick(&mut flow, 30);
        assert_eq!(counted(node, None, Some(7001)), 30 * restarts, "{mode}");
    }
    topology.assert_accelerated(&mut flow);
}

fn status(node: &Netns) -> Value {
    serde_json::from_str(&agent::output(node, &["status", "-o", "json"])).expect("the agent prints JSON")
}

/// What comes out of a tunnel has no Ethernet header: TC's part, also where XDP is wanted.
#[track_caller]
fn assert_counted_out_of(attach: Attach) {
    let topology = Topology::build(Layout { attach, ..Layout::default() });
    let node = &topology.node;
    let device = attach.recipe().uppers[0];
    for (mode, port) in [("--ebpf=tc", 7001), ("--ebpf=xdp", 7002)] {
        let agent = Agent::start_with(node, &[mode]);
        agent::wait_for_programs(node, &["c0", "s0", device]);
        let mut flow = topology.open(Proto::Udp, Family::V4, port);
        one_a_tick(&mut flow, 30);
        let counted = (counted(node, None, Some(port)), counted(node, Some(port), None));
        assert_eq!(counted, (30, 30), "{mode}");
        let text = agent::output(node, &["status"]);
        let excuse = format!("{device} is watched with TC instead of XDP: it has no Ethernet header");
        assert_eq!(text.contains(&excuse), mode == "--ebpf=xdp", "{text}");
        agent.stop();
    }
}

#[test]
fn packets_out_of_wireguard_are_counted() {
    assert_counted_out_of(Attach::WireGuard);
}

#[test]
fn packets_out_of_ipip_are_counted() {
    assert_counted_out_of(Attach::Ipip);
}

#[test]
fn packets_out_of_gre_are_counted() {
    assert_counted_out_of(Attach::Gre);
}

#[test]
fn packets_out_of_tun_are_counted() {
    assert_counted_out_of(Attach::Tun);
}

#[test]
fn another_size_of_the_flow_map_starts_at_zero() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    for (max_flows, replaced) in [("2048", 0), ("2048", 0), ("4096", 1)] {
        let agent = Agent::start_with(node, &[&format!("--max-flows={max_flows}")]);
        agent::wait_for_programs(node, &["c0", "s0"]);
        assert_eq!(agent.count("counting starts again at 0"), replaced, "{:#?}", agent.log());
        one_a_tick(&mut flow, 5);
        let maps = &status(node)["ebpf"]["maps"];
        assert_eq!(maps["max_flows"].to_string(), max_flows);
        assert_eq!(maps["flows_left"], 0, "{maps}");
        agent.stop();
    }
    assert_eq!(counted(node, None, Some(7001)), 5);
}

/// A link goes and another one has its name and index before the agent gets to read of either: it looks as if nothing had been, and
/// has no programs.
#[test]
fn another_link_of_the_same_index() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link add d0 index 77 type dummy\nlink set d0 address 02:00:00:00:00:77 up\n");
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "d0", "s0"]);
    agent.signal(Signal::SIGSTOP);
    node.ip("link del d0\nlink add d0 index 77 type dummy\nlink set d0 address 02:00:00:00:00:77 up\n");
    agent.signal(Signal::SIGCONT);
    // Long before the safety net.
    agent::wait_for_programs(node, &["c0", "d0", "s0"]);
}

/// What the kernel announces is seen at once: a clsact qdisc that goes, and another change of traffic control there after a
/// TCX link was detached, which it doesn't announce (the safety net sees that, within a minute).
#[test]
fn programs_that_others_detach_come_back() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let attachment = status(node)["ebpf"]["attachments"][0].clone();
    assert_eq!(attachment["name"], "c0", "{attachment}");
    if attachment["mechanism"]["mechanism"] == "clsact" {
        node.output("tc", &["qdisc", "del", "dev", "c0", "clsact"]);
    } else {
        let link = format!("/sys/fs/bpf/fastpath/links/{}", attachment["index"]);
        node.output("bpftool", &["link", "detach", "pinned", &link]);
        node.output("tc", &["qdisc", "add", "dev", "c0", "clsact"]);
    }
    agent.wait_for("attached again", Duration::from_secs(3));
    agent::wait_for_programs(node, &["c0", "s0"]);
    assert_eq!(agent.count("attached again"), 1, "{}", agent.log().join("\n"));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    one_a_tick(&mut flow, 5);
    assert_eq!(counted(node, None, Some(7001)), 5);
}
