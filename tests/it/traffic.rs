//! {TCP, UDP} × {IPv4, IPv6} × {plain, masquerade, service address}: delivered unaltered, and past the forward path.

use fastpath_tests::{
    agent::Agent,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Direction, Proto},
};

const PORT: u16 = 7001;
const BULK: usize = 2 << 20;

#[track_caller]
fn accelerates(proto: Proto, family: Family, nat: Nat) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = match nat {
        Nat::Service => topology.open_service(proto, family, PORT),
        Nat::Plain | Nat::Masquerade => topology.open(proto, family, PORT),
    };
    topology.assert_becomes_accelerated(&mut flow);
    let translated = flow.seen_by_server().ip() != topology.client().address(family);
    assert_eq!(translated, nat == Nat::Masquerade, "the server sees {}", flow.seen_by_server());
    if proto == Proto::Tcp {
        let before = topology.forwarded(PORT);
        flow.transfer(Direction::Upload, BULK).expect("upload");
        flow.transfer(Direction::Download, BULK).expect("download");
        let passed = topology.forwarded(PORT).total() - before.total();
        assert!(passed <= 2, "{passed} packets of {BULK} bytes took the forward path");
    }
}

macro_rules! matrix {
    ($($name:ident: $proto:ident $family:ident $nat:ident,)*) => {
        $(#[test]
        fn $name() {
            accelerates(Proto::$proto, Family::$family, Nat::$nat);
        })*
    };
}

matrix! {
    tcp_v4_plain: Tcp V4 Plain,
    tcp_v4_masquerade: Tcp V4 Masquerade,
    tcp_v4_service: Tcp V4 Service,
    tcp_v6_plain: Tcp V6 Plain,
    tcp_v6_masquerade: Tcp V6 Masquerade,
    tcp_v6_service: Tcp V6 Service,
    udp_v4_plain: Udp V4 Plain,
    udp_v4_masquerade: Udp V4 Masquerade,
    udp_v4_service: Udp V4 Service,
    udp_v6_plain: Udp V6 Plain,
    udp_v6_masquerade: Udp V6 Masquerade,
    udp_v6_service: Udp V6 Service,
}

#[test]
fn iperf3_past_the_forward_path() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let _agent = Agent::start(&topology.node, &[]);
    let mut command = std::process::Command::new("iperf3");
    command.args(["-s", "-1", "-p", "7001"]).stdout(std::process::Stdio::null());
    let mut server = topology.server().ns.spawn(&mut command);
    fastpath_tests::wait_until("iperf3 listens", std::time::Duration::from_secs(5), || {
        let sockets = topology.server().ns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp6"));
        // 0x1B59 is 7001; 0A is listening.
        sockets.expect("procfs").lines().any(|line| line.contains(":1B59 ") && line.contains(" 0A "))
    });
    let report = topology.client().ns.output("iperf3", &["-c", "10.2.0.2", "-p", "7001", "-n", "8M", "-J"]);
    server.wait().expect("iperf3's server");
    let report: serde_json::Value = serde_json::from_str(&report).expect("iperf3 prints JSON");
    let received = report["end"]["sum_received"]["bytes"].as_u64().expect("bytes received");
    // The server stops counting when the client says that it has sent all.
    assert!(received >= 7 << 20, "{received} bytes of 8 MiB arrived");
    // The young connection, the control connection, and the ends of both.
    let forwarded = topology.forwarded(PORT).total();
    assert!((20..150).contains(&forwarded), "{forwarded} packets took the forward path");
}

#[test]
fn many_flows_at_once() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    let flows: Vec<_> = [
        (Proto::Tcp, Family::V4, 7001),
        (Proto::Udp, Family::V4, 7002),
        (Proto::Tcp, Family::V6, 7003),
        (Proto::Udp, Family::V6, 7004),
    ]
    .map(|(proto, family, port)| topology.open(proto, family, port).in_background())
    .into();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let flows: Vec<_> = flows.into_iter().map(|flow| flow.stop_intact().0).collect();
    for mut flow in flows {
        topology.assert_accelerated(&mut flow);
    }
}

#[test]
fn the_end_of_a_connection_and_a_new_one_on_the_same_port() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    for _ in 0..3 {
        let mut flow = topology.open(Proto::Tcp, Family::V4, PORT);
        topology.assert_becomes_accelerated(&mut flow);
        flow.close_gracefully();
    }
}
