//! Instructions a packet: pktgen on the client — node — server, where the packet is dropped as it arrives.
//!
//! A row is a set-up of the node, a state of the flows, and the kind of packets. Every row checks with the kernel's own
//! counters that all packets arrived, and whether they took the forward path or not.

use std::net::{IpAddr, UdpSocket};

use super::{
    Measure, Row, Samples,
    node::{Ends, Node, Rules},
};
use crate::{netns::Netns, pktgen::Stream, topology::Family};

/// Packets of each flow that go before the measurement, in both directions together more than any threshold in use.
const WARM_UP: u64 = 200;
/// Packets of one repetition, unless there are more flows.
const PACKETS: u64 = 5_000;
const REPETITIONS: usize = 5;
/// Packets that don't count when it is looked which way they took.
pub(super) const STRAYS: u64 = 5;

/// What the node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Drops the packet as it comes in: what source and sink cost.
    Floor,
    /// Routes.
    Routed,
    /// Routes, tracks connections, and masquerades.
    Nat,
    /// Routes, and has 5,000 services as kube-proxy lays them out in its nftables mode; the flow is to one of them.
    Services,
}

/// What is so about the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Below the threshold.
    Young,
    /// In the flowtable.
    Offloaded,
    /// Older than the rules that count packets.
    TooOld,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// What the node does.
    pub base: Base,
    /// Whose rules for the fast path.
    pub rules: Rules,
    /// What is so about the flow.
    pub state: State,
    /// Address family.
    pub family: Family,
    /// Length of the frame with its checksum.
    pub frame_bytes: u16,
    /// Ports: flows are the product, gone through in turn.
    pub ports: (u16, u16),
}

impl Setup {
    pub(super) const PLAIN: Self = Self {
        base: Base::Nat,
        rules: Rules::None,
        state: State::Young,
        family: Family::V4,
        frame_bytes: 64,
        ports: (1, 1),
    };

    pub(super) fn flows(&self) -> u64 {
        u64::from(self.ports.0) * u64::from(self.ports.1)
    }

    fn name(&self) -> String {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        let mut name = format!("udp{family}-{}", self.frame_bytes);
        if self.flows() > 1 {
            name += &format!("-{}-flows", self.flows());
        }
        if self.base == Base::Services {
            name += "-services";
        }
        let what = match (self.base, self.rules, self.state) {
            (Base::Floor, ..) => "floor".to_owned(),
            (Base::Routed, ..) => "routed".to_owned(),
            (_, Rules::None, _) => "no-fastpath".to_owned(),
            (_, rules, State::Young) => format!("young/{}", rules.name()),
            (_, rules, State::Offloaded) => format!("offloaded/{}", rules.name()),
            (_, rules, State::TooOld) => format!("too-old/{}", rules.name()),
        };
        name + "/" + &what
    }

    fn row(self) -> Row {
        Row { name: self.name(), measure: Measure::Packet(self) }
    }

    /// `kept` is the node of the row before, if it is worth keeping.
    pub(super) fn measure(&self, kept: &mut Option<Node>) -> Samples {
        let flows = self.flows();
        if flows > 1 {
            allow_connections(4 * flows);
        }
        let mut node = match kept.take() {
            Some(node) if self.base == Base::Services => node,
            _ => Node::build(self.base, Ends::Drop),
        };
        let forth = self.forth(&node);
        let client = node.topology.client().ns.clone();
        // A packet of each flow to the server, and one back: an established flow.
        if self.state == State::TooOld {
            self.greet(&node, &forth);
        }
        let threshold = match self.state {
            State::Young => u32::MAX - 1,
            // Takes less time to get over, and costs the same.
            _ if flows > 1 => 2,
            _ => 20,
        };
        node.load(self.rules, threshold);
        if self.state != State::TooOld && self.base != Base::Floor {
            self.greet(&node, &forth);
        }
        forth.send(&client, WARM_UP.max(2 * flows));
        let packets = PACKETS.div_ceil(flows) * flows;
        node.settle();
        let repetitions = if flows > PACKETS { 3 } else { REPETITIONS };
        let values = (0..repetitions)
            .map(|_| {
                refill_slabs(&client);
                let before = node.counts(self.family);
                let value = forth.send(&client, packets);
                let seen = node.counts(self.family) - before;
                // A few may come from elsewhere: neighbours and multicast listeners of IPv6 announce themselves.
                let about = |count, expected| (expected..=expected + STRAYS).contains(&count);
                let (arrived, forwarded) = match (self.base, self.state) {
                    (Base::Floor, _) => (0, 0),
                    (_, State::Offloaded) => (packets, 0),
                    _ => (packets, packets),
                };
                assert!(
                    about(seen.arrived, arrived) && about(seen.forwarded, forwarded),
                    "{}: of {packets} packets {seen:?}",
                    self.name(),
                );
                value
            })
            .collect();
        if self.base == Base::Services {
            // Its rules take long to load.
            node.reset();
            *kept = Some(node);
        }
        Samples { unit: "instructions/packet", values, packets: None }
    }

    pub(super) fn greet(&self, node: &Node, forth: &Stream) {
        let (client, server) = (node.topology.client(), node.topology.server());
        forth.send(&client.ns, self.flows());
        let back = Stream {
            device: "eth0",
            next_hop: node.hardware_address("s0"),
            from: server.address(self.family),
            to: match self.base {
                Base::Nat => node.address_to_server(self.family),
                _ => client.address(self.family),
            },
            from_ports: forth.to_ports.clone(),
            to_ports: forth.from_ports.clone(),
            frame_bytes: forth.frame_bytes,
        };
        back.send(&server.ns, self.flows());
    }

    pub(super) fn forth(&self, node: &Node) -> Stream {
        let to: IpAddr = match self.base {
            Base::Services => node.topology.service_at(self.family, 0).ip(),
            _ => node.topology.server().address(self.family),
        };
        Stream {
            device: "eth0",
            next_hop: node.hardware_address("c0"),
            from: node.topology.client().address(self.family),
            to,
            from_ports: 10_001..=10_000 + self.ports.0,
            to_ports: 2_001..=2_000 + self.ports.1,
            frame_bytes: self.frame_bytes - 4,
        }
    }
}

/// Leaves the kernel's allocator with many free buffers in the slabs that it takes the next ones from. By chance it may
/// be left between two full slabs, and then takes a detour with every packet (280 instructions on 6.1).
fn refill_slabs(ns: &Netns) {
    ns.run(|| {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let to = receiver.local_addr().expect("an address");
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bind");
        for bytes in [22, 300, 1358] {
            for _ in 0..50 {
                sender.send_to(&vec![0; bytes], to).expect("send");
            }
        }
        // Closing the sockets frees all that was sent.
    });
}

/// Conntrack takes so many connections, and has buckets for them. For all namespaces.
fn allow_connections(count: u64) {
    let ns = Netns::of_process_1();
    ns.output("modprobe", &["nf_conntrack"]);
    ns.sysctl("net/netfilter/nf_conntrack_buckets", &count.to_string());
    ns.sysctl("net/netfilter/nf_conntrack_max", &count.to_string());
}

/// The rows, most important first.
pub(super) fn rows() -> Vec<Row> {
    let plain = Setup::PLAIN;
    let states = [State::Young, State::Offloaded, State::TooOld];
    let mut setups = vec![Setup { base: Base::Floor, ..plain }, Setup { base: Base::Routed, ..plain }, plain];
    for state in states {
        setups.extend(Rules::ALL.map(|rules| Setup { state, rules, ..plain }));
    }
    let services = Setup { base: Base::Services, ..plain };
    let v6 = Setup { family: Family::V6, ..plain };
    for traffic in [services, v6] {
        setups.push(traffic);
        for state in [State::Young, State::Offloaded] {
            setups.extend(Rules::MAIN.map(|rules| Setup { state, rules, ..traffic }));
        }
    }
    let large = Setup { frame_bytes: 1400, ..plain };
    let thousand = Setup { ports: (125, 8), ..plain };
    let many = Setup { ports: (3125, 32), ..plain };
    for traffic in [large, thousand, many] {
        setups.push(traffic);
        setups.extend(Rules::MAIN.map(|rules| Setup { state: State::Offloaded, rules, ..traffic }));
    }
    setups.into_iter().map(Setup::row).collect()
}
