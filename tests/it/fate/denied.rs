//! Rules that deny one direction, or both, of running flows, in every place.

use fastpath_tests::{
    topology::{Layout, Nat},
    twin::{Case, Change, Ends, Fate, Flows, Path, Step::Node, With},
};

const FIREWALL: &str = "nft 'table inet firewall { chain forward { type filter hook forward priority filter; ct state invalid drop; }; }'";

/// Denies of one direction. The other one's packets are accepted still, and must not bring the flow back.
const ONE_DIRECTION: [Change; 2] = [
    Change {
        name: "sport drop",
        steps: &[Node(
            "nft 'add rule inet firewall forward meta l4proto { tcp, udp } th sport 7001-7012 drop'",
        )],
        undo: &[Node("nft 'flush chain inet firewall forward'")],
        ..Change::STOP
    },
    Change {
        name: "dport drop",
        steps: &[Node(
            "nft 'add rule inet firewall forward meta l4proto { tcp, udp } th dport 7001-7012 drop'",
        )],
        undo: &[Node("nft 'flush chain inet firewall forward'")],
        ..Change::STOP
    },
];

const DENIED: Case = Case {
    name: "one direction denied",
    set_up: &[Node(FIREWALL)],
    flows: Flows::AllNext,
    changes: &ONE_DIRECTION,
    ..Case::PLAIN
};

#[test]
fn of_one_direction() {
    DENIED.run(With::Agent).assert_same_fate();
}

#[test]
fn of_one_direction_with_rendered_rules_and_no_agent() {
    DENIED.run(With::Rendered).assert_same_fate();
}

#[test]
fn of_one_direction_with_masquerade() {
    let case = Case {
        name: "one direction denied, masquerade",
        layout: Layout { nat: Nat::Masquerade, ..Case::PLAIN.layout },
        ..DENIED
    };
    case.run(With::Agent).assert_same_fate();
}

#[test]
fn of_one_direction_with_a_service_address() {
    let case = Case {
        name: "one direction denied, service",
        layout: Layout { nat: Nat::Service, ..Case::PLAIN.layout },
        ends: Ends::Service("10.96.0.1", "fd00:96::1"),
        ..DENIED
    };
    case.run(With::Agent).assert_same_fate();
}

/// Chains that see a packet after the rule that offloads, wherever that is when they come.
const LATE: Case = Case {
    name: "denied late",
    flows: Flows::AllNext,
    changes: &[
        Change {
            name: "forward at 400, sport",
            steps: &[Node(
                "nft 'table inet late { chain c { type filter hook forward priority 400; meta l4proto { tcp, udp } th sport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet late")],
            ..Change::STOP
        },
        Change {
            name: "forward at 400, dport",
            steps: &[Node(
                "nft 'table inet late { chain c { type filter hook forward priority 400; meta l4proto { tcp, udp } th dport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet late")],
            ..Change::STOP
        },
    ],
    ..Case::PLAIN
};

const POSTROUTING: Case = Case {
    name: "denied in postrouting",
    changes: &[
        Change {
            name: "postrouting, sport",
            steps: &[Node(
                "nft 'table inet late { chain c { type filter hook postrouting priority 0; meta l4proto { tcp, udp } th sport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet late")],
            ..Change::STOP
        },
        Change {
            name: "postrouting, dport",
            steps: &[Node(
                "nft 'table inet late { chain c { type filter hook postrouting priority 0; meta l4proto { tcp, udp } th dport 7001-7012 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet late")],
            ..Change::STOP
        },
    ],
    ..LATE
};

/// Where such chains deny nothing, flows stay fast.
const LATE_AND_HARMLESS: Case = Case {
    name: "late chains that deny others",
    set_up: &[Node(
        "nft 'table inet late {
            chain f { type filter hook forward priority 400; udp dport 9 drop; }
            chain p { type filter hook postrouting priority 0; udp dport 9 drop; }
         }'",
    )],
    flows: Flows::BothCross,
    ..Case::PLAIN
};

#[test]
fn after_our_chain_in_forward() {
    LATE.run(With::Agent).assert_same_fate();
}

#[test]
fn after_our_chain_in_postrouting() {
    POSTROUTING.run(With::Agent).assert_same_fate();
}

#[test]
fn late_chains_that_deny_others_leave_flows_fast() {
    LATE_AND_HARMLESS.run(With::Agent).assert_same_fate();
}

/// Streams that are answered once, at their start.
const ONE_WAY: Case = Case {
    name: "one way",
    flows: Flows::OneWay,
    path: Path::Any,
    changes: &[
        Change { path: Path::Any, fate: Fate::Arrive, ..ONE_DIRECTION[0] },
        ONE_DIRECTION[1],
        Change {
            name: "others are denied",
            steps: &[Node("nft 'add rule inet firewall forward udp dport 9 drop'")],
            undo: &[Node("nft 'flush chain inet firewall forward'")],
            path: Path::Any,
            ..Change::HARMLESS
        },
    ],
    ..DENIED
};

#[test]
fn one_way_streams_arrive_and_are_denied_like_others() {
    ONE_WAY.run(With::Programs).assert_same_fate();
}

#[test]
fn of_one_direction_kindnet_rules_enforce_none() {
    DENIED.run(With::Kindnet).assert_some_wronged();
}
