//! When to reconcile: triggers are coalesced, and a program that keeps undoing our work is answered ever more slowly.
//! Time is handed in as milliseconds since any fixed point.

use std::fmt;

/// Why a reconcile is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trigger {
    /// The agent starts.
    Start,
    /// A link came, went or changed.
    Links,
    /// Other flows are excluded.
    Exclusions,
    /// Another program committed a change of the ruleset.
    Ruleset,
    /// Notifications were lost.
    Overrun,
    /// Other programs' settings that our rules respect have changed.
    Surroundings,
    /// Flows are offloaded after another number of packets.
    Threshold,
    /// The set of connections to assist changed.
    Assist,
    /// The last attempt failed.
    Retry,
    /// Nothing told us to: the slow full re-read.
    SafetyNet,
}

impl Trigger {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Start,
        Self::Links,
        Self::Exclusions,
        Self::Ruleset,
        Self::Overrun,
        Self::Surroundings,
        Self::Threshold,
        Self::Assist,
        Self::Retry,
        Self::SafetyNet,
    ];
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Links => "links",
            Self::Exclusions => "exclusions",
            Self::Ruleset => "ruleset",
            Self::Overrun => "overrun",
            Self::Surroundings => "surroundings",
            Self::Threshold => "threshold",
            Self::Assist => "assist",
            Self::Retry => "retry",
            Self::SafetyNet => "safety-net",
        })
    }
}

/// Least time between two reconciles that links caused: a burst of new pods becomes a few transactions.
const LINKS_GAP_MS: u64 = 5;
/// Time from another program's commit to our reading: a firewall's reload is several commits.
const RULESET_DELAY_MS: u64 = 20;
/// Least time between two readings because of other programs' commits, so that a busy ruleset costs little.
const RULESET_GAP_MS: u64 = 100;
/// Time in which connections to assist are gathered into one transaction.
const ASSIST_GAP_MS: u64 = 50;
/// First wait after a failed attempt; doubles up to [`BACKOFF_MAX_MS`].
const RETRY_MS: u64 = 200;
/// The slow re-read.
const SAFETY_NET_MS: u64 = 60_000;
/// Repairs that are made at once, within [`REPAIR_WINDOW_MS`].
const REPAIRS_AT_ONCE: u32 = 5;
/// A repair longer ago than this doesn't count any more.
const REPAIR_WINDOW_MS: u64 = 10_000;
/// First wait while a program keeps undoing repairs; doubles.
const BACKOFF_MS: u64 = 1_000;
/// Longest wait.
const BACKOFF_MAX_MS: u64 = 30_000;

/// A reconcile's outcome, as far as pacing is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do, or an ordinary change done.
    Done,
    /// Something that the agent had installed was gone or changed, and was put back.
    Repaired,
    /// Failed for a reason that may pass.
    Failed,
}

/// Says when the next reconcile is due.
#[derive(Debug, Default)]
pub struct Pace {
    due: Option<(u64, Trigger)>,
    last_run: Option<u64>,
    repairs: u32,
    last_repair: Option<u64>,
    failures: u32,
}

impl Pace {
    /// Something happened at `now`.
    pub fn trigger(&mut self, trigger: Trigger, now: u64) {
        let since = |gap: u64| self.last_run.map_or(now, |last| now.max(last + gap));
        let due = match trigger {
            Trigger::Start
            | Trigger::Exclusions
            | Trigger::Surroundings
            | Trigger::Threshold
            | Trigger::SafetyNet => now,
            Trigger::Links => since(LINKS_GAP_MS),
            Trigger::Ruleset | Trigger::Overrun => since(RULESET_GAP_MS).max(now + RULESET_DELAY_MS),
            Trigger::Assist => since(ASSIST_GAP_MS),
            Trigger::Retry => now + backoff(RETRY_MS, self.failures.saturating_sub(1)),
        };
        let due = match self.backing_off() {
            Some(wait) if trigger != Trigger::SafetyNet => due.max(self.last_repair.unwrap_or(now) + wait),
            _ => due,
        };
        if self.due.is_none_or(|(at, _)| due < at) {
            self.due = Some((due, trigger));
        }
    }

    /// When the next reconcile is due and why, at latest the safety net.
    pub fn next(&self) -> (u64, Trigger) {
        let net = (self.last_run.unwrap_or(0) + SAFETY_NET_MS, Trigger::SafetyNet);
        self.due.map_or(net, |due| due.min(net))
    }

    /// A reconcile ended at `now`.
    pub fn ran(&mut self, outcome: Outcome, now: u64) {
        self.due = None;
        self.last_run = Some(now);
        if self.last_repair.is_some_and(|at| now.saturating_sub(at) > REPAIR_WINDOW_MS.max(2 * self.wait())) {
            self.repairs = 0;
        }
        match outcome {
            Outcome::Done => self.failures = 0,
            Outcome::Repaired => {
                self.failures = 0;
                self.repairs += 1;
                self.last_repair = Some(now);
            }
            Outcome::Failed => {
                self.failures += 1;
                self.trigger(Trigger::Retry, now);
            }
        }
    }

    /// How long repairs wait now because a program keeps undoing them; `None` while they are made at once.
    pub fn backing_off(&self) -> Option<u64> {
        (self.repairs >= REPAIRS_AT_ONCE).then(|| self.wait())
    }

    fn wait(&self) -> u64 {
        backoff(BACKOFF_MS, self.repairs.saturating_sub(REPAIRS_AT_ONCE))
    }
}

fn backoff(first_ms: u64, doublings: u32) -> u64 {
    first_ms.checked_shl(doublings.min(16)).map_or(BACKOFF_MAX_MS, |ms| ms.min(BACKOFF_MAX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_change_runs_at_once_and_a_burst_every_few_milliseconds() {
        let mut pace = Pace::default();
        pace.trigger(Trigger::Links, 1000);
        assert_eq!(pace.next(), (1000, Trigger::Links));
        pace.ran(Outcome::Done, 1001);
        pace.trigger(Trigger::Links, 1002);
        pace.trigger(Trigger::Links, 1004);
        assert_eq!(pace.next(), (1001 + LINKS_GAP_MS, Trigger::Links));
    }

    #[test]
    fn the_earliest_trigger_wins() {
        let mut pace = Pace::default();
        pace.ran(Outcome::Done, 0);
        pace.trigger(Trigger::Ruleset, 1000);
        assert_eq!(pace.next(), (1020, Trigger::Ruleset));
        pace.trigger(Trigger::Links, 1001);
        assert_eq!(pace.next(), (1001, Trigger::Links));
    }

    #[test]
    fn idle_means_one_run_a_minute() {
        let mut pace = Pace::default();
        pace.ran(Outcome::Done, 5);
        assert_eq!(pace.next(), (5 + SAFETY_NET_MS, Trigger::SafetyNet));
    }

    #[test]
    fn a_hundred_changes_a_second_cost_ten_readings() {
        let mut pace = Pace::default();
        pace.ran(Outcome::Done, 0);
        let mut looks = 0;
        for now in 1000..2000 {
            if now % 10 == 0 {
                pace.trigger(Trigger::Ruleset, now);
            }
            if pace.next().0 <= now {
                looks += 1;
                pace.ran(Outcome::Done, now);
            }
        }
        assert!((9..=11).contains(&looks), "{looks} looks");
    }

    #[test]
    fn a_program_that_keeps_deleting_is_answered_ever_more_slowly_and_forgiven_in_the_end() {
        let mut pace = Pace::default();
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..12 {
            pace.trigger(Trigger::Ruleset, now);
            let (due, _) = pace.next();
            waits.push(due - now);
            now = due;
            pace.ran(Outcome::Repaired, now);
        }
        assert!(waits[..5].iter().all(|w| *w <= 200), "{waits:?}");
        assert_eq!(&waits[5..11], &[1000, 2000, 4000, 8000, 16_000, 30_000], "{waits:?}");
        assert!(pace.backing_off().is_some());
        now += 70_000;
        pace.ran(Outcome::Done, now);
        assert_eq!(pace.backing_off(), None);
    }

    #[test]
    fn failures_are_retried_with_growing_waits() {
        let mut pace = Pace::default();
        pace.ran(Outcome::Failed, 0);
        assert_eq!(pace.next(), (200, Trigger::Retry));
        pace.ran(Outcome::Failed, 200);
        assert_eq!(pace.next(), (600, Trigger::Retry));
        pace.ran(Outcome::Done, 600);
        assert_eq!(pace.next().1, Trigger::SafetyNet);
    }
}
