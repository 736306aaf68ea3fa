//! Requests and answers over different links.

use fastpath_tests::twin::{
    Case, Change, Ends, Flows, Path,
    Step::{Client, Node, Server},
    With, assert_same_fates,
};

/// None of these flows can be offloaded: the flowtable takes the link that a packet came in on for the way back.
const CASES: [Case; 3] = [
    Case {
        name: "answers leave by another link than requests come in on",
        set_up: &[Node(
            "ip route replace 10.101.0.2/32 via 10.11.0.2; ip -6 route replace fd00:101::2/128 via fd00:11::2",
        )],
        ..ASYMMETRIC
    },
    Case {
        name: "requests leave by another link than answers come in on",
        set_up: &[Node(
            "ip route replace 10.102.0.2/32 via 10.12.0.2; ip -6 route replace fd00:102::2/128 via fd00:12::2",
        )],
        ..ASYMMETRIC
    },
    Case {
        name: "both",
        set_up: &[
            Node(
                "ip route replace 10.101.0.2/32 via 10.11.0.2; ip -6 route replace fd00:101::2/128 via fd00:11::2",
            ),
            Node(
                "ip route replace 10.102.0.2/32 via 10.12.0.2; ip -6 route replace fd00:102::2/128 via fd00:12::2",
            ),
        ],
        ..ASYMMETRIC
    },
];

const ASYMMETRIC: Case =
    Case { ends: Ends::Distant, flows: Flows::BothCross, path: Path::Slow, ..Case::PLAIN };

/// Routes that move under running flows.
const MOVES: Case = Case {
    name: "routes that move",
    ends: Ends::Distant,
    changes: &[
        Change {
            name: "answers leave by the second link",
            steps: &[Node(
                "ip route replace 10.101.0.2/32 via 10.11.0.2; ip -6 route replace fd00:101::2/128 via fd00:11::2",
            )],
            undo: &[Node(
                "ip route replace 10.101.0.2/32 via 10.1.0.2; ip -6 route replace fd00:101::2/128 via fd00:1::2",
            )],
            path: Path::Slow,
            ..Change::HARMLESS
        },
        Change {
            name: "requests come in on the second link, and answers leave by it",
            steps: &[
                Client("ip route replace default via 10.11.0.1; ip -6 route replace default via fd00:11::1"),
                Node(
                    "ip route replace 10.101.0.2/32 via 10.11.0.2; ip -6 route replace fd00:101::2/128 via fd00:11::2",
                ),
            ],
            undo: &[
                Client("ip route replace default via 10.1.0.1; ip -6 route replace default via fd00:1::1"),
                Node(
                    "ip route replace 10.101.0.2/32 via 10.1.0.2; ip -6 route replace fd00:101::2/128 via fd00:1::2",
                ),
            ],
            ..Change::HARMLESS
        },
        Change {
            name: "both to the server's second link",
            steps: &[
                Server("ip route replace default via 10.12.0.1; ip -6 route replace default via fd00:12::1"),
                Node(
                    "ip route replace 10.102.0.2/32 via 10.12.0.2; ip -6 route replace fd00:102::2/128 via fd00:12::2",
                ),
            ],
            undo: &[
                Server("ip route replace default via 10.2.0.1; ip -6 route replace default via fd00:2::1"),
                Node(
                    "ip route replace 10.102.0.2/32 via 10.2.0.2; ip -6 route replace fd00:102::2/128 via fd00:2::2",
                ),
            ],
            ..Change::HARMLESS
        },
    ],
    ..Case::PLAIN
};

#[test]
fn flows_arrive() {
    assert_same_fates(&CASES, With::Agent);
}

#[test]
fn flows_arrive_with_rendered_rules_and_no_agent() {
    assert_same_fates(&CASES, With::Rendered);
}

#[test]
fn routes_may_move() {
    MOVES.run(With::Agent).assert_same_fate();
}

#[test]
fn kindnet_rules_lose_them() {
    // In the third case neither direction comes in where the flowtable expects it, so nothing of it is fast, or lost.
    for case in &CASES[..2] {
        case.run(With::Kindnet).assert_some_wronged();
    }
}
