//! A captive portal as routers have it: who is in the set may pass, for a while. A chain and a filter at ingress look at all packets.

use std::time::Duration;

use super::{Node, Trial};
use crate::{
    service::sh,
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "portal",
    packages: &["nftables"],
    told: &[
        ("doctor --no-canary --all", "tc filter u32 runs"),
        ("doctor --no-canary --all", "offloaded packets pass them too: netdev portal in on c0"),
        (
            "doctor --no-canary --all",
            "set auth: changes by itself, so offloaded flows are revalidated when an element",
        ),
        ("status", "set auth; when an element times out"),
    ],
    run: trial,
    ..Trial::PLAIN
};

// Before Linux 6.6 the agent's own filter may have the first priority, which no filter of another protocol gets then.
const RULES: &str = "nft -f - <<'END'
table inet portal {
    set auth { type ipv4_addr; flags timeout; }
    chain forward {
        type filter hook forward priority filter; policy accept
        iifname c0 ip saddr @auth accept
        iifname c0 drop
    }
}
table netdev portal {
    chain in {
        type filter hook ingress device c0 priority filter; policy accept
        ip saddr 10.1.0.66 counter drop
    }
}
END
nft 'add element inet portal auth { 10.1.0.2 timeout 1h }'
tc qdisc replace dev s0 clsact
tc filter add dev s0 ingress protocol ip prio 10 u32 match u32 0 0 police rate 10gbit burst 10m conform-exceed drop";

/// Admits the client again, for so long.
fn admit(time: &str) {
    sh(&format!(
        "nft 'delete element inet portal auth {{ 10.1.0.2 }}; add element inet portal auth {{ 10.1.0.2 timeout {time} }}'"
    ));
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| drop(sh(RULES)));
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP of an admitted client", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("UDP of an admitted client", &mut udp);
    node.change_due("the client's time runs out", &mut udp, Duration::from_secs(4), || admit("4s"));
    node.change("the client pays again", &mut udp, || {
        sh("nft 'add element inet portal auth { 10.1.0.2 timeout 1h }'");
    });
    node.fast("UDP after that", &mut udp);
    node.change("the client is put out", &mut udp, || {
        sh("nft 'delete element inet portal auth { 10.1.0.2 }'");
    });
    sh("nft 'add element inet portal auth { 10.1.0.2 timeout 1h }'");
    let mut tcp = node.open(Tcp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    node.fast("TCP after that", &mut tcp);
    node.agent_goes(tcp);
    sh("nft 'delete table inet portal; delete table netdev portal'; tc qdisc delete dev s0 clsact");
}
