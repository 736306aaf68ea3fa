//! Rules that deny one direction, or both, of running flows, wherever they stand.

use fastpath_tests::{
    topology::{Layout, Nat},
    twin::{Case, Change, Ends, Flows, Step::Node, With},
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
    // Nobody empties the flowtable there, so only the flows that begin after the rule are denied.
    let case = Case { changes: &[], ..DENIED };
    case.run(With::Rendered).assert_same_fate();
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

#[test]
fn of_one_direction_kindnet_rules_enforce_none() {
    DENIED.run(With::Kindnet).assert_some_wronged();
}
