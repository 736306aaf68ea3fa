//! What the agent publishes, with more flows than a node usually has: a node whose forwarded packets are made by hand,
//! an agent on it, and readers of its socket.

mod load;
mod socket;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    netns::Netns,
    topology::{Layout, Topology},
    wait_until,
};
use serde_json::Value;

use super::ebpf::{
    frames::{IPV4, UDP, ethernet, udp},
    setup::{Bpffs, RawSocket},
};

const CLIENT: [u8; 4] = [10, 1, 0, 2];
const SERVER: [u8; 4] = [10, 2, 0, 2];
/// Flows differ in both their ports.
const SOURCE_PORTS: u32 = 50_000;
const FIRST_SOURCE_PORT: u32 = 10_000;
const FIRST_DESTINATION_PORT: u32 = 61_000;

/// A node with an agent of its own directories.
struct Node {
    topology: Topology,
    bpffs: Bpffs,
    run_dir: tempfile::TempDir,
    /// From client and server.
    ends: [RawSocket; 2],
}

impl Node {
    fn new() -> Self {
        Self::build(Layout::default())
    }

    fn build(layout: Layout) -> Self {
        let topology = Topology::build(layout);
        // Frames are addressed as `frames::ethernet` does it, and nothing answers them.
        topology.node.ip("link set c0 address 02:00:00:00:00:02\nlink set s0 address 02:00:00:00:00:02\n");
        for pod in &topology.pods {
            pod.ns.ip("link set eth0 address 02:00:00:00:00:01\n");
            pod.ns.nft(
                "table ip quiet { chain input { type filter hook input priority 0; \
                     udp dport >= 61000 drop; udp sport >= 61000 drop; }; }",
            );
        }
        let ends = [topology.client(), topology.server()].map(|pod| RawSocket::open(&pod.ns, "eth0"));
        Self { topology, bpffs: Bpffs::mount(), run_dir: tempfile::tempdir().expect("a directory"), ends }
    }

    fn ns(&self) -> &Netns {
        &self.topology.node
    }

    /// These flags, and those that keep this node's agent apart from other agents.
    fn flags(&self, flags: &[&str]) -> Vec<String> {
        let own = [
            format!("--pin-path={}", self.bpffs.pin_path().display()),
            format!("--run-dir={}", self.run_dir().display()),
        ];
        flags.iter().map(|&flag| flag.to_owned()).chain(own).collect()
    }

    fn run_dir(&self) -> PathBuf {
        self.run_dir.path().join("run")
    }

    fn socket(&self) -> PathBuf {
        self.run_dir().join("events.sock")
    }

    /// Starts the agent and waits until it sees the packets of both pods.
    #[track_caller]
    fn agent(&self, flags: &[&str]) -> Agent {
        let agent = self.spawn(flags);
        self.wait_until_watched();
        agent
    }

    fn spawn(&self, flags: &[&str]) -> Agent {
        let flags = self.flags(flags);
        Agent::spawn(self.ns(), &mut agent::command(&flags.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    #[track_caller]
    fn wait_until_watched(&self) {
        let pin_path = format!("--pin-path={}", self.bpffs.pin_path().display());
        wait_until("programs on both interfaces", Duration::from_secs(15), || {
            let status = agent::output(self.ns(), &["status", "-o", "json", &pin_path]);
            let status: Value = serde_json::from_str(&status).expect("JSON");
            status["ebpf"]["attachments"].as_array().is_some_and(|attachments| attachments.len() == 2)
        });
    }

    /// Sends packets of a flow in one direction: from the client, or from the server.
    fn send(&self, flow: u32, from: usize, packets: usize) {
        let source = (FIRST_SOURCE_PORT + flow % SOURCE_PORTS) as u16;
        let destination = (FIRST_DESTINATION_PORT + flow / SOURCE_PORTS) as u16;
        let frame = if from == 0 {
            frame(CLIENT, SERVER, source, destination)
        } else {
            frame(SERVER, CLIENT, destination, source)
        };
        for _ in 0..packets {
            self.ends[from].send(&frame);
        }
    }

    #[track_caller]
    fn read(&self) -> Reader {
        let mut stream = None;
        wait_until("the agent's socket", Duration::from_secs(15), || {
            stream = UnixStream::connect(self.socket()).ok();
            stream.is_some()
        });
        Reader::new(stream.expect("waited for"))
    }
}

fn frame(source: [u8; 4], destination: [u8; 4], source_port: u16, destination_port: u16) -> Vec<u8> {
    let payload = udp(source_port, destination_port, 8);
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, UDP, 0, 0]);
    packet.extend(source);
    packet.extend(destination);
    let sum: u32 = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    packet.extend(payload);
    ethernet(&[], IPV4, &packet)
}

/// What a reader has heard.
#[derive(Default)]
struct Heard {
    /// How often each flow was told of, by its ports.
    flows: BTreeMap<(u64, u64), u32>,
    /// By state and cause.
    states: BTreeMap<String, u32>,
    /// Records that it was told it had missed.
    missed: u64,
}

/// Reads along on a thread of its own.
struct Reader {
    heard: Arc<Mutex<Heard>>,
}

impl Reader {
    fn new(stream: UnixStream) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let sink = Arc::clone(&heard);
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let line = line.expect("readable");
                let record: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e} in {line}"));
                let mut heard = sink.lock().expect("no panic");
                if record["event"] == "lost" {
                    heard.missed += record["records"].as_u64().expect("a number");
                    continue;
                }
                assert_eq!(record["event"], "crossed", "{line}");
                let port = |end: &str| record["original"][end].as_u64().expect("a port");
                *heard.flows.entry((port("source_port"), port("destination_port"))).or_default() += 1;
                let state = format!("{} {}", record["state"], record["cause"]);
                *heard.states.entry(state).or_default() += 1;
            }
        });
        Self { heard }
    }

    fn count(&self) -> usize {
        self.heard.lock().expect("no panic").flows.len()
    }

    /// Waits until so many flows were told of, and a little longer; none may have been told of twice.
    #[track_caller]
    fn expect(&self, flows: usize, limit: Duration) {
        wait_until_at_least(flows, limit, || self.count());
        thread::sleep(Duration::from_millis(500));
        let heard = self.heard.lock().expect("no panic");
        let twice = heard.flows.iter().filter(|(_, times)| **times != 1).take(3).collect::<Vec<_>>();
        assert!(twice.is_empty(), "told of more than once: {twice:?}");
        assert_eq!((heard.flows.len(), heard.missed), (flows, 0), "{:?}", heard.states);
    }
}

#[track_caller]
fn wait_until_at_least(count: usize, limit: Duration, mut now: impl FnMut() -> usize) {
    let start = std::time::Instant::now();
    while now() < count {
        assert!(start.elapsed() < limit, "{} of {count} within {limit:?}", now());
        thread::sleep(Duration::from_millis(20));
    }
}
