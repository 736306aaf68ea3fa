//! Which connections the agent helps into the flowtable, and for how long. Connections that are older than the first
//! rule with `ct packets` have no packet counters, so that rule never matches them; the agent lists their conntrack ids
//! in a set with a rule of its own. That rule costs every packet that isn't offloaded, so a connection is listed only from
//! the threshold until it is offloaded. One without packets meanwhile, or that leaves the flowtable, is armed: its next
//! packet signals again. Time is handed in as milliseconds since any fixed point.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    Flow, Node,
    connection::{Entry, Tuple},
};
use crate::core::why_not::WhyNot;

/// Time that an id stays in the set.
pub const LISTED_MS: u64 = 30_000;
/// First wait until those that were listed last are checked; doubles up to [`LOOK_MAX_MS`].
const LOOK_MS: u64 = 200;
/// Longest wait.
const LOOK_MAX_MS: u64 = 5_000;
/// Ids listed at a time; others have their turn later.
const MOST_LISTED: usize = 16_384;
/// Ids listed within [`LISTED_MS`]: the set holds at most twice as many at any time, and has room for 65,536.
const MOST_IN_TIME: usize = 30_000;
/// Connections remembered after they were offloaded, to be armed when they aren't any more.
const MOST_HELPED: usize = 65_536;
/// When to look at helped connections after the flowtable was emptied, in ms: the kernel takes its time to take their
/// marks away.
const DOUBTS_MS: [u64; 3] = [2_500, 1_000, 300];
/// A listed connection that has had so many packets and isn't offloaded won't be: the kernel has a reason of its own.
const PACKETS_IN_VAIN: u64 = 5;

/// What to do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    Nothing,
    /// Both its directions should signal their next packets.
    Arm,
}

/// Connections that are helped.
#[derive(Debug, Default)]
pub struct Assist {
    /// In the set and not yet offloaded, by the tuple of the original direction.
    listed: HashMap<Tuple, Listed>,
    /// Listed since they were last asked for.
    new: Vec<u32>,
    /// Were offloaded with our help, or will have their turn.
    helped: VecDeque<Tuple>,
    /// May be helped later, when what keeps them on the normal path changes: checked with the safety net only.
    later: VecDeque<Tuple>,
    /// Since when how many were listed.
    in_time: (u64, usize),
    look_at: Option<u64>,
    wait: u64,
    /// When to look at those that were helped, the next time last.
    doubts: Vec<u64>,
    /// Whether the rule was wanted when that was last asked for.
    told: bool,
    /// Listed connections that were offloaded.
    offloaded: u64,
}

#[derive(Debug)]
struct Listed {
    id: u32,
    since_ms: u64,
    /// As counted then.
    packets: u64,
}

/// What the ruleset has to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether set and rule are needed.
    pub rule: bool,
    /// Conntrack ids to add to the set, for [`LISTED_MS`].
    pub ids: Vec<u32>,
}

impl Assist {
    /// A flow that has crossed, or that was armed: lists it if that is all it needs.
    pub fn consider(&mut self, flow: &Flow, node: &Node, now_ms: u64) {
        let Some((entry, cause)) = flow.entry.as_ref().zip(flow.uncounted(node)) else { return };
        match cause.why {
            WhyNot::Unknown | WhyNot::NotWatched => {}
            // Not for ever.
            WhyNot::Interface | WhyNot::EveryPacket | WhyNot::Excluded => return self.later(entry.original),
            _ => return,
        }
        if self.listed.get(&entry.original).is_some_and(|listed| listed.id == entry.id) {
            return;
        }
        if now_ms >= self.in_time.0 + LISTED_MS {
            self.in_time = (now_ms, 0);
        }
        if self.listed.len() >= MOST_LISTED || self.in_time.1 >= MOST_IN_TIME {
            return self.remember(entry.original);
        }
        self.in_time.1 += 1;
        let listed = Listed { id: entry.id, since_ms: now_ms, packets: flow.packets() };
        self.listed.insert(entry.original, listed);
        self.new.push(entry.id);
        self.wait = LOOK_MS;
        self.look_at = Some(now_ms + LOOK_MS);
    }

    /// When to check those that are listed.
    pub fn due_ms(&self) -> Option<u64> {
        self.look_at.into_iter().chain(self.doubts.last().copied()).min()
    }

    /// Those to look up now, if it is time.
    pub fn take_due(&mut self, now_ms: u64) -> Vec<Tuple> {
        let mut due = Vec::new();
        if self.look_at.is_some_and(|at| at <= now_ms) {
            self.wait = (2 * self.wait).min(LOOK_MAX_MS);
            self.look_at = Some(now_ms + self.wait);
            due.extend(self.listed.keys());
        }
        if self.doubts.pop_if(|at| *at <= now_ms).is_some() {
            due.extend(self.helped.drain(..));
        }
        due
    }

    /// The flowtable was emptied.
    pub fn emptied(&mut self, now_ms: u64) {
        if !self.helped.is_empty() {
            self.doubts = DOUBTS_MS.map(|wait| now_ms + wait).into();
        }
    }

    /// Those that were helped before, or may be now, all of them to be looked up.
    pub fn take_helped(&mut self) -> Vec<Tuple> {
        self.helped.drain(..).chain(self.later.drain(..)).collect()
    }

    /// This one can't be helped for now, or not be checked. One that is listed is checked again anyway.
    pub fn later(&mut self, tuple: Tuple) {
        if !self.listed.contains_key(&tuple) {
            keep(&mut self.later, tuple);
        }
    }

    /// What a check found: the connection, and the packets of both directions counted so far.
    pub fn looked(&mut self, tuple: &Tuple, entry: Option<&Entry>, packets: u64, now_ms: u64) -> Next {
        let listed = self.listed.get(tuple);
        // Another connection with the same tuple, which has counters: it goes by the rule.
        let entry = entry.filter(|entry| entry.counters.is_none());
        let entry = entry.filter(|entry| listed.is_none_or(|listed| listed.id == entry.id));
        let next = match (entry, listed) {
            (None, _) => Next::Nothing,
            (Some(entry), listed) if entry.status.offloaded() => {
                self.offloaded += u64::from(listed.is_some());
                self.remember(*tuple);
                Next::Nothing
            }
            (Some(_), Some(listed)) if now_ms < listed.since_ms + LISTED_MS => return Next::Nothing,
            (Some(_), Some(listed)) if packets >= listed.packets + PACKETS_IN_VAIN => Next::Nothing,
            // Idle since then.
            (Some(_), _) => Next::Arm,
        };
        self.listed.remove(tuple);
        if self.listed.is_empty() {
            self.look_at = None;
        }
        next
    }

    /// There was no room for these: they signal again once others have gone.
    pub fn postpone(&mut self, ids: &[u32]) {
        let ids: HashSet<u32> = ids.iter().copied().collect();
        let waiting: Vec<Tuple> = self
            .listed
            .iter()
            .filter(|(_, listed)| ids.contains(&listed.id))
            .map(|(tuple, _)| *tuple)
            .collect();
        for tuple in waiting {
            self.listed.remove(&tuple);
            self.remember(tuple);
        }
        if self.listed.is_empty() {
            self.look_at = None;
        }
    }

    /// How many connections were offloaded since they were listed.
    pub fn offloaded(&self) -> u64 {
        self.offloaded
    }

    /// Takes note of a connection without counters that is offloaded.
    pub fn remember(&mut self, original: Tuple) {
        keep(&mut self.helped, original);
    }

    /// What the ruleset has to be told since this was last asked, if anything.
    pub fn take_wanted(&mut self) -> Option<Wanted> {
        let rule = !self.listed.is_empty();
        if self.new.is_empty() && rule == self.told {
            return None;
        }
        self.told = rule;
        Some(Wanted { rule, ids: std::mem::take(&mut self.new) })
    }

    /// The set is empty again, for whatever reason: everything has to be told again.
    pub fn tell_again(&mut self) {
        self.new = self.listed.values().map(|listed| listed.id).collect();
        self.told = false;
    }
}

fn keep(kept: &mut VecDeque<Tuple>, tuple: Tuple) {
    if kept.len() == MOST_HELPED {
        kept.pop_front();
    }
    kept.push_back(tuple);
}

#[cfg(test)]
#[path = "assist_tests.rs"]
mod tests;
