//! Packets and bytes of each interface, in all and past the forward path, added up from one reading of all flows to the
//! next. What bypassed the forward path is measured as for `top` (`core/flow/rates.rs`): what came in, less what the meter saw.
//! A flow that ended between two readings counts too: the programs note that it was offloaded, or the follower of crossings
//! marks it ([`Marks`]).

use std::{
    collections::{BTreeMap, HashSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use fastpath_common::Tally;

use super::{
    Flow, Node, State,
    connection::Tuple,
    path::{Metered, Path},
    rates::{Rates, Reading},
};
use crate::core::model::IfIndex;

/// Directions of flows whose counts are remembered from one reading to the next: 2 MB at most. Idle ones go first.
pub const MAX_REMEMBERED: usize = 65_536 / 8 * 7;
/// Directions that are marked between two readings; the oldest go first.
const MAX_MARKED: usize = 65_536;

/// What came in on an interface since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Packets and bytes in flows.
    pub all: Tally,
    /// Those among them that bypassed the forward path.
    pub fast: Tally,
}

impl Passed {
    fn add(&mut self, all: Tally, fast: Tally) {
        self.all.packets += all.packets;
        self.all.bytes += all.bytes;
        self.fast.packets += fast.packets;
        self.fast.bytes += fast.bytes;
    }
}

/// Flows that were found offloaded since the last reading.
#[derive(Debug)]
pub struct Marks {
    hasher: RandomState,
    /// Hashes of their directions' tuples.
    hashes: VecDeque<u64>,
}

impl Marks {
    /// This direction's flow is offloaded.
    pub fn mark(&mut self, tuple: &Tuple) {
        if self.hashes.len() == MAX_MARKED {
            self.hashes.pop_front();
        }
        self.hashes.push_back(self.hasher.hash_one(tuple));
    }

    /// Those that were marked since this was last asked, for [`Traffic::begin`].
    pub fn take(&mut self) -> VecDeque<u64> {
        std::mem::take(&mut self.hashes)
    }
}

/// What has passed so far.
pub struct Traffic {
    rates: Rates,
    interfaces: BTreeMap<IfIndex, Passed>,
    total: Passed,
    unmeasured: u64,
}

impl Traffic {
    /// Remembers `limit` directions of flows at most. Flows that began before `started_ns` (`CLOCK_MONOTONIC`) count from the
    /// first reading on.
    pub fn new(limit: usize, started_ns: u64) -> Self {
        Self {
            rates: Rates::since(limit, started_ns),
            interfaces: BTreeMap::new(),
            total: Passed::default(),
            unmeasured: 0,
        }
    }

    /// For the part that finds out which flows are offloaded.
    pub fn marks(&self) -> Marks {
        Marks { hasher: self.rates.hasher(), hashes: VecDeque::new() }
    }

    /// Begins a reading of all flows at `node.now_ns`.
    pub fn begin<'a>(&'a mut self, node: &'a Node, marked: VecDeque<u64>) -> Adding<'a> {
        Adding {
            reading: self.rates.begin(node.now_ns),
            marked: marked.into_iter().collect(),
            node,
            interfaces: &mut self.interfaces,
            total: &mut self.total,
            unmeasured: &mut self.unmeasured,
        }
    }

    /// Forgets interfaces that aren't there any more.
    pub fn keep(&mut self, is_there: impl Fn(IfIndex) -> bool) {
        self.interfaces.retain(|index, _| is_there(*index));
    }

    /// By interface.
    pub fn interfaces(&self) -> impl Iterator<Item = (IfIndex, Passed)> {
        self.interfaces.iter().map(|(index, passed)| (*index, *passed))
    }

    /// Over all interfaces, also those that have gone: never goes back.
    pub fn total(&self) -> Passed {
        self.total
    }

    /// Packets of offloaded flows of which it can't be told which way they took: there was no meter, or it was full.
    pub fn unmeasured(&self) -> u64 {
        self.unmeasured
    }
}

/// A reading in progress.
pub struct Adding<'a> {
    reading: Reading<'a>,
    marked: HashSet<u64>,
    node: &'a Node,
    interfaces: &'a mut BTreeMap<IfIndex, Passed>,
    total: &'a mut Passed,
    unmeasured: &'a mut u64,
}

impl Adding<'_> {
    /// Whether it matters what the meter has of a flow.
    pub fn wants_metered(flow: &Flow) -> bool {
        flow.offloaded() || flow.state == State::Closing
    }

    /// The next flow, with what the meter has of it if that [matters](Self::wants_metered).
    pub fn add(&mut self, flow: &Flow, metered: Option<&Metered>) {
        let tuples = [Some(flow.original), flow.reply];
        let was_offloaded = tuples.iter().flatten().any(|tuple| {
            let key = self.reading.key(tuple);
            self.marked.contains(&key) || self.reading.was_offloaded(key)
        });
        let was_offloaded = was_offloaded || flow.went_over();
        // One that is there, isn't ending and isn't offloaded has left the flowtable for a reason: its path is unknown.
        let ends = matches!(flow.state, State::Closing | State::Gone);
        let offloaded = flow.offloaded() || was_offloaded && ends;
        let mut since = [None; 2];
        for ((tuple, counters), since) in tuples.into_iter().zip(flow.seen).zip(&mut since) {
            let (Some(tuple), Some(counters)) = (tuple, counters) else { continue };
            let tally = self.reading.measure(&tuple, &counters, offloaded);
            *since = tally.map(|tally| (IfIndex(counters.ifindex), tally));
        }
        let all = since.iter().flatten().map(|(_, tally)| tally.packets).sum();
        let fast = if offloaded { self.bypassed(flow, metered, all) } else { Some(0) };
        if fast.is_none() {
            *self.unmeasured += all;
        }
        // The meter doesn't tell directions apart: each has its share, and none gets lost by rounding.
        let (mut left, mut of) = (fast.unwrap_or(0), all);
        for (index, tally) in since.into_iter().flatten() {
            let packets = share(left, tally.packets, of);
            (left, of) = (left - packets, of - tally.packets);
            let fast = Tally { packets, bytes: share(tally.bytes, packets, tally.packets) };
            self.interfaces.entry(index).or_default().add(tally, fast);
            self.total.add(tally, fast);
        }
    }

    /// Of `since` packets since the last reading, those that bypassed the forward path; `None` if that can't be told.
    fn bypassed(&mut self, flow: &Flow, metered: Option<&Metered>, since: u64) -> Option<u64> {
        match (&flow.entry, metered) {
            (Some(entry), Some(metered)) => {
                let path = Path::measure(&flow.seen, metered, self.node);
                self.reading.bypassed(entry.id, &path, since)
            }
            // Conntrack has forgotten it: what it had before the threshold is all that can be told.
            (None, _) => {
                let young = self.node.young_packets(&flow.seen).unwrap_or(1);
                Some(since.min(flow.packets().saturating_sub(young)))
            }
            (Some(_), None) => None,
        }
    }

    /// After the last flow. A reading that isn't ended leaves [`Traffic`] useless.
    pub fn end(self) {
        self.reading.end();
    }
}

/// What `part` of `whole` has of `amount`.
fn share(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount) * u128::from(part);
    u64::try_from(product / u128::from(whole.max(1))).unwrap_or(amount)
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
