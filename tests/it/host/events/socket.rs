//! Who may read, and what becomes of the socket.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fastpath_tests::{
    agent,
    topology::{Family, Layout, Nat},
    traffic::Proto,
    wait_until,
};
use serde_json::Value;

use super::Node;

const LIMIT: Duration = Duration::from_secs(10);
const THRESHOLD: &str = "--fastpath-threshold=1";

impl Node {
    fn subcommand(&self, args: &[&str]) -> Command {
        let run_dir = format!("--run-dir={}", self.run_dir().display());
        agent::command(&[args, &[&run_dir]].concat())
    }

    fn follow(&self, args: &[&str]) -> Child {
        let mut command = self.subcommand(&[&["flows", "--follow"], args].concat());
        self.ns().spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }
}

/// What it has printed, and said, when it has ended by itself.
#[track_caller]
fn ended(child: Child) -> (bool, String, String) {
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[test]
fn follow_prints_what_is_asked_for_until_the_agent_ends() {
    let node = Node::new();
    let agent = node.agent(&[THRESHOLD]);
    let reader = node.read();
    let (all, one, json) = (
        node.follow(&[]),
        node.follow(&["--port=10001", "--limit=1"]),
        node.follow(&["-o", "json", "--protocol=udp", "--interface=c0", "--address=10.2.0.0/16"]),
    );
    let none = node.follow(&["-o", "json", "--protocol=tcp"]);
    // The listening socket, and the agent's end of each reader's: they are of the reader's namespace.
    let path = node.socket().display().to_string();
    wait_until("four readers", LIMIT, || {
        let sockets = node.ns().run(|| fs::read_to_string("/proc/thread-self/net/unix")).expect("procfs");
        sockets.lines().filter(|line| line.ends_with(&path)).count() == 5
    });
    for flow in 0..3 {
        node.send(flow, 0, 2);
    }
    reader.expect(3, LIMIT);
    // It has had enough before the agent ends.
    let (success, printed, _) = ended(one);
    assert!(
        success && printed.lines().count() == 2 && printed.contains("10.1.0.2:10001 > 10.2.0.2:61000"),
        "{printed}"
    );
    agent.stop();
    let (success, printed, said) = ended(all);
    assert!(success && said.contains("the agent has ended"), "{said}");
    assert_eq!(printed.lines().count(), 4, "{printed}");
    assert!(printed.starts_with("TIME") && printed.contains("10.1.0.2:10002 > 10.2.0.2:61000"), "{printed}");
    let (_, printed, _) = ended(json);
    let records: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect();
    assert_eq!(records.len(), 3, "{printed}");
    for record in &records {
        assert_eq!((&record["event"], &record["protocol"]), (&"crossed".into(), &"udp".into()));
        assert_eq!(record["ingress"][0]["packets"], 2);
        assert_eq!(record["interfaces"][0], "c0");
        assert!(record["time_ms"].as_u64().is_some_and(|ms| ms > 1_500_000_000_000), "{record}");
        assert!(record["conntrack"]["id"].is_u64() || record["state"] == "gone", "{record}");
    }
    assert_eq!(ended(none).1, "");
}

#[test]
fn without_an_agent_it_says_so() {
    let node = Node::new();
    let (success, printed, said) = ended(node.follow(&["-o", "json"]));
    assert!(!success && printed.is_empty() && said.starts_with("error: no agent publishes at"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// Both directions signal, and with NAT the second isn't the first turned round.
#[test]
fn a_flow_with_nat_is_told_once() {
    let node = Node::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let _agent = node.agent(&["--fastpath-threshold=5"]);
    let reader = node.read();
    for (number, (proto, family)) in [
        (Proto::Udp, Family::V4),
        (Proto::Tcp, Family::V4),
        (Proto::Udp, Family::V6),
        (Proto::Tcp, Family::V6),
    ]
    .into_iter()
    .enumerate()
    {
        let mut flow = node.topology.open(proto, family, 7001 + number as u16);
        assert_eq!(flow.rounds(20), 20);
        reader.expect(number + 1, LIMIT);
    }
}

#[test]
fn a_slow_reader_is_told_what_it_missed_and_delays_no_other() {
    const FLOWS: u32 = 15_000;
    let node = Node::new();
    let mut agent = node.agent(&[THRESHOLD]);
    let reader = node.read();
    let slow = UnixStream::connect(node.socket()).expect("the agent listens");
    for flow in 0..FLOWS {
        node.send(flow, 0, 2);
    }
    reader.expect(FLOWS as usize, Duration::from_secs(40));
    assert!(agent.is_running());
    slow.set_read_timeout(Some(Duration::from_secs(2))).expect("a time limit");
    let (mut told, mut missed) = (0, 0);
    for line in BufReader::new(slow).lines() {
        // The time limit: there is no more.
        let Ok(line) = line else { break };
        let record: Value = serde_json::from_str(&line).expect("JSON");
        match record["event"].as_str() {
            Some("lost") => missed += record["records"].as_u64().expect("a number"),
            _ => told += 1,
        }
    }
    assert!(missed > 0, "it was fast enough: {told}");
    assert_eq!(told + missed, u64::from(FLOWS));
}

#[test]
fn only_root_may_read_and_nothing_stays_behind() {
    let node = Node::new();
    let agent = node.agent(&[THRESHOLD]);
    let _reader = node.read();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&node.run_dir()), mode(&node.socket())), (0o700, 0o600));
    agent.stop();
    assert!(!node.run_dir().exists());
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
    let node = Node::new();
    node.agent(&[THRESHOLD]).kill();
    assert!(node.socket().exists(), "it had no time to remove it");
    let (success, _, said) = ended(node.follow(&[]));
    assert!(!success && said.contains("no agent"), "{said}");

    let live = node.agent(&[THRESHOLD]);
    let reader = node.read();
    // Another one with the same directory, and maps of its own.
    let other = Node::new();
    let run_dir = format!("--run-dir={}", node.run_dir().display());
    let pin_path = format!("--pin-path={}", other.bpffs.pin_path().display());
    let mut second =
        agent::Agent::spawn(other.ns(), &mut agent::command(&[THRESHOLD, &run_dir, &pin_path, "--v=5"]));
    second.wait_for("another agent already publishes", LIMIT);
    other.wait_until_watched();
    other.send(0, 0, 2);
    second.wait_for("crossed the threshold", LIMIT);
    second.stop();
    node.send(0, 0, 2);
    reader.expect(1, LIMIT);
    live.stop();
    assert!(!node.socket().exists());
}

#[test]
fn cleanup_removes_a_dead_agents_socket() {
    let node = Node::new();
    node.agent(&[THRESHOLD]).kill();
    let pin_path = format!("--pin-path={}", node.bpffs.pin_path().display());
    let mut command = node.subcommand(&["cleanup", &pin_path]);
    let output = node.ns().run(|| command.output()).expect("run cleanup");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("socket"), "{printed}");
    assert!(!node.run_dir().exists());
}

#[test]
fn without_a_place_for_the_socket_the_rest_works() {
    let node = Node::new();
    let pin_path = format!("--pin-path={}", node.bpffs.pin_path().display());
    // As on a read-only file system, for root too.
    let mut command = agent::command(&[THRESHOLD, "--run-dir=/proc/fastpath", &pin_path, "--v=5"]);
    let mut agent = agent::Agent::spawn(node.ns(), &mut command);
    node.wait_until_watched();
    node.send(0, 0, 2);
    agent.wait_for("crossed the threshold", LIMIT);
    let warned = agent.log().iter().filter(|line| line.contains("WARN") && line.contains("--follow")).count();
    assert_eq!(warned, 1, "{:#?}", agent.log());
    agent.stop();
}

#[test]
fn readers_come_and_go() {
    let node = Node::new();
    let agent = node.agent(&[THRESHOLD]);
    drop(node.read());
    for _ in 0..100 {
        wait_until("a place", LIMIT, || {
            let mut stream = UnixStream::connect(node.socket()).expect("the agent listens");
            stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a time limit");
            // One too many is turned away.
            !matches!(stream.read(&mut [0]), Ok(0))
        });
    }
    let reader = node.read();
    node.send(0, 0, 2);
    reader.expect(1, LIMIT);
    let pid = agent.pid();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).expect("procfs").count();
    let before = open();
    drop(reader);
    wait_until("descriptors closed", LIMIT, || open() <= before);
    agent.stop();
}
