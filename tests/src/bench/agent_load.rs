//! What the agent does with many flows: how soon a policy counts, how fast old connections are helped, what following
//! crossings and listing flows takes.
//!
//! Times are of the guest's clock: milliseconds of a processor that executes a thousand million instructions a second.

use std::{
    fs,
    io::Read as _,
    net::UdpSocket,
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    node::{Ends, Node, Rules, STRAYS},
    packets,
};
use crate::{
    agent::{self, Agent},
    bench::node::Base,
    pktgen::Stream,
    topology::Family,
    wait_until,
};

/// Flows in a second that cross the threshold in the rows about crossings.
pub(super) const CROSSINGS_A_SECOND: u64 = 10_000;
/// How long they do.
const CROSSING_SECONDS: u64 = 3;

/// What is looked at while flows cross the threshold.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// Resident memory at the end.
    Memory,
    /// Share of a processor.
    Cpu,
    /// Times that it was woken a second.
    WakeUps,
}

/// What is looked at of `fastpath-agent flows`.
#[derive(Clone, Copy, Debug)]
pub enum Listing {
    /// From its start to the last byte.
    Time,
    /// The most resident memory.
    Memory,
}

/// Ports for that many flows: 32 of the destination, without a common divisor.
fn ports(flows: u32) -> (u16, u16) {
    let (from, to) = match flows {
        1_000 => (125, 8),
        10_000 => (625, 16),
        100_000 => (3_125, 32),
        30_000 => (1_875, 16),
        _ => panic!("{flows} flows have no ports"),
    };
    assert_eq!(u32::from(from) * u32::from(to), flows);
    (from, to)
}

/// A node with a running agent, and as many flows, which are still to come.
fn node_for_flows(flows: u32, threshold: u32) -> (Node, packets::Setup, Stream) {
    node_with_rules(Rules::AgentEbpf, flows, threshold)
}

/// The same with any rules.
fn node_with_rules(rules: Rules, flows: u32, threshold: u32) -> (Node, packets::Setup, Stream) {
    let setup = packets::Setup { ports: ports(flows), ..packets::Setup::PLAIN };
    packets::allow_connections(4 * u64::from(flows));
    let mut node = Node::build(Base::Nat, Ends::Drop);
    let forth = setup.forth(&node);
    node.load(rules, threshold, &[]);
    (node, setup, forth)
}

/// Each flow gets an answer to its first packet, and then crosses the threshold of 1 with its second, one every `gap`. Says how
/// long those took.
fn cross(node: &Node, setup: &packets::Setup, forth: &Stream, gap: Duration) -> Duration {
    let client = &node.topology.client().ns;
    // Some at a time: the answer counts for two seconds.
    let parts = packets::Setup::parts(forth).into_iter().map(|part| {
        setup.rounds(node, &part, 1);
        Duration::from_nanos((part.send_every(client, part.flows(), gap) * part.flows() as f64) as u64)
    });
    let took = parts.sum();
    let (offloaded, flows) = (offloaded(node), forth.flows());
    assert!(offloaded > flows * 9 / 10, "{offloaded} of {flows} flows have been offloaded");
    took
}

/// Each flow sends one packet, with which it crosses, so many a second.
pub(super) fn crossings(load: Load) -> f64 {
    let flows = CROSSINGS_A_SECOND * CROSSING_SECONDS;
    let (node, setup, forth) = node_for_flows(flows as u32, 1);
    let agent = node.agent.as_ref().expect("it runs");
    agent.wait_until_idle();
    let (cpu, wake_ups) = (agent.cpu_time(), agent.wake_ups());
    // Nothing wakes the agent between the parts but what the last one left to do.
    let took = cross(&node, &setup, &forth, Duration::from_secs(1) / CROSSINGS_A_SECOND as u32);
    agent.wait_until_idle();
    let pace = flows as f64 / took.as_secs_f64();
    assert!((0.8..1.2).contains(&(pace / CROSSINGS_A_SECOND as f64)), "{pace} crossings a second");
    match load {
        Load::Memory => resident_mb(agent),
        Load::Cpu => (agent.cpu_time() - cpu).as_secs_f64() / took.as_secs_f64() * 100.0,
        Load::WakeUps => (agent.wake_ups() - wake_ups) as f64 / took.as_secs_f64(),
    }
}

/// What a packet takes with which its flow crosses and is offloaded, with all that follows from it: from the packet generator
/// to the last word of the agent, if there is one. Some thousand flows at a time, one after the other.
pub(super) fn crossing(rules: Rules) -> Vec<f64> {
    let (node, setup, forth) = node_with_rules(rules, 30_000, 1);
    let client = &node.topology.client().ns;
    let cpu = || node.agent.as_ref().map_or(Duration::ZERO, agent::Agent::cpu_time);
    let parts = packets::Setup::parts(&forth).into_iter().map(|part| {
        setup.rounds(&node, &part, 1);
        let sent = part.send(client, part.flows()) * part.flows() as f64;
        // While it lasts, what the agent does is in it.
        let before = cpu();
        node.settle();
        (sent + (cpu() - before).as_nanos() as f64) / part.flows() as f64
    });
    let values = parts.collect();
    let (offloaded, flows) = (offloaded(&node), forth.flows());
    assert!(offloaded > flows * 9 / 10, "{offloaded} of {flows} flows have been offloaded");
    if node.agent.is_some() {
        let status = agent::output(&node.topology.node, &["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&status).expect("the agent prints JSON");
        assert_eq!(status["ebpf"]["maps"]["events_lost"], 0, "signals that were lost");
    }
    values
}

/// Flows that were offloaded, by the counter of the rule.
fn offloaded(node: &Node) -> u64 {
    crate::table::offered(&node.topology.node)
}

/// Resident memory once so many flows have crossed.
pub(super) fn memory_with_flows(flows: u32) -> f64 {
    let (node, setup, forth) = node_for_flows(flows, 1);
    cross(&node, &setup, &forth, Duration::ZERO);
    let agent = node.agent.as_ref().expect("it runs");
    agent.wait_until_idle();
    resident_mb(agent)
}

/// Lists so many offloaded flows as JSON.
pub(super) fn listing(flows: u32, what: Listing) -> Vec<f64> {
    let (node, setup, forth) = node_for_flows(flows, 1);
    cross(&node, &setup, &forth, Duration::ZERO);
    forth.send(&node.topology.client().ns, u64::from(flows));
    node.agent.as_ref().expect("it runs").wait_until_idle();
    (0..3)
        .map(|_| {
            let start = Instant::now();
            let mut command = agent::command(&["flows", "-o", "json"]);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut child = node.topology.node.spawn(&mut command);
            let mut stdout = child.stdout.take().expect("piped");
            let (mut buffer, mut bytes, mut most) = (vec![0; 1 << 16], Vec::new(), 0.0f64);
            loop {
                // While it waits for its reader, it is there to be looked at.
                most = most.max(high_water_mb(child.id()).unwrap_or(0.0));
                match stdout.read(&mut buffer).expect("its output") {
                    0 => break,
                    read => bytes.extend_from_slice(&buffer[..read]),
                }
            }
            let took = start.elapsed();
            assert!(child.wait().expect("wait for it").success());
            let listed = String::from_utf8_lossy(&bytes).matches("\"original\":").count();
            assert!(listed >= flows as usize, "{listed} of {flows} flows listed");
            match what {
                Listing::Time => ms(took),
                Listing::Memory => most,
            }
        })
        .collect()
}

/// The most resident memory that an agent has had; none once it has ended, and none before it is one: until then the
/// process has the memory of who started it.
fn high_water_mb(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.starts_with("Name:\tfastpath-agent\n").then_some(())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0 / 1e6)
}

/// From the start of the `nft` that adds a rule which denies an offloaded flow to the flow's last packet at the server.
pub(super) fn enforced() -> Vec<f64> {
    let mut node = Node::build(Base::Nat, Ends::Answer);
    node.topology.node.nft(
        "table inet firewall { chain forward { type filter hook forward priority filter; ct state invalid drop; }; }",
    );
    node.load(Rules::AgentEbpf, 20, &[]);
    let agent = node.agent.as_ref().expect("it runs");
    (0..5u16)
        .map(|turn| {
            // Revalidations are a second apart at least.
            thread::sleep(Duration::from_secs(3));
            agent.wait_until_idle();
            let port = 7_001 + turn;
            let server = node.topology.server().ns.run(|| UdpSocket::bind(("10.2.0.2", port))).expect("bind");
            server.set_read_timeout(Some(Duration::from_millis(500))).expect("a time limit");
            let client = node.topology.client().ns.run(|| UdpSocket::bind("10.1.0.2:0")).expect("bind");
            client.connect(("10.2.0.2", port)).expect("a route");
            let (ended, last) = (AtomicBool::new(false), Mutex::new(Instant::now()));
            let began = thread::scope(|scope| {
                scope.spawn(|| {
                    let mut buffer = [0; 16];
                    // Answers, so that the flow is established; ends when nothing comes any more.
                    while let Ok((_, from)) = server.recv_from(&mut buffer) {
                        *last.lock().expect("a time") = Instant::now();
                        server.send_to(b"answer", from).expect("answer");
                    }
                });
                scope.spawn(|| {
                    let begun = Instant::now();
                    while !ended.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(20) {
                        // Once it is denied, nothing answers.
                        let _ = client.send(b"ask");
                        thread::sleep(Duration::from_micros(500));
                    }
                });
                thread::sleep(Duration::from_secs(1));
                let before = node.counts(Family::V4).forwarded;
                thread::sleep(Duration::from_millis(200));
                let forwarded = node.counts(Family::V4).forwarded - before;
                assert!(forwarded <= STRAYS, "{forwarded} packets of the flow were forwarded");
                let rule = format!(
                    "add rule inet firewall forward meta l4proto udp ct original proto-dst {port} drop"
                );
                let began = Instant::now();
                node.topology.node.nft(&rule);
                // The receiver ends by itself if, and only if, the rule counts.
                wait_until("the flow's end", Duration::from_secs(5), || {
                    last.lock().expect("a time").elapsed() > Duration::from_millis(600)
                });
                ended.store(true, Ordering::Relaxed);
                began
            });
            let last = *last.lock().expect("a time");
            ms(last.duration_since(began))
        })
        .collect()
}

/// Connections older than the rules: how many a second are offloaded, from the first that crosses to the last.
pub(super) fn helped() -> f64 {
    const FLOWS: u32 = 1_000;
    let setup = packets::Setup { ports: ports(FLOWS), ..packets::Setup::PLAIN };
    packets::allow_connections(4 * u64::from(FLOWS));
    let mut node = Node::build(Base::Nat, Ends::Drop);
    let forth = setup.forth(&node);
    setup.converse(&node, &forth, 1);
    let back = setup.back(&node, &forth);
    node.load(Rules::AgentEbpf, 2, &[]);
    node.settle();
    let (client, server) = (node.topology.client().ns.clone(), node.topology.server().ns.clone());
    let flows = u64::from(FLOWS);
    // Two packets of each, and with the third they cross.
    forth.send(&client, 2 * flows);
    let start = Instant::now();
    forth.send(&client, flows);
    loop {
        let before = node.counts(Family::V4);
        forth.send(&client, flows);
        if (node.counts(Family::V4) - before).forwarded <= STRAYS {
            break;
        }
        // It takes packets of both directions.
        back.send(&server, flows);
        assert!(start.elapsed() < Duration::from_secs(30), "old connections stay on the forward path");
        thread::sleep(Duration::from_millis(20));
    }
    f64::from(FLOWS) / start.elapsed().as_secs_f64()
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Resident memory now.
pub(super) fn resident_mb(agent: &Agent) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("proc(5)");
    let kib: f64 = line.split_whitespace().next().and_then(|text| text.parse().ok()).expect("kB");
    kib * 1024.0 / 1e6
}
