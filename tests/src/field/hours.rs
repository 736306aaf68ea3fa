//! Hours at which children have no network, by nftables and by iptables. The trial sets the system's clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Node, Trial};
use crate::{
    service::{run, sh},
    traffic::{
        Flow,
        Proto::{Tcp, Udp},
    },
};

pub(super) const TRIAL: Trial = Trial {
    name: "hours",
    packages: &["nftables", "iptables"],
    told: &[("doctor --no-canary --all", "time")],
    run: trial,
    ..Trial::PLAIN
};

const BY_NFTABLES: &str = "nft -f - <<'END'
table inet hours {
    chain forward {
        type filter hook forward priority filter; policy accept
        ip saddr 10.1.0.2 meta hour \"21:00\"-\"23:00\" drop
    }
}
END";
const NOT_BY_NFTABLES: &str = "nft delete table inet hours";
const BY_IPTABLES: &str =
    "iptables -I FORWARD -s 10.1.0.2 -m time --timestart 21:00 --timestop 23:00 -j DROP";
const NOT_BY_IPTABLES: &str = "iptables -D FORWARD 1";

/// Sets the clock to a time of a day.
fn set(time: &str) {
    run("date", &["-s", &format!("2026-06-01 {time}")]);
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let began = Instant::now();
    set("12:00:00");
    node.software(|| drop(sh(BY_NFTABLES)));
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP by day", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    evening(node, "nftables", &mut udp);
    sh(NOT_BY_NFTABLES);
    sh(BY_IPTABLES);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    evening(node, "iptables", &mut udp);
    node.agent_goes(tcp);
    sh(NOT_BY_IPTABLES);
    sh("nft delete table ip filter");
    let now = now + began.elapsed();
    run("date", &["-s", &format!("@{}", now.as_secs())]);
}

/// The hour strikes under a running flow.
fn evening(node: &mut Node, by: &str, udp: &mut Flow) {
    node.fast(&format!("{by}: UDP by day"), udp);
    node.change_due(&format!("{by}: the hour strikes"), udp, Duration::from_secs(4), || set("20:59:56"));
    node.change_due(&format!("{by}: the hour is over"), udp, Duration::ZERO, || set("23:00:01"));
    node.change(&format!("{by}: the clock is set to the hour"), udp, || set("21:30:00"));
    node.change(&format!("{by}: the clock is set to the day"), udp, || set("12:00:00"));
}
