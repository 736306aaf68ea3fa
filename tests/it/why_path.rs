//! `why`: reasons that lie on a flow's way through the node: interfaces, routes, packets, and other programs' eBPF programs.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    attach::Attach,
    program::{self, Kind},
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
    why::{ask, asked, assert_reason, reasons},
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

fn start(topology: &Topology, flags: &[&str]) -> Agent {
    let agent = Agent::start_with(&topology.node, flags);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    agent
}

/// Asks while `traffic` goes on, again and again.
#[track_caller]
fn ask_under(topology: &Topology, words: &[String; 3], traffic: impl FnMut() + Send) -> Value {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut traffic = traffic;
        let stop = &stop;
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                traffic();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let answer = std::panic::catch_unwind(|| ask(&topology.node, words));
        stop.store(true, Relaxed);
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[track_caller]
fn assert_interface(topology: &Topology, port: u16, interface: &str, problem: &str) -> Value {
    let answer = assert_reason(topology, port, "interface");
    let verdict = &answer["verdict"];
    assert_eq!(
        (&verdict["interface"], &verdict["problem"]),
        (&json!(interface), &json!(problem)),
        "{answer:#}"
    );
    answer
}

#[test]
fn interfaces_that_are_left_out_or_down() {
    let topology = Topology::routed();
    let node = &topology.node;
    let open = |port| {
        let mut flow = topology.open(Proto::Tcp, Family::V4, port);
        assert_eq!(flow.rounds(50), 50);
        flow
    };
    let agent = Agent::start_with(node, &["--exclude-interfaces=s*"]);
    agent::wait_for_programs(node, &["c0"]);
    let _excluded = open(7001);
    assert_interface(&topology, 7001, "s0", "excluded");
    // No agent is there to know why.
    agent.stop();
    assert_interface(&topology, 7001, "s0", "left-out");
    let agent = Agent::start_with(node, &["--interfaces=c*"]);
    assert_interface(&topology, 7001, "s0", "not-included");
    agent.stop();

    let _agent = start(&topology, &[]);
    let mut young = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!(young.rounds(5), 5);
    // The route stays when the carrier goes.
    topology.server().ns.ip("link set eth0 down\n");
    table::wait_for_devices(node, &["c0"], SOON);
    assert_interface(&topology, 7002, "s0", "down");
    node.ip("link set s0 down\n");
    table::wait_for_devices(node, &["c0"], SOON);
    let answer = assert_reason(&topology, 7002, "no-route");
    assert!(answer["verdict"]["text"].as_str().unwrap().contains("no route: "), "{answer:#}");
}

/// Routing looks at ports, too, and behind a service at those of the pod.
#[test]
fn no_route_for_its_port() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    let mut young = topology.open_service_to(Proto::Udp, Family::V4, 7001, 7002);
    assert_eq!(young.rounds(5), 5);
    let rule = ["rule", "add", "ipproto", "udp", "dport", "7002", "priority", "100", "unreachable"];
    node.output("ip", &rule);
    young.set_patience(Duration::from_millis(50));
    assert!(!young.request());
    assert_reason(&topology, 7001, "no-route");
}

/// The kernel takes 1,024 hooks on an interface.
#[test]
fn an_interface_that_the_kernel_refuses() {
    let topology = Topology::routed();
    let chains: String = (0..1024)
        .map(|i| {
            format!("chain c{i} {{ type filter hook ingress device s0 priority {i}; policy accept; }}\n")
        })
        .collect();
    topology.node.nft(&format!("table netdev crowd {{\n{chains}}}"));
    let _agent = Agent::start_with(&topology.node, &[]);
    table::wait_for_devices(&topology.node, &["c0"], SOON);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    let answer = assert_interface(&topology, 7001, "s0", "refused");
    assert!(answer["verdict"]["error"].as_str().unwrap().contains("too long"), "{answer:#}");
}

/// Packets that are to be forwarded come in on the link below an ipvlan in L3 mode, and leave through the ipvlan.
#[test]
fn an_interface_below_a_managed_one() {
    let topology = Topology::build(Layout { attach: Attach::IpvlanL3, ..Layout::default() });
    let upper = topology.attach.recipe().uppers[0];
    let _agent = Agent::start_with(&topology.node, &["--exclude-interfaces=s0"]);
    agent::wait_for_programs(&topology.node, &["c0", upper]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    let answer = ask_under(&topology, &asked(&topology, 7001), || assert_eq!(flow.rounds(1), 1));
    let verdict = &answer["verdict"];
    assert_ne!(verdict["accelerated"], "yes", "{answer:#}");
    assert_eq!(
        (&verdict["reason"], &verdict["interface"]),
        (&json!("interface"), &json!("s0")),
        "{answer:#}"
    );
    assert_eq!((&verdict["problem"], &verdict["upper"]), (&json!("layered"), &json!(upper)), "{answer:#}");
}

#[test]
fn local_and_bridged() {
    let topology = Topology::build(Layout { pods: 4, ..Layout::default() });
    let node = &topology.node;
    node.ip("link add br9 type bridge\nlink set br9 up\nlink set p3 master br9\nlink set p4 master br9\n\
             address add 10.9.0.1/24 dev br9\n");
    // Where some rule has loaded br_netfilter (`-m physdev` does), it isn't to hand bridged packets to conntrack here.
    node.output(
        "bash",
        &[
            "-euc",
            "for file in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $file ] || echo 0 > $file; done",
        ],
    );
    for (pod, host) in [(2, 3), (3, 4)] {
        topology.pods[pod].ns.ip(&format!("address add 10.9.0.{host}/24 dev eth0\n"));
    }
    let _agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0", "p3", "p4"]);

    let here = "10.1.0.1:7001".parse().unwrap();
    let mut local = Flow::open(Proto::Tcp, &topology.client().ns, node, here, here);
    assert_eq!(local.rounds(50), 50);
    assert_reason(&topology, 7001, "local");

    let there = "10.9.0.4:7002".parse().unwrap();
    let mut bridged = Flow::open(Proto::Udp, &topology.pods[2].ns, &topology.pods[3].ns, there, there);
    assert_eq!(bridged.rounds(50), 50);
    let words = bridged.words();
    let answer = ask_under(&topology, &words, || assert_eq!(bridged.rounds(1), 1));
    // Conntrack hears of what a bridge forwards only with br_netfilter.
    assert_eq!(answer["original"], Value::Null);
    let verdict = &answer["verdict"];
    assert_eq!((&verdict["reason"], &verdict["bridge"]), (&json!("bridged"), &json!("br9")), "{answer:#}");
}

#[test]
fn an_ipsec_policy() {
    let topology = Topology::build(Layout { attach: Attach::XfrmTunnel, ..Layout::default() });
    let _agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50);
    topology.assert_forwarded(&mut flow);
    let answer = assert_reason(&topology, 7001, "ipsec");
    let policy = answer["verdict"]["policy"].as_str().unwrap();
    assert!(
        policy.contains("10.1.0.0/24 > 10.2.0.0/24") || policy.contains("10.2.0.0/24 > 10.1.0.0/24"),
        "{policy}"
    );
}

#[test]
fn ip_options() {
    let topology = Topology::routed();
    let _agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    flow.send_ip_options();
    assert_eq!(flow.rounds(50), 50);
    let answer = ask_under(&topology, &asked(&topology, 7001), || assert!(flow.request()));
    assert_eq!(reasons(&answer), ["ip-options"], "{answer:#}");
    assert_eq!(answer["verdict"]["accelerated"], "no", "{answer:#}");
    assert_eq!(answer["verdict"]["certain"], true, "{answer:#}");
}

#[test]
fn fragments() {
    let topology = Topology::routed();
    let _agent = start(&topology, &[]);
    for (family, port) in [(Family::V4, 7001), (Family::V6, 7002)] {
        let mut flow = topology.open(Proto::Udp, family, port);
        flow.set_payload(3000);
        assert_eq!(flow.rounds(50), 50);
        let answer = ask_under(&topology, &asked(&topology, port), || assert_eq!(flow.rounds(1), 1));
        assert_eq!(answer["verdict"]["reason"], "fragments", "{answer:#}");
        assert_eq!(answer["verdict"]["accelerated"], "no", "{answer:#}");
    }
}

/// The client's requests don't fit the way out and may be fragmented there; the server's answers are short.
#[test]
fn larger_than_the_mtu() {
    let topology = Topology::routed();
    topology.node.ip("link set c0 mtu 9000\n");
    topology.client().ns.ip("link set eth0 mtu 9000\n");
    topology.client().ns.sysctl("net/ipv4/ip_no_pmtu_disc", "1");
    let _agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    let mut round = move || {
        flow.set_payload(2000);
        assert!(flow.request());
        flow.set_payload(64);
        assert!(flow.response());
    };
    (0..50).for_each(|_| round());
    let answer = ask_under(&topology, &asked(&topology, 7001), round);
    let verdict = &answer["verdict"];
    assert_eq!(
        (&verdict["accelerated"], &verdict["reason"]),
        (&json!("partly"), &json!("mtu")),
        "{answer:#}"
    );
    assert_eq!((&verdict["size"], &verdict["mtu"]), (&json!(2028), &json!(1500)), "{answer:#}");
}

#[test]
fn another_program_redirects_it() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    // Their programs take ARP's answers too.
    let mut before = topology.open(Proto::Udp, Family::V4, 7008);
    assert_eq!(before.rounds(3), 3);
    for (ns, neighbours) in [
        (node, "neigh change 10.1.0.2 dev c0 nud permanent\nneigh change 10.2.0.2 dev s0 nud permanent\n"),
        (&topology.client().ns, "neigh change 10.1.0.1 dev eth0 nud permanent\n"),
        (&topology.server().ns, "neigh change 10.2.0.1 dev eth0 nud permanent\n"),
    ] {
        ns.ip(neighbours);
    }
    let index = |name: &str| node.run(|| nix::net::if_::if_nametoindex(name)).expect("a link");
    for (from, to) in [("c0", "s0"), ("s0", "c0")] {
        let pin = program::pin(Kind::Tc, &program::redirect_to(index(to)));
        // On old kernels the agent's is in a clsact as well.
        node.try_run("tc", &["qdisc", "add", "dev", from, "clsact"], "");
        let filter =
            format!("filter add dev {from} ingress prio 10 bpf object-pinned {} direct-action", pin.path());
        node.output("tc", &filter.split(' ').collect::<Vec<_>>());
    }
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(50), 50, "the programs deliver");
    let words = flow.words();
    let answer = ask_under(&topology, &words, || assert_eq!(flow.rounds(1), 1));
    assert_eq!(reasons(&answer)[0], "redirected", "{answer:#}");
    assert_eq!(answer["verdict"]["accelerated"], "no");
    assert_eq!(answer["original"], Value::Null, "conntrack never saw it");
    // Packets are counted where the agent's program comes first.
    assert!(answer["moved"].as_u64() > Some(20), "{answer:#}");
}

/// What an XDP program takes, the agent's never sees.
#[test]
fn another_program_takes_it_before_ours() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(10), 10);
    let pin = program::pin(Kind::Xdp, &program::RETURN_1);
    node.output("ip", &["link", "set", "dev", "c0", "xdpgeneric", "pinned", &pin.path()]);

    // One that was there before: its connection is known, and nothing comes any more.
    let answer = ask(node, &asked(&topology, 7001));
    assert_eq!(answer["verdict"]["accelerated"], "no");
    // Nothing knows one that begins now.
    let output = agent::run(node, &["why", "-o", "json", "udp", "10.1.0.2:5", "10.2.0.2:7002"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let verdict = &answer["verdict"];
    assert_eq!(
        (&verdict["accelerated"], &verdict["reason"]),
        (&json!("not-found"), &json!("redirected")),
        "{answer:#}"
    );
    assert_eq!((&verdict["interface"], &verdict["certain"]), (&json!("c0"), &json!(false)), "{answer:#}");
}

/// Packets of an offloaded flow are dropped on the way out, where no chain sees them.
#[test]
fn packets_that_come_in_and_do_not_leave_are_no_acceleration() {
    for (family, nat) in [(Family::V4, Nat::Plain), (Family::V4, Nat::Masquerade), (Family::V6, Nat::Plain)] {
        let topology = Topology::build(Layout { nat, ..Layout::default() });
        let _agent = start(&topology, &[]);
        let mut flow = topology.open(Proto::Udp, family, 7001);
        flow.set_patience(Duration::from_millis(20));
        assert_eq!(flow.rounds(30), 30);
        let words = asked(&topology, 7001);
        let answer = ask_under(&topology, &words, || _ = flow.rounds(1));
        assert_eq!(answer["verdict"]["accelerated"], "yes", "{answer:#}");
        let text = answer["verdict"]["text"].as_str().expect("a text");
        assert!(text.contains(" left again") && !text.contains(" 0 left"), "{text}");
        topology.node.output(
            "bash",
            &[
                "-euc",
                "tc qdisc add dev c0 clsact 2> /dev/null || true; tc filter add dev c0 egress protocol all matchall action drop",
            ],
        );
        let answer = ask_under(&topology, &words, || _ = flow.rounds(1));
        let verdict = &answer["verdict"];
        let found = [&verdict["accelerated"], &verdict["reason"], &verdict["direction"]];
        assert_eq!(found, ["no", "lost", "the reply"], "{answer:#}");
    }
}
