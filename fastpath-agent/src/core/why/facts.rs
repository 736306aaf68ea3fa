//! What was read of one flow, in two readings about a second apart.

use std::{collections::BTreeSet, net::IpAddr};

use fastpath_common::FlowCounters;
use serde::Serialize;

use crate::core::{
    flow::{
        Earlier,
        connection::{Entry, Tuple},
        trace::Trace,
    },
    link::{select::Unmanaged, table::LinkTable},
    model::{Counter, IfIndex, IfName, Link},
    route_rule::RouteRule,
    ruleset::{conditions::Conditions, observed::Owner},
};

/// Packets that a change of routes or links sends on the forward path, without meaning anything.
const STRAYS: u64 = 2;

/// All that was read.
#[derive(Clone, Debug)]
pub struct FlowFacts {
    /// As it was asked for.
    pub asked: Tuple,
    /// Its connection; `None` if conntrack has none.
    pub entry: Option<Entry>,
    /// Packets that conntrack counted between the two readings; `None` where it doesn't count.
    pub tracked: Option<u64>,
    /// The original and the reply direction. Without a connection: what was asked for and the same turned round.
    pub directions: [Direction; 2],
    /// Whether packets are counted at ingress at all: the programs' maps are pinned.
    pub counting: bool,
    /// Packets of either direction that left between the two readings, of an offloaded flow; `None` where that can't be seen.
    pub left: Option<[u64; 2]>,
    /// Our table.
    pub ruleset: Ruleset,
    /// Rules of other programs because of which our table leaves it out.
    pub wanted: Vec<Wanted>,
    /// What the meter of slow packets has of it; `None` for nothing within a minute.
    pub slow: Option<Slow>,
    /// What its packets left past the threshold, if it isn't offloaded.
    pub traces: Vec<Trace>,
    /// Policy rules that may decide one direction's route by what the kernel doesn't ask.
    pub route_rules: Vec<RouteRule>,
    /// Its connection was opened to a service of IPVS.
    pub ipvs: bool,
    /// Next hops of it that don't answer, and where they are looked for.
    pub dead: Vec<(IpAddr, IfIndex)>,
    /// Other programs' flowtables.
    pub flowtables: Vec<Flowtable>,
    /// Rules that say `notrack`: table and chain of each.
    pub notrack: Vec<String>,
    /// IPsec policies that apply to it, in words.
    pub ipsec: Vec<String>,
    /// Other programs' eBPF programs and filters where its packets come in.
    pub programs: Vec<Program>,
    /// Interfaces of this flow that aren't managed, and why.
    pub unmanaged: Vec<(IfIndex, Unmanaged)>,
    /// All links.
    pub links: LinkTable,
    /// Addresses of this node.
    pub addresses: BTreeSet<IpAddr>,
    /// After how much idle time the flowtable lets go of a flow of this protocol.
    pub flow_timeout_ms: u64,
    /// `CLOCK_MONOTONIC` at the second look, in ns.
    pub now_ns: u64,
}

/// One direction.
#[derive(Clone, Copy, Debug)]
pub struct Direction {
    /// As its packets come in, before NAT.
    pub tuple: Tuple,
    /// What was counted at ingress, up to the second look.
    pub counted: Option<FlowCounters>,
    /// Of that, between the readings.
    pub moved: Moved,
    /// The interface that routing says it comes in on: the way back to where it comes from.
    pub input: Option<IfIndex>,
    /// The interface by which this node would send to its source.
    pub back: Option<IfIndex>,
    /// What routing says of it.
    pub route: Route,
}

/// What came between the two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// As the stack handles them.
    pub packets: u64,
    /// On the wire.
    pub segments: u64,
    /// From the IP header on.
    pub bytes: u64,
    /// Of the packets those that eBPF forwarded: they aren't seen to leave.
    pub forwarded: u64,
}

/// What routing says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It is forwarded.
    Forward {
        /// Through this interface.
        output: IfIndex,
        /// To this neighbour; `None` for the destination itself.
        gateway: Option<IpAddr>,
        /// Largest packet of that way: the route's own limit, or the interface's.
        mtu: u32,
    },
    /// It is for this node.
    Local,
    /// Nowhere, with the kernel's errno (ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL for a blackhole …).
    Nowhere(i32),
    /// It wasn't asked, since where its packets come in isn't known.
    NotAsked,
}

/// Our table, as far as it concerns one flow.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    /// Who made the table of our name, if there is one.
    pub owner: Option<Owner>,
    /// Packets after which our rule offloads; `None` without such a rule.
    pub threshold: Option<u32>,
    /// The one before.
    pub earlier: Earlier,
    /// Priority of our chain.
    pub priority: i32,
    /// Interfaces in the flowtable.
    pub managed: BTreeSet<IfIndex>,
    /// The flowtable counts for conntrack.
    pub counter: bool,
    /// There is a meter of slow packets.
    pub meter: bool,
    /// The exclusion that it falls under.
    pub excluded: Option<String>,
    /// Marks of packets that are excluded, as people write them. Which marks its packets have is nowhere to be read.
    pub excluded_marks: Vec<String>,
    /// Its conntrack id is listed among those that were revoked.
    pub revoked: bool,
    /// The agent has listed its conntrack id for the assist rule.
    pub assisted: bool,
    /// Conditions of the rules that leave flows out since another program's rule wants every packet.
    pub left_out: Vec<Conditions>,
}

/// A rule of another program that wants every packet of the flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Family, table, chain, handle and comment.
    pub rule: String,
    /// By which of its expressions.
    pub asks: String,
    /// All that it asks of packets is known of this flow.
    pub certain: bool,
}

/// Packets that took the forward path although the flow was past the threshold and eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Since the first after a minute without any.
    pub counter: Counter,
    /// Time since the last.
    pub idle_ms: u64,
    /// Of them, between the two readings.
    pub moved: Counter,
}

/// Another program's flowtable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flowtable {
    /// Family, table and name, as nft writes them.
    pub name: String,
    /// Its devices; `None` where the kernel couldn't tell.
    pub devices: Option<BTreeSet<IfName>>,
    /// Priority of the first chain in the forward hook with a rule that adds to it.
    pub priority: Option<i32>,
}

/// Another program's eBPF program or filter at ingress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Interface that it is on.
    pub interface: IfName,
    /// Kind and name, in words.
    pub name: String,
    /// It runs before the agent's, so what it takes isn't counted.
    pub before_ours: bool,
}

/// The way of a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They bypass the forward path.
    Fast,
    /// Some of them do.
    Mixed,
    /// None of them does.
    Slow,
}

impl Direction {
    /// Interface that its packets were counted on.
    pub fn counted_on(&self) -> Option<IfIndex> {
        self.counted.map(|counters| IfIndex(counters.ifindex))
    }
}

impl FlowFacts {
    /// A flow that was found.
    pub fn found(&self) -> bool {
        self.entry.is_some() || self.directions.iter().any(|direction| direction.counted.is_some())
    }

    /// Conntrack calls it offloaded.
    pub fn offloaded(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.status.offloaded() || entry.status.hw_offloaded())
    }

    /// Packets that came between the readings, both directions.
    pub fn moved(&self) -> u64 {
        if self.counting {
            self.directions.iter().map(|direction| direction.moved.packets).sum()
        } else {
            self.tracked.unwrap_or(0)
        }
    }

    /// Of them, those that the meter saw on the forward path.
    pub fn slow_moved(&self) -> u64 {
        self.slow.map_or(0, |slow| slow.moved.packets)
    }

    /// Packets of either direction that were seen to leave, or that eBPF forwarded, between the readings.
    pub fn left(&self) -> Option<[u64; 2]> {
        let [original, reply] = self.left?;
        let [first, second] = [0, 1].map(|d| self.directions[d].moved.forwarded);
        Some([original + first, reply + second])
    }

    /// The direction of which packets came during the readings and none left, in a word.
    pub fn lost(&self) -> Option<&'static str> {
        // Fragments of IPv6, which take the forward path, aren't seen to leave.
        let left = self.left().filter(|_| self.slow_moved() == 0)?;
        if !self.counting {
            return (left == [0; 2] && self.moved() > STRAYS).then_some("either");
        }
        let is_lost = |d: &usize| left[*d] == 0 && self.directions[*d].moved.packets > STRAYS;
        [0, 1].into_iter().find(is_lost).map(|d| ["the original", "the reply"][d])
    }

    /// Packets came during the readings, and which path they took is known.
    pub fn measured(&self) -> bool {
        self.ruleset.meter && self.moved() > 0
    }

    /// Which way its packets take now, or took when there were some. `None` for an unknown flow.
    pub fn way(&self) -> Option<Way> {
        if !self.found() {
            return None;
        }
        if !self.offloaded() {
            return Some(Way::Slow);
        }
        // The counts aren't read in one instant: some packets are in one and not yet in the other.
        Some(match (self.slow_moved(), self.moved()) {
            (0, _) if self.half_seen() => Way::Mixed,
            (0, _) => Way::Fast,
            (slow @ ..=STRAYS, all) if all >= 5 * slow + STRAYS => Way::Fast,
            (slow, all) if slow + 1 + all / 20 >= all => Way::Slow,
            _ => Way::Mixed,
        })
    }

    /// It begins or ends on this node.
    pub fn is_local(&self) -> bool {
        let [original, reply] = &self.directions;
        // A masqueraded connection's replies go to an address of this node, and yet it is forwarded.
        let ends_here = match &self.entry {
            Some(_) => self.addresses.contains(&reply.tuple.source),
            None => self.addresses.contains(&original.tuple.destination),
        };
        ends_here || original.route == Route::Local || self.addresses.contains(&original.tuple.source)
    }

    /// Packets of one direction come in where they aren't counted, and so don't pass a flowtable either.
    fn half_seen(&self) -> bool {
        let replied = self.entry.as_ref().is_some_and(|entry| entry.status.seen_reply());
        // On a managed interface they would be counted: there were none since the programs are there.
        let is_counted =
            |index: Option<IfIndex>| index.is_none_or(|index| self.ruleset.managed.contains(&index));
        let [original, reply] = &self.directions;
        let unseen = match (original.counted, reply.counted) {
            (Some(_), None) => reply,
            (None, Some(_)) => original,
            _ => return false,
        };
        self.counting && replied && !(is_counted(unseen.input) && self.older_than_the_counts())
    }

    /// Its packets have been counted for less long than conntrack has known it: conntrack doesn't count them, as it is older than the
    /// rules.
    fn older_than_the_counts(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.counters.is_none())
    }

    /// Packets of both directions so far: conntrack's count, or the agent's where conntrack doesn't count.
    pub fn packets(&self) -> u64 {
        let counted = self.directions.iter().filter_map(|d| d.counted).map(|c| c.packets).sum();
        match self.entry.as_ref().and_then(|entry| entry.counters) {
            Some([original, reply]) => original.packets + reply.packets,
            None => counted,
        }
    }

    /// Packets that have bypassed the forward path: all but those up to the one that offloaded the flow and those that
    /// the meter has. It forgets after a minute, so there may be fewer.
    pub fn bypassed(&self) -> u64 {
        let all = self.directions.iter().filter_map(|d| d.counted).map(|c| c.packets).sum::<u64>();
        let all = if self.counting { all } else { self.packets() };
        let began = self.directions.iter().filter_map(|d| d.counted).map(|c| c.first_seen_ns).min();
        let young = self.ruleset.earlier.young_packets(self.ruleset.threshold.unwrap_or(0), began);
        all.saturating_sub(young + self.slow.map_or(0, |slow| slow.counter.packets))
    }

    /// Packets that eBPF has forwarded ahead of the flowtable: conntrack hasn't counted them.
    pub fn forwarded(&self) -> u64 {
        self.directions.iter().filter_map(|d| d.counted).map(|c| c.forwarded).sum()
    }

    /// Time since the last packet, as counted at ingress.
    pub fn idle_ms(&self) -> Option<u64> {
        let last = self.directions.iter().filter_map(|d| d.counted).map(|c| c.last_seen_ns).max()?;
        Some(self.now_ns.saturating_sub(last) / 1_000_000)
    }

    /// Time since the first packet, likewise.
    pub fn age_ms(&self) -> Option<u64> {
        let first = self.directions.iter().filter_map(|d| d.counted).map(|c| c.first_seen_ns).min()?;
        Some(self.now_ns.saturating_sub(first) / 1_000_000)
    }

    /// Any direction's packets had one of these flags.
    pub fn flagged(&self, flags: u64) -> bool {
        self.directions.iter().filter_map(|d| d.counted).any(|c| c.flags & flags != 0)
    }

    /// A link of this node.
    pub fn link(&self, index: IfIndex) -> Option<&Link> {
        self.links.get(index)
    }

    /// Its name, or its number.
    pub fn name(&self, index: IfIndex) -> String {
        self.link(index).map_or_else(|| format!("#{index}"), |link| link.name.to_string())
    }

    /// The bridge that a link is a port of.
    pub fn bridge_of(&self, port: IfIndex) -> Option<&Link> {
        let master = self.link(self.link(port)?.master?)?;
        (master.kind.as_deref() == Some("bridge")).then_some(master)
    }
}
