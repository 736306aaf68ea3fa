//! What other programs do with packets when they come in: netdev and inet ingress chains, filters of traffic control, on the interface
//! itself or on one above it.

use fastpath_tests::{
    attach::Attach,
    topology::Layout,
    twin::{Case, Change, Flows, Path, Step::Node, With},
};

/// Chains that are older than the flowtable's hook, of its priority. The rules come later.
const OLDER: Case = Case {
    name: "older ingress chains",
    set_up: &[Node(
        "nft 'table netdev early { chain c { type filter hook ingress device c0 priority filter; }; }'
         nft 'table inet early { chain s { type filter hook ingress device s0 priority filter; }; }'",
    )],
    flows: Flows::AllNext,
    changes: &[
        Change {
            name: "netdev chain denies requests",
            steps: &[Node("nft 'add rule netdev early c meta l4proto { tcp, udp } th dport 7001-7012 drop'")],
            undo: &[Node("nft 'flush chain netdev early c'")],
            ..Change::STOP
        },
        Change {
            name: "inet ingress chain denies answers",
            steps: &[Node("nft 'add rule inet early s meta l4proto { tcp, udp } th sport 7001-7012 drop'")],
            undo: &[Node("nft 'flush chain inet early s'")],
            ..Change::STOP
        },
    ],
    ..Case::PLAIN
};

/// Chains that come while flows run.
const NEWER: Case = Case {
    name: "newer ingress chains",
    set_up: &[],
    changes: &[
        Change {
            name: "netdev chain denies requests",
            steps: &[Node(
                "nft 'table netdev early { chain c { type filter hook ingress device c0 priority filter; meta l4proto { tcp, udp } th dport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table netdev early")],
            ..Change::STOP
        },
        Change {
            name: "inet ingress chain denies answers",
            steps: &[Node(
                "nft 'table inet early { chain s { type filter hook ingress device s0 priority filter; meta l4proto { tcp, udp } th sport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet early")],
            ..Change::STOP
        },
        Change {
            name: "netdev chain denies requests, then the flowtable is emptied",
            steps: &[
                Node(
                    "nft 'table netdev early { chain c { type filter hook ingress device c0 priority filter; meta l4proto { tcp, udp } th dport 7001-7012 drop; }; }'",
                ),
                Node(
                    "nft 'table inet firewall { chain forward { type filter hook forward priority filter; udp dport 9 drop; }; }'",
                ),
            ],
            undo: &[Node("nft delete table netdev early; nft delete table inet firewall")],
            ..Change::STOP
        },
    ],
    ..OLDER
};

/// Datagrams are counted, every one, before and after the flowtable is emptied.
const COUNTED: Case = Case {
    name: "ingress chains that count",
    set_up: &[Node(
        "nft 'table netdev early { counter requests { }; chain c { type filter hook ingress device c0 priority filter; udp dport 7001-7012 counter name requests; }; }'
         nft 'table inet early { counter answers { }; chain s { type filter hook ingress device s0 priority filter; udp sport 7001-7012 counter name answers; }; }'",
    )],
    changes: &[
        Change {
            name: "others are denied",
            steps: &[Node(
                "nft 'table inet firewall { chain forward { type filter hook forward priority filter; udp dport 9 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet firewall")],
            path: Path::Any,
            ..Change::HARMLESS
        },
        Change {
            name: "another counts too",
            steps: &[Node(
                "nft 'table netdev newer { counter requests { }; chain c { type filter hook ingress device c0 priority filter; udp dport 7001-7012 counter name requests; }; }'",
            )],
            path: Path::Any,
            ..Change::HARMLESS
        },
        Change {
            name: "others are allowed",
            steps: &[Node(
                "nft 'table inet firewall { chain forward { type filter hook forward priority filter; udp dport 9 accept; }; }'",
            )],
            path: Path::Any,
            ..Change::HARMLESS
        },
    ],
    path: Path::Any,
    same_output: "nft list counters | grep -E 'counter|packets'",
    flows: Flows::Four,
    ..OLDER
};

/// An interface above the one that packets come in on.
const UPPER: Case = Case {
    name: "VLAN",
    layout: Layout { attach: Attach::Vlan, ..Case::PLAIN.layout },
    changes: &[
        Change {
            name: "tc filter drops at ingress of v5",
            steps: &[Node(
                "tc qdisc add dev v5 clsact; tc filter add dev v5 ingress protocol all matchall action drop",
            )],
            undo: &[Node("tc qdisc del dev v5 clsact")],
            ..Change::STOP
        },
        Change {
            name: "netdev chain drops at ingress of v5",
            steps: &[Node(
                "nft 'table netdev upper { chain c { type filter hook ingress device v5 priority -10; meta l4proto { tcp, udp } drop; }; }'",
            )],
            undo: &[Node("nft delete table netdev upper")],
            ..Change::STOP
        },
        Change {
            name: "netdev chain drops others at ingress of v5",
            steps: &[Node(
                "nft 'table netdev upper { chain c { type filter hook ingress device v5 priority -10; udp dport 9 drop; }; }'",
            )],
            undo: &[Node("nft delete table netdev upper")],
            ..Change::HARMLESS
        },
    ],
    ..Case::PLAIN
};

const BRIDGE: Case = Case {
    name: "bridge",
    layout: Layout { attach: Attach::Bridge, ..Case::PLAIN.layout },
    changes: &[
        Change {
            name: "tc filter drops at ingress of br0",
            steps: &[Node(
                "tc qdisc add dev br0 clsact; tc filter add dev br0 ingress protocol all matchall action drop",
            )],
            undo: &[Node("tc qdisc del dev br0 clsact")],
            ..Change::STOP
        },
        Change {
            name: "bridge chain drops in prerouting",
            steps: &[Node(
                "nft 'table bridge upper { chain c { type filter hook prerouting priority 0; meta l4proto { tcp, udp } th sport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table bridge upper")],
            ..Change::STOP
        },
    ],
    ..Case::PLAIN
};

#[test]
fn chains_older_than_the_flowtable() {
    OLDER.run(With::Agent).assert_same_fate();
}

#[test]
fn chains_newer_than_the_flowtable() {
    NEWER.run(With::Agent).assert_same_fate();
}

#[test]
fn chains_that_count_miss_nothing() {
    COUNTED.run(With::Agent).assert_same_fate();
}

#[test]
fn of_a_vlan() {
    UPPER.run(With::Agent).assert_same_fate();
}

#[test]
fn of_a_bridge() {
    BRIDGE.run(With::Agent).assert_same_fate();
}
