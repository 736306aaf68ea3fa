//! NetworkManager: it manages the server's link, takes it down and up.

use super::{Node, Trial};
use crate::{
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "networkmanager",
    packages: &["network-manager"],
    again: &["nmcli general reload", "systemctl restart NetworkManager"],
    told: &[("doctor --no-canary --all", "s0: managed (veth, MTU 1500)")],
    run: trial,
    ..Trial::PLAIN
};

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        service::start("NetworkManager");
        sh("nmcli device set s0 managed yes
            nmcli connection show field >/dev/null 2>&1 || nmcli connection add type ethernet con-name field ifname s0 \
                autoconnect no ipv4.method manual ipv4.addresses 10.2.0.1/24 ipv6.method manual ipv6.addresses fd00:2::1/64
            nmcli connection up field");
    });
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("UDP", &mut udp);
    node.change("nmcli device reapply", &mut udp, || drop(run("nmcli", &["device", "reapply", "s0"])));
    node.fast("UDP after that", &mut udp);
    drop(tcp);
    node.change("nmcli connection down", &mut udp, || drop(run("nmcli", &["connection", "down", "field"])));
    node.told("nmcli connection down", &udp, "no-route");
    run("nmcli", &["connection", "up", "field"]);
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    let mut tcp = tcp;
    node.fast("TCP after nmcli connection up", &mut tcp);
    node.agent_goes(tcp);
    sh(
        "nmcli connection down field; nmcli connection delete field; systemctl stop NetworkManager
        ip link set s0 up; ip -4 address show dev s0 | grep -q 10.2.0.1 || ip address add 10.2.0.1/24 dev s0
        ip -6 address show dev s0 | grep -q fd00:2::1 || ip address add fd00:2::1/64 dev s0 nodad
        ip link set c0 up; ip -4 address show dev c0 | grep -q 10.1.0.1 || ip address add 10.1.0.1/24 dev c0",
    );
}
