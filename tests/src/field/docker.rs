//! Docker as Debian configures it: bridges, masquerade, published ports, its chains of iptables.

use std::net::UdpSocket;

use super::{Node, Trial, container};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "docker",
    packages: &["docker.io"],
    again: &["systemctl reload docker", "docker network create brief && docker network rm brief"],
    told: &[
        ("doctor --no-canary --all", "rules of Docker are there"),
        ("status", "docker0"),
        ("flows pod next", "next:"),
    ],
    run: trial,
    ..Trial::PLAIN
};

/// A container of network `inside`, at the same address and ports whatever its name.
fn start(name: &str) {
    sh(&format!(
        "docker run --detach --name {name} --network inside --ip 172.30.1.10 --publish 7001:7001 \
         --publish 7002:7002/udp --publish 7003:7003/udp tiny /usr/bin/sleep infinity >/dev/null"
    ));
}

fn namespace(name: &'static str) -> Netns {
    let pid = run("docker", &["inspect", "--format", "{{.State.Pid}}", name]);
    Netns::of_process(name, pid.trim().parse().expect("a process"))
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        service::start("docker");
        if !run("docker", &["images", "--quiet", "tiny"]).contains(|c: char| c.is_alphanumeric()) {
            run("docker", &["import", container::archive(), "tiny"]);
        }
        run("docker", &["network", "create", "--subnet", "172.30.1.0/24", "inside"]);
        start("web");
    });
    let web = namespace("web");
    let out = node.open(Tcp, &web, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    let mut out = node.agent(out);
    node.fast("out", &mut out);
    let mut published = node.open(Tcp, &client, &web, "10.1.0.1:7001", "0.0.0.0:7001");
    node.fast("in by a published port", &mut published);

    // Objects come and go beside running flows.
    sh("docker network create other >/dev/null
        docker run --detach --name peer --network other tiny /usr/bin/sleep infinity >/dev/null");
    let address = run(
        "docker",
        &["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "peer"],
    );
    let peer = format!("{}:7006", address.trim());
    let mut between = node.open(Udp, &web, &namespace("peer"), &peer, "0.0.0.0:7006");
    node.arrives("between two networks", &mut between);
    drop(between);
    sh("docker rm --force peer >/dev/null; docker network rm other >/dev/null");
    node.fast("out, after another network has gone", &mut out);

    let mut flow = node.open(Udp, &client, &web, "10.1.0.1:7002", "0.0.0.0:7002");
    node.fast("in by a published port, UDP", &mut flow);
    node.change("DOCKER-USER of another address", &mut flow, || {
        sh("iptables -I DOCKER-USER -s 10.9.9.9 -j DROP");
    });
    node.fast("in by a published port, UDP, after that", &mut flow);
    node.change("DOCKER-USER", &mut flow, || {
        sh("iptables -I DOCKER-USER -s 10.1.0.2 -j DROP");
    });
    node.change("DOCKER-USER taken back", &mut flow, || {
        sh("iptables -D DOCKER-USER 1; iptables -D DOCKER-USER 1");
    });
    node.fast("in by a published port, UDP, after that too", &mut flow);
    node.change("docker network disconnect", &mut flow, || {
        run("docker", &["network", "disconnect", "inside", "web"]);
    });
    run("docker", &["network", "connect", "--ip", "172.30.1.10", "inside", "web"]);
    let mut flow = node.open(Udp, &client, &web, "10.1.0.1:7003", "0.0.0.0:7003");
    node.fast("connected again", &mut flow);

    node.change("a container is removed", &mut flow, || {
        run("docker", &["rm", "--force", "web"]);
    });
    start("next");
    let next = namespace("next");
    let late = next.run(|| UdpSocket::bind("0.0.0.0:7003")).expect("bind in the next container");
    late.set_read_timeout(Some(std::time::Duration::from_secs(1))).expect("time limit");
    for _ in 0..30 {
        let _ = flow.client_datagrams().send(b"late");
    }
    let arrived = late.recv(&mut [0; 16]).is_ok();
    node.note("old flow to the next container of that address", if arrived { "arrives" } else { "lost" });
    drop(late);
    let mut flow = node.open(Udp, &client, &next, "10.1.0.1:7002", "0.0.0.0:7002");
    node.fast("the next container of that address", &mut flow);
    // It ends its containers.
    node.change("systemctl restart docker", &mut flow, || drop(sh("systemctl restart docker")));
    run("docker", &["start", "next"]);
    let next = namespace("next");
    let mut flow = node.open(Udp, &client, &next, "10.1.0.1:7003", "0.0.0.0:7003");
    node.fast("the container is started again", &mut flow);

    let out = node.open(Tcp, &next, &server, "10.2.0.2:7007", "10.2.0.2:7007");
    node.agent_goes(out);
    sh("docker rm --force next >/dev/null; docker network rm inside >/dev/null
        systemctl stop docker.socket docker containerd
        nft flush ruleset; ip link delete docker0");
    node.count_again();
}
