//! Which path packets took through the node: counters late in the forward hook, and what conntrack says.
//!
//! A packet that the flowtable forwards never gets to the forward hook. The test's own chain is there after
//! the agent's, and counts by the port that the client dialled, apart for either direction.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{netns::Netns, topology::Topology, traffic::Flow};

/// Name of the table that counts, family inet.
pub const TABLE: &str = "path-probe";

/// Ports whose flows are counted.
pub const PORTS: std::ops::RangeInclusive<u16> = 7001..=7012;

/// How many stray packets (an acknowledgement under way when a flow is offloaded) don't count as slow.
pub const STRAYS: u64 = 2;

/// Rounds of a measurement.
const ROUNDS: usize = 100;

/// Loads the counters and `more` rules into the node, in one transaction.
pub fn install(node: &Netns, more: &str) {
    let ports: Vec<String> = PORTS.map(|port| port.to_string()).collect();
    let ports = ports.join(", ");
    node.nft(&format!(
        "table inet {TABLE} {{
            set original {{ type inet_service; counter; elements = {{ {ports} }} }}
            set reply {{ type inet_service; counter; elements = {{ {ports} }} }}
            chain late {{
                type filter hook forward priority 500; policy accept;
                meta l4proto {{ tcp, udp }} ct direction original ct original proto-dst @original
                meta l4proto {{ tcp, udp }} ct direction reply ct original proto-dst @reply
            }}
        }}
        {more}"
    ));
}

/// Packets that took the forward path, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's.
    pub original: u64,
    /// The server's.
    pub reply: u64,
}

impl Forwarded {
    /// Both directions.
    pub fn total(self) -> u64 {
        self.original + self.reply
    }
}

/// What became of some rounds of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Rounds sent: a request and a response each.
    pub rounds: usize,
    /// Rounds whose request and response arrived, unaltered.
    pub intact: usize,
    /// Packets of theirs that took the forward path.
    pub forwarded: Forwarded,
}

impl Measured {
    /// All arrived.
    pub fn delivered(&self) -> bool {
        self.intact == self.rounds
    }

    /// The client's packets bypassed the forward path.
    pub fn original_fast(&self) -> bool {
        self.forwarded.original <= STRAYS
    }

    /// The server's packets bypassed it.
    pub fn reply_fast(&self) -> bool {
        self.forwarded.reply <= STRAYS
    }
}

/// Packets forwarded so far for flows to `port`, in a namespace that [`install`] has prepared.
#[track_caller]
pub fn forwarded(node: &Netns, port: u16) -> Forwarded {
    *all_forwarded(node).get(&port).unwrap_or_else(|| panic!("no counter for port {port}"))
}

/// The same for each of [`PORTS`].
#[track_caller]
pub fn all_forwarded(node: &Netns) -> BTreeMap<u16, Forwarded> {
    let listing = node.output("nft", &["-j", "list", "table", "inet", TABLE]);
    let listing: Value = serde_json::from_str(&listing).expect("nft prints JSON");
    let mut all: BTreeMap<u16, Forwarded> = PORTS.map(|port| (port, Forwarded::default())).collect();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        for element in object["set"]["elem"].as_array().into_iter().flatten() {
            let (port, packets) = (&element["elem"]["val"], &element["elem"]["counter"]["packets"]);
            let (Some(port), Some(packets)) = (port.as_u64(), packets.as_u64()) else { continue };
            let counts = all.get_mut(&(port as u16)).unwrap_or_else(|| panic!("port {port} in {listing}"));
            match object["set"]["name"].as_str() {
                Some("original") => counts.original = packets,
                _ => counts.reply = packets,
            }
        }
    }
    all
}

impl Topology {
    /// Packets that the node has forwarded so far for flows to `port`.
    #[track_caller]
    pub fn forwarded(&self, port: u16) -> Forwarded {
        forwarded(&self.node, port)
    }

    /// Lines of conntrack for flows to `port`.
    #[track_caller]
    pub fn conntrack(&self, port: u16) -> Vec<String> {
        let dport = format!("dport={port} ");
        let mut lines = Vec::new();
        for family in ["ipv4", "ipv6"] {
            let listing = self.node.output("conntrack", &["-L", "-f", family]);
            lines.extend(listing.lines().filter(|line| line.contains(&dport)).map(str::to_owned));
        }
        lines
    }

    /// Whether conntrack says that the flow is offloaded.
    #[track_caller]
    pub fn marked_offloaded(&self, port: u16) -> bool {
        self.conntrack(port).iter().any(|line| line.contains("[OFFLOAD]"))
    }

    /// Sends `rounds` over a flow and looks which path they took.
    #[track_caller]
    pub fn measure(&self, flow: &mut Flow, rounds: usize) -> Measured {
        let before = self.forwarded(flow.port());
        let intact = flow.rounds(rounds);
        let after = self.forwarded(flow.port());
        Measured {
            rounds,
            intact,
            forwarded: Forwarded {
                original: after.original - before.original,
                reply: after.reply - before.reply,
            },
        }
    }

    /// Takes a fresh flow over the default threshold, and shows that it is delivered and bypasses the forward path.
    #[track_caller]
    pub fn assert_becomes_accelerated(&self, flow: &mut Flow) {
        let warm_up = self.measure(flow, 20);
        assert!(warm_up.delivered(), "{flow:?} loses packets while it is young: {warm_up:?}");
        // Packets of the handshake came before the measurement.
        let young = self.forwarded(flow.port()).total();
        assert!(young >= 20, "{flow:?} was fast before the threshold: {warm_up:?}");
        self.assert_accelerated(flow);
    }

    /// Shows that a flow is delivered, bypasses the forward path in both directions, and that conntrack says so too.
    #[track_caller]
    pub fn assert_accelerated(&self, flow: &mut Flow) {
        let measured = self.measure(flow, ROUNDS);
        assert!(measured.delivered(), "{flow:?} loses packets: {measured:?}\n{}", self.evidence(flow));
        assert!(
            measured.original_fast() && measured.reply_fast(),
            "{flow:?} takes the forward path: {measured:?}\n{}",
            self.evidence(flow),
        );
        assert!(self.marked_offloaded(flow.port()), "{flow:?} is not [OFFLOAD]\n{}", self.evidence(flow));
    }

    /// Shows that a flow is delivered, and takes the forward path with every packet.
    #[track_caller]
    pub fn assert_forwarded(&self, flow: &mut Flow) {
        let measured = self.measure(flow, ROUNDS);
        assert!(measured.delivered(), "{flow:?} loses packets: {measured:?}\n{}", self.evidence(flow));
        assert!(
            measured.forwarded.original >= ROUNDS as u64 && measured.forwarded.reply >= ROUNDS as u64,
            "{flow:?} bypasses the forward path: {measured:?}\n{}",
            self.evidence(flow),
        );
    }

    fn evidence(&self, flow: &Flow) -> String {
        let rules = self.node.output("nft", &["list", "ruleset"]);
        format!("{}\n{rules}", self.conntrack(flow.port()).join("\n"))
    }
}
