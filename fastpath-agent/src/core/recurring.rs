//! When flows are revalidated because of rules that change without an event: at the moments when their verdicts may change, where
//! all of them are known, else again and again. Each moment is followed by a second time, as is each change of the rules.
//! Time is in milliseconds since any fixed point.

use std::collections::BTreeSet;

use super::policy::moments::Moment;

/// From the moment when flows are revalidated until a denied one has surely stopped.
const REACTION_MS: u64 = 500;
/// Never more often than this.
const LEAST_MS: u64 = 100;
/// The kernel's clocks go by ticks, of 10 ms at most.
const TICKS_MS: u64 = 30;

/// What makes it necessary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// What such rules ask; empty if there are none.
    pub causes: BTreeSet<&'static str>,
    /// A verdict may change at any time.
    pub anytime: bool,
    /// When elements of sets run out, in ms and in order.
    pub expiries: Vec<u64>,
    /// When comparisons with the clock change.
    pub moments: BTreeSet<Moment>,
}

/// The next time.
#[derive(Debug)]
pub struct Recurring {
    /// `None`: never.
    period_ms: Option<u64>,
    need: Need,
    /// When they were judged last.
    last: u64,
    /// Once more, a period after the last time.
    again: bool,
    /// What is needed may have changed since it was read.
    unsure: bool,
    /// The clock reached a moment, and has surely passed it then.
    struck: Option<u64>,
}

impl Recurring {
    /// So that a change is enforced within so many ms; `None`: not at all. Nothing is due yet.
    pub fn new(within_ms: Option<u64>) -> Self {
        let period_ms = within_ms.map(|within| within.saturating_sub(REACTION_MS).max(LEAST_MS));
        Self { period_ms, need: Need::default(), last: 0, again: false, unsure: false, struck: None }
    }

    /// What is needed from `now` on.
    pub fn needed(&mut self, need: Need, now: u64) {
        let is_new = self.need.causes.is_empty();
        if is_new {
            self.last = now;
        }
        let was_unsure = std::mem::take(&mut self.unsure);
        self.again |= is_new || was_unsure;
        self.need = need;
        // What ran out before it was read isn't in it any more, and was announced.
        let passed = self.need.expiries.partition_point(|at| at + TICKS_MS <= self.last);
        self.need.expiries.drain(..passed);
    }

    /// Something was announced that hasn't been read yet.
    pub fn unsure(&mut self) {
        self.unsure = true;
    }

    /// The clock reached a moment at `now`, or was set.
    pub fn strikes(&mut self, now: u64) {
        self.struck = Some(now + TICKS_MS);
    }

    /// When it is due, if it is.
    pub fn due(&self) -> Option<u64> {
        let earliest = self.last + self.period_ms?;
        let Need { causes, anytime, expiries, .. } = &self.need;
        if causes.is_empty() {
            return None;
        }
        if *anytime || self.again || self.unsure {
            return Some(earliest);
        }
        let expires = expiries.first().map(|at| at + TICKS_MS);
        self.struck.into_iter().chain(expires).min().map(|at| at.max(earliest))
    }

    /// Flows were revalidated at `now`, whatever for. Says what would have made that necessary.
    pub fn ran(&mut self, now: u64) -> BTreeSet<&'static str> {
        let struck = self.struck.take_if(|at| *at <= now).is_some();
        let passed = self.need.expiries.partition_point(|at| at + TICKS_MS <= now);
        self.need.expiries.drain(..passed);
        let all = self.need.anytime || self.again || self.unsure;
        self.again = struck || passed > 0;
        self.last = now;
        let is = |cause: &&&str| all || **cause == "time" && struck || **cause == "set" && passed > 0;
        self.need.causes.iter().filter(is).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anytime() -> Need {
        Need { causes: ["ipset"].into(), anytime: true, ..Need::default() }
    }

    fn expiring(at: &[u64]) -> Need {
        Need { causes: ["set", "time"].into(), expiries: at.to_vec(), ..Need::default() }
    }

    #[test]
    fn it_recurs_while_a_verdict_may_change_at_any_time() {
        let mut recurring = Recurring::new(Some(1500));
        recurring.ran(5);
        assert_eq!(recurring.due(), None, "not needed");
        recurring.needed(anytime(), 10);
        recurring.needed(anytime(), 500);
        assert_eq!(recurring.due(), Some(1010));
        assert_eq!(recurring.ran(1012), ["ipset"].into());
        assert_eq!(recurring.due(), Some(2012));
        recurring.needed(Need::default(), 1500);
        assert_eq!(recurring.due(), None);
        let mut off = Recurring::new(None);
        off.needed(anytime(), 0);
        assert_eq!(off.due(), None);
        let mut short = Recurring::new(Some(500));
        short.needed(anytime(), 0);
        assert_eq!(short.due(), Some(100));
    }

    #[test]
    fn moments_that_are_known_are_all_there_is() {
        let mut recurring = Recurring::new(Some(1500));
        recurring.needed(expiring(&[5000, 5001, 5900, 60_000]), 10);
        assert_eq!(recurring.due(), Some(1010), "once, since it is new");
        recurring.ran(1010);
        recurring.needed(expiring(&[5000, 5001, 5900, 60_000]), 1200);
        assert_eq!(recurring.due(), Some(5030), "as it was announced that it is needed");
        assert_eq!(recurring.ran(5031), ["set"].into());
        assert_eq!(recurring.due(), Some(6031), "once more, with one that passes meanwhile");
        recurring.ran(6031);
        recurring.ran(7031);
        assert_eq!(recurring.due(), Some(60_030));
        recurring.strikes(8000);
        assert_eq!(recurring.due(), Some(8031), "not more often than each second");
        assert_eq!(recurring.ran(8031), ["time"].into());
        recurring.ran(9031);
        assert_eq!(recurring.due(), Some(60_030));
    }

    #[test]
    fn what_is_announced_and_not_read_yet_may_be_anything() {
        let mut recurring = Recurring::new(Some(1500));
        recurring.unsure();
        assert_eq!(recurring.due(), None, "where there is no such rule, the announcement is enough");
        recurring.needed(expiring(&[]), 10);
        recurring.ran(1010);
        assert_eq!(recurring.due(), None);
        recurring.unsure();
        for now in [2010, 3010] {
            assert_eq!(recurring.due(), Some(now));
            assert_eq!(recurring.ran(now), ["set", "time"].into());
        }
        recurring.needed(expiring(&[]), 3500);
        assert_eq!(recurring.due(), Some(4010), "an element may have run out before it was read");
        recurring.ran(4010);
        assert_eq!(recurring.due(), None);
    }
}
