//! systemd-networkd: it configures the server's link, again and again.

use super::{Node, Trial};
use crate::{
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "networkd",
    packages: &["systemd"],
    again: &["networkctl reload", "systemctl restart systemd-networkd"],
    told: &[("doctor --no-canary --all", "s0: managed (veth, MTU 1500)")],
    run: trial,
    ..Trial::PLAIN
};

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        sh("cat >/etc/systemd/network/50-field.network <<'END'
[Match]
Name=s0
[Network]
Address=10.2.0.1/24
Address=fd00:2::1/64
IPForward=yes
[Route]
Destination=10.99.0.0/24
Gateway=10.2.0.2
END");
        service::start("systemd-networkd");
        sh("until ip route show 10.99.0.0/24 | grep -q 10.2.0.2; do sleep 0.2; done");
    });
    server.ip("address add 10.99.0.2/24 dev lo\n");
    let tcp = node.open(Tcp, &client, &server, "10.99.0.2:7001", "10.99.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP by its route", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.99.0.2:7002", "10.99.0.2:7002");
    node.fast("UDP by its route", &mut udp);
    node.change("networkctl reconfigure", &mut udp, || drop(run("networkctl", &["reconfigure", "s0"])));
    node.fast("UDP after that", &mut udp);
    node.change("its route is taken out", &mut udp, || {
        sh("sed -i '/^.Route./,$d' /etc/systemd/network/50-field.network; networkctl reload
            while ip route show 10.99.0.0/24 | grep -q 10.2.0.2; do sleep 0.05; done");
    });
    node.told("its route is taken out", &udp, "no-route");
    drop(tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    node.fast("UDP to the link", &mut udp);
    node.change("networkctl down", &mut udp, || drop(run("networkctl", &["down", "s0"])));
    node.told("networkctl down", &udp, "no-route");
    run("networkctl", &["up", "s0"]);
    sh("until ip -4 address show dev s0 | grep -q 10.2.0.1; do sleep 0.2; done");
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7004", "10.2.0.2:7004");
    let mut tcp = tcp;
    node.fast("TCP after networkctl up", &mut tcp);
    node.agent_goes(tcp);
    sh("systemctl stop systemd-networkd.socket systemd-networkd; rm /etc/systemd/network/50-field.network
        ip -4 address show dev s0 | grep -q 10.2.0.1 || ip address add 10.2.0.1/24 dev s0");
    server.ip("address del 10.99.0.2/24 dev lo\n");
}
