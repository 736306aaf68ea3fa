//! Which changes of the ruleset may concern forwarded packets, and when the flowtable is emptied because of them.
//!
//! An offloaded flow passes no chain, so a new rule that denies it changes nothing until the flow leaves the flowtable.
//! When in doubt, it is emptied: that costs each flow a few packets on the normal path.

use std::{
    collections::BTreeMap,
    ops::{BitOr, BitOrAssign},
};

use super::model::TABLE;

// Families and hooks, include/uapi/linux/netfilter.h and netfilter_bridge.h.
const INET: u8 = 1;
const IPV4: u8 = 2;
const ARP: u8 = 3;
const NETDEV: u8 = 5;
const IPV6: u8 = 10;
const NETDEV_INGRESS: u32 = 0;
const NETDEV_EGRESS: u32 = 1;
const INET_INPUT: u32 = 1;
const INET_OUTPUT: u32 = 3;
const INET_INGRESS: u32 = 5;

/// One object of nftables that a transaction made, changed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice<'a> {
    /// Family of the table (`NFPROTO_*`).
    pub family: u8,
    /// The table that it is in (or is).
    pub table: &'a str,
    /// What it is.
    pub subject: Subject<'a>,
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject<'a> {
    /// The table itself.
    Table {
        /// It was deleted.
        gone: bool,
    },
    /// A chain.
    Chain {
        /// Its name.
        name: &'a str,
        /// Where it is hooked; `None` for a chain that is only jumped to, or that is gone.
        hook: Option<Hook<'a>>,
        /// It was deleted.
        gone: bool,
    },
    /// A rule, by the name of its chain.
    Rule {
        /// The chain.
        chain: &'a str,
    },
    /// Elements of a set or a map.
    Elements {
        /// Its name.
        set: &'a str,
    },
    /// A timeout for connections.
    Timeout,
    /// A set, another stateful object, a flowtable.
    Other,
}

/// Place of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook<'a> {
    /// "filter", "nat" or "route".
    pub kind: &'a str,
    /// Number of the hook in its family.
    pub number: u32,
    /// Priority in the hook.
    pub priority: i32,
}

/// What another program's change may concern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Our table.
    pub own_table: bool,
    /// Packets of connections that this node forwards.
    pub forwarding: bool,
}

impl Touched {
    /// Where it isn't known what was changed.
    pub const EVERYTHING: Self = Self { own_table: true, forwarding: true };
}

impl BitOr for Touched {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self { own_table: self.own_table | other.own_table, forwarding: self.forwarding | other.forwarding }
    }
}

impl BitOrAssign for Touched {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

/// The base chains of all tables but the agent's, as far as they were read or announced, and whether forwarded packets pass them.
/// What isn't known counts as one that they pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseChains(BTreeMap<(u8, String), BTreeMap<String, Passed>>);

/// Whether packets of established connections that this node forwards pass a base chain, and offloaded ones don't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    No,
    /// Only by being there: while a family has a chain of type nat the kernel translates packets of established connections
    /// (`nf_nat_register_fn` in net/netfilter/nf_nat_core.c).
    ByTranslation,
    Yes,
}

impl BaseChains {
    /// Takes note of a change by another program, or of an object as it was read, and says what it may concern. Tables
    /// come before their chains.
    pub fn note(&mut self, notice: &Notice<'_>) -> Touched {
        if (notice.family, notice.table) == (INET, TABLE) {
            return Touched { own_table: true, forwarding: false };
        }
        Touched { own_table: false, forwarding: self.forwarding(notice) }
    }

    fn forwarding(&mut self, Notice { family, table, subject }: &Notice<'_>) -> bool {
        let key = (*family, (*table).to_owned());
        match subject {
            Subject::Table { gone: true } => {
                self.0.remove(&key).is_none_or(|chains| chains.values().any(|passed| *passed != Passed::No))
            }
            Subject::Table { gone: false } => any(self.0.entry(key).or_default()),
            Subject::Chain { name, hook: Some(hook), gone: false } => {
                let now = passed_by_forwarded(*family, hook);
                // A table that isn't known stays so: it may have other chains.
                let Some(chains) = self.0.get_mut(&key) else { return true };
                let before = chains.insert((*name).to_owned(), now);
                [Some(now), before].contains(&Some(Passed::Yes))
            }
            // Chains that are only jumped to say nothing without a rule, which has a notice of its own.
            Subject::Chain { name, .. } => self
                .0
                .get_mut(&key)
                .is_none_or(|chains| chains.remove(*name).unwrap_or(Passed::No) != Passed::No),
            Subject::Rule { chain } => self.0.get(&key).is_none_or(|chains| {
                // No rule can jump to a base chain, so only its own hook matters.
                chains.get(*chain).map_or_else(|| any(chains), |passed| *passed == Passed::Yes)
            }),
            Subject::Elements { .. } | Subject::Timeout | Subject::Other => self.0.get(&key).is_none_or(any),
        }
    }
}

fn any(chains: &BTreeMap<String, Passed>) -> bool {
    chains.values().any(|passed| *passed == Passed::Yes)
}

fn passed_by_forwarded(family: u8, hook: &Hook<'_>) -> Passed {
    let passed = match (family, hook.kind, hook.number) {
        // Its rules are asked for a connection's first packet only.
        (INET | IPV4 | IPV6, "nat", _) => return Passed::ByTranslation,
        // For packets of this node itself.
        (INET | IPV4 | IPV6, "route", _) | (ARP, ..) => false,
        // Before the flowtable, offloaded packets pass it too.
        (INET, _, INET_INGRESS) | (NETDEV, _, NETDEV_INGRESS) => hook.priority >= 0,
        // Which offloaded packets pass as all others do.
        (NETDEV, _, NETDEV_EGRESS) => false,
        (INET | IPV4 | IPV6, _, INET_INPUT | INET_OUTPUT) => false,
        // Bridges, where offloaded packets come in and go out by the ports; and what we don't know.
        _ => true,
    };
    if passed { Passed::Yes } else { Passed::No }
}

/// When the flowtable is emptied: at once after the first change, and then at most once in an interval.
/// Time is in milliseconds since any fixed point.
#[derive(Debug)]
pub struct Pace {
    interval_ms: u64,
    last: Option<u64>,
    due: Option<u64>,
}

impl Pace {
    /// Nothing has changed yet.
    pub fn new(interval_ms: u64) -> Self {
        Self { interval_ms, last: None, due: None }
    }

    /// Something changed at `now`.
    pub fn changed(&mut self, now: u64) {
        let due = self.last.map_or(now, |last| now.max(last + self.interval_ms));
        self.due.get_or_insert(due);
    }

    /// When it is due, if it is.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// It was tried at `now`.
    pub fn ran(&mut self, now: u64) {
        self.last = Some(now);
        self.due = None;
    }
}

#[cfg(test)]
#[path = "revalidate_tests.rs"]
mod tests;
