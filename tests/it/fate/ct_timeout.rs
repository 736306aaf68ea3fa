//! Connections with a timeout of their own (`ct timeout` objects).

use std::{thread, time::Duration};

use fastpath_tests::{
    agent::Agent,
    topology::{Family, Topology},
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
/// whatever its own. An agent that leaves such flows out keeps it.
#[test]
fn leaving_the_flowtable_costs_a_flow_its_own_timeout() {
    for with in [true, false] {
        let topology = Topology::routed();
        topology.node.nft(
            "table ip voip {
                ct timeout long { protocol udp; l3proto ip; policy = { unreplied : 600, replied : 600 }; }
                chain c { type filter hook prerouting priority -150; udp dport 7001 ct timeout set \"long\"; }
            }",
        );
        let _agent = with.then(|| Agent::start(&topology.node, &[]));
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        assert_eq!(flow.rounds(30), 30);
        let offloaded = topology.marked_offloaded(7001);
        // The flowtable gives up a flow after 30 s.
        let silence = if offloaded { 35 } else { 5 };
        thread::sleep(Duration::from_secs(silence));
        let left = timeout(&topology).expect("a flow that has left the flowtable");
        println!("agent: {with}, offloaded: {offloaded}, left after {silence} s of silence: {left} s");
        if offloaded {
            assert!(left <= 120, "the kernel keeps a flow's own timeout now: {left} s");
        } else {
            assert!((500..=600).contains(&left), "{left} s");
        }
    }
}
