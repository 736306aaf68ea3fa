//! Connections that are older than the ruleset: helped into the flowtable, and only those that belong there.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    path::STRAYS,
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
    wait_until,
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(10);

/// Rounds that take a flow over the default threshold in each direction.
const CROSSING: usize = 25;

/// Starts the agent on a node whose flows are there already.
#[track_caller]
fn start(node: &Netns, flags: &[&str]) -> Agent {
    let agent = Agent::start_with(node, flags);
    agent::wait_for_programs(node, &["c0", "s0"]);
    agent
}

/// Whether set and rule of assistance are there.
#[track_caller]
fn assists(node: &Netns) -> bool {
    table::listing(node).expect("the table").contains("kindnet-assist")
}

/// Takes a flow over the threshold and waits until its packets bypass the forward path.
#[track_caller]
fn assert_is_helped(topology: &Topology, flow: &mut Flow) {
    assert_eq!(flow.rounds(CROSSING), CROSSING);
    let before = Instant::now();
    wait_until(&format!("{flow:?} offloaded"), LIMIT, || {
        assert_eq!(flow.rounds(1), 1);
        topology.marked_offloaded(flow.port())
    });
    eprintln!("{flow:?} was offloaded {:?} after it had crossed", before.elapsed());
    topology.assert_accelerated(flow);
}

#[test]
fn old_connections_are_offloaded_of_any_kind() {
    for nat in [Nat::Plain, Nat::Masquerade] {
        let topology = Topology::build(Layout { nat, ..Layout::default() });
        let node = &topology.node;
        let mut flows: Vec<_> = [
            (7001, Proto::Udp, Family::V4),
            (7002, Proto::Tcp, Family::V4),
            (7003, Proto::Udp, Family::V6),
            (7004, Proto::Tcp, Family::V6),
        ]
        .into_iter()
        .map(|(port, proto, family)| topology.open(proto, family, port))
        .collect();
        for flow in &mut flows {
            assert_eq!(flow.rounds(CROSSING), CROSSING);
        }
        let agent = start(node, &[]);
        assert!(!assists(node), "nothing needs it yet");
        for flow in &mut flows {
            assert!(!topology.marked_offloaded(flow.port()));
            assert_is_helped(&topology, flow);
        }
        wait_until("the rule gone again", LIMIT, || !assists(node));
        for flow in &mut flows {
            topology.assert_accelerated(flow);
        }
        agent.stop();
        agent::output(node, &["cleanup"]);
    }
}

#[test]
fn assist_off_leaves_them_alone() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut old = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(old.rounds(CROSSING), CROSSING);
    let agent = start(node, &["--assist=off"]);
    assert_eq!(old.rounds(CROSSING), CROSSING);
    thread::sleep(Duration::from_secs(1));
    topology.assert_forwarded(&mut old);
    assert!(!assists(node));
    // It has crossed, and signals no more. The next agent helps it anyway.
    agent.stop();
    let _agent = start(node, &[]);
    wait_until("the old connection offloaded", LIMIT, || {
        assert_eq!(old.rounds(1), 1);
        topology.marked_offloaded(7001)
    });
    topology.assert_accelerated(&mut old);
}

/// What the rule wouldn't take with counters isn't taken without.
#[test]
fn the_guards_hold() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    let node = &topology.node;
    node.nft(
        "table inet helpers {
            ct helper reader { type \"ftp\" protocol tcp; l3proto inet; }
            chain pre { type filter hook prerouting priority 0; tcp dport 7003 ct helper set \"reader\"; }
        }",
    );
    let mut one_way = topology.open(Proto::Udp, Family::V4, 7001);
    let mut elsewhere = topology.open_between(0, 2, Proto::Udp, Family::V4, 7002);
    let mut helper = topology.open(Proto::Tcp, Family::V4, 7003);
    assert!(one_way.request());
    assert_eq!((elsewhere.rounds(2), helper.rounds(2)), (2, 2));
    let _agent = start(node, &["--exclude-interfaces=p3"]);
    for _ in 0..CROSSING {
        assert!(one_way.request());
    }
    assert_eq!((elsewhere.rounds(CROSSING), helper.rounds(CROSSING)), (CROSSING, CROSSING));
    thread::sleep(Duration::from_secs(1));
    topology.assert_forwarded(&mut elsewhere);
    topology.assert_forwarded(&mut helper);
    let before = topology.forwarded(7001).original;
    for _ in 0..50 {
        assert!(one_way.request());
    }
    assert_eq!(topology.forwarded(7001).original - before, 50);
    for port in 7001..=7003 {
        assert!(!topology.marked_offloaded(port), "{port}");
    }
}

/// The flowtable is emptied, since another program changes what is filtered, or deletes our table. Other flows come back by
/// themselves.
#[test]
fn a_helped_connection_comes_back_after_the_flowtable_was_emptied() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut old = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(old.rounds(2), 2);
    let _agent = start(node, &[]);
    assert_is_helped(&topology, &mut old);
    wait_until("the rule gone again", LIMIT, || !assists(node));
    for change in [
        "table inet filters { chain forward { type filter hook forward priority 0; tcp dport 9 drop; }; }",
        "delete table inet kindnet-fastpath",
    ] {
        node.nft(change);
        wait_until("the flowtable emptied", LIMIT, || !topology.marked_offloaded(7001));
        wait_until("the old connection offloaded again", LIMIT, || {
            assert_eq!(old.rounds(1), 1);
            topology.marked_offloaded(7001)
        });
        topology.assert_accelerated(&mut old);
    }
}

/// What the programs know of it, where its first packets came in, is an interface that has gone since.
#[test]
fn an_old_connection_over_an_interface_that_was_replaced() {
    let topology = Topology::build(Layout { pods: 3, ..Layout::default() });
    let node = &topology.node;
    let mut old = topology.open_between(0, 2, Proto::Udp, Family::V4, 7001);
    assert_eq!(old.rounds(2), 2);
    let agent = Agent::start_with(node, &[]);
    agent::wait_for_programs(node, &["c0", "s0", "p3"]);
    assert_is_helped(&topology, &mut old);
    wait_until("the rule gone again", LIMIT, || !assists(node));
    node.ip("link delete p3\n");
    topology.connect_again(2);
    agent::wait_for_programs(node, &["c0", "s0", "p3"]);
    wait_until("the flow going again", LIMIT, || old.rounds(1) == 1);
    wait_until("the flowtable without it", LIMIT, || !topology.marked_offloaded(7001));
    // Which doesn't wait for the safety net.
    agent.signal(Signal::SIGHUP);
    wait_until("the old connection offloaded again", LIMIT, || {
        assert_eq!(old.rounds(1), 1);
        topology.marked_offloaded(7001)
    });
    topology.assert_accelerated(&mut old);
}

/// Many flows to one port of the server.
struct Crowd {
    clients: Vec<UdpSocket>,
    server: UdpSocket,
}

impl Crowd {
    fn new(topology: &Topology, flows: usize) -> Self {
        let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 4096, 4096);
        let to = topology.server_at(Family::V4, 7001);
        let bind = |at: SocketAddr| {
            let socket = UdpSocket::bind(at).expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time limit");
            socket
        };
        let server = topology.server().ns.run(|| bind(to));
        let any = "0.0.0.0:0".parse().expect("an address");
        let clients = topology.client().ns.run(|| (0..flows).map(|_| bind(any)).collect::<Vec<_>>());
        for client in &clients {
            client.connect(to).expect("a route");
        }
        Self { clients, server }
    }

    /// One request and one response of every flow.
    #[track_caller]
    fn round(&self) {
        let mut buffer = [0; 16];
        for client in &self.clients {
            client.send(b"ask").expect("send");
            let (length, from) = self.server.recv_from(&mut buffer).expect("the request");
            self.server.send_to(&buffer[..length], from).expect("answer");
            assert_eq!(client.recv(&mut buffer).expect("the response"), 3);
        }
    }
}

#[test]
fn a_thousand_old_connections() {
    const FLOWS: usize = 1000;
    let topology = Topology::routed();
    let node = &topology.node;
    let crowd = Crowd::new(&topology, FLOWS);
    crowd.round();
    let begun = Instant::now();
    crowd.round();
    let slow_round = begun.elapsed();
    let _agent = start(node, &["--fastpath-threshold=2"]);
    for _ in 0..3 {
        crowd.round();
    }
    let crossed = Instant::now();
    let mut rounds = 0;
    loop {
        let before = topology.forwarded(7001).total();
        let begun = Instant::now();
        crowd.round();
        rounds += 1;
        let forwarded = topology.forwarded(7001).total() - before;
        if forwarded <= STRAYS {
            eprintln!(
                "{FLOWS} old connections: all packets bypass {:?} after the last had crossed ({rounds} rounds of {slow_round:?})",
                begun - crossed,
            );
            assert!(begun - crossed < Duration::from_secs(5), "{:?}", begun - crossed);
            break;
        }
        assert!(crossed.elapsed() < Duration::from_secs(20), "{forwarded} packets still on the forward path");
    }
    let listing = node.output("conntrack", &["-L", "-p", "udp"]);
    assert_eq!(listing.lines().filter(|line| line.contains("[OFFLOAD]")).count(), FLOWS);
    wait_until("the rule gone again", LIMIT, || !assists(node));
}

/// Conntrack is read beside the loop when the agent is told to reload: what happens meanwhile is answered.
#[test]
fn a_reload_with_many_connections_keeps_no_flow_waiting() {
    const CONNECTIONS: usize = 20_000;
    let topology = Topology::routed();
    let node = &topology.node;
    let mut agent = Agent::start_with(node, &["--v=4"]);
    agent::wait_for_programs(node, &["c0", "s0"]);
    let entries: String = (0..CONNECTIONS)
        .map(|number| {
            let client = format!("10.1.{}.{}", number / 250, number % 250 + 1);
            format!(
                "-A -p udp -s {client} -d 10.2.0.2 --sport 4000 --dport 53 -r 10.2.0.2 -q {client} \
                 --reply-port-src 53 --reply-port-dst 4000 -t 600 -u SEEN_REPLY\n"
            )
        })
        .collect();
    node.feed("conntrack", &["-R", "-"], &entries);
    assert!(
        node.output("conntrack", &["-C"]).trim().parse::<usize>().is_ok_and(|count| count >= CONNECTIONS)
    );
    agent.wait_until_idle();
    let before = agent.count("the loop was away");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("exclusions read again", LIMIT);
    agent.wait_for_count("searched for connections that crossed before", 2, LIMIT);
    let log = agent.log().join("\n");
    assert_eq!(agent.count("the loop was away"), before, "{log}");
}

#[test]
fn old_connections_come_back_after_a_revalidation_by_hand() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(CROSSING), CROSSING);
    let _agent = start(node, &[]);
    assert_is_helped(&topology, &mut flow);
    // Helped ones are looked at with the safety net too, once a minute.
    for _ in 0..2 {
        agent::output(node, &["revalidate"]);
        let before = Instant::now();
        wait_until("its mark gone", LIMIT, || !topology.marked_offloaded(7001));
        assert_is_helped(&topology, &mut flow);
        assert!(before.elapsed() < LIMIT, "{:?}", before.elapsed());
    }
}
