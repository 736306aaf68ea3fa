//! When the verdict of a rule that changes by itself may become another one: times that it compares the clock with, and elements of sets
//! that run out. Whatever isn't understood may change at any time. More moments than there are do no harm: flows are judged once more.
//!
//! The clock is as the kernel evaluates it (`nft_meta_get_eval_time`, net/netfilter/nft_meta.c): hours are UTC, days begin at
//! midnight of the kernel's own time zone.

use std::{collections::BTreeSet, fmt};

use super::expr::Expr;

const SECOND_NS: u64 = 1_000_000_000;
const DAY_S: u64 = 86_400;
/// More times than these in one rule aren't followed.
pub(super) const MOST: usize = 64;

/// A moment at which a comparison with the clock may give another answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// In ns since 1970, UTC.
    Once(u64),
    /// Each day, at this second of it, UTC.
    Daily(u32),
    /// Each day, at midnight of the kernel's time zone.
    Midnight,
}

/// What the kernel's clock shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// In ns since 1970, UTC.
    pub now_ns: u64,
    /// So far is the kernel's time zone behind UTC (`sys_tz.tz_minuteswest`): 0 unless the hardware clock runs on local time.
    pub minutes_west: i32,
}

impl Moment {
    /// The next time that it comes, in ns since 1970.
    pub fn next(self, WallClock { now_ns, minutes_west }: WallClock) -> Option<u64> {
        let daily = |second: i64| {
            let now = i64::try_from(now_ns / SECOND_NS).ok()?;
            let wait = (second - now - 1).rem_euclid(DAY_S.cast_signed()) + 1;
            Some((now + wait).cast_unsigned() * SECOND_NS)
        };
        match self {
            Self::Once(at) => Some(at).filter(|at| *at > now_ns),
            Self::Daily(second) => daily(second.into()),
            Self::Midnight => daily(i64::from(minutes_west) * 60),
        }
    }
}

/// When a rule's verdict may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// At any time.
    pub anytime: bool,
    /// At these.
    pub moments: BTreeSet<Moment>,
    /// Whenever an element of these sets runs out.
    pub sets: BTreeSet<Box<str>>,
}

impl When {
    /// It can't be told.
    pub fn anytime() -> Self {
        Self { anytime: true, ..Self::default() }
    }

    /// As reports have it.
    pub fn name(&self) -> &'static str {
        if self.anytime { "every-second" } else { "at-known-moments" }
    }

    /// Takes in the keys of a set that the clock is looked up in; `None` if they aren't all known.
    pub(super) fn look_up<'k>(&mut self, clock: Read, keys: Option<impl Iterator<Item = &'k [u8]>>) {
        let moments = keys.and_then(|keys| keys.map(|key| clock.moments(key)).collect::<Option<Vec<_>>>());
        match moments {
            Some(moments) => self.moments.extend(moments.into_iter().flatten()),
            None => self.anytime = true,
        }
        self.anytime |= self.moments.len() > MOST;
    }
}

/// In words: "at known times".
impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_clock = !self.moments.is_empty();
        f.write_str(match (by_clock, !self.sets.is_empty()) {
            _ if self.anytime => "at intervals",
            (true, false) => "at known times",
            (true, true) => "at known times and when an element times out",
            _ => "when an element times out",
        })
    }
}

/// What of the clock is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Nanoseconds,
    Day,
    Hour,
}

/// How a register has the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    unit: Unit,
    /// In network byte order.
    is_network: bool,
}

impl Read {
    /// When a comparison with this value may give another answer: as the clock reaches the value, and as it leaves it.
    /// The hour also wraps round.
    fn moments(self, value: &[u8]) -> Option<Vec<Moment>> {
        Some(match self.unit {
            Unit::Nanoseconds => {
                let value = value.try_into().ok()?;
                let at = if self.is_network { u64::from_be_bytes(value) } else { u64::from_ne_bytes(value) };
                vec![Moment::Once(at)]
            }
            Unit::Day => vec![Moment::Midnight],
            Unit::Hour => {
                let value = value.try_into().ok()?;
                let second =
                    if self.is_network { u32::from_be_bytes(value) } else { u32::from_ne_bytes(value) };
                let within = [second, second.saturating_add(1)].into_iter().filter(|s| u64::from(*s) < DAY_S);
                within.chain([0]).map(Moment::Daily).collect()
            }
        })
    }
}

/// Follows the clock through one rule.
#[derive(Debug, Default)]
pub(super) struct ClockReader {
    loaded: Option<Loaded>,
    when: When,
    /// A set that belongs to this rule and that the clock is looked up in.
    set: Option<(Box<str>, Read)>,
}

/// A register with the clock.
#[derive(Debug)]
struct Loaded {
    register: u32,
    read: Read,
    /// It was compared with something.
    asked: bool,
}

impl ClockReader {
    /// Reads the rule's next expression. `is_anonymous`: whether a set belongs to this rule, and so never changes.
    pub(super) fn read(&mut self, expr: &Expr<'_>, is_anonymous: impl Fn(&str) -> bool) {
        let at = |register: u32| self.loaded.as_ref().is_some_and(|loaded| loaded.register == register);
        match *expr {
            Expr::Meta { key, register } if unit(key).is_some() => {
                self.forget(register);
                let read = unit(key).map(|unit| Read { unit, is_network: false });
                self.loaded = read.map(|read| Loaded { register, read, asked: false });
            }
            Expr::Meta { register, .. }
            | Expr::Ct { register, .. }
            | Expr::Payload { register, .. }
            | Expr::Option { register, .. } => self.forget(register),
            Expr::Swap { register } if at(register) => {
                if let Some(loaded) = &mut self.loaded {
                    loaded.read.is_network = !loaded.read.is_network;
                }
            }
            Expr::Compare { register, value, .. } if at(register) => self.asks([&value.to_ne_bytes()[..]]),
            Expr::CompareBytes { register, data, .. } if at(register) => self.asks([data]),
            Expr::Range { register, from, to } if at(register) => self.asks([from, to]),
            Expr::Lookup { set, register, .. } | Expr::VerdictMap { map: set, register } if at(register) => {
                self.asks_set(set, is_anonymous(set));
            }
            _ => self.when.anytime |= self.is_unasked(),
        }
    }

    /// When the rule's verdict may change because of the clock, and the set that says more.
    pub(super) fn finish(mut self) -> (When, Option<(Box<str>, Read)>) {
        self.when.anytime |= self.is_unasked();
        (self.when, self.set)
    }

    fn is_unasked(&self) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| !loaded.asked)
    }

    /// Another register, or this one, is loaded. The clock may have been the first part of a key, which isn't followed.
    fn forget(&mut self, register: u32) {
        self.when.anytime |= self.is_unasked();
        self.loaded.take_if(|loaded| loaded.register == register || !loaded.asked);
    }

    fn asks<'v>(&mut self, values: impl IntoIterator<Item = &'v [u8]>) {
        if let Some(loaded) = &mut self.loaded {
            loaded.asked = true;
            self.when.look_up(loaded.read, Some(values.into_iter()));
        }
    }

    fn asks_set(&mut self, set: &str, is_anonymous: bool) {
        let Some(loaded) = &mut self.loaded else { return };
        loaded.asked = true;
        match loaded.read.unit {
            Unit::Day => drop(self.when.moments.insert(Moment::Midnight)),
            _ if is_anonymous && self.set.is_none() => self.set = Some((set.into(), loaded.read)),
            _ => self.when.anytime = true,
        }
    }
}

/// enum nft_meta_keys: `NFT_META_TIME_NS`, `_DAY`, `_HOUR`.
fn unit(key: u32) -> Option<Unit> {
    match key {
        30 => Some(Unit::Nanoseconds),
        31 => Some(Unit::Day),
        32 => Some(Unit::Hour),
        _ => None,
    }
}

/// Whether it reads the clock.
pub(super) fn is_clock(expr: &Expr<'_>) -> bool {
    matches!(*expr, Expr::Meta { key, .. } if unit(key).is_some())
}

#[cfg(test)]
#[path = "moments_tests.rs"]
mod tests;
