//! Instructions a packet: pktgen on the client — node — server, where the packet is dropped as it arrives.
//!
//! A row is a set-up of the node, a state of the flows, and the kind of packets. Every row checks with the kernel's own
//! counters that all packets arrived, and whether they took the forward path or not.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    thread,
    time::Duration,
};

use super::{
    Measure, Row, Samples,
    node::{BEHIND_CARD, CARD, Ends, Node, Rules, STRAYS},
};
use crate::{bench::node::Base, netns::Netns, pktgen::Stream, table, topology::Family, wait_until};

/// Packets of each flow that go before the measurement, more than any threshold in use.
const WARM_UP: u64 = 200;
/// Packets there and back before those: the last of them are past the threshold in both directions, without which our rules
/// offload nothing. Of one direction alone there are more than the threshold, too: the programs count by direction.
const ROUNDS: u64 = 25;
/// The same of many flows, which have a threshold of 2.
const ROUNDS_OF_MANY: u64 = 2;
/// Of more flows than this, those of [`PORTS_AT_A_TIME`] have their rounds together: few enough that there is room for all of
/// their traces, and that none waits for its answer as long as a trace lives (two seconds).
const FLOWS_AT_A_TIME: u64 = 5_000;
const PORTS_AT_A_TIME: u16 = 4;
/// Packets of one repetition, unless there are more flows.
const PACKETS: u64 = 5_000;
const REPETITIONS: usize = 5;
/// Packets of a repetition with so many flows that each of these is of another. Once a second the kernel goes through all of the
/// flowtable (`nf_flow_offload_work_gc`), which takes as long as thousands of packets: repetitions are short beside that second.
const PACKETS_OF_MANY: u64 = 20_000;
const REPETITIONS_OF_MANY: usize = 9;
/// Source port of the flow that is helped while another one is measured.
const OLD_PORT: u16 = 20_001;
/// Threshold there: the flow that is measured has fewer packets.
const ASSISTED_AT: u32 = 40_000;

/// What is so about the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Below the threshold.
    Young,
    /// In the flowtable: it had packets of both directions past the threshold.
    Offloaded,
    /// Past the threshold it has packets of one direction only. Our rules don't offload it: each packet leaves its trace; with
    /// eBPF the agent helps.
    OneWay,
    /// Older than the rules that count packets. Only with eBPF is it noticed, and then offloaded.
    TooOld,
    /// Below the threshold, while another flow is too old and the rule that offloads it is there.
    Assisting,
    /// Above the threshold, and excluded.
    Excluded,
}

impl State {
    /// As rows call it.
    fn name(self) -> &'static str {
        match self {
            Self::Young => "young",
            Self::Offloaded => "offloaded",
            Self::OneWay => "one-way",
            Self::TooOld => "too-old",
            Self::Assisting => "assisting",
            Self::Excluded => "excluded",
        }
    }
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
    /// Addresses that are excluded from offloading; the server's is one of them if the flow is excluded.
    pub exclusions: u32,
    /// Packets come in by a network card, not from a pod.
    pub by_card: bool,
}

impl Setup {
    pub(super) const PLAIN: Self = Self {
        base: Base::Nat,
        rules: Rules::None,
        state: State::Young,
        family: Family::V4,
        frame_bytes: 64,
        ports: (1, 1),
        exclusions: 0,
        by_card: false,
    };

    pub(super) fn flows(&self) -> u64 {
        u64::from(self.ports.0) * u64::from(self.ports.1)
    }

    fn name(&self) -> String {
        let family = if self.family == Family::V4 { 4 } else { 6 };
        let mut name = format!("udp{family}-{}", self.frame_bytes);
        name += if self.by_card { "-by-card" } else { "" };
        if self.flows() > 1 {
            name += &format!("-{}-flows", self.flows());
        }
        name += match self.base {
            Base::Services => "-services",
            Base::ServicesOnly => "-services-only",
            _ => "",
        };
        if self.exclusions > 0 {
            name += &format!("-{}-exclusions", self.exclusions);
        }
        let what = match (self.base, self.rules, self.state) {
            (Base::Floor, ..) => "floor".to_owned(),
            (Base::Routed, ..) => "routed".to_owned(),
            (_, Rules::None, _) => "no-fastpath".to_owned(),
            (_, rules, state) => format!("{}/{}", state.name(), rules.name()),
        };
        name + "/" + &what
    }

    fn row(self) -> Row {
        Row { name: self.name(), measure: Measure::Packet(self) }
    }

    /// A node in the state that the row is about, and the packets to measure it with.
    fn prepare(&self) -> (Node, Stream) {
        let flows = self.flows();
        if flows > 1 {
            allow_connections(4 * flows);
        }
        let mut node = Node::build_with(self.base, Ends::Drop, if self.by_card { CARD } else { "c0" });
        let forth = self.forth(&node);
        let client = self.source(&node).clone();
        let old = match self.state {
            State::TooOld => Some(forth.clone()),
            State::Assisting => Some(Stream { from_ports: OLD_PORT..=OLD_PORT, ..forth.clone() }),
            _ => None,
        };
        // A packet of each flow to the server, and one back: an established flow.
        if let Some(old) = &old {
            self.converse(&node, old, 1);
        }
        let threshold = match self.state {
            State::Young => u32::MAX - 1,
            State::Assisting => ASSISTED_AT,
            // Takes less time to get over, and costs the same.
            _ if flows > 1 => 2,
            _ => 20,
        };
        let rounds = match self.state {
            State::Young | State::Assisting | State::OneWay => 1,
            State::Offloaded | State::TooOld | State::Excluded if flows > 1 => ROUNDS_OF_MANY,
            State::Offloaded | State::TooOld | State::Excluded => ROUNDS,
        };
        node.load(self.rules, threshold, &self.exclusions());
        if self.base != Base::Floor {
            self.converse(&node, &forth, rounds);
        }
        if let (State::Assisting, Some(old)) = (self.state, &old) {
            // It crosses with the last of them and is never heard of again, so it stays on the list.
            old.send(&client, u64::from(ASSISTED_AT) + 1);
            wait_until("assistance", Duration::from_secs(5), || assists(&node));
        }
        if self.state == State::TooOld {
            // The agent has been told, and helps: these are the first to be offloaded.
            node.settle();
            self.converse(&node, &forth, rounds);
        }
        forth.send(&client, WARM_UP.max(2 * flows));
        if self.state == State::OneWay && self.bypasses() {
            wait_until("the stream offloaded", Duration::from_secs(5), || {
                let before = node.counts(self.family);
                forth.send(&client, 20);
                (node.counts(self.family) - before).forwarded == 0
            });
        }
        node.settle();
        (node, forth)
    }

    /// The addresses to exclude.
    fn exclusions(&self) -> Vec<String> {
        let others = (0..self.exclusions)
            .map(|number| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 0)) + number).to_string());
        let mut addresses: Vec<_> = others.collect();
        if let (State::Excluded, Some(last)) = (self.state, addresses.last_mut()) {
            *last = "10.2.0.2".to_owned();
        }
        addresses
    }

    /// Whether the packets of the flow bypass the forward path.
    fn bypasses(&self) -> bool {
        match self.state {
            State::Offloaded => true,
            State::OneWay => matches!(
                self.rules,
                Rules::Kindnet
                    | Rules::KindnetDocument
                    | Rules::AgentEbpf
                    | Rules::AgentXdp
                    | Rules::AgentForward
            ),
            State::TooOld => {
                matches!(self.rules, Rules::AgentEbpf | Rules::AgentXdp | Rules::AgentForward)
            }
            State::Young | State::Assisting | State::Excluded => false,
        }
    }

    /// Prints the kernel's functions, of those that belong to it from the start only the first if `modules_only`, and sends
    /// packets. Never returns: a program outside watches.
    pub(super) fn send_forever(&self, modules_only: bool) -> ! {
        let (node, forth) = self.prepare();
        super::print_symbols(modules_only);
        println!("@@PROFILE pktgen_xmit");
        thread::sleep(Duration::from_secs(1));
        loop {
            forth.send(self.source(&node), 1_000_000);
        }
    }

    pub(super) fn measure(&self) -> Samples {
        let flows = self.flows();
        let (node, forth) = self.prepare();
        let client = self.source(&node).clone();
        let (packets, repetitions) = match flows {
            0..=PACKETS => (PACKETS.div_ceil(flows) * flows, REPETITIONS),
            _ => (PACKETS_OF_MANY, REPETITIONS_OF_MANY),
        };
        let values = (0..repetitions)
            .map(|_| {
                refill_slabs(&node.topology.client().ns);
                let before = node.counts(self.family);
                let value = forth.send(&client, packets);
                let seen = node.counts(self.family) - before;
                // A few may come from elsewhere: neighbours and multicast listeners of IPv6 announce themselves.
                let about = |count, expected| (expected..=expected + STRAYS).contains(&count);
                let (arrived, forwarded) = match self.base {
                    Base::Floor => (0, 0),
                    _ if self.bypasses() => (packets, 0),
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
        match self.state {
            State::Assisting => assert!(assists(&node), "{}: the rule is there to the end", self.name()),
            State::OneWay if !self.bypasses() => {
                assert!(table::has_traces(&node.topology.node), "{}: packets leave no trace", self.name());
            }
            State::Excluded => {
                assert!(!table::has_traces(&node.topology.node), "{}: packets leave a trace", self.name());
            }
            _ => {}
        }
        Samples { unit: "instructions/packet", values, packets: None }
    }

    /// Packets there and back: so many of each flow in either direction, in turn. The first two establish it.
    pub(super) fn converse(&self, node: &Node, forth: &Stream, rounds: u64) {
        for part in &Self::parts(forth) {
            self.rounds(node, part, rounds);
        }
    }

    /// The same of all flows at once.
    pub(super) fn rounds(&self, node: &Node, forth: &Stream, rounds: u64) {
        let back = self.back(node, forth);
        for _ in 0..rounds {
            forth.send(self.source(node), forth.flows());
            back.send(&node.topology.server().ns, back.flows());
        }
    }

    /// The stream by its destination ports, if it has so many flows that they can't have their rounds together.
    pub(super) fn parts(forth: &Stream) -> Vec<Stream> {
        if forth.flows() <= FLOWS_AT_A_TIME {
            return vec![forth.clone()];
        }
        let (first, last) = forth.to_ports.clone().into_inner();
        let part =
            |port: u16| Stream { to_ports: port..=last.min(port + PORTS_AT_A_TIME - 1), ..forth.clone() };
        (first..=last).step_by(PORTS_AT_A_TIME.into()).map(part).collect()
    }

    /// Where the client's packets are made.
    fn source<'n>(&self, node: &'n Node) -> &'n Netns {
        if self.by_card { &node.topology.node } else { &node.topology.client().ns }
    }

    /// The answers.
    pub(super) fn back(&self, node: &Node, forth: &Stream) -> Stream {
        let (client, server) = (node.topology.client(), node.topology.server());
        Stream {
            device: "eth0",
            next_hop: node.hardware_address("s0"),
            from: server.address(self.family),
            to: match self.base {
                Base::Nat | Base::Services => node.address_to_server(self.family),
                _ => client.address(self.family),
            },
            received: false,
            from_ports: forth.to_ports.clone(),
            to_ports: forth.from_ports.clone(),
            frame_bytes: forth.frame_bytes,
        }
    }

    pub(super) fn forth(&self, node: &Node) -> Stream {
        let to: IpAddr = match self.base {
            Base::Services | Base::ServicesOnly => node.topology.service_at(self.family, 0).ip(),
            _ => node.topology.server().address(self.family),
        };
        let (device, next_hop, from) = match self.by_card {
            true => (CARD, CARD, BEHIND_CARD.parse().expect("an address")),
            false => ("eth0", "c0", node.topology.client().address(self.family)),
        };
        Stream {
            device,
            next_hop: node.hardware_address(next_hop),
            from,
            to,
            received: self.by_card,
            from_ports: 10_001..=10_000 + self.ports.0,
            to_ports: 2_001..=2_000 + self.ports.1,
            frame_bytes: self.frame_bytes - 4,
        }
    }
}

/// Whether the rule that offloads connections without counters is there.
fn assists(node: &Node) -> bool {
    table::listing(&node.topology.node).is_some_and(|listing| listing.contains("kindnet-assist"))
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
pub fn allow_connections(count: u64) {
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
    let forward = Setup { rules: Rules::AgentForward, ..plain };
    setups.extend([State::Offloaded, State::Young].map(|state| Setup { state, ..forward }));
    setups.push(Setup { state: State::Offloaded, family: Family::V6, ..forward });
    setups.push(Setup { state: State::Offloaded, ports: (125, 8), ..forward });
    setups.extend(Rules::MAIN.map(|rules| Setup { state: State::OneWay, rules, ..plain }));
    setups.push(Setup { state: State::Assisting, rules: Rules::AgentEbpf, ..plain });
    // A list of that length takes long to load, and packets of young flows never come near it.
    let some = [
        (10, State::Young, Rules::Agent),
        (10, State::Young, Rules::AgentEbpf),
        (10, State::Offloaded, Rules::AgentEbpf),
        (10, State::Excluded, Rules::AgentEbpf),
        (100_000, State::Young, Rules::AgentEbpf),
        (100_000, State::Excluded, Rules::AgentEbpf),
    ];
    setups.extend(some.map(|(exclusions, state, rules)| Setup { exclusions, state, rules, ..plain }));
    let services = Setup { base: Base::Services, ..plain };
    let v6 = Setup { family: Family::V6, ..plain };
    for traffic in [services, v6] {
        setups.push(traffic);
        for state in [State::Young, State::Offloaded] {
            setups.extend(Rules::MAIN.map(|rules| Setup { state, rules, ..traffic }));
        }
    }
    let services_only = Setup { base: Base::ServicesOnly, ..plain };
    setups.push(services_only);
    setups.push(Setup { state: State::Offloaded, rules: Rules::AgentEbpf, ..services_only });
    let large = Setup { frame_bytes: 1400, ..plain };
    let card = Setup { by_card: true, ..plain };
    setups.extend([Setup { base: Base::Floor, ..card }, card]);
    let by_card = [Rules::Kindnet, Rules::Agent, Rules::AgentEbpf, Rules::AgentForward];
    setups.extend(by_card.map(|rules| Setup { state: State::Offloaded, rules, ..card }));
    let thousand = Setup { ports: (125, 8), ..plain };
    let many = Setup { ports: (3125, 32), ..plain };
    for traffic in [large, thousand, many] {
        setups.push(traffic);
        setups.extend(Rules::MAIN.map(|rules| Setup { state: State::Offloaded, rules, ..traffic }));
    }
    setups.extend(Rules::MAIN.map(|rules| Setup { state: State::Young, rules, ..many }));
    setups.into_iter().map(Setup::row).collect()
}
