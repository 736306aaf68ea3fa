//! Open vSwitch: the server's link is a port of a bridge of it, whose own device has the node's address.

use super::{Node, Trial};
use crate::{
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "openvswitch",
    packages: &["openvswitch-switch"],
    again: &["systemctl restart ovs-vswitchd"],
    told: &[("status", "ovs0")],
    run: trial,
    ..Trial::PLAIN
};

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        service::start("openvswitch-switch");
        sh("ovs-vsctl add-br ovs0 -- add-port ovs0 s0
            ip address flush dev s0
            ip address add 10.2.0.1/24 dev ovs0; ip link set ovs0 up");
    });
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP routed through a bridge's own device", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("UDP routed through a bridge's own device", &mut udp);
    node.change("a flow of OpenFlow that drops", &mut udp, || {
        run("ovs-ofctl", &["add-flow", "ovs0", "priority=100,udp,nw_dst=10.2.0.2,tp_dst=7002,actions=drop"]);
    });
    node.change("the flow taken back", &mut udp, || {
        run("ovs-ofctl", &["del-flows", "ovs0", "udp,nw_dst=10.2.0.2,tp_dst=7002"]);
    });
    node.fast("UDP after that", &mut udp);
    node.change("the port is taken out", &mut udp, || drop(run("ovs-vsctl", &["del-port", "ovs0", "s0"])));
    run("ovs-vsctl", &["add-port", "ovs0", "s0"]);
    drop(tcp);
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    let mut tcp = tcp;
    node.fast("TCP after the port came back", &mut tcp);
    node.agent_goes(tcp);
    sh("ovs-vsctl del-br ovs0
        systemctl stop openvswitch-switch ovs-vswitchd ovsdb-server
        ip address add 10.2.0.1/24 dev s0; ip address add fd00:2::1/64 dev s0 nodad; ip link set s0 up");
}
