//! The last hour in memory of fixed size: packets and bytes by path in steps of 10 s, and what happened to the node. Pure:
//! readings and events come with their time, `CLOCK_MONOTONIC` in ns.

use std::collections::VecDeque;

use serde::Serialize;

use super::flow::traffic::Passed;

/// Length of a step, in ns.
pub const STEP_NS: u64 = 10_000_000_000;
/// Steps that are kept: an hour.
pub const STEPS: usize = 360;
/// Events that are kept; the oldest go first.
pub const MOST_EVENTS: usize = 128;
/// Bytes of an event's text.
const MOST_TEXT: usize = 160;

/// What passed in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// How much of it is known, in ns.
    pub covered_ns: u64,
    /// Packets and bytes in that time.
    pub passed: Passed,
}

/// The steps of the last hour.
#[derive(Clone, Debug)]
pub struct History {
    /// That of step `n` is at `n % STEPS`.
    steps: Box<[Step; STEPS]>,
    /// The newest step; steps are numbered by the clock.
    newest: u64,
    /// The last reading, and when it was taken.
    last: Option<(u64, Passed)>,
}

impl Default for History {
    fn default() -> Self {
        Self { steps: Box::new([Step::default(); STEPS]), newest: 0, last: None }
    }
}

impl History {
    /// Takes a reading of counters at `at_ns`. What they grew by since the last one is spread evenly over the time between, so
    /// nothing is lost however seldom they are read. Counters that went back have begun again: nothing is known of that time.
    pub fn add(&mut self, at_ns: u64, counters: Passed) {
        let Some((before_ns, before)) = self.last.replace((at_ns, counters)) else {
            self.advance(at_ns / STEP_NS);
            return;
        };
        if at_ns <= before_ns {
            // Two readings at once: the later one is compared with the first.
            self.last = Some((before_ns, before));
            return;
        }
        self.advance(at_ns / STEP_NS);
        let Some(grown) = since(&counters, &before) else { return };
        let length = at_ns - before_ns;
        let until = |part: u64, ns: u64| share(part, ns - before_ns, length);
        let oldest = self.newest.saturating_sub(STEPS as u64 - 1);
        for number in (before_ns / STEP_NS).max(oldest)..=self.newest {
            let from = before_ns.max(number * STEP_NS);
            let to = at_ns.min((number + 1) * STEP_NS);
            let within = |part: u64| until(part, to) - until(part, from);
            let step = &mut self.steps[index(number)];
            step.covered_ns += to - from;
            let (all, fast) = (&mut step.passed.all, &mut step.passed.fast);
            all.packets += within(grown.all.packets);
            all.bytes += within(grown.all.bytes);
            fast.packets += within(grown.fast.packets);
            fast.bytes += within(grown.fast.bytes);
        }
    }

    /// Makes room up to this step.
    fn advance(&mut self, newest: u64) {
        let oldest = newest.saturating_sub(STEPS as u64 - 1);
        for number in (self.newest + 1).max(oldest)..=newest {
            self.steps[index(number)] = Step::default();
        }
        self.newest = self.newest.max(newest);
    }

    /// Steps of the hour before `now_ns` of which anything is known, oldest first, with their numbers: a step begins at
    /// `number` times [`STEP_NS`].
    pub fn steps(&self, now_ns: u64) -> impl Iterator<Item = (u64, Step)> {
        let oldest = (now_ns / STEP_NS).max(self.newest).saturating_sub(STEPS as u64 - 1);
        (oldest..=self.newest)
            .map(|number| (number, self.steps[index(number)]))
            .filter(|(_, step)| step.covered_ns > 0)
    }
}

fn index(number: u64) -> usize {
    (number % STEPS as u64) as usize
}

/// What `part` of `whole` has of `amount`.
fn share(amount: u64, part: u64, whole: u64) -> u64 {
    (u128::from(amount) * u128::from(part) / u128::from(whole)) as u64
}

/// What was counted since `before`; `None` if a counter went back.
fn since(now: &Passed, before: &Passed) -> Option<Passed> {
    let mut grown = *now;
    let pairs = [(&mut grown.all, before.all), (&mut grown.fast, before.fast)];
    for (tally, before) in pairs {
        tally.packets = tally.packets.checked_sub(before.packets)?;
        tally.bytes = tally.bytes.checked_sub(before.bytes)?;
    }
    Some(grown)
}

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The agent started.
    Started,
    /// The node is as the flags want it.
    Ready,
    /// The node isn't, and why.
    Degraded,
    /// Offloaded flows were revalidated, and what for.
    Revalidated,
    /// The table was put right after another program's change.
    Repaired,
    /// An interface came, by its name.
    InterfaceCame,
    /// An interface went, by its name.
    InterfaceWent,
    /// Announcements of the kernel were lost, of links or of the ruleset.
    Overrun,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, the last time.
    pub at_ns: u64,
    /// What.
    pub kind: Kind,
    /// What it was about, as far as there is room; may be empty.
    pub about: String,
    /// How often within this step.
    pub times: u32,
}

/// What happened in the last hour, or the newest part of it.
#[derive(Clone, Debug, Default)]
pub struct Events {
    noted: VecDeque<Event>,
    /// What was last noted of the node's readiness: why it isn't ready, or nothing.
    readiness: Option<Option<String>>,
}

impl Events {
    /// Notes an event. One of the same kind within the same step is counted with it: a storm takes no more room.
    pub fn note(&mut self, kind: Kind, about: &str, at_ns: u64) {
        let end =
            about.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= MOST_TEXT).last();
        let about = &about[..end.unwrap_or(0)];
        let same = |event: &&mut Event| event.at_ns / STEP_NS == at_ns / STEP_NS && event.kind == kind;
        if let Some(event) = self.noted.iter_mut().rev().find(same) {
            event.at_ns = at_ns;
            event.times += 1;
            let known = event.about.split(", ").any(|known| known == about);
            if !known && event.about.len() + ", ".len() + about.len() <= MOST_TEXT {
                event.about.push_str(", ");
                event.about.push_str(about);
            }
            return;
        }
        if self.noted.len() == MOST_EVENTS {
            self.noted.pop_front();
        }
        self.noted.push_back(Event { at_ns, kind, about: about.to_owned(), times: 1 });
    }

    /// Notes that the node is as it should be, or why it isn't, if that is news.
    pub fn readiness(&mut self, problem: Option<String>, at_ns: u64) {
        if self.readiness.as_ref() == Some(&problem) {
            return;
        }
        match &problem {
            Some(problem) => self.note(Kind::Degraded, problem, at_ns),
            None => self.note(Kind::Ready, "", at_ns),
        }
        self.readiness = Some(problem);
    }

    /// Those of the hour before `now_ns`.
    pub fn last_hour(&self, now_ns: u64) -> Vec<Event> {
        let begin = now_ns.saturating_sub(STEP_NS * STEPS as u64);
        self.noted.iter().filter(|event| event.at_ns >= begin).cloned().collect()
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
