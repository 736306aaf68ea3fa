//! IPVS with keepalived: a virtual server whose real server is taken out by its check.

use super::{Node, Trial};
use crate::{
    service::{self, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "ipvs",
    packages: &["keepalived", "ipvsadm"],
    again: &["systemctl reload keepalived", "systemctl restart keepalived"],
    told: &[("doctor --no-canary --all", "services of IPVS stay on the normal path")],
    run: trial,
    ..Trial::PLAIN
};

fn configuration() -> String {
    let server = |protocol: &str, port: u16| {
        format!(
            "virtual_server 10.1.0.1 {port} {{
                delay_loop 1
                lvs_sched rr
                lvs_method NAT
                protocol {protocol}
                real_server 10.2.0.2 {port} {{ weight 1
                    MISC_CHECK {{ misc_path \"/usr/bin/test -e /run/server-is-well\" misc_timeout 5 }}
                }}
            }}\n"
        )
    };
    format!(
        "global_defs {{ script_user root\n enable_script_security\n }}\n{}{}{}",
        server("TCP", 7001),
        server("UDP", 7002),
        server("UDP", 7003)
    )
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        sh(&format!(
            "touch /run/server-is-well; cat >/etc/keepalived/keepalived.conf <<'END'\n{}END",
            configuration()
        ));
        service::start("keepalived");
        sh("until ipvsadm -L -n | grep -q 10.2.0.2:7003; do sleep 0.2; done");
    });
    // As keepalived leaves it: packets of services aren't tracked.
    sh("sysctl -qw net.ipv4.vs.conntrack=0");
    let plain = node.open(Tcp, &client, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    let mut plain = node.agent(plain);
    let mut udp = node.open(Udp, &client, &server, "10.1.0.1:7002", "10.2.0.2:7002");
    node.delivered("UDP to a service", &mut udp);
    let mut tcp = node.open(Tcp, &client, &server, "10.1.0.1:7001", "10.2.0.2:7001");
    node.delivered("TCP to a service", &mut tcp);
    node.fast("TCP beside the services", &mut plain);
    node.change("the server's check fails", &mut udp, || {
        sh("rm /run/server-is-well; while ipvsadm -L -n | grep -q 10.2.0.2; do sleep 0.1; done");
    });
    sh("touch /run/server-is-well; until ipvsadm -L -n | grep -q 10.2.0.2:7003; do sleep 0.2; done");
    // As kube-proxy sets it.
    sh("sysctl -qw net.ipv4.vs.conntrack=1");
    let mut udp = node.open(Udp, &client, &server, "10.1.0.1:7003", "10.2.0.2:7003");
    node.delivered("UDP to a service, tracked", &mut udp);
    let mut udp = node.reason("UDP to a service, tracked", udp, "ipvs");
    node.fast("TCP beside the services, after that", &mut plain);
    node.change("the server's check fails, tracked", &mut udp, || {
        sh("rm /run/server-is-well; while ipvsadm -L -n | grep -q 10.2.0.2; do sleep 0.1; done");
    });
    node.agent_goes(plain);
    sh("systemctl stop keepalived; ipvsadm -C");
}
