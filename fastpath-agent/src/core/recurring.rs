//! When flows are judged anew because of rules that change without an announcement: again and again while there are such rules.
//! Time is in milliseconds since any fixed point.

/// From the moment when flows are judged anew until a denied one has surely stopped.
const REACTION_MS: u64 = 500;
/// Never more often than this.
const LEAST_MS: u64 = 100;

/// The next time.
#[derive(Debug)]
pub struct Recurring {
    /// `None`: never.
    period_ms: Option<u64>,
    due: Option<u64>,
}

impl Recurring {
    /// So that a change is enforced within so many ms; `None`: not at all. Nothing is due yet.
    pub fn new(within_ms: Option<u64>) -> Self {
        let period_ms = within_ms.map(|within| within.saturating_sub(REACTION_MS).max(LEAST_MS));
        Self { period_ms, due: None }
    }

    /// Whether there are such rules, from `now` on.
    pub fn needed(&mut self, needed: bool, now: u64) {
        match self.period_ms {
            Some(period) if needed => drop(self.due.get_or_insert(now + period)),
            _ => self.due = None,
        }
    }

    /// When it is due, if it is.
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    /// Flows were judged anew at `now`, whatever for.
    pub fn ran(&mut self, now: u64) {
        if let (Some(due), Some(period)) = (&mut self.due, self.period_ms) {
            *due = now + period;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_recurs_while_it_is_needed() {
        let mut recurring = Recurring::new(Some(1500));
        recurring.ran(5);
        assert_eq!(recurring.due(), None, "not needed");
        recurring.needed(true, 10);
        recurring.needed(true, 500);
        assert_eq!(recurring.due(), Some(1010));
        recurring.ran(1012);
        assert_eq!(recurring.due(), Some(2012));
        recurring.needed(false, 1500);
        assert_eq!(recurring.due(), None);
        let mut off = Recurring::new(None);
        off.needed(true, 0);
        assert_eq!(off.due(), None);
        let mut short = Recurring::new(Some(500));
        short.needed(true, 0);
        assert_eq!(short.due(), Some(100));
    }
}
