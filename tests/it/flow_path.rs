//! Offloaded is what conntrack says, accelerated is what was measured: `flows` and `top` know flows whose packets take
//! the forward path though they are offloaded.

use std::{net::UdpSocket, thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    path::STRAYS,
    terminal::Terminal,
    topology::{Family, Layout, Nat, Topology},
    traffic::Proto,
};
use vt100::Color;

use crate::flows::{flow, flows};

const LIGHT_RED: Color = Color::Idx(9);
/// Longer than the ticks within which there is no telling which of two packets came first, on either kernel.
const SOME_TICKS: Duration = Duration::from_millis(100);

/// Packets of both directions at ingress.
fn came_in(flow: &serde_json::Value) -> u64 {
    [0, 1].iter().filter_map(|direction| flow["ingress"][direction]["packets"].as_u64()).sum()
}

fn ports(flows: &[serde_json::Value]) -> Vec<u64> {
    flows.iter().filter_map(|flow| flow["original"]["destination_port"].as_u64()).collect()
}

/// Flows that are called slow.
#[track_caller]
fn slow(node: &Netns) -> Vec<u64> {
    ports(&flows(node, &["--state=slow"]))
}

#[track_caller]
fn what_bypassed_is_what_the_forward_path_has_not_seen(nat: Nat, proto: Proto, family: Family) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut long = match nat {
        Nat::Service => topology.open_service(proto, family, 7001),
        Nat::Plain | Nat::Masquerade => topology.open(proto, family, 7001),
    };
    topology.assert_becomes_accelerated(&mut long);
    assert_eq!(long.rounds(200), 200);
    thread::sleep(SOME_TICKS);
    let shown = flow(node, 7001);
    assert_eq!((&shown["state"], &shown["accelerated"]), (&"offloaded".into(), &true.into()), "{shown:#}");
    let bypassed = came_in(&shown) - topology.forwarded(7001).total();
    let claimed = shown["bypassed"].as_u64().expect("a number");
    assert!(bypassed >= 600 && claimed.abs_diff(bypassed) <= STRAYS, "{claimed}, {bypassed}: {shown:#}");
    assert!(slow(node).is_empty());

    let mut short = topology.open(Proto::Udp, Family::V4, 7008);
    assert_eq!(short.rounds(5), 5);
    let shown = flow(node, 7008);
    assert!(shown["accelerated"].is_null() && shown["bypassed"].is_null(), "not offloaded: {shown:#}");
}

#[test]
fn what_bypassed_is_counted() {
    what_bypassed_is_what_the_forward_path_has_not_seen(Nat::Plain, Proto::Tcp, Family::V4);
}

#[test]
fn what_bypassed_is_counted_with_masquerade() {
    what_bypassed_is_what_the_forward_path_has_not_seen(Nat::Masquerade, Proto::Udp, Family::V6);
}

#[test]
fn what_bypassed_is_counted_behind_a_service() {
    what_bypassed_is_what_the_forward_path_has_not_seen(Nat::Service, Proto::Tcp, Family::V6);
}

#[test]
fn fragments_of_an_offloaded_flow_are_slow() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let mut fast = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut fast);
    let mut large = topology.open(Proto::Udp, Family::V4, 7002);
    topology.assert_becomes_accelerated(&mut large);
    thread::sleep(SOME_TICKS);
    let before = flow(node, 7002);
    assert_eq!(before["accelerated"], true, "{before:#}");

    let top = Terminal::run(node, &[&agent::binary(), "top"], 24, 80);
    large.set_payload(3000);
    let forwarded = topology.forwarded(7002).total();
    assert_eq!(large.rounds(30), 30);
    let shown = flow(node, 7002);
    assert_eq!((&shown["state"], &shown["accelerated"]), (&"offloaded".into(), &false.into()), "{shown:#}");
    assert!(topology.marked_offloaded(7002));
    let metered = |flow: &serde_json::Value| flow["metered"].as_u64().expect("a number");
    assert_eq!(metered(&shown) - metered(&before), topology.forwarded(7002).total() - forwarded, "{shown:#}");
    assert_eq!(shown["bypassed"], before["bypassed"], "none of them");
    assert_eq!((slow(node), ports(&flows(node, &["--state=offloaded"])).len()), (vec![7002], 2));
    let table = agent::output(node, &["flows", "--state=slow"]);
    assert!(table.contains("offloaded, slow") && table.contains("packets took the normal path"), "{table}");

    let mut place = None;
    top.wait_for("a slow flow in top", Duration::from_secs(10), |lines| {
        assert_eq!(large.rounds(2), 2);
        place = lines.iter().position(|line| line.starts_with("offloaded, slow ") && line.contains(":7002 "));
        place.is_some() && lines[1].contains(" slow 1 ")
    });
    assert_eq!(place.map(|line| top.colour(line, 0)), Some(LIGHT_RED));

    large.set_payload(64);
    thread::sleep(SOME_TICKS);
    assert_eq!(large.rounds(20), 20);
    let shown = flow(node, 7002);
    assert_eq!(shown["accelerated"], true, "fast again: {shown:#}");
    assert!(slow(node).is_empty());
}

/// The client's datagrams come in fragments, the server's don't.
#[test]
fn a_flow_with_one_slow_direction_is_slow() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let to = topology.server_at(Family::V4, 7001);
    let server = topology.server().ns.run(|| UdpSocket::bind(to)).expect("bind");
    let client = topology.client().ns.run(|| UdpSocket::bind("0.0.0.0:0")).expect("bind");
    let round = |request: usize| {
        client.send_to(&vec![7; request], to).expect("send");
        let (size, from) = server.recv_from(&mut [0; 4000]).expect("a request");
        assert_eq!(size, request);
        server.send_to(b"answer", from).expect("send");
        client.recv(&mut [0; 10]).expect("an answer");
        from
    };
    for _ in 0..50 {
        round(10);
    }
    assert!(topology.marked_offloaded(7001));
    thread::sleep(SOME_TICKS);
    assert_eq!(flow(node, 7001)["accelerated"], true);
    let before = topology.forwarded(7001);
    for _ in 0..50 {
        round(3000);
    }
    let from = round(3000);
    let after = topology.forwarded(7001);
    assert_eq!((after.original - before.original, after.reply - before.reply), (51, 0));
    // And the server goes on.
    thread::sleep(SOME_TICKS);
    for _ in 0..5 {
        server.send_to(b"answer", from).expect("send");
        client.recv(&mut [0; 10]).expect("an answer");
    }
    let shown = flow(node, 7001);
    assert_eq!((&shown["state"], &shown["accelerated"]), (&"offloaded".into(), &false.into()), "{shown:#}");
    assert_eq!(slow(node), [7001]);
    let claimed = shown["bypassed"].as_u64().expect("a number");
    let bypassed = came_in(&shown) - topology.forwarded(7001).total();
    assert!(claimed.abs_diff(bypassed) <= STRAYS, "{claimed}, {bypassed}: {shown:#}");
}
