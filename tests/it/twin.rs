//! Random operations on two nodes alike, one of which has the agent: some seeds, the same ones each time, and sequences that failed
//! once. `cargo xtask test --tier=twin` runs as many others as one likes.

use fastpath_tests::{
    attach::Attach,
    topology::Nat,
    twin::random::{
        AgentOperation, AtPod, Bridging, Chain, Denial, Device, End, Hook, Ip, Ipvs, Match, Operation, Pair,
        Place, Sequence, Sysctl, TableFamily, Target, Tunnel, Verdict, With, Xtables, XtablesChain,
    },
};

const PLAIN: Sequence = Sequence {
    attach: Attach::Veth,
    nat: Nat::Plain,
    ipvs: false,
    programs: false,
    start_after: 0,
    operations: Vec::new(),
};

/// A test for each of these seeds.
macro_rules! seeds {
    ($($name:ident = $seed:literal,)+) => {
        $(
            #[test]
            fn $name() {
                Sequence::of($seed).assert_same_fate();
            }
        )+
    };
}

seeds! {
    seed_1 = 1,
    seed_3 = 3,
    seed_5 = 5,
    seed_6 = 6,
    seed_7 = 7,
    seed_8 = 8,
}

/// With an agent on neither node nothing differs, or the comparison would say nothing.
#[test]
fn seed_7_without_an_agent() {
    if let Err(failure) = Sequence::of(7).run(With::NoAgent) {
        panic!("{failure}\n{}", Sequence::of(7));
    }
}

/// Seed 220: offloaded packets reach the chain at egress without the mark.
#[test]
fn a_mark_set_in_the_forward_hook_and_asked_for_at_egress() {
    let forward = Xtables { ip: Ip::V4, chain: XtablesChain::MangleForward };
    let egress = Chain { family: TableFamily::Netdev, hook: Hook::EgressServer, priority: 300 };
    let operations = vec![
        Operation::Iptables(forward, Match::Established, Target::Mark, Place::Last),
        Operation::Rule(egress, Match::Marked, Verdict::Drop),
    ];
    Sequence { operations, ..PLAIN }.assert_same_fate();
}

/// Seed 2123: offloaded packets reach chains behind the flowtable without their connection, which `ct state` calls invalid. A
/// chain may be older than the agent, and go.
#[test]
fn chains_behind_the_flowtable_that_ask_for_the_connection() {
    let chain = Chain { family: TableFamily::Bridge, hook: Hook::Postrouting, priority: -150 };
    for start_after in [0, 1] {
        let rule = Operation::Rule(chain, Match::Invalid, Verdict::Drop);
        let more = Operation::Rule(chain, Match::Others, Verdict::Drop);
        let operations = vec![rule.clone(), more, Operation::Undo(Box::new(rule))];
        Sequence { attach: Attach::Bridge, start_after, operations, ..PLAIN }.assert_same_fate();
    }
}

/// Seed 316: where no rule translates any more, a stream of a masqueraded connection isn't helped into the flowtable, which would.
#[test]
fn a_masqueraded_flow_whose_rules_are_flushed() {
    let operations = vec![Operation::FlushRuleset];
    let sequence = Sequence { nat: Nat::Masquerade, programs: true, operations, ..PLAIN };
    sequence.assert_same_fate();
}

/// With its last chain of type nat the kernel stops to translate, also packets of connections that it has translated so far.
#[test]
fn flows_whose_translation_goes() {
    for nat in [Nat::Masquerade, Nat::Service] {
        let operations = vec![Operation::NoTranslation];
        Sequence { nat, operations, ..PLAIN }.assert_same_fate();
    }
}

/// Each of them, and taken back.
fn done_and_undone(operations: impl IntoIterator<Item = Operation>) -> Vec<Operation> {
    let both = |operation: Operation| [operation.clone(), Operation::Undo(Box::new(operation))];
    operations.into_iter().flat_map(both).collect()
}

/// A late message of an earlier flow to the same port isn't the first one of the next flow.
#[test]
fn a_link_that_is_down_for_longer() {
    Sequence { operations: done_and_undone([Operation::Down(Device::Client)]), ..PLAIN }
        .assert_done_with_same_fate();
}

#[test]
fn tunnels_to_the_server() {
    let operations = done_and_undone(Tunnel::ALL.iter().map(|&tunnel| Operation::Tunnel(tunnel)));
    Sequence { operations, ..PLAIN }.assert_done_with_same_fate();
}

fn bridging() -> Vec<Operation> {
    done_and_undone(Bridging::ALL.iter().map(|&bridging| Operation::OneBridge(bridging)))
}

#[test]
fn one_bridge_for_both_links() {
    Sequence { operations: bridging(), ..PLAIN }.assert_done_with_same_fate();
}

#[test]
fn one_bridge_for_both_links_whose_packets_pass_rules() {
    let rules = Operation::Sysctl(Sysctl::BridgeRules);
    Sequence { operations: [vec![rules], bridging()].concat(), ..PLAIN }.assert_done_with_same_fate();
}

#[test]
fn services_of_ipvs() {
    let operations = done_and_undone(Ipvs::ALL.iter().map(|&operation| Operation::Ipvs(operation)));
    Sequence { ipvs: true, operations, ..PLAIN }.assert_done_with_same_fate();
}

#[test]
fn addresses_that_become_the_nodes() {
    let denials = End::ALL.iter().map(|&end| Operation::Deny(end, Denial::Local));
    Sequence { operations: done_and_undone(denials), ..PLAIN }.assert_done_with_same_fate();
}

/// What the agent has in the kernel is damaged, and other agents take over.
#[test]
fn programs_and_pins_that_go() {
    use AgentOperation::{
        BpffsUnmounted, CleanedUp, ClsactDeleted, PinsUnmounted, ProgramsDetached, Reloaded, Upgraded,
    };
    let damages = [
        Upgraded,
        CleanedUp,
        PinsUnmounted,
        ProgramsDetached,
        Reloaded,
        ClsactDeleted,
        BpffsUnmounted,
        Upgraded,
    ];
    let operations = damages.map(Operation::Agent).to_vec();
    Sequence { programs: true, operations, ..PLAIN }.assert_same_fate();
}

/// Pods that get another pair, or one end of whose pair is in the other one's namespace for a while.
#[test]
fn pairs_of_pods_that_go_and_move() {
    let operations = done_and_undone(Pair::ALL.iter().map(|pair| Operation::Pair(*pair)));
    let sequence = Sequence { programs: true, operations, ..PLAIN };
    sequence.assert_done_with_same_fate();
    assert_eq!(sequence.assert_same_fate_with(With::Forwarding).refused, 0);
}

/// What comes to a pod's end sees packets that programs forward, too.
#[test]
fn filters_programs_and_settings_in_pods() {
    let operations = done_and_undone(AtPod::ALL.iter().map(|what| Operation::AtPod(End::Server, *what)));
    let summary = Sequence { programs: true, operations, ..PLAIN }.assert_same_fate_with(With::Forwarding);
    assert_eq!(summary.refused, 0, "an operation is refused");
}
