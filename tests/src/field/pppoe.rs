//! PPPoE by pppd with the kernel's driver (plugin rp-pppoe), against pppoe-server: an access line.

use super::{Node, Trial};
use crate::{
    service::{run, sh},
    topology::Topology,
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "pppoe",
    packages: &["ppp", "pppoe"],
    told: &[("status", "ppp0")],
    run: trial,
    ..Trial::PLAIN
};

/// The provider, which gives this address.
fn serve(topology: &Topology, address: &str) {
    sh("printf 'noauth\\nlcp-echo-interval 5\\nlcp-echo-failure 3\\n' >/etc/ppp/pppoe-server-options
        [ ! -e /run/pppoe-server.pid ] || kill $(cat /run/pppoe-server.pid) || true");
    let script = format!(
        "pppoe-server -I eth0 -L 10.66.0.1 -R {address} -N 1 -F >/dev/null 2>&1 & echo $! >/run/pppoe-server.pid"
    );
    topology.server().ns.output("bash", &["-euc", &script]);
}

/// Waits for the line.
fn dial(address: &str) {
    sh("pon dsl");
    sh(&format!(
        "for i in $(seq 300); do ip -4 addr show dev ppp0 2>/dev/null | grep -q {address} && exit; sleep 0.2; done; exit 1"
    ));
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    let topology = &node.topology;
    serve(topology, "10.66.0.10");
    sh("printf 'plugin rp-pppoe.so\\ns0\\nnoauth\\nuser field\\nnodefaultroute\\nmaxfail 1\\n' >/etc/ppp/peers/dsl
        printf '\"field\" * \"secret\"\\n' >/etc/ppp/chap-secrets");
    node.software(|| {
        sh("nft -f - <<'END'
table ip line { chain post { type nat hook postrouting priority srcnat; oifname \"ppp*\" masquerade; }; }
END");
        dial("10.66.0.10");
    });
    let tcp = node.open(Tcp, &client, &server, "10.66.0.1:7001", "10.66.0.1:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP out", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.66.0.1:7002", "10.66.0.1:7002");
    node.fast("UDP out", &mut udp);
    drop(tcp);
    node.change("hung up", &mut udp, || drop(run("poff", &["dsl"])));
    sh("while ip link show dev ppp0 >/dev/null 2>&1; do sleep 0.2; done");
    serve(&node.topology, "10.66.0.20");
    dial("10.66.0.20");
    let mut udp = node.open(Udp, &client, &server, "10.66.0.1:7003", "10.66.0.1:7003");
    node.fast("UDP out, dialled again, with another address", &mut udp);
    let tcp = node.open(Tcp, &client, &server, "10.66.0.1:7004", "10.66.0.1:7004");
    node.agent_goes(tcp);
    sh("poff dsl; kill $(cat /run/pppoe-server.pid) || true; sleep 1; nft delete table ip line");
}
