//! Routes, rules and forwarding that end under running flows.

use fastpath_tests::{
    topology::Family,
    twin::{Case, Change, Flows, Path, Step::Node, With, assert_same_fates},
};

/// To the server and to the client.
const ROUTES: Case = Case {
    name: "route",
    flows: Flows::AllNext,
    changes: &[
        Change {
            name: "blackhole to the server",
            steps: &[Node("ip route add blackhole 10.2.0.2/32; ip -6 route add blackhole fd00:2::2/128")],
            undo: &[Node("ip route del 10.2.0.2/32; ip -6 route del fd00:2::2/128")],
            ..Change::STOP
        },
        Change {
            name: "blackhole to the client",
            steps: &[Node("ip route add blackhole 10.1.0.2/32; ip -6 route add blackhole fd00:1::2/128")],
            undo: &[Node("ip route del 10.1.0.2/32; ip -6 route del fd00:1::2/128")],
            ..Change::STOP
        },
        Change {
            name: "unreachable to the server",
            steps: &[Node("ip route add unreachable 10.2.0.2/32; ip -6 route add unreachable fd00:2::2/128")],
            undo: &[Node("ip route del 10.2.0.2/32; ip -6 route del fd00:2::2/128")],
            ..Change::STOP
        },
        Change {
            name: "prohibit to the client",
            steps: &[Node("ip route add prohibit 10.1.0.2/32; ip -6 route add prohibit fd00:1::2/128")],
            undo: &[Node("ip route del 10.1.0.2/32; ip -6 route del fd00:1::2/128")],
            ..Change::STOP
        },
    ],
    ..Case::PLAIN
};

const RULES: Case = Case {
    name: "rule",
    changes: &[
        Change {
            name: "prohibit to the server",
            steps: &[Node("ip rule add to 10.2.0.2 prohibit; ip -6 rule add to fd00:2::2 prohibit")],
            undo: &[Node("ip rule del to 10.2.0.2 prohibit; ip -6 rule del to fd00:2::2 prohibit")],
            ..Change::STOP
        },
        Change {
            name: "prohibit from the server",
            steps: &[Node("ip rule add from 10.2.0.2 prohibit; ip -6 rule add from fd00:2::2 prohibit")],
            undo: &[Node("ip rule del from 10.2.0.2 prohibit; ip -6 rule del from fd00:2::2 prohibit")],
            ..Change::STOP
        },
        Change {
            name: "blackhole what comes in from the client",
            steps: &[Node("ip rule add iif c0 blackhole; ip -6 rule add iif c0 blackhole")],
            undo: &[Node("ip rule del iif c0 blackhole; ip -6 rule del iif c0 blackhole")],
            ..Change::STOP
        },
        Change {
            name: "unreachable by port",
            steps: &[Node(
                "for f in -4 -6; do for p in tcp udp; do ip $f rule add ipproto $p dport 7001-7012 unreachable; done; done",
            )],
            undo: &[Node(
                "for f in -4 -6; do for p in tcp udp; do ip $f rule del ipproto $p dport 7001-7012 unreachable; done; done",
            )],
            ..Change::STOP
        },
    ],
    ..ROUTES
};

/// In tables that are asked before the one in which the flows found their routes.
const OTHER_TABLES: Case = Case {
    name: "table",
    set_up: &[Node(
        "ip link set lo up; for f in -4 -6; do ip $f rule add pref 100 lookup 100; ip $f rule add pref 101 lookup 1000; done",
    )],
    changes: &[
        Change {
            name: "the client's address becomes the node's",
            steps: &[Node("ip route add local 10.1.0.2 dev lo; ip -6 route add local fd00:1::2 dev lo")],
            undo: &[Node("ip route del local 10.1.0.2 dev lo; ip -6 route del local fd00:1::2 dev lo")],
            ..Change::STOP
        },
        Change {
            name: "blackhole to the server by a policy rule",
            steps: &[Node(
                "ip route add blackhole 10.2.0.2 table 100; ip -6 route add blackhole fd00:2::2 table 100",
            )],
            undo: &[Node("ip route flush table 100; ip -6 route flush table 100")],
            ..Change::STOP
        },
        Change {
            name: "prohibit to all by a policy rule",
            steps: &[Node(
                "ip route add prohibit default table 1000; ip -6 route add prohibit default table 1000",
            )],
            undo: &[Node("ip route flush table 1000; ip -6 route flush table 1000")],
            ..Change::STOP
        },
    ],
    ..ROUTES
};

const FORWARDING: Case = Case {
    name: "forwarding",
    changes: &[
        Change {
            name: "net.ipv4.ip_forward=0",
            steps: &[Node("echo 0 > /proc/sys/net/ipv4/ip_forward")],
            undo: &[Node("echo 1 > /proc/sys/net/ipv4/ip_forward")],
            family: Some(Family::V4),
            ..Change::STOP
        },
        Change {
            name: "net.ipv6.conf.all.forwarding=0",
            steps: &[Node("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")],
            undo: &[Node("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")],
            family: Some(Family::V6),
            ..Change::STOP
        },
        Change {
            name: "net.ipv4.conf.c0.forwarding=0",
            steps: &[Node("echo 0 > /proc/sys/net/ipv4/conf/c0/forwarding")],
            undo: &[Node("echo 1 > /proc/sys/net/ipv4/conf/c0/forwarding")],
            family: Some(Family::V4),
            ..Change::STOP
        },
        Change {
            name: "net.ipv4.conf.s0.forwarding=0",
            steps: &[Node("echo 0 > /proc/sys/net/ipv4/conf/s0/forwarding")],
            undo: &[Node("echo 1 > /proc/sys/net/ipv4/conf/s0/forwarding")],
            family: Some(Family::V4),
            ..Change::STOP
        },
        // The kernel asks only the one for all interfaces.
        Change {
            name: "net.ipv6.conf.c0.forwarding=0",
            steps: &[Node("echo 0 > /proc/sys/net/ipv6/conf/c0/forwarding")],
            undo: &[Node("echo 1 > /proc/sys/net/ipv6/conf/c0/forwarding")],
            path: Path::Any,
            ..Change::HARMLESS
        },
    ],
    ..Case::PLAIN
};

/// Into a VRF without routes. Each in worlds of its own, since the interface loses its IPv6 addresses on the way.
const VRFS: [Case; 2] = [
    Case {
        name: "vrf",
        set_up: &[Node(VRF)],
        changes: &[Change {
            name: "the client's interface goes into it",
            steps: &[Node("ip link set c0 master blue")],
            ..Change::STOP
        }],
        ..Case::PLAIN
    },
    Case {
        name: "vrf",
        set_up: &[Node(VRF)],
        changes: &[Change {
            name: "the server's interface goes into it",
            steps: &[Node("ip link set s0 master blue")],
            ..Change::STOP
        }],
        ..Case::PLAIN
    },
];

const VRF: &str = "ip link add blue type vrf table 10; ip link set blue up";

#[test]
fn blackholes_and_their_like() {
    ROUTES.run(With::Agent).assert_same_fate();
}

#[test]
fn blackholes_and_their_like_with_rendered_rules_and_no_agent() {
    ROUTES.run(With::Rendered).assert_same_fate();
}

#[test]
fn routes_in_tables_that_are_asked_before() {
    OTHER_TABLES.run(With::Agent).assert_same_fate();
}

#[test]
fn rules_that_deny() {
    RULES.run(With::Agent).assert_same_fate();
}

#[test]
fn rules_that_deny_with_rendered_rules_and_no_agent() {
    // The others select by what no rule of nftables can ask about.
    let case = Case { changes: &RULES.changes[..2], ..RULES };
    case.run(With::Rendered).assert_same_fate();
}

#[test]
fn forwarding_switched_off() {
    FORWARDING.run(With::Agent).assert_same_fate();
}

#[test]
fn interfaces_put_into_a_vrf_without_routes() {
    assert_same_fates(&VRFS, With::Agent);
}
