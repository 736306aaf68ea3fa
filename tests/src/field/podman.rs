//! Podman with netavark, as root: bridges, masquerade, published ports.

use super::{Node, Trial, container};
use crate::{
    netns::Netns,
    service::{run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "podman",
    packages: &["podman", "netavark"],
    again: &["podman network reload --all", "systemctl restart podman.socket podman.service"],
    told: &[("doctor --no-canary --all", "rules of netavark are there"), ("flows host 10.77.0.10", "last:")],
    run: trial,
    ..Trial::PLAIN
};

fn start(name: &str) {
    // Its monitor must not keep this program's pipe open.
    sh(&format!(
        "podman run --detach --name {name} --network inside --ip 10.77.0.10 --publish 7001:7001 \
         --publish 7002:7002/udp --publish 7003:7003/udp localhost/tiny /usr/bin/sleep infinity \
         >/run/podman-trial 2>&1 </dev/null || {{ cat /run/podman-trial; exit 1; }}"
    ));
}

fn namespace(name: &'static str) -> Netns {
    let pid = run("podman", &["inspect", "--format", "{{.State.Pid}}", name]);
    Netns::of_process(name, pid.trim().parse().expect("a process"))
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        sh(&format!(
            "podman image exists localhost/tiny || podman import {} localhost/tiny",
            container::archive()
        ));
        let backend = run("podman", &["info", "--format", "{{.Host.NetworkBackend}}"]);
        assert_eq!(backend.trim(), "netavark");
        run("podman", &["network", "create", "--subnet", "10.77.0.0/24", "inside"]);
        start("web");
    });
    let web = namespace("web");
    let out = node.open(Tcp, &web, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    let mut out = node.agent(out);
    node.fast("out", &mut out);
    let mut published = node.open(Tcp, &client, &web, "10.1.0.1:7001", "0.0.0.0:7001");
    node.fast("in by a published port", &mut published);
    let mut flow = node.open(Udp, &client, &web, "10.1.0.1:7002", "0.0.0.0:7002");
    node.fast("in by a published port, UDP", &mut flow);
    node.change("podman network disconnect", &mut flow, || {
        run("podman", &["network", "disconnect", "inside", "web"]);
    });
    sh("podman rm --force --time 0 web");
    start("next");
    let next = namespace("next");
    let mut flow = node.open(Udp, &client, &next, "10.1.0.1:7003", "0.0.0.0:7003");
    node.fast("the next container of that address", &mut flow);
    node.change("podman network reload", &mut flow, || drop(sh("podman network reload --all")));
    node.change("a container is removed", &mut flow, || drop(sh("podman rm --force --time 0 next")));
    start("last");
    let last = namespace("last");
    // Names are asked for there.
    run("systemctl", &["start", "podman.socket"]);
    let out = node.open(Tcp, &last, &server, "10.2.0.2:7007", "10.2.0.2:7007");
    node.agent_goes(out);
    sh("podman rm --force --time 0 last; podman network rm inside");
    sh("nft flush ruleset");
    node.count_again();
}
