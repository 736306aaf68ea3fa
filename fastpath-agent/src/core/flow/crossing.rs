//! From the signal that one direction of a flow has crossed the threshold to the flow's state: one answer for
//! each connection, however many of its directions signal. Time is handed in as milliseconds since any fixed point.

use std::{
    collections::{HashSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher,
};

use super::connection::{Entry, Tuple};

/// Time that the packet which crossed has to reach the rule, on a busy node.
const GRACE_MS: u64 = 200;
/// Directions that wait for a second look at a time. With more, signals stay in the kernel's ring.
const MOST_WAITING: usize = 8192;

/// Follows crossings. What it remembers is bounded, whatever happens on the node.
#[derive(Debug)]
pub struct Crossings {
    /// In order of time.
    waiting: VecDeque<Waiting>,
    /// Connections that were taken up.
    known: Recent,
    hasher: RandomState,
}

/// A direction to look at again.
#[derive(Clone, Debug)]
pub struct Waiting {
    due_ms: u64,
    /// As its packets come in.
    pub tuple: Tuple,
    /// The connection as it was at the first look.
    first: Option<Box<Entry>>,
}

/// A flow whose fate can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Conntrack has it.
    Connection(Entry),
    /// Conntrack had it.
    Ended(Entry),
    /// Conntrack never had it, as far as we know.
    Unknown(Tuple),
}

impl Crossings {
    /// Remembers at least this many connections that were taken up, and at most twice as many.
    pub fn new(remembered: usize) -> Self {
        Self { waiting: VecDeque::new(), known: Recent::new(remembered), hasher: RandomState::new() }
    }

    /// How many signals may come now.
    pub fn room(&self) -> usize {
        MOST_WAITING - self.waiting.len()
    }

    /// When the next second look is due.
    pub fn due_ms(&self) -> Option<u64> {
        self.waiting.front().map(|waiting| waiting.due_ms)
    }

    /// Gives back what a burst has taken.
    pub fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }

    /// A direction has crossed, and `entry` is what conntrack has of it. A flow is settled at once if it is offloaded, or
    /// closing already.
    pub fn signalled(&mut self, tuple: Tuple, entry: Option<Entry>, now_ms: u64) -> Option<Settled> {
        if let Some(entry) = &entry
            && !self.take_up(entry)
        {
            return None;
        }
        match entry {
            Some(entry) if entry.is_decided() => Some(Settled::Connection(entry)),
            entry => {
                self.waiting.push_back(Waiting {
                    due_ms: now_ms + GRACE_MS,
                    tuple,
                    first: entry.map(Box::new),
                });
                None
            }
        }
    }

    /// At most `limit` directions whose second look is due.
    pub fn take_due(&mut self, now_ms: u64, limit: usize) -> Vec<Waiting> {
        let due = self.waiting.iter().take(limit).take_while(|waiting| waiting.due_ms <= now_ms).count();
        self.waiting.drain(..due).collect()
    }

    /// What the second look found.
    pub fn looked_again(&mut self, waiting: Waiting, entry: Option<Entry>) -> Option<Settled> {
        match (entry, waiting.first) {
            // Taken up at the first look already, unless another connection has come in its place.
            (Some(entry), Some(first)) if self.same(&entry, &first) => Some(Settled::Connection(entry)),
            (Some(entry), _) => self.take_up(&entry).then_some(Settled::Connection(entry)),
            (None, Some(first)) => Some(Settled::Ended(*first)),
            (None, None) => Some(Settled::Unknown(waiting.tuple)),
        }
    }

    /// True if the connection wasn't known yet.
    fn take_up(&mut self, entry: &Entry) -> bool {
        let identity = self.identity(entry);
        self.known.insert(identity)
    }

    fn same(&self, a: &Entry, b: &Entry) -> bool {
        self.identity(a) == self.identity(b)
    }

    /// Conntrack's ids alone are hashes of 32 bits: of 65,536 connections two may well share one.
    fn identity(&self, entry: &Entry) -> u64 {
        self.hasher.hash_one((entry.id, entry.zone, entry.original))
    }
}

/// One direction of each connection, as far as that can be told from the tuples alone, and the others. To look a connection
/// up costs the kernel some 20,000 instructions, and what is found of one direction says which is the other.
///
/// NAT changes addresses; the larger port, which the client has as a rule, mostly stays.
pub fn one_of_each(tuples: Vec<Tuple>) -> (Vec<Tuple>, Vec<Tuple>) {
    let mut seen = HashSet::new();
    tuples
        .into_iter()
        .partition(|tuple| seen.insert((tuple.protocol, tuple.source_port.max(tuple.destination_port))))
}

/// The members of a stream that came last: at least `size` of them, and at most twice as many.
#[derive(Debug)]
struct Recent {
    size: usize,
    now: HashSet<u64>,
    before: HashSet<u64>,
}

impl Recent {
    fn new(size: usize) -> Self {
        Self { size, now: HashSet::new(), before: HashSet::new() }
    }

    /// False if it is there already.
    fn insert(&mut self, member: u64) -> bool {
        if self.before.contains(&member) || !self.now.insert(member) {
            return false;
        }
        if self.now.len() > self.size {
            self.before = std::mem::take(&mut self.now);
        }
        true
    }
}

#[cfg(test)]
#[path = "crossing_tests.rs"]
mod tests;
