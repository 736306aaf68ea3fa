//! ufw as a router has it: forwarding denied but for routes that are allowed. It accepts established connections before it asks the
//! user's rules, so those stop no running flow, with the agent or without.

use super::{Node, Trial};
use crate::{
    service::{run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "ufw",
    packages: &["ufw", "iptables"],
    again: &["ufw reload"],
    told: &[("doctor --no-canary --all", "rules of ufw are there")],
    run: trial,
    ..Trial::PLAIN
};

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        sh("ufw --force enable
            ufw route allow in on c0 out on s0");
    });
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("an allowed route", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("an allowed route, UDP", &mut udp);
    let mut inwards = node.open(Udp, &server, &client, "10.1.0.2:7003", "10.1.0.2:7003");
    node.arrives("a route that isn't allowed", &mut inwards);
    drop(inwards);
    node.change("ufw route deny", &mut udp, || {
        run("ufw", &["route", "insert", "1", "deny", "from", "10.1.0.2"]);
    });
    let mut new = node.open(Udp, &client, &server, "10.2.0.2:7004", "10.2.0.2:7004");
    node.arrives("a new flow behind ufw route deny", &mut new);
    drop(new);
    node.change("ufw reload", &mut udp, || drop(run("ufw", &["reload"])));
    run("ufw", &["route", "delete", "deny", "from", "10.1.0.2"]);
    node.fast("UDP after that", &mut udp);
    // In front of everything, where it concerns running flows too.
    node.change("a rule of before.rules", &mut udp, || {
        sh("iptables -I ufw-before-forward -s 10.1.0.2 -p udp -j DROP");
    });
    node.change("the rule taken back", &mut udp, || drop(sh("iptables -D ufw-before-forward 1")));
    node.fast("UDP after that too", &mut udp);
    node.agent_goes(tcp);
    sh("ufw --force reset; ufw --force disable; nft flush ruleset
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    node.count_again();
}
