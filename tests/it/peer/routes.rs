//! Which routes forwarded packets take, and to which interfaces none is forwarded since a program's look-up would misread the
//! routes there.

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::Agent,
    topology::{Family, Topology},
    traffic::{Direction, Proto},
    wait_until,
};

use super::{SOON, assert_becomes_forwarded, forwarded, left_by, settle};

/// A service's port is another one than that of the pod behind it. Routing only ever sees the pod's.
#[test]
fn routes_are_chosen_by_the_port_behind_a_service() {
    let topology = Topology::routed();
    let node = &topology.node;
    for family in ["-4", "-6"] {
        for selector in ["dport", "sport"] {
            node.output("ip", &[family, "rule", "add", selector, "7001", "prio", "100", "blackhole"]);
        }
    }
    let _agent = Agent::start_with(node, &["--forward=peer"]);
    for family in [Family::V4, Family::V6] {
        let mut flow = topology.open_service_to(Proto::Udp, family, 7001, 80);
        topology.assert_becomes_accelerated(&mut flow);
        let mut flow = flow.into_duplex();
        // Bursts, for a flow with a packet in a tick isn't forwarded. Half would be one direction only.
        wait_until("both directions forwarded", 2 * SOON, || {
            let (before, sent) = (forwarded(&topology), flow.up.sent + flow.down.sent);
            for _ in 0..100 {
                for direction in [Direction::Upload, Direction::Download] {
                    (0..16).for_each(|_| flow.send(direction));
                    thread::sleep(Duration::from_millis(1));
                    flow.receive();
                }
            }
            let sent = flow.up.sent + flow.down.sent - sent;
            8 * (forwarded(&topology) - before) >= 5 * sent as u64
        });
    }
}

/// A program's look-up leaves out an IPv4 route's MTU, and may choose another of several next hops.
#[test]
fn interfaces_with_routes_that_are_misread_take_no_part() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    let hops = "10.2.0.2 nexthop via 10.2.0.2 dev s0 nexthop via 10.2.0.2 dev s0";
    for route in ["10.2.0.2 dev s0 mtu 600", hops] {
        assert_becomes_forwarded(&topology, &mut flow);
        topology.node.ip(&format!("route add {route}\n"));
        // The kernel takes flows out of the flowtable.
        topology.assert_becomes_accelerated(&mut flow);
        let before = (forwarded(&topology), left_by(&topology, "s0"));
        assert_eq!(flow.rounds(500), 500);
        settle();
        let more = forwarded(&topology) - before.0;
        assert!(more <= 505, "{more} packets forwarded: answers at most");
        let left = left_by(&topology, "s0") - before.1;
        assert!(left >= 500, "{left} packets left by the interface");
        topology.node.ip(&format!("route del {route}\n"));
    }
    assert_becomes_forwarded(&topology, &mut flow);
}

/// The same where such routes are there before the agent, and where one locks its MTU.
#[test]
fn routes_older_than_the_agent_count() {
    let topology = Topology::routed();
    topology.node.ip("route add 10.2.0.2 dev s0 mtu 600\nroute add 10.1.0.2 dev c0 mtu lock 600\n");
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let mut is_all = false;
    wait_until("answers forwarded", SOON, || {
        let before = (forwarded(&topology), left_by(&topology, "s0"));
        assert_eq!(flow.rounds(500), 500);
        settle();
        let more = forwarded(&topology) - before.0;
        is_all |= more > 505 || left_by(&topology, "s0") < before.1 + 500;
        more >= 400
    });
    assert!(!is_all, "requests were forwarded");
    flow.set_payload(900);
    assert!(!flow.request(), "a packet too large for the route arrives");
}
