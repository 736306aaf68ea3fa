//! The HTTP port: health, readiness, and what doesn't belong there.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, SERVE, bring_loopback_up},
    topology::Topology,
    wait_until,
};
use nix::sys::signal::Signal;

use super::ebpf::setup::Bpffs;

/// A node whose agent only watches, so that it is ready on any kernel.
struct Watched {
    topology: Topology,
    bpffs: Bpffs,
}

impl Watched {
    fn new() -> Self {
        let topology = Topology::routed();
        bring_loopback_up(&topology.node);
        Self { topology, bpffs: Bpffs::mount() }
    }

    fn agent(&self, flags: &[&str]) -> Agent {
        let pin_path = format!("--pin-path={}", self.bpffs.pin_path().display());
        let flags = [&[SERVE, &pin_path], flags].concat();
        let agent = Agent::spawn(&self.topology.node, &mut agent::command(&flags));
        wait_until("the port", Duration::from_secs(15), || {
            http::try_get(&self.topology.node, "/healthz", "").is_ok()
        });
        agent
    }
}

#[test]
fn alive_and_ready_are_two_things() {
    let node = Watched::new();
    let ns = &node.topology.node;
    // Watching was asked for, and works.
    let agent = node.agent(&["--fastpath-threshold=0"]);
    for (path, status, body) in [
        ("/healthz", 200, "ok\n"),
        ("/readyz", 200, "ok\n"),
        ("/readyz?verbose", 200, "ok\n"),
        ("/flows", 404, "there are"),
    ] {
        let answer = http::get(ns, path);
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        assert!(answer.body.starts_with(body), "{path}: {answer:?}");
    }
    let answer = http::request(ns, "POST /metrics HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n\r\n")
        .expect("answered");
    assert_eq!(answer.status, 405, "{answer:?}");
    assert!(answer.head.contains("allow: GET, HEAD"), "{answer:?}");
    agent.stop();
    // Neither offloading nor watching: alive, but of no use.
    let agent = node.agent(&["--fastpath-threshold=0", "--ebpf=off"]);
    assert_eq!(http::get(ns, "/healthz").status, 200);
    let answer = http::get(ns, "/readyz");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.contains("--ebpf") && answer.body.trim_end().lines().count() == 1, "{answer:?}");
    agent.stop();
}

/// The answer comes from the loop that reconciles, and the port doesn't outlive it.
#[test]
fn a_stopped_loop_is_not_alive() {
    let node = Watched::new();
    let agent = node.agent(&["--fastpath-threshold=0"]);
    agent.signal(Signal::SIGSTOP);
    let mut said = String::new();
    let read = node.topology.node.run(|| {
        let mut stream = TcpStream::connect(http::ADDRESS)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n")?;
        stream.read_to_string(&mut said)
    });
    assert!(read.is_err() && said.is_empty(), "a stopped agent said {said:?}");
    agent.signal(Signal::SIGCONT);
    assert_eq!(http::get(&node.topology.node, "/healthz").status, 200);
    agent.stop();
    assert!(http::try_get(&node.topology.node, "/healthz", "").is_err(), "the port is still open");
}

/// Metrics that can't be served are said to be missing, and the agent runs anyway.
#[test]
fn a_port_that_is_taken_is_one_line_and_the_agent_runs() {
    let node = Watched::new();
    let ns = &node.topology.node;
    let taken = ns.run(|| TcpListener::bind(http::ADDRESS)).expect("a free port");
    for (address, words) in [("127.0.0.1:19080", "in use"), ("192.0.2.1:19080", "assign")] {
        let pin_path = format!("--pin-path={}", node.bpffs.pin_path().display());
        let address_flag = format!("--metrics-bind-address={address}");
        let flags = ["--fastpath-threshold=0", &pin_path, &address_flag];
        let mut agent = Agent::spawn(ns, &mut agent::command(&flags));
        agent.wait_for("eBPF programs loaded", Duration::from_secs(15));
        let said = agent.log().join("\n");
        let lines: Vec<_> = said.lines().filter(|line| line.contains("cannot listen")).collect();
        assert_eq!(lines.len(), 1, "{said}");
        for words in [address, words, "--metrics-bind-address"] {
            assert!(lines[0].contains(words), "no {words:?} in {said}");
        }
        agent.stop();
    }
    drop(taken);
}

/// Two agents would fight over links and signals.
#[test]
fn a_second_agent_is_told_who_runs() {
    let node = Watched::new();
    let ns = &node.topology.node;
    let first = node.agent(&["--fastpath-threshold=0"]);
    for flags in [&["--metrics-bind-address="][..], &["--once", "--ebpf=off"]] {
        let second = agent::run(ns, flags);
        let said = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(1), "{said}");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{said}");
        assert!(errors[0].contains("another agent runs in this network namespace (process "), "{said}");
    }
    assert_eq!(fastpath_tests::table::listing(ns), None);
    first.stop();
}

/// A client that opens connections and sends nothing delays others for a limited time only.
#[test]
fn silent_connections_are_closed_after_a_while() {
    let node = Watched::new();
    let ns = &node.topology.node;
    let agent = node.agent(&["--fastpath-threshold=0"]);
    let silent: Vec<TcpStream> =
        ns.run(|| (0..15).map(|_| TcpStream::connect(http::ADDRESS).expect("connect")).collect());
    assert_eq!(http::get(ns, "/healthz").status, 200, "with one place left");
    let more: Vec<TcpStream> =
        ns.run(|| (0..5).map(|_| TcpStream::connect(http::ADDRESS).expect("connect")).collect());
    assert_eq!(http::get(ns, "/healthz").status, 200, "once the first are closed");
    drop((silent, more));
    agent.stop();
}
