//! containerd with the reference CNI plugins (bridge, ptp, portmap, host-local), called as a runtime calls them.

use super::{Node, Trial, container};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "cni",
    packages: &["containerd", "containernetworking-plugins"],
    told: &[("doctor --no-canary --all", "rules of the CNI plugins are there")],
    run: trial,
    ..Trial::PLAIN
};

/// Network configurations, the container's addresses in them, and the port of the node that leads to it.
const BRIDGE: (&str, &str) = (
    r#""type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": { "type": "host-local", "subnet": "10.88.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] }"#,
    "7001",
);
const PTP: (&str, &str) = (
    r#""type": "ptp", "ipMasq": true, "ipam": { "type": "host-local", "subnet": "10.89.0.0/24", "routes": [{ "dst": "0.0.0.0/0" }] }"#,
    "7003",
);

/// Calls the plugins of a container's network: the interface, then portmap.
fn plugins(command: &str, name: &str, (conf, port): (&str, &str), path: &str) {
    let kind = if conf.contains("\"ptp\"") { "ptp" } else { "bridge" };
    let common = format!(r#""cniVersion": "0.4.0", "name": "{kind}-net""#);
    let portmap = format!(
        r#"{common}, "type": "portmap", "runtimeConfig": {{ "portMappings": [{{ "hostPort": {port}, "containerPort": {port}, "protocol": "tcp" }}, {{ "hostPort": {port}, "containerPort": {port}, "protocol": "udp" }}] }}"#
    );
    let result = format!("/run/cni-{name}.json");
    let environment = format!(
        "export CNI_COMMAND={command} CNI_CONTAINERID={name} CNI_NETNS={path} CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni"
    );
    let interface = format!("printf '%s' '{{ {common}, {conf} }}' | /usr/lib/cni/{kind}");
    let mapping = format!(
        "printf '%s' '{{ {portmap}, \"prevResult\": '\"$(cat {result})\"' }}' | /usr/lib/cni/portmap >/dev/null"
    );
    match command {
        "ADD" => sh(&format!("{environment}; {interface} >{result}; {mapping}")),
        _ => sh(&format!("{environment}; {mapping}; {interface}")),
    };
}

fn start(name: &'static str, network: (&str, &str)) -> Netns {
    // Its shim must not keep this program's pipe open.
    sh(&format!(
        "ctr run --detach localhost/tiny:latest {name} /usr/bin/sleep infinity >/run/ctr-{name} 2>&1 </dev/null || {{ cat /run/ctr-{name}; exit 1; }}"
    ));
    let tasks = run("ctr", &["tasks", "list"]);
    let words = tasks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let pid = words.filter(|words| words[0] == name).map(|words| words[1].to_owned()).next();
    let pid = pid.unwrap_or_else(|| panic!("no {name} in {tasks}"));
    plugins("ADD", name, network, &format!("/proc/{pid}/ns/net"));
    Netns::of_process(name, pid.parse().expect("a process"))
}

fn stop(name: &str, network: (&str, &str)) {
    let tasks = run("ctr", &["tasks", "list"]);
    let line = tasks.lines().find(|line| line.starts_with(name)).expect("it runs");
    let pid = line.split_whitespace().nth(1).expect("a process");
    plugins("DEL", name, network, &format!("/proc/{pid}/ns/net"));
    sh(&format!(
        "ctr tasks kill --signal SIGKILL {name}; sleep 1; ctr tasks delete {name} || true; ctr containers delete {name}"
    ));
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        service::start("containerd");
        container::import_for_containerd();
    });
    let web = start("web", BRIDGE);
    let out = node.open(Tcp, &web, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    let mut out = node.agent(out);
    node.fast("out by bridge", &mut out);
    let mut flow = node.open(Udp, &client, &web, "10.1.0.1:7001", "0.0.0.0:7001");
    node.fast("in by portmap, to bridge", &mut flow);
    let direct = start("direct", PTP);
    node.fast("in by portmap, with one more container", &mut flow);
    let mut out_ptp = node.open(Tcp, &direct, &server, "10.2.0.2:7006", "10.2.0.2:7006");
    node.fast("out by ptp", &mut out_ptp);
    let mut in_ptp = node.open(Udp, &client, &direct, "10.1.0.1:7003", "0.0.0.0:7003");
    node.fast("in by portmap, to ptp", &mut in_ptp);
    node.change("a container of ptp goes", &mut in_ptp, || stop("direct", PTP));
    node.change("a container of bridge goes", &mut flow, || stop("web", BRIDGE));
    let next = start("next", BRIDGE);
    let out = node.open(Tcp, &next, &server, "10.2.0.2:7007", "10.2.0.2:7007");
    node.agent_goes(out);
    stop("next", BRIDGE);
    sh("systemctl stop containerd; ip link delete cni0; nft flush ruleset; rm -rf /var/lib/cni");
    node.count_again();
}
