//! libvirt's default network. The machine is a namespace on the bridge, in the place of one with a tap device.

use super::{Node, Trial};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "libvirt",
    packages: &["libvirt-daemon-system"],
    again: &["systemctl restart libvirtd"],
    told: &[("doctor --no-canary --all", "rules of libvirt are there"), ("status", "virbr0")],
    run: trial,
    ..Trial::PLAIN
};

/// A machine on the default network.
fn machine(node: &Node) -> Netns {
    let machine = Netns::new("machine");
    node.topology.node.ip(&format!(
        "link add vnet0 type veth peer name eth0 netns {}\nlink set vnet0 master virbr0 up\n",
        machine.path()
    ));
    machine.ip(
        "link set eth0 up\naddress add 192.168.122.10/24 dev eth0\nroute add default via 192.168.122.1\n",
    );
    // The bridge speaks STP: its ports learn for some seconds first.
    sh("until grep -q 3 /sys/class/net/vnet0/brport/state; do sleep 0.1; done");
    machine
}

fn trial(node: &mut Node) {
    let server = node.server();
    node.software(|| {
        service::start("libvirtd");
        run("virsh", &["net-start", "default"]);
    });
    let guest = machine(node);
    let tcp = node.open(Tcp, &guest, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("out", &mut tcp);
    let mut udp = node.open(Udp, &guest, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("out, UDP", &mut udp);
    let client = node.client();
    let mut inwards = node.open(Udp, &client, &guest, "192.168.122.10:7003", "192.168.122.10:7003");
    node.arrives("in, which its rules refuse", &mut inwards);
    drop((inwards, tcp));
    node.change("virsh net-destroy", &mut udp, || drop(run("virsh", &["net-destroy", "default"])));
    sh("ip link delete vnet0");
    run("virsh", &["net-start", "default"]);
    let guest = machine(node);
    let tcp = node.open(Tcp, &guest, &server, "10.2.0.2:7004", "10.2.0.2:7004");
    let mut tcp = tcp;
    node.fast("out, after the network was started again", &mut tcp);
    node.agent_goes(tcp);
    sh("virsh net-destroy default; ip link delete vnet0
        systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd
        nft flush ruleset");
    node.count_again();
}
