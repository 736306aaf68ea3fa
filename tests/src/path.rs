//! Which path packets took through the node: counters late in the forward hook, and what conntrack says.
//!
//! A packet that the flowtable forwards never gets to the forward hook. The test's own chain is there after
//! the agent's, and counts by the port that the client dialled, apart for either direction.

use std::{thread, time::Duration};

pub use crate::forwarded::{Forwarded, PORTS, TABLE, all_forwarded, forwarded, install};
use crate::{topology::Topology, traffic::Flow, wait_until};

/// How many stray packets (an acknowledgement under way when a flow is offloaded) don't count as slow.
pub const STRAYS: u64 = 2;

/// Rounds of a measurement.
const ROUNDS: usize = 100;

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

    /// Packets and bytes that conntrack has counted for the flows to `port`, both directions.
    #[track_caller]
    pub fn counted(&self, port: u16) -> (u64, u64) {
        let lines = self.conntrack(port);
        let words = || lines.iter().flat_map(|line| line.split_whitespace());
        let sum = |key| words().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum();
        (sum("packets="), sum("bytes="))
    }

    /// The same when nothing comes any more: TCP may acknowledge the last round some 40 ms later.
    #[track_caller]
    pub fn counted_in_the_end(&self, port: u16) -> (u64, u64) {
        let mut last = self.counted(port);
        wait_until("quiet", Duration::from_secs(5), || {
            thread::sleep(Duration::from_millis(150));
            let now = self.counted(port);
            std::mem::replace(&mut last, now) == now
        });
        last
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
