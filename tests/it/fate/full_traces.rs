//! The sets of traces are full: nothing is lost, flows stay on the normal path, and the packets are counted.

use std::net::SocketAddr;

use fastpath_tests::{
    agent,
    netns::Netns,
    path::STRAYS,
    table::TABLE,
    topology::{Family, Topology},
    traffic::{Flow, Proto},
};

const ROUNDS: usize = 60;

/// What `render` prints, with no more room for traces than this.
#[track_caller]
fn load_rules(node: &Netns, room: u32) {
    let rendered = agent::output(node, &["render"]);
    let rules = rendered.replace("size 65536\n", &format!("size {room}\n"));
    node.nft(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{rules}"));
}

/// Fills the set of this direction.
#[track_caller]
fn fill(node: &Netns, direction: &str) {
    node.nft(&format!("add element inet {TABLE} kindnet-seen-{direction} {{ 0 . lo . lo timeout 1h }}"));
}

#[track_caller]
fn untraced(node: &Netns) -> u64 {
    let status = agent::output(node, &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status["table"]["untraced"].as_u64().expect("a number")
}

#[test]
fn lose_nothing_and_are_counted() {
    let topology = Topology::routed();
    let node = &topology.node;
    load_rules(node, 1);
    fill(node, "original");
    fill(node, "reply");
    assert_eq!(untraced(node), 0);
    for (port, (proto, family)) in
        (7001..).zip([(Proto::Tcp, Family::V4), (Proto::Udp, Family::V4), (Proto::Udp, Family::V6)])
    {
        let mut flow = topology.open(proto, family, port);
        let before = untraced(node);
        assert_eq!(flow.rounds(ROUNDS), ROUNDS, "{flow:?}");
        assert!(topology.forwarded(port).total() >= 2 * ROUNDS as u64, "{flow:?}");
        assert!(untraced(node) - before >= ROUNDS as u64, "{flow:?}");
    }

    load_rules(node, 2);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7004);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(untraced(node), 0);
}

/// Requests take a policy rule by input interface, which the kernel doesn't evaluate when a packet of the answers offloads the
/// flow: it'd send the requests into the void. Answers only leave their trace, also where there is no room for it.
#[test]
fn keep_the_guard_against_policy_rules() {
    let topology = Topology::routed();
    topology.add_second_links();
    let (node, client, server) = (&topology.node, topology.client(), topology.server());
    node.ip("route add 10.102.0.2/32 via 10.12.0.2 table 102\n\
             route replace blackhole 10.102.0.2/32\n\
             rule add iif c0 lookup 102\n");
    server.ns.ip("route replace default via 10.12.0.1\n");
    let at = |address, port| SocketAddr::new(address, port);
    for (port, proto) in (7001..).zip([Proto::Tcp, Proto::Udp]) {
        load_rules(node, 1);
        fill(node, "reply");
        let [from, to] = [client, server].map(|pod| pod.distant(Family::V4));
        let mut flow =
            Flow::open_from(proto, &client.ns, at(from, port), &server.ns, at(to, port), at(to, port));
        assert_eq!(flow.rounds(ROUNDS), ROUNDS, "{flow:?}");
        assert!(topology.forwarded(port).total() >= 2 * ROUNDS as u64, "{flow:?}");
        assert!(untraced(node) > 0, "{flow:?}");

        load_rules(node, 1);
        assert_eq!(flow.rounds(ROUNDS), ROUNDS, "{flow:?}");
        let before = topology.forwarded(port).total();
        assert_eq!(flow.rounds(ROUNDS), ROUNDS, "{flow:?}");
        assert!(topology.forwarded(port).total() - before <= STRAYS, "{flow:?}");
    }
}
