//! FRRouting: OSPF between the node and a router behind it, over two links. The route to a network behind that router moves to the
//! other link by its costs, goes with the daemons, and is withdrawn.

use std::{fs, time::Instant};

use super::{Node, Trial, node::WITHIN};
use crate::{
    netns::Netns,
    service::{self, sh},
    traffic::{
        Flow,
        Proto::{Tcp, Udp},
    },
};

pub(super) const TRIAL: Trial = Trial {
    name: "frr",
    packages: &["frr"],
    told: &[
        ("doctor --no-canary --all", "s0: managed (veth, MTU 1500)"),
        ("doctor --no-canary --all", "s1: managed (veth, MTU 1500)"),
        ("doctor --no-canary --all", "none that the kernel leaves out when it offloads a flow"),
    ],
    run: trial,
    ..Trial::PLAIN
};

/// Rounds of which each has its packet on the other link once a flow has moved.
const ROUNDS: usize = 20;

/// OSPF on the links of one end, with hellos every second; `net` is announced too.
fn configuration(router: u8, links: [&str; 2], net: &str) -> String {
    let mut text = format!("interface {net}\n ip ospf area 0\n ip ospf passive\nexit\n");
    for (link, cost) in links.into_iter().zip([10, 100]) {
        text += &format!(
            "interface {link}\n ip ospf area 0\n ip ospf cost {cost}\n ip ospf network point-to-point\n \
             ip ospf hello-interval 1\n ip ospf dead-interval 4\nexit\n"
        );
    }
    text + &format!("router ospf\n ospf router-id 10.0.0.{router}\n timers throttle spf 0 50 50\nexit\n")
}

/// The daemons of the router behind the node, in its namespace.
fn start_router(router: &Netns) {
    router.output(
        "bash",
        &[
            "-euc",
            &format!(
                "install -d -o frr -g frr /run/frr/router /etc/frr/router
             cat >/run/router.conf <<'END'\n{}END
             for daemon in zebra ospfd; do
                 /usr/lib/frr/$daemon -d -N router -f /run/router.conf >/dev/null 2>&1 </dev/null
             done",
                configuration(2, ["eth0", "eth1"], "lo")
            ),
        ],
    );
}

/// Changes the configuration of both routers, by `vtysh`.
fn cost_of_the_first_link(cost: u32) {
    sh(&format!(
        "vtysh -c 'configure terminal' -c 'interface s0' -c 'ip ospf cost {cost}'
         vtysh -N router -c 'configure terminal' -c 'interface eth0' -c 'ip ospf cost {cost}'"
    ));
}

/// Waits until both ends route by this link.
fn wait_for_link(router: &Netns, number: u8) {
    sh(&format!("until ip route get 10.99.0.2 | grep -q 'dev s{number}'; do sleep 0.05; done"));
    let back = format!("until ip route get 10.1.0.2 | grep -q 'dev eth{number}'; do sleep 0.05; done");
    router.output("bash", &["-euc", &back]);
}

fn sent(link: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/class/net/{link}/statistics/tx_packets"));
    text.expect("a link").trim().parse().expect("a number")
}

/// Shows that the flow's requests leave by this link and not by the other, in time.
#[track_caller]
fn leaves_by(node: &mut Node, flow: &mut Flow, link: &str, other: &str) {
    let began = Instant::now();
    loop {
        let before = [link, other].map(sent);
        let intact = flow.rounds(ROUNDS);
        let packets = [sent(link) - before[0], sent(other) - before[1]];
        if intact == ROUNDS && packets[0] >= ROUNDS as u64 && packets[1] < ROUNDS as u64 / 2 {
            break;
        }
        assert!(
            began.elapsed() < WITHIN,
            "{flow:?}: of {ROUNDS} rounds {intact}: {link}, {other}: {packets:?}"
        );
    }
    node.note(&format!("{flow:?} leaves by"), link);
}

fn trial(node: &mut Node) {
    let (client, router) = (node.client(), node.server());
    let path = router.path();
    node.software(|| {
        sh(&format!(
            "ip link add s1 type veth peer name eth1 netns {path}
             ip address add 10.12.0.1/24 dev s1; ip link set s1 up
             sed -i 's/^ospfd=no/ospfd=yes/' /etc/frr/daemons
             cat >/etc/frr/frr.conf <<'END'\n{}END",
            configuration(1, ["s0", "s1"], "c0")
        ));
        router.ip("address add 10.12.0.2/24 dev eth1\nlink set eth1 up\naddress add 10.99.0.2/32 dev lo\nroute delete default\n");
        start_router(&router);
        service::start("frr");
        wait_for_link(&router, 0);
    });
    let tcp = node.open(Tcp, &client, &router, "10.99.0.2:7001", "10.99.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP by a route of OSPF", &mut tcp);
    let mut udp = node.open(Udp, &client, &router, "10.99.0.2:7002", "10.99.0.2:7002");
    node.fast("UDP by a route of OSPF", &mut udp);
    leaves_by(node, &mut udp, "s0", "s1");
    node.change("costs make the other link the better one", &mut udp, || {
        cost_of_the_first_link(1000);
        wait_for_link(&router, 1);
    });
    leaves_by(node, &mut udp, "s1", "s0");
    node.fast("UDP by the other link", &mut udp);
    leaves_by(node, &mut udp, "s1", "s0");
    node.fast("TCP by the other link", &mut tcp);
    cost_of_the_first_link(10);
    wait_for_link(&router, 0);
    leaves_by(node, &mut udp, "s0", "s1");
    node.fast("UDP by the first link again", &mut udp);
    drop(tcp);
    node.change("its daemons stop", &mut udp, || {
        sh("systemctl stop frr; while ip route show proto ospf | grep -q .; do sleep 0.05; done");
    });
    node.told("its daemons stop", &udp, "no-route");
    service::start("frr");
    wait_for_link(&router, 0);
    node.comes_back(&mut udp);
    node.fast("UDP after they have started again", &mut udp);
    node.change("the route is withdrawn", &mut udp, || {
        sh("vtysh -N router -c 'configure terminal' -c 'interface lo' -c 'no ip ospf area 0'
            while ip route show proto ospf | grep -q 10.99.0.2; do sleep 0.05; done");
    });
    node.told("the route is withdrawn", &udp, "no-route");
    sh("vtysh -N router -c 'configure terminal' -c 'interface lo' -c 'ip ospf area 0'");
    wait_for_link(&router, 0);
    let tcp = node.open(Tcp, &client, &router, "10.99.0.2:7003", "10.99.0.2:7003");
    node.agent_goes(tcp);
    sh(
        "systemctl stop frr; kill $(cat /run/frr/router/zebra.pid /run/frr/router/ospfd.pid); ip link delete s1",
    );
    router.ip("address delete 10.99.0.2/32 dev lo\nroute replace default via 10.2.0.1\n");
}
