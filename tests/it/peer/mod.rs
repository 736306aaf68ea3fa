//! `--forward=peer`: eBPF forwards packets of offloaded flows between pods ahead of the flowtable, and only those.

mod routes;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    http, program,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Direction, Flow, Proto},
    wait_until,
};

use crate::flows::flows;

const SOON: Duration = Duration::from_secs(5);

/// Packets of all flows that eBPF has forwarded, both directions.
fn forwarded(topology: &Topology) -> u64 {
    flows(&topology.node, &[]).iter().filter_map(|flow| flow["forwarded"].as_u64()).sum()
}

/// Waits until the flow's packets are forwarded.
#[track_caller]
fn assert_becomes_forwarded(topology: &Topology, flow: &mut Flow) {
    topology.assert_becomes_accelerated(flow);
    wait_until("the flow forwarded", SOON, || {
        let before = forwarded(topology);
        assert_eq!(flow.rounds(500), 500);
        forwarded(topology) >= before + 500
    });
}

fn is_forwarded(nat: Nat, proto: Proto, family: Family) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    let agent = Agent::start_with(&topology.node, &["--forward=peer", "--v=4"]);
    let mut flow = match nat {
        Nat::Service => topology.open_service(proto, family, 7001),
        _ => topology.open(proto, family, 7001),
    };
    assert_becomes_forwarded(&topology, &mut flow);
    topology.assert_accelerated(&mut flow);
    if proto == Proto::Tcp {
        flow.close_gracefully();
    }
    let said: Vec<_> =
        agent.log().into_iter().filter(|l| l.contains("WARN") || l.contains("ERROR")).collect();
    assert_eq!(said, Vec::<String>::new());
}

#[test]
fn tcp_between_pods() {
    is_forwarded(Nat::Plain, Proto::Tcp, Family::V4);
    is_forwarded(Nat::Plain, Proto::Tcp, Family::V6);
}

#[test]
fn udp_between_pods() {
    is_forwarded(Nat::Plain, Proto::Udp, Family::V4);
    is_forwarded(Nat::Plain, Proto::Udp, Family::V6);
}

#[test]
fn with_masquerade() {
    is_forwarded(Nat::Masquerade, Proto::Tcp, Family::V4);
    is_forwarded(Nat::Masquerade, Proto::Udp, Family::V6);
}

#[test]
fn behind_a_service() {
    is_forwarded(Nat::Service, Proto::Tcp, Family::V6);
    is_forwarded(Nat::Service, Proto::Udp, Family::V4);
}

/// Programs that log are other ones.
#[test]
fn with_programs_that_log() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer", "--v=8"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
}

/// What comes to an interface while a flow is forwarded past it: it sees every packet of the client's from then on.
fn is_seen_by(come: impl FnOnce(&Topology), go: impl FnOnce(&Topology)) {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    come(&topology);
    // Nothing waits for the agent here but the announcement's way to it.
    thread::sleep(ANNOUNCED);
    let before = (forwarded(&topology), left_by(&topology, "s0"));
    assert_eq!(flow.rounds(200), 200);
    settle();
    // Answers, which leave by the other interface, are forwarded on.
    let more = forwarded(&topology) - before.0;
    assert!(more <= 205, "{more} packets forwarded");
    let left = left_by(&topology, "s0") - before.1;
    assert!(left >= 200, "{left} packets left by the interface");
    topology.assert_accelerated(&mut flow);
    go(&topology);
    assert_becomes_forwarded(&topology, &mut flow);
}

/// For what is announced to reach the agent.
const ANNOUNCED: Duration = Duration::from_millis(20);

/// Longer than a flow's counts are on their way to the map.
fn settle() {
    thread::sleep(Duration::from_millis(50));
}

/// Packets that the interface has sent: forwarded ones are none of them.
fn left_by(topology: &Topology, device: &str) -> u64 {
    topology.node.run(|| {
        let devices = fs::read_to_string("/proc/thread-self/net/dev").expect("procfs");
        let line = devices.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let sent = line.and_then(|line| line.split_whitespace().nth(8));
        sent.and_then(|sent| sent.parse().ok()).expect("a counter")
    })
}

#[test]
fn a_queue_discipline_sees_all_packets() {
    is_seen_by(
        |topology| drop(topology.node.output("tc", &["qdisc", "add", "dev", "s0", "root", "pfifo"])),
        |topology| drop(topology.node.output("tc", &["qdisc", "del", "dev", "s0", "root"])),
    );
}

#[test]
fn a_chain_at_egress_sees_all_packets() {
    is_seen_by(
        |topology| {
            topology.node.nft(
                "table netdev edge { chain out { type filter hook egress device s0 priority 0; counter; }; }",
            );
        },
        |topology| topology.node.nft("delete table netdev edge"),
    );
}

#[test]
fn a_chain_at_ingress_sees_all_packets() {
    is_seen_by(
        |topology| {
            topology.node.nft(
                "table netdev edge { chain in { type filter hook ingress device c0 priority -300; counter; }; }",
            );
        },
        |topology| topology.node.nft("delete table netdev edge"),
    );
}

#[test]
fn a_filter_at_egress_sees_all_packets() {
    is_seen_by(
        |topology| {
            let _ = topology.node.try_run("tc", &["qdisc", "add", "dev", "s0", "clsact"], "");
            topology.node.output(
                "tc",
                &["filter", "add", "dev", "s0", "egress", "matchall", "action", "gact", "continue"],
            );
        },
        |topology| drop(topology.node.output("tc", &["filter", "del", "dev", "s0", "egress"])),
    );
}

/// A program in the pod's driver drops what it gets.
#[test]
fn a_program_in_the_pod_sees_all_packets() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    let dropper = program::pin(program::Kind::Xdp, &program::RETURN_1);
    let pod = &topology.server().ns;
    pod.output("ip", &["link", "set", "eth0", "xdpdrv", "pinned", &dropper.path()]);
    thread::sleep(ANNOUNCED);
    flow.set_patience(Duration::from_millis(100));
    assert_eq!(flow.rounds(3), 0, "as without the agent");
    pod.output("ip", &["link", "set", "eth0", "xdpdrv", "off"]);
    flow.set_patience(Duration::from_secs(1));
    assert_becomes_forwarded(&topology, &mut flow);
}

/// The kernel empties the program array when nobody holds it any more.
#[test]
fn nothing_is_forwarded_without_the_agent() {
    let topology = Topology::routed();
    let agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    let busy = flow.in_background();
    agent.kill();
    thread::sleep(Duration::from_millis(100));
    let (mut flow, _) = busy.stop_intact();
    settle();
    let before = forwarded(&topology);
    topology.assert_accelerated(&mut flow);
    settle();
    assert_eq!(forwarded(&topology), before);
    // The next one goes on.
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    assert_becomes_forwarded(&topology, &mut flow);
}

/// A new rule denies packets of the flow: no more than a lease's are delivered after it.
#[test]
fn a_new_rule_holds_for_forwarded_flows() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    topology.node.nft(
        "table inet guard { chain f { type filter hook forward priority 0; udp dport 7001 drop; udp sport 7001 drop; }; }",
    );
    thread::sleep(Duration::from_millis(100));
    flow.set_patience(Duration::from_millis(100));
    assert_eq!(flow.rounds(3), 0);
}

/// The pod goes, and its address and interface name with it; the next one has them.
#[test]
fn a_pod_that_is_replaced_gets_its_packets() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open_between(0, 2, Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    topology.node.ip("link del p3\n");
    topology.connect_again(2);
    flow.set_patience(Duration::from_millis(200));
    wait_until("packets arrive again", SOON, || flow.rounds(1) == 1);
    flow.set_patience(Duration::from_secs(1));
    assert_becomes_forwarded(&topology, &mut flow);
}

/// Packets over the MTU are none of it.
#[test]
fn a_packet_over_the_mtu_takes_the_normal_path() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    topology.node.ip("link set s0 mtu 600\n");
    thread::sleep(ANNOUNCED);
    settle();
    let before = forwarded(&topology);
    flow.set_payload(900);
    // As without the agent: fragmented, or answered with an ICMP message. None is forwarded whole.
    flow.set_patience(Duration::from_millis(200));
    let _ = flow.rounds(5);
    settle();
    let more = forwarded(&topology) - before;
    assert!(more <= 5, "{more}: answers at most");
}

/// What the pod's end of a veth drops stays dropped: nothing asks it when a packet is put in behind it.
fn is_dropped_by_the_pod(payload: usize, on_node: &str, in_pod: &str) {
    for with_agent in [false, true] {
        let topology = Topology::routed();
        let _agent = with_agent.then(|| Agent::start_with(&topology.node, &["--forward=peer"]));
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        if with_agent {
            assert_becomes_forwarded(&topology, &mut flow);
        }
        flow.set_payload(payload);
        flow.set_patience(Duration::from_millis(200));
        assert_eq!(flow.rounds(3), 3);
        topology.node.ip(on_node);
        topology.server().ns.ip(in_pod);
        thread::sleep(ANNOUNCED);
        assert_eq!(flow.rounds(3), 0, "with an agent: {with_agent}");
    }
}

/// Sooner than programs leave a packet to the flowtable: the flow goes and comes back, and loses nothing.
#[test]
fn a_flowtable_that_forgets_within_seconds() {
    let topology = Topology::routed();
    for name in ["udp", "tcp"] {
        topology.node.sysctl(&format!("net/netfilter/nf_flowtable_{name}_timeout"), "2");
    }
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    for (port, proto) in [(7001, Proto::Udp), (7002, Proto::Tcp)] {
        let mut flow = topology.open(proto, Family::V4, port);
        assert_becomes_forwarded(&topology, &mut flow);
        let (before, slow) = (forwarded(&topology), topology.forwarded(port).total());
        let began = Instant::now();
        let mut rounds = 0;
        while began.elapsed() < Duration::from_secs(9) {
            assert_eq!(flow.rounds(20), 20, "{flow:?}");
            rounds += 20;
            thread::sleep(Duration::from_millis(50));
        }
        let (forwarded, slow) = (forwarded(&topology) - before, topology.forwarded(port).total() - slow);
        println!("{flow:?}: of {rounds} rounds {forwarded} packets forwarded, {slow} on the forward path");
        assert!(forwarded > rounds, "{flow:?}: of {rounds} rounds only {forwarded} packets forwarded");
        assert!(slow < rounds / 2, "{flow:?}: of {rounds} rounds {slow} packets on the forward path");
    }
}

#[test]
fn what_is_too_large_for_the_pod_is_dropped() {
    is_dropped_by_the_pod(900, "", "link set eth0 mtu 600\n");
}

#[test]
fn what_is_for_another_address_is_dropped() {
    is_dropped_by_the_pod(
        64,
        "neighbour replace 10.2.0.2 lladdr 02:00:00:00:00:99 nud permanent dev s0\n",
        "",
    );
}

#[test]
fn a_pod_with_another_address_is_asked_for_it() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    topology.server().ns.ip("link set eth0 address 02:00:00:00:00:77\n");
    topology.node.ip("neighbour del 10.2.0.2 dev s0\n");
    assert_becomes_forwarded(&topology, &mut flow);
}

/// Everything that transfers a lot goes intact, whatever the offloads make of it.
#[test]
fn large_transfers_arrive_intact() {
    for nat in [Nat::Plain, Nat::Masquerade, Nat::Service] {
        let topology = Topology::build(Layout { nat, ..Layout::default() });
        let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
        for (family, port) in [(Family::V4, 7001), (Family::V6, 7002)] {
            let mut flow = match nat {
                Nat::Service => topology.open_service(Proto::Tcp, family, port),
                _ => topology.open(Proto::Tcp, family, port),
            };
            assert_becomes_forwarded(&topology, &mut flow);
            let before = forwarded(&topology);
            for direction in [Direction::Upload, Direction::Download] {
                flow.transfer(direction, 4 << 20).unwrap_or_else(|e| panic!("{nat:?} {family:?}: {e}"));
            }
            settle();
            assert!(forwarded(&topology) > before + 60, "{nat:?} {family:?}");
        }
    }
}

/// What the tools say of a flow that is forwarded.
#[test]
fn the_tools_tell_of_it() {
    let topology = Topology::build(Layout { nat: Nat::Service, ..Layout::default() });
    let node = &topology.node;
    http::bring_loopback_up(node);
    let _agent = Agent::start_with(node, &["--forward=peer", http::SERVE]);
    let mut flow = topology.open_service(Proto::Tcp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    let words = flow.words();
    let busy = flow.in_background();
    let words = ["why".to_owned()].into_iter().chain(words).collect::<Vec<_>>();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let why = agent::output(node, &words);
    assert!(why.contains("accelerated") && why.contains("forwarded in eBPF"), "{why}");
    let (_flow, _) = busy.stop_intact();
    settle();
    let shown = &flows(node, &[])[0];
    let [came_in, tracked] = ["ingress", "conntrack"].map(|whose| match whose {
        "ingress" => [0, 1].iter().filter_map(|d| shown[whose][d]["packets"].as_u64()).sum::<u64>(),
        _ => [0, 1].iter().filter_map(|d| shown[whose]["packets"][d].as_u64()).sum(),
    });
    // By so many packets conntrack is behind.
    assert_eq!(came_in - tracked, shown["forwarded"].as_u64().expect("a number"), "{shown:#}");
    assert_eq!(shown["accelerated"], true, "{shown:#}");
    let metrics = http::get(node, "/metrics").body;
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("fastpath_forwarded_packets_total "))
        .unwrap_or_else(|| panic!("{metrics}"));
    assert_eq!(counted.parse::<f64>().expect("a number") as u64, came_in - tracked);
    let doctor = || {
        let output = agent::run(node, &["doctor", "--no-canary", "--all"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = doctor();
    assert!(said.contains("2 interfaces from which and 2 to which packets may be forwarded"), "{said}");
    node.output("tc", &["qdisc", "add", "dev", "s0", "root", "pfifo"]);
    let said = doctor();
    assert!(said.contains("s0") && said.contains("its queue discipline is pfifo"), "{said}");
}

/// Another pod sends packets that look like the client's: they come in by another interface, and aren't the flow's.
#[test]
fn forged_packets_are_not_forwarded() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    let near = flow.client_datagrams().local_addr().expect("an address");
    let forger = &topology.pods[2].ns;
    forger.ip("addr add 10.1.0.2/32 dev lo\n");
    let forged = forger.run(|| std::net::UdpSocket::bind(near)).expect("the client's address");
    let server = topology.server_at(Family::V4, 7001);
    // Dropped, so that the server's socket doesn't take them for the client's.
    topology
        .node
        .nft("table inet guard { chain f { type filter hook forward priority 0; iifname p3 drop; }; }");
    assert_becomes_forwarded(&topology, &mut flow);
    let mut expected = 0;
    let before = forwarded(&topology);
    for _ in 0..20 {
        assert_eq!(flow.rounds(20), 20, "with a lease that has just begun");
        expected += 40;
        for _ in 0..50 {
            forged.send_to(&[0; 64], server).expect("sent");
        }
    }
    settle();
    for _ in 0..500 {
        forged.send_to(&[0; 64], server).expect("sent");
    }
    settle();
    let more = forwarded(&topology) - before;
    assert!(more > 300 && more <= expected, "{more} of {expected} and 1,500 forged ones");
    assert_eq!(flow.rounds(100), 100);
}

/// What comes later forbids the flow's packets: on a node without the agent, with it, and with forwarding.
fn forbids_by_ipsec(comes: &str, goes: &str) {
    for flags in [None, Some(&[][..]), Some(&["--forward=peer"][..])] {
        let topology = Topology::routed();
        let _agent = flags.map(|flags| Agent::start_with(&topology.node, flags));
        let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
        match flags {
            Some(["--forward=peer"]) => assert_becomes_forwarded(&topology, &mut flow),
            Some(_) => topology.assert_becomes_accelerated(&mut flow),
            None => assert_eq!(flow.rounds(50), 50),
        }
        topology.node.ip(comes);
        thread::sleep(ANNOUNCED);
        flow.set_patience(Duration::from_millis(100));
        assert_eq!(flow.rounds(3), 0, "{flags:?}");
        topology.node.ip(goes);
        flow.set_patience(Duration::from_secs(1));
        wait_until("packets arrive again", SOON, || flow.rounds(1) == 1);
        if flags == Some(&["--forward=peer"][..]) {
            assert_becomes_forwarded(&topology, &mut flow);
        }
    }
}

#[test]
fn a_new_ipsec_policy_holds_for_forwarded_flows() {
    forbids_by_ipsec(
        "xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir fwd action block\n",
        "xfrm policy flush\n",
    );
}

/// A chain at an interface stays there when that gets another name.
#[test]
fn a_chain_at_egress_of_a_renamed_interface_sees_all_packets() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.nft(
        "table netdev edge { chain out {
            type filter hook egress device s0 priority 0;
            udp length > 500 drop;
        }; }",
    );
    let _agent = Agent::start_with(node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    node.ip("link set s0 down\nlink set s0 name s9\nlink set s9 up\n");
    wait_until("packets arrive again", SOON, || flow.rounds(1) == 1);
    thread::sleep(Duration::from_secs(1));
    let before = left_by(&topology, "s9");
    assert_eq!(flow.rounds(2000), 2000);
    let left = left_by(&topology, "s9") - before;
    assert!(left >= 2000, "{left} packets left by the interface");
}

/// Not even the first packet is forwarded that is tried again.
#[test]
fn a_new_ipsec_policy_holds_for_flows_that_wait() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_becomes_forwarded(&topology, &mut flow);
    // Until they were read again these interfaces take no part; packets that come then wait for a second.
    topology.node.ip("link set s0 alias x\nlink set c0 alias x\n");
    assert_eq!(flow.rounds(200), 200);
    thread::sleep(Duration::from_millis(1500));
    topology.node.ip("xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir fwd action block\n");
    thread::sleep(ANNOUNCED);
    flow.set_patience(Duration::from_millis(100));
    assert_eq!(flow.rounds(3), 0);
}

/// The last packets of a connection come within the lease.
#[test]
fn conntrack_sees_how_a_connection_ends() {
    let topology = Topology::routed();
    let _agent = Agent::start_with(&topology.node, &["--forward=peer"]);
    for port in 7001..=7005 {
        let mut flow = topology.open(Proto::Tcp, Family::V4, port);
        assert_becomes_forwarded(&topology, &mut flow);
        assert_eq!(flow.rounds(100), 100);
        flow.close_gracefully();
        wait_until(
            "the end seen",
            SOON,
            || matches!(&topology.conntrack(port)[..], [line] if line.contains("TIME_WAIT")),
        );
    }
}

#[test]
fn a_new_default_of_ipsec_holds_for_forwarded_flows() {
    forbids_by_ipsec("xfrm policy setdefault fwd block\n", "xfrm policy setdefault fwd accept\n");
}

/// Without what it needs to start it says so, and flows are offloaded as ever.
#[test]
fn without_the_capability_flows_are_offloaded() {
    let topology = Topology::routed();
    let mut command = std::process::Command::new("setpriv");
    command.arg("--bounding-set=-sys_admin").arg(agent::binary()).args(["run", "--forward=peer"]);
    command.env("FASTPATH_METRICS_BIND_ADDRESS", "");
    let mut agent = Agent::spawn(&topology.node, &mut command);
    agent.wait_for("flows are watched", SOON);
    assert_eq!(
        agent.count("takes CAP_SYS_ADMIN to start: grant it, or start the agent with --forward=off"),
        1
    );
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
}
