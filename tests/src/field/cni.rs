//! containerd with the reference CNI plugins (bridge, ptp, portmap, host-local), called as a runtime calls them.

use std::{thread, time::Duration};

use super::{Node, Trial, container};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "cni",
    packages: &["containerd", "containernetworking-plugins", "curl"],
    told: &[
        ("doctor --no-canary --all", "rules of the CNI plugins are there"),
        ("flows pod db-0", "shop/db-0:"),
        ("page db-0", "shop/db-0:"),
        ("why --pod shop/db-0", "in the flowtable, and quiet"),
    ],
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

/// A pod as the kubelet starts it: over the Container Runtime Interface.
struct Pod {
    id: String,
    ns: Netns,
}

impl Pod {
    fn start(namespace: &str, name: &'static str) -> Self {
        sh(&format!(
            "mkdir -p /etc/cni/net.d
             printf '%s' '{{ \"cniVersion\": \"0.4.0\", \"name\": \"pods\", \"plugins\": [{{ {} }}] }}' >/etc/cni/net.d/10-pods.conflist
             image=$(containerd config dump | sed -n 's/ *sandbox_image = \"\\(.*\\)\"/\\1/p')
             ctr --namespace k8s.io images import /run/container-oci.tar
             ctr --namespace k8s.io images tag --force localhost/tiny:latest $image",
            BRIDGE.0.replace("10.88.", "10.90.").replace("cni0", "cni1"),
        ));
        // PodSandboxMetadata: name, uid, namespace. It is the first field of PodSandboxConfig, and that of the request.
        let metadata = [field(1, name.as_bytes()), field(2, b"uid"), field(3, namespace.as_bytes())].concat();
        let id = wait_for_network(|| call("RunPodSandbox", &field(1, &field(1, &metadata))));
        let id = String::from_utf8(id[2..].to_vec()).expect("an id");
        let tasks = run("ctr", &["--namespace", "k8s.io", "tasks", "list"]);
        let line =
            tasks.lines().find(|line| line.starts_with(&id)).unwrap_or_else(|| panic!("no {id} in {tasks}"));
        let pid = line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a process");
        Self { id, ns: Netns::of_process(name, pid) }
    }

    fn stop(self) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            call(method, &field(1, self.id.as_bytes())).unwrap_or_else(|error| panic!("{method}: {error}"));
        }
        sh("rm /etc/cni/net.d/10-pods.conflist; ip link delete cni1");
    }
}

/// containerd sees a new network configuration a moment later.
fn wait_for_network(mut start: impl FnMut() -> Result<Vec<u8>, String>) -> Vec<u8> {
    for _ in 0..20 {
        match start() {
            Ok(answer) => return answer,
            Err(error) => println!("  not yet: {error}"),
        }
        thread::sleep(Duration::from_millis(500));
    }
    panic!("no pod can be started");
}

/// A field of a message of Protocol Buffers that is bytes; short ones only.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).ok().filter(|length| *length < 128).expect("a short field");
    [&[number << 3 | 2, length], bytes].concat()
}

/// Calls containerd, and returns the answer's message.
fn call(method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
    const PREFIX: usize = 5;
    let length = u32::try_from(message.len()).expect("a short message");
    std::fs::write("/run/request", [&[0], &length.to_be_bytes()[..], message].concat()).expect("the request");
    let said = sh(&format!(
        "curl --silent --show-error --http2-prior-knowledge --unix-socket /run/containerd/containerd.sock \
         --header 'content-type: application/grpc' --header 'te: trailers' --data-binary @/run/request \
         --output /run/answer --dump-header - http://localhost/runtime.v1.RuntimeService/{method} || true"
    ));
    let answer = std::fs::read("/run/answer").unwrap_or_default();
    let is_ok = said.lines().any(|line| line.trim() == "grpc-status: 0");
    if is_ok { Ok(answer.get(PREFIX..).unwrap_or_default().to_vec()) } else { Err(said) }
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
    let pod = Pod::start("shop", "db-0");
    let out = node.open(Tcp, &pod.ns, &server, "10.2.0.2:7007", "10.2.0.2:7007");
    node.agent_goes(out);
    pod.stop();
    sh("systemctl stop containerd; ip link delete cni0; nft flush ruleset; rm -rf /var/lib/cni");
    node.count_again();
}
