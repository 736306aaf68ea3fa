//! Nodes whose flows the kernel carries right: they stay accelerated, whoever crosses the threshold.

use fastpath_tests::{
    topology::{Layout, Nat},
    twin::{
        Case, Ends, Flows, Path,
        Step::{Node, Server},
        With, assert_same_fates,
    },
};

const FAST: Case = Case { flows: Flows::BothCross, ..Case::PLAIN };

const ADDRESSES: [Case; 4] = [
    Case { name: "plain", ..FAST },
    Case { name: "distant", ends: Ends::Distant, ..FAST },
    Case { name: "masquerade", layout: Layout { nat: Nat::Masquerade, ..Case::PLAIN.layout }, ..FAST },
    Case {
        name: "service",
        layout: Layout { nat: Nat::Service, ..Case::PLAIN.layout },
        ends: Ends::Service("10.96.0.1", "fd00:96::1"),
        ..FAST
    },
];

const ROUTES: [Case; 2] = [
    Case {
        name: "ip rule from",
        ends: Ends::Distant,
        set_up: &[
            Node(
                "ip route add 10.102.0.2/32 via 10.12.0.2 table 102; ip -6 route add fd00:102::2/128 via fd00:12::2 table 102
                 ip rule add from 10.101.0.2 lookup 102; ip -6 rule add from fd00:101::2 lookup 102",
            ),
            Server("ip route replace default via 10.12.0.1; ip -6 route replace default via fd00:12::1"),
        ],
        ..FAST
    },
    Case {
        name: "multipath, one link",
        ends: Ends::Distant,
        set_up: &[
            Server("ip address add 10.2.0.3/24 dev eth0; ip address add fd00:2::3/64 dev eth0 nodad"),
            Node(
                "ip route replace 10.102.0.2/32 nexthop via 10.2.0.2 nexthop via 10.2.0.3
                 ip -6 route replace fd00:102::2/128 nexthop via fd00:2::2 nexthop via fd00:2::3",
            ),
        ],
        ..FAST
    },
];

/// Some of these flows come back by another link than they went out.
const MULTIPATH: Case = Case {
    name: "multipath, two links",
    ends: Ends::Distant,
    set_up: &[
        Node(
            "echo 1 > /proc/sys/net/ipv4/fib_multipath_hash_policy; echo 1 > /proc/sys/net/ipv6/fib_multipath_hash_policy
             ip route replace 10.102.0.2/32 nexthop via 10.2.0.2 nexthop via 10.12.0.2
             ip -6 route replace fd00:102::2/128 nexthop via fd00:2::2 nexthop via fd00:12::2",
        ),
    ],
    path: Path::Any,
    ..FAST
};

/// Client and server in one VRF.
const VRF: Case = Case {
    name: "VRF",
    set_up: &[Node(
        "ip link add blue type vrf table 10; ip link set blue up
         for dev in c0 s0; do ip link set $dev master blue; done
         ip address add fd00:1::1/64 dev c0 nodad; ip address add fd00:2::1/64 dev s0 nodad",
    )],
    ..FAST
};

#[test]
fn routed_and_translated() {
    assert_same_fates(&ADDRESSES, With::Agent);
}

#[test]
fn routed_by_a_rule_or_over_several_paths() {
    assert_same_fates(&ROUTES, With::Agent);
}

#[test]
fn with_rendered_rules_and_no_agent() {
    assert_same_fates(&[ADDRESSES[1], ADDRESSES[3], ROUTES[0]], With::Rendered);
}

#[test]
fn multipath_routes_over_two_links_lose_nothing() {
    MULTIPATH.run(With::Agent).assert_same_fate();
}

#[test]
fn in_a_vrf() {
    VRF.run(With::Agent).assert_same_fate();
}
