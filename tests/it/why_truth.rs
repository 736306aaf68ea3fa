//! `why` says nothing that isn't so: of flows that are older than the agent, local, left out by choice, or dead.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
    why::{ask, asked, reasons},
};
use serde_json::Value;

fn start(topology: &Topology, flags: &[&str], interfaces: &[&str]) -> Agent {
    let agent = Agent::start_with(&topology.node, flags);
    agent::wait_for_programs(&topology.node, interfaces);
    agent
}

/// Asks while `traffic` goes on, again and again.
fn under<T>(traffic: impl FnMut() + Send, ask: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (stop, mut traffic) = (&stop, traffic);
        scope.spawn(move || {
            while !stop.load(Relaxed) {
                traffic();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(ask));
        stop.store(true, Relaxed);
        answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn text(answer: &Value) -> &str {
    answer["verdict"]["text"].as_str().expect("a text")
}

#[test]
fn answers_that_are_older_than_the_agent() {
    let topology = Topology::routed();
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(30), 30);
    let _agent = start(&topology, &[], &["c0", "s0"]);
    let words = asked(&topology, 7001);
    let answer = under(
        || assert!(flow.request()),
        || {
            thread::sleep(Duration::from_secs(2));
            ask(&topology.node, &words)
        },
    );
    assert!(!text(&answer).contains("report"), "{answer:#}");
    assert_ne!(answer["verdict"]["accelerated"], "partly", "{answer:#}");
}

#[test]
fn connections_of_this_node() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link set lo up\n");
    let _agent = start(&topology, &[], &["c0", "s0"]);
    let talk = |from: &fastpath_tests::netns::Netns, to: &fastpath_tests::netns::Netns, end: &str| {
        let listener = to.run(|| TcpListener::bind(end)).expect("bind");
        let client = from.run(|| TcpStream::connect(end)).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        let words = ["tcp".to_owned(), client.local_addr().unwrap().to_string(), end.to_owned()];
        let answer = ask(node, &words);
        drop((client, server));
        answer
    };
    let client = &topology.client().ns;
    for answer in [
        talk(node, node, "127.0.0.1:7001"),
        talk(node, client, "10.1.0.2:7002"),
        talk(client, node, "10.1.0.1:7003"),
        talk(node, node, "10.2.0.1:7004"),
        talk(node, node, "[::1]:7005"),
    ] {
        assert_eq!(answer["verdict"]["reason"], "local", "{answer:#}");
        assert!(!answer.to_string().contains("Invalid argument"), "{answer:#}");
        assert!(!answer.to_string().contains("no route"), "{answer:#}");
    }
    let server = node.run(|| UdpSocket::bind("10.1.0.1:7006")).expect("bind");
    let sender = client.run(|| UdpSocket::bind("10.1.0.2:7007")).expect("bind");
    sender.send_to(b"one", "10.1.0.1:7006").expect("send");
    drop(server);
    let answer = ask(node, &["udp", "10.1.0.2:7007", "10.1.0.1:7006"].map(str::to_owned));
    assert_eq!(answer["verdict"]["reason"], "local", "{answer:#}");
}

#[test]
fn an_interface_that_is_left_out_by_choice() {
    let topology = Topology::routed();
    let mut old = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(old.rounds(5), 5);
    let _agent = start(&topology, &["--exclude-interfaces=s0"], &["c0"]);
    let mut young = topology.open(Proto::Udp, Family::V4, 7002);
    assert_eq!(young.rounds(30), 30);
    for (flow, port) in [(&mut old, 7001), (&mut young, 7002)] {
        let words = asked(&topology, port);
        let answer = under(
            || assert_eq!(flow.rounds(2), 2),
            || {
                thread::sleep(Duration::from_secs(1));
                ask(&topology.node, &words)
            },
        );
        assert_eq!(
            (&answer["verdict"]["reason"], &answer["verdict"]["problem"]),
            (&"interface".into(), &"excluded".into())
        );
        assert!(!answer.to_string().contains("next packet"), "{answer:#}");
        assert_eq!(reasons(&answer)[0], "interface");
        // A list can't know where answers come in that aren't counted: it says who knows.
        let listed = agent::output(&topology.node, &["flows", "-o", "json", &format!("--port={port}")]);
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        let todo = listed[0]["todo"].as_str().unwrap_or_default();
        assert!(todo.contains("`why`") || todo.contains("both interfaces"), "{listed:#}");
    }
}

#[test]
fn flows_that_are_dead() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = start(&topology, &[], &["c0", "s0"]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let words = asked(&topology, 7001);
    drop(flow);
    thread::sleep(Duration::from_secs(3));
    let answer = ask(node, &words);
    assert_ne!(answer["verdict"]["accelerated"], "yes", "{answer:#}");
    assert!(!text(&answer).starts_with("accelerated"), "{answer:#}");
    wait_until("it is offloaded all the same", Duration::from_secs(1), || topology.marked_offloaded(7001));
}
