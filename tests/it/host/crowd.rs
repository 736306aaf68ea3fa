//! As many flows as a busy node has, made by real packets that it forwards and counts.

use std::path::Path;

use fastpath_agent::kernel::{
    bpf::{Chatter, FlowEyes as _, Hook, LoadConfig, Programs, load},
    links::Links,
};
use fastpath_tests::topology::Topology;

use super::ebpf::{frames, setup::RawSocket};

/// Flows of one pair of addresses differ in their ports.
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..60_000;
const FIRST_DESTINATION_PORT: u16 = 61_000;
const CLIENT: [u8; 4] = [10, 1, 0, 2];
const SERVER: [u8; 4] = [10, 2, 0, 2];

/// A node with many flows in conntrack.
pub(crate) struct Crowd {
    pub(crate) topology: Topology,
    client: RawSocket,
    server: RawSocket,
}

impl Crowd {
    /// Makes `flows` UDP flows, each with one packet in either direction, which are in the pinned maps, too, where subcommands look
    /// for them.
    pub(crate) fn new(flows: u32) -> (Self, Programs) {
        let crowd = Self::to_come(Topology::routed());
        let programs = crowd.topology.node.run(|| attach(4 * flows));
        crowd.send_each(flows);
        (crowd, programs)
    }

    /// A node that lives as long as its flows, which are still to come.
    pub(crate) fn to_come(topology: Topology) -> Self {
        let node = &topology.node;
        // Frames are addressed as `frames::ethernet` does it, and nothing but them is on the way.
        node.ip("link set c0 address 02:00:00:00:00:02
            link set s0 address 02:00:00:00:00:02
            neighbour replace 10.1.0.2 lladdr 02:00:00:00:00:01 dev c0
            neighbour replace 10.2.0.2 lladdr 02:00:00:00:00:01 dev s0");
        for pod in &topology.pods {
            pod.ns.nft("table ip quiet { chain input { type filter hook input priority 0; meta l4proto udp drop; }; }");
        }
        node.sysctl("net/netfilter/nf_conntrack_acct", "1");
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            node.sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "600");
        }
        Self {
            client: RawSocket::open(&topology.client().ns, "eth0"),
            server: RawSocket::open(&topology.server().ns, "eth0"),
            topology,
        }
    }

    /// Sends a packet of each flow in either direction.
    pub(crate) fn send_each(&self, flows: u32) {
        assert!(flows as usize <= 2 * SOURCE_PORTS.len());
        for number in 0..flows {
            self.send(number, 1);
        }
    }

    /// Sends so many more packets of a flow, in either direction.
    pub(crate) fn send(&self, number: u32, packets: usize) {
        let (there, back) = frames_of(number);
        for _ in 0..packets {
            self.client.send(&there);
            self.server.send(&back);
        }
    }

    /// The port that tells a flow from its neighbours.
    pub(crate) fn source_port(number: u32) -> u16 {
        SOURCE_PORTS.start + (number / 2) as u16
    }

    /// Every other flow goes to one port, the others to the next.
    pub(crate) fn destination_port(number: u32) -> u16 {
        FIRST_DESTINATION_PORT + (number % 2) as u16
    }
}

/// Attaches to both ends of the way, with room for so many directions.
fn attach(max_flows: u32) -> Programs {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let links = runtime.block_on(async { Links::open().expect("rtnetlink").list().expect("the links") });
    let pin_path = Path::new("/sys/fs/bpf/fastpath").to_owned();
    let mut programs = load(&LoadConfig {
        pin_path,
        max_flows,
        threshold: 0,
        hook: Hook::Tc,
        forward: false,
        chatter: Chatter::Silent,
    })
    .unwrap_or_else(|e| panic!("{e}"));
    for link in links.iter().filter(|link| ["c0", "s0"].contains(&link.name.as_str())) {
        programs.attach(link).expect("a program can be attached");
    }
    programs
}

fn frames_of(number: u32) -> (Vec<u8>, Vec<u8>) {
    let source = Crowd::source_port(number);
    let destination = Crowd::destination_port(number);
    let frame = |from, to, payload| frames::ethernet(&[], frames::IPV4, &ipv4(from, to, payload));
    (
        frame(CLIENT, SERVER, &frames::udp(source, destination, 18)),
        frame(SERVER, CLIENT, &frames::udp(destination, source, 18)),
    )
}

/// A packet as a router takes it, with a checksum.
fn ipv4(from: [u8; 4], to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = frames::ipv4(frames::UDP, &[], 0, payload);
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}
