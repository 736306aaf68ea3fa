//! WireGuard by wg-quick: a network behind a peer.

use super::{Node, Trial};
use crate::{
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "wireguard",
    packages: &["wireguard-tools"],
    again: &["wg syncconf wg0 <(wg-quick strip wg0)", "systemctl restart wg-quick@wg0"],
    told: &[("status", "wireguard")],
    run: trial,
    ..Trial::PLAIN
};

// Keys that protect nothing: thirty-two times 1 and 2, and the public ones that the programs reckon of them.
const NODE_KEY: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const PEER_KEY: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn public(key: &str) -> String {
    sh(&format!("echo {key} | wg pubkey")).trim().to_owned()
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    let peer = server.clone();
    let key = public(PEER_KEY);
    node.software(|| {
        sh(&format!(
            "install -m 600 /dev/stdin /etc/wireguard/wg0.conf <<'END'
[Interface]
PrivateKey = {NODE_KEY}
Address = 10.55.0.1/24
ListenPort = 51820
[Peer]
PublicKey = {key}
AllowedIPs = 10.55.0.2/32
Endpoint = 10.2.0.2:51820
END"
        ));
        service::start("wg-quick@wg0");
        peer.ip("link add wg0 type wireguard\naddress add 10.55.0.2/24 dev wg0\nlink set wg0 mtu 1420 up\n\
                 route add 10.1.0.0/24 dev wg0\n");
        sh(&format!("echo {PEER_KEY} >/run/peer-key"));
        let near = public(NODE_KEY);
        peer.output(
            "wg",
            &["set", "wg0", "private-key", "/run/peer-key", "listen-port", "51820", "peer", &near]
                .into_iter()
                .chain(["allowed-ips", "0.0.0.0/0", "endpoint", "10.2.0.1:51820"])
                .collect::<Vec<_>>(),
        );
    });
    let tcp = node.open(Tcp, &client, &server, "10.55.0.2:7001", "10.55.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP to a peer", &mut tcp);
    let mut udp = node.open(Udp, &server, &client, "10.1.0.2:7002", "10.1.0.2:7002");
    node.fast("UDP from a peer", &mut udp);
    node.change("a peer that may send from no address", &mut udp, || {
        run("wg", &["set", "wg0", "peer", &key, "allowed-ips", ""]);
    });
    node.change("the peer is allowed again", &mut udp, || {
        run("wg", &["set", "wg0", "peer", &key, "allowed-ips", "10.55.0.2/32"]);
    });
    node.fast("UDP after that", &mut udp);
    drop(tcp);
    node.change("wg-quick down", &mut udp, || drop(run("systemctl", &["stop", "wg-quick@wg0"])));
    service::start("wg-quick@wg0");
    let tcp = node.open(Tcp, &client, &server, "10.55.0.2:7003", "10.55.0.2:7003");
    let mut tcp = tcp;
    node.fast("TCP after wg-quick up", &mut tcp);
    node.agent_goes(tcp);
    run("systemctl", &["stop", "wg-quick@wg0"]);
    server.ip("link delete wg0\n");
}
