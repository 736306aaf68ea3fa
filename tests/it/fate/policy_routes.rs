//! Routes that policy rules choose: two uplinks to the server, `s0` by the main table, `s1` by table 102.
//!
//! The way is the same in both directions, so all of these flows can be offloaded by a packet of the right direction, except
//! where the rule selects by what the flowtable never asks about.

use fastpath_tests::twin::{
    Case, Change, Ends, Flows, Path,
    Step::{self, Client, Node, Server},
    With, assert_same_fates,
};

const TABLE_102: Step = Node(
    "ip route add 10.102.0.2/32 via 10.12.0.2 table 102; ip -6 route add fd00:102::2/128 via fd00:12::2 table 102",
);
const ANSWER_BY_SECOND: Step =
    Server("ip route replace default via 10.12.0.1; ip -6 route replace default via fd00:12::1");

const BASE: Case = Case { ends: Ends::Distant, flows: Flows::BothCross, ..Case::PLAIN };

const IIF: Case = Case {
    name: "ip rule iif",
    set_up: &[
        TABLE_102,
        ANSWER_BY_SECOND,
        Node("ip rule add iif c0 lookup 102; ip -6 rule add iif c0 lookup 102"),
    ],
    ..BASE
};

const MARKS: Case = Case {
    name: "marks on the client's packets only",
    set_up: &[
        TABLE_102,
        ANSWER_BY_SECOND,
        Node("ip rule add fwmark 2 lookup 102; ip -6 rule add fwmark 2 lookup 102"),
        Node(
            "nft 'table inet marks { chain pre { type filter hook prerouting priority mangle; iifname c0 meta mark set 2; }; }'",
        ),
    ],
    ..BASE
};

/// The client is on the internet, behind two uplinks; the node's address on the second one is forwarded to the server.
const PORT_FORWARD: Case = Case {
    name: "port forward on the second uplink",
    ends: Ends::Service("10.11.0.1", "fd00:11::1"),
    set_up: &[
        Node(
            "ip route add 10.101.0.2/32 via 10.11.0.2 table 102
             ip -6 route add fd00:101::2/128 via fd00:11::2 table 102
             ip rule add fwmark 2 lookup 102; ip -6 rule add fwmark 2 lookup 102",
        ),
        Node(
            "nft 'table inet uplinks {
                chain marks {
                    type filter hook prerouting priority mangle
                    iifname c1 ct state new ct mark set 2
                    iifname s0 meta mark set ct mark
                }
                chain pre {
                    type nat hook prerouting priority dstnat
                    iifname c1 ip daddr 10.11.0.1 meta l4proto { tcp, udp } dnat ip to 10.2.0.2
                    iifname c1 ip6 daddr fd00:11::1 meta l4proto { tcp, udp } dnat ip6 to fd00:2::2
                }
             }'",
        ),
    ],
    ..BASE
};

/// What neither the flowtable nor nft's `fib` asks about: such flows need not be offloaded, only arrive.
const SELECTED: [Case; 4] = [
    Case {
        name: "ip rule ipproto dport",
        set_up: &[
            TABLE_102,
            ANSWER_BY_SECOND,
            Node("for f in -4 -6; do for p in tcp udp; do ip $f rule add ipproto $p dport 7001-7012 lookup 102; done; done"),
        ],
        path: Path::Any,
        ..BASE
    },
    Case {
        name: "ip rule ipproto",
        set_up: &[
            TABLE_102,
            ANSWER_BY_SECOND,
            Node("for f in -4 -6; do for p in tcp udp; do ip $f rule add ipproto $p lookup 102; done; done"),
        ],
        path: Path::Any,
        ..BASE
    },
    Case {
        name: "ip rule sport",
        set_up: &[
            Node(
                "ip route add 10.101.0.2/32 via 10.11.0.2 table 101
                 ip -6 route add fd00:101::2/128 via fd00:11::2 table 101
                 for f in -4 -6; do for p in tcp udp; do ip $f rule add ipproto $p sport 7001-7012 lookup 101; done; done",
            ),
            Client("ip route replace default via 10.11.0.1; ip -6 route replace default via fd00:11::1"),
        ],
        path: Path::Any,
        ..BASE
    },
    Case {
        name: "ip rule dsfield",
        set_up: &[
            TABLE_102,
            ANSWER_BY_SECOND,
            Node("ip rule add dsfield 0x10 lookup 102; ip -6 rule add dsfield 0x10 lookup 102"),
            Node(
                "nft 'table inet marks { chain pre { type filter hook prerouting priority mangle; iifname c0 ip dscp set 4; iifname c0 ip6 dscp set 4; }; }'",
            ),
        ],
        path: Path::Any,
        ..BASE
    },
];

/// Rules that come, and go, under running flows.
const UNDER_WAY: Case = Case {
    name: "rules that come under running flows",
    set_up: &[TABLE_102],
    flows: Flows::AllNext,
    changes: &[
        Change {
            name: "iif",
            steps: &[
                ANSWER_BY_SECOND,
                Node("ip rule add iif c0 lookup 102; ip -6 rule add iif c0 lookup 102"),
            ],
            undo: &[ANSWER_BY_FIRST, Node("ip rule del iif c0 lookup 102; ip -6 rule del iif c0 lookup 102")],
            ..Change::HARMLESS
        },
        Change {
            name: "iif, the answers stay where they are",
            steps: &[Node("ip rule add iif c0 lookup 102; ip -6 rule add iif c0 lookup 102")],
            undo: &[Node("ip rule del iif c0 lookup 102; ip -6 rule del iif c0 lookup 102")],
            path: Path::Slow,
            ..Change::HARMLESS
        },
        Change {
            name: "from",
            steps: &[
                ANSWER_BY_SECOND,
                Node("ip rule add from 10.101.0.2 lookup 102; ip -6 rule add from fd00:101::2 lookup 102"),
            ],
            undo: &[
                ANSWER_BY_FIRST,
                Node("ip rule del from 10.101.0.2 lookup 102; ip -6 rule del from fd00:101::2 lookup 102"),
            ],
            ..Change::HARMLESS
        },
    ],
    ..BASE
};

const ANSWER_BY_FIRST: Step =
    Server("ip route replace default via 10.2.0.1; ip -6 route replace default via fd00:2::1");

#[test]
fn chosen_by_input_interface() {
    IIF.run(With::Agent).assert_same_fate();
}

#[test]
fn chosen_by_mark() {
    MARKS.run(With::Agent).assert_same_fate();
}

#[test]
fn port_forward_on_the_second_uplink() {
    PORT_FORWARD.run(With::Agent).assert_same_fate();
}

#[test]
fn chosen_by_protocol_ports_or_dscp() {
    assert_same_fates(&SELECTED, With::Agent);
}

#[test]
fn rules_may_come_and_go() {
    UNDER_WAY.run(With::Agent).assert_same_fate();
}

#[test]
fn rendered_rules_alone_need_no_agent() {
    assert_same_fates(&[MARKS, PORT_FORWARD, IIF], With::Rendered);
}

#[test]
fn kindnet_rules_lose_flows() {
    for case in [IIF, MARKS, PORT_FORWARD] {
        case.run(With::Kindnet).assert_some_wronged();
    }
}
