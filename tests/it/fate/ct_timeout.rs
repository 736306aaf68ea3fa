//! Connections with a timeout of their own (`ct timeout` objects).

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::Agent,
    reference,
    topology::{Family, Layout, Nat, Topology},
    traffic::Proto,
};

/// Seconds until conntrack forgets the flow, or `None` while it is offloaded.
#[track_caller]
fn timeout(topology: &Topology) -> Option<u64> {
    let lines = topology.conntrack(7001);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines[0].split_whitespace().nth(2).and_then(|word| word.parse().ok())
}

/// On leaving the flowtable the kernel gives a flow the default timeout (`flow_offload_fixup_ct`, net/netfilter/nf_flow_table_core.c),
/// whatever its own. So such flows are left out, whether or not later packets reach the rule that gives it, and others aren't.
#[test]
fn flows_with_a_timeout_of_their_own_keep_it() {
    let rules = [
        "udp dport 7001 ct timeout set \"long\"",
        "ct state new ip saddr 10.1.0.2 udp dport 7001 ct timeout set \"long\"",
        "ct state { new, untracked } udp dport 7001 ct timeout set \"long\"",
        "ct state established accept; udp dport 7001 ct timeout set \"long\"",
        "ct state new jump voices",
        "ct state vmap { new : jump voices, established : accept }",
    ];
    for (rule, older) in rules.iter().zip([true, false].iter().cycle()) {
        kept_by(&format!("type filter hook prerouting priority -150; {rule};"), *older);
    }
}

/// Only a connection's first packet reaches chains of type nat.
#[test]
fn flows_with_a_timeout_that_a_nat_chain_gives_keep_it() {
    for older in [true, false] {
        kept_by("type nat hook prerouting priority -100; udp dport 7001 ct timeout set \"long\";", older);
    }
}

/// `older`: the table is older than the agent. Else it is made beside it, its objects first.
fn kept_by(chain: &str, older: bool) {
    let table = "table ip voip {
            ct timeout long { protocol udp; l3proto ip; policy = { unreplied : 600, replied : 600 }; }
            chain voices { udp dport 7001 ct timeout set \"long\"; }
        }";
    let rules = format!("table ip voip {{\nchain c {{\n{chain}\n}}\n}}");
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let make = || {
        topology.node.nft(table);
        topology.node.nft(&rules);
    };
    if older {
        make();
    }
    let _agent = Agent::start(&topology.node, &[]);
    if !older {
        make();
        thread::sleep(Duration::from_millis(500));
    }
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    let mut other = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!((flow.rounds(30), other.rounds(30)), (30, 30));
    topology.assert_forwarded(&mut flow);
    let left = timeout(&topology).expect("a flow on the normal path");
    assert!((590..=600).contains(&left), "{chain}, older: {older}: {left} s");
    topology.assert_accelerated(&mut other);
}

/// Why: kindnet's rules take the flow, and it loses its timeout.
#[test]
fn kindnet_rules_cost_a_flow_its_timeout() {
    let topology = Topology::routed();
    topology.node.nft(
        "table ip voip {
            ct timeout long { protocol udp; l3proto ip; policy = { unreplied : 600, replied : 600 }; }
            chain c { type filter hook prerouting priority -150; udp dport 7001 ct timeout set \"long\"; }
        }",
    );
    topology.node.nft(&reference::kindnet(&["c0", "s0"]));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(30), 30);
    assert!(topology.marked_offloaded(7001));
    // The flowtable gives up a flow after 30 s.
    thread::sleep(Duration::from_secs(35));
    let left = timeout(&topology).expect("a flow that has left the flowtable");
    assert!(left <= 120, "the kernel keeps a flow's own timeout now: {left} s");
}
