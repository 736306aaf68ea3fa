//! Which threshold pays on this node, by the lengths of its flows. Counts in, a number and its reason out.
//!
//! To offload a connection costs as much as some packets save. So a low threshold is good for nodes whose connections live
//! on once they have had a few packets, and a high one for nodes whose connections end soon.

use std::fmt;

use serde::Serialize;

/// The thresholds to choose from.
pub const LADDER: [u32; 16] = [6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 130, 160, 200];
/// The threshold unless the operator says otherwise.
pub const DEFAULT: u32 = 20;
/// Those of the ladder whose prospect is worth a series on every node of a fleet.
pub const LANDMARKS: [u32; 6] = [6, 10, 20, 50, 100, 200];

/// Packets that have to follow on the fast path before a TCP connection has earned what offloading it costs: to put it into
/// the flowtable, and to take it out at its end. Between 5 and 8 (docs/configuration.md has the reckoning).
const PAYS_AFTER: u64 = 8;
/// With fewer directions of flows there is no advice.
const ENOUGH: u64 = 2000;
/// Another threshold has to save the work of this share of all packets.
const WORTH_PERCENT: u64 = 5;
/// Lengths up to which each is counted by itself: no threshold is greater.
const EXACT: usize = LADDER[LADDER.len() - 1] as usize;

/// How many connections had how many packets, both directions together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    exact: Vec<u64>,
    longer: Sum,
}

/// Directions of flows, and packets of the connections that they are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    directions: u64,
    packets: u64,
}

/// What a threshold is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Worth {
    /// Packets of both directions.
    pub threshold: u32,
    /// Percent of all packets that come once their flow can be in the flowtable.
    pub fast_percent: u64,
    /// Packets whose work it saves, less what offloading takes; below zero if it takes more.
    #[serde(skip)]
    saved: i64,
}

/// What the lengths say of the threshold in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// Directions of flows that were counted. A masqueraded connection has one: its answers go to this node's own address.
    pub directions: u64,
    /// The threshold in force.
    pub now: Worth,
    /// The one that saves most; the same if no other saves that much more.
    pub best: Worth,
}

impl Default for Lengths {
    fn default() -> Self {
        Self { exact: vec![0; EXACT + 1], longer: Sum::default() }
    }
}

impl Lengths {
    /// Whether a direction with so many packets is worth counting before its flow has ended.
    pub fn is_long(packets: u64) -> bool {
        2 * packets > EXACT as u64
    }

    /// Counts one direction of a connection. The other one is taken to have as many packets: with NAT it can't be told which it
    /// was once the connection is gone.
    pub fn add(&mut self, packets: u64) {
        let both = packets.saturating_mul(2);
        match usize::try_from(both).ok().and_then(|both| self.exact.get_mut(both)) {
            Some(directions) => *directions += 1,
            None => {
                self.longer.directions += 1;
                self.longer.packets = self.longer.packets.saturating_add(both);
            }
        }
    }

    /// Directions of flows counted.
    pub fn directions(&self) -> u64 {
        self.above(0).directions
    }

    /// What is above a threshold.
    fn above(&self, threshold: u32) -> Sum {
        let over = self.exact.iter().enumerate().skip(threshold as usize + 1);
        over.fold(self.longer, |sum, (packets, directions)| Sum {
            directions: sum.directions + directions,
            packets: sum.packets.saturating_add(packets as u64 * directions),
        })
    }

    fn worth(&self, threshold: u32) -> Worth {
        let (all, over) = (self.above(0), self.above(threshold));
        let threshold_u64 = u64::from(threshold);
        // The packet that crosses the threshold is the one that offloads.
        let fast = over.packets.saturating_sub(over.directions.saturating_mul(threshold_u64 + 1));
        let cost = over.directions.saturating_mul(threshold_u64 + PAYS_AFTER);
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Worth {
            threshold,
            fast_percent: fast.saturating_mul(100) / all.packets.max(1),
            saved: signed(over.packets).saturating_sub(signed(cost)),
        }
    }

    /// Whether another threshold than `now` would save more; `None` while too few flows were seen to tell.
    pub fn advise(&self, now: u32) -> Option<Advice> {
        let directions = self.directions();
        if directions < ENOUGH {
            return None;
        }
        let now = self.worth(now);
        let mut best = now;
        for other in LADDER.map(|threshold| self.worth(threshold)) {
            if other.saved > best.saved {
                best = other;
            }
        }
        let worth = i64::try_from(self.above(0).packets / 100 * WORTH_PERCENT).unwrap_or(i64::MAX);
        if best.saved.saturating_sub(now.saved) < worth.max(1) {
            best = now;
        }
        Some(Advice { directions, now, best })
    }
}

/// What every threshold would be worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prospect {
    /// Directions of flows that were counted.
    pub directions: u64,
    /// Whether that are enough to go by.
    pub enough: bool,
    /// The threshold that saves most.
    pub best: u32,
    /// By threshold, the lowest first.
    pub thresholds: Vec<Outlook>,
}

/// What a threshold would be worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Outlook {
    /// Percent of the flows that would be offloaded.
    pub offloaded_percent: u64,
    /// And of the packets.
    #[serde(flatten)]
    pub worth: Worth,
}

impl Lengths {
    /// What every threshold would be worth; `None` where no flow was counted.
    pub fn prospect(&self) -> Option<Prospect> {
        let directions = self.directions();
        let thresholds = LADDER.map(|threshold| Outlook {
            offloaded_percent: self.above(threshold).directions * 100 / directions.max(1),
            worth: self.worth(threshold),
        });
        // Of those that save as much, the highest: it takes the least work.
        let best = thresholds.iter().max_by_key(|outlook| outlook.worth.saved)?.worth.threshold;
        Some(Prospect { directions, enough: directions >= ENOUGH, best, thresholds: thresholds.to_vec() })
            .filter(|prospect| prospect.directions > 0)
    }
}

impl fmt::Display for Prospect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directions, enough, best, thresholds } = self;
        writeln!(
            f,
            "By the lengths of {directions} directions of flows through this node, had it offloaded them:\n"
        )?;
        writeln!(f, "THRESHOLD  FLOWS OFFLOADED  PACKETS ON THE FAST PATH")?;
        for Outlook { offloaded_percent, worth } in thresholds {
            let note = if worth.threshold == *best { "  saves most" } else { "" };
            let (threshold, fast) = (worth.threshold, worth.fast_percent);
            writeln!(f, "{threshold:>9}  {offloaded_percent:>13} %  {fast:>22} %{note}")?;
        }
        if !enough {
            writeln!(f, "\nToo few to go by: {ENOUGH} are enough. Ask again later.")?;
        }
        writeln!(
            f,
            "\n`fastpath-agent run --fastpath-threshold={best}` does that; `auto` goes with the lengths as they change."
        )?;
        writeln!(f, "What can never be offloaded counts here too: `fastpath-agent status` has its number.")
    }
}

impl Advice {
    /// Whether another threshold is worth the change.
    pub fn is_to_change(&self) -> bool {
        self.best.threshold != self.now.threshold
    }
}

/// What the threshold in force is worth.
impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { directions, now, .. } = self;
        write!(f, "{} % of the packets of {directions} counted directions come after it", now.fast_percent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `connections` of `packets` each way.
    fn lengths(of: &[(u64, u64)]) -> Lengths {
        let mut lengths = Lengths::default();
        for (connections, packets) in of {
            for _ in 0..2 * connections {
                lengths.add(*packets);
            }
        }
        lengths
    }

    #[test]
    fn few_connections_say_nothing() {
        assert_eq!(lengths(&[(999, 500)]).advise(20), None);
        assert_eq!(lengths(&[(1000, 500)]).advise(20).map(|advice| advice.directions), Some(2000));
    }

    #[test]
    fn connections_that_live_on_are_offloaded_early() {
        // Keep-alive: each lives on past any threshold, but not by far.
        let advice = lengths(&[(2000, 60)]).advise(20).unwrap();
        assert_eq!((advice.now.threshold, advice.best.threshold), (20, 6));
        assert_eq!((advice.now.fast_percent, advice.best.fast_percent), (82, 94));
    }

    #[test]
    fn connections_that_end_just_past_a_threshold_raise_it() {
        // 12 packets: offloaded after 6 they have 5 left, too few to pay for it.
        let advice = lengths(&[(100_000, 6), (100, 1000)]).advise(6).unwrap();
        assert_eq!(advice.best.threshold, 13);
        assert!(advice.is_to_change());
    }

    #[test]
    fn what_hardly_matters_changes_nothing() {
        // A few long transfers have nearly all packets.
        let advice = lengths(&[(5000, 3), (1000, 1_000_000)]).advise(20).unwrap();
        assert_eq!(advice.best, advice.now);
        assert!(!advice.is_to_change());
        assert_eq!(advice.now.fast_percent, 99);
    }

    #[test]
    fn the_prospect_has_every_threshold_and_falls_with_it() {
        let prospect = lengths(&[(3000, 3), (1000, 60)]).prospect().unwrap();
        assert_eq!((prospect.directions, prospect.enough, prospect.best), (8000, true, 6));
        assert!(
            prospect.thresholds.is_sorted_by_key(|outlook| std::cmp::Reverse(outlook.worth.fast_percent))
        );
        assert_eq!(prospect.thresholds[5].offloaded_percent, 25, "1000 of 4000 at threshold 20");
        assert!(
            prospect
                .to_string()
                .contains("        6             25 %                      81 %  saves most\n"),
            "{prospect}"
        );
        assert!(lengths(&[(5, 3)]).prospect().unwrap().to_string().contains("Too few"));
        assert_eq!(lengths(&[]).prospect(), None);
    }

    #[test]
    fn landmarks_are_on_the_ladder() {
        assert!(LANDMARKS.iter().all(|threshold| LADDER.contains(threshold)));
    }

    #[test]
    fn nothing_is_worth_offloading_where_all_end_at_once() {
        let advice = lengths(&[(5000, 2)]).advise(20).unwrap();
        assert_eq!((advice.best.threshold, advice.best.fast_percent), (20, 0));
    }

    proptest! {
        #[test]
        fn advice_is_kept_once_it_was_taken(of in prop::collection::vec((500_u64..3000, 1_u64..2000), 1..6)) {
            let lengths = lengths(&of);
            let Some(advice) = lengths.advise(DEFAULT) else { return Ok(()) };
            prop_assert!(advice.best.saved >= advice.now.saved);
            prop_assert!(LADDER.contains(&advice.best.threshold));
            let again = lengths.advise(advice.best.threshold).unwrap();
            prop_assert!(!again.is_to_change(), "{advice:?} {again:?}");
        }
    }
}
