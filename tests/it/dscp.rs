//! DSCP that others set at ingress and at egress: chains there see offloaded packets like all others.

use fastpath_tests::{
    agent::Agent,
    netns::Netns,
    path::STRAYS,
    topology::{Family, Topology},
    traffic::Proto,
};

const ROUNDS: usize = 50;
/// Counts packets to the server with the class and without.
const COUNT: &str = "table inet count {
    counter marked { }
    counter plain { }
    chain input {
        type filter hook input priority 0
        ip dscp cs3 counter name marked
        ip6 dscp cs3 counter name marked
        meta l4proto { tcp, udp } ip dscp != cs3 counter name plain
        meta l4proto { tcp, udp } ip6 dscp != cs3 counter name plain
    }
}";

/// With and without the class, since this was last asked.
#[track_caller]
fn counted(server: &Netns) -> [u64; 2] {
    let listing = server.output("nft", &["-j", "reset", "counters", "table", "inet", "count"]);
    let listing: serde_json::Value = serde_json::from_str(&listing).expect("JSON");
    let counters: Vec<_> =
        listing["nftables"].as_array().expect("a list").iter().map(|one| &one["counter"]).collect();
    ["marked", "plain"].map(|name| {
        let counter = counters.iter().find(|counter| counter["name"] == name).expect("a counter");
        counter["packets"].as_u64().expect("packets")
    })
}

#[test]
fn that_is_set_at_ingress_or_egress_is_on_offloaded_packets() {
    for (hook, device) in [("ingress", "c0"), ("egress", "s0")] {
        let topology = Topology::routed();
        let server = topology.server().ns.clone();
        server.nft(COUNT);
        topology.node.nft(&format!(
            "table netdev edge {{ chain c {{ type filter hook {hook} device {device} priority 0; ip dscp set cs3; ip6 dscp set cs3; }}; }}"
        ));
        let _agent = Agent::start(&topology.node, &[]);
        let kinds =
            [Proto::Tcp, Proto::Udp].map(|proto| [Family::V4, Family::V6].map(|family| (proto, family)));
        for ((proto, family), port) in kinds.into_iter().flatten().zip(7001..) {
            let mut flow = topology.open(proto, family, port);
            assert_eq!(flow.rounds(ROUNDS), ROUNDS);
            counted(&server);
            let before = topology.forwarded(port);
            assert_eq!(flow.rounds(ROUNDS), ROUNDS);
            let forwarded = topology.forwarded(port).original - before.original;
            let [marked, plain] = counted(&server);
            assert!(forwarded <= STRAYS, "{hook}, {flow:?}: {forwarded} on the forward path");
            assert!(
                marked >= ROUNDS as u64 && plain == 0,
                "{hook}, {flow:?}: {marked} with it, {plain} without"
            );
        }
    }
}
