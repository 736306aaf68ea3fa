//! The ring: its size, gaps, wrap-around, counters that begin again, and a clock without motion.

use fastpath_common::Tally;
use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn passed(packets: u64, fast: u64) -> Passed {
    let tally = |packets| Tally { packets, bytes: packets * 100 };
    Passed { all: tally(packets), fast: tally(fast) }
}

fn known(history: &History, now_ns: u64) -> Vec<(u64, u64, u64, u64)> {
    let step = |(number, step): (u64, Step)| {
        (number, step.covered_ns / 1_000_000, step.passed.all.packets, step.passed.fast.packets)
    };
    history.steps(now_ns).map(step).collect()
}

#[test]
fn it_takes_less_than_300_kb_however_much_happens() {
    let mut history = History::default();
    let mut events = Events::default();
    for step in 0..3 * STEPS as u64 {
        history.add(step * STEP_NS, passed(step, step));
        for kind in [Kind::InterfaceCame, Kind::InterfaceWent, Kind::Overrun] {
            for number in 0..50 {
                events.note(kind, &format!("{number}{}", "ä".repeat(number)), step * STEP_NS);
            }
        }
    }
    assert_eq!(events.noted.len(), MOST_EVENTS);
    let texts: usize = events.noted.iter().map(|event| event.about.capacity()).sum();
    let size = size_of::<History>()
        + size_of_val(&*history.steps)
        + size_of::<Events>()
        + events.noted.capacity() * size_of::<Event>()
        + texts;
    assert!(size < 300_000, "{size} bytes");
    assert!(size < 64_000, "{size} bytes: docs/page.md says 60 KB");
}

#[test]
fn what_a_reading_brings_is_spread_over_the_time_since_the_last() {
    let mut history = History::default();
    history.add(5 * SECOND, passed(1000, 500));
    assert_eq!(known(&history, 5 * SECOND), [], "what was before the first reading isn't known");
    history.add(35 * SECOND, passed(1300, 560));
    let steps = [(0, 5000, 50, 10), (1, 10_000, 100, 20), (2, 10_000, 100, 20), (3, 5000, 50, 10)];
    assert_eq!(known(&history, 35 * SECOND), steps);
    history.add(37 * SECOND, passed(1307, 560));
    assert_eq!(known(&history, 37 * SECOND)[3], (3, 7000, 57, 10), "a step is filled by several readings");
}

#[test]
fn an_hour_is_kept_and_no_more() {
    let mut history = History::default();
    for second in (0..2 * 3600).step_by(10) {
        history.add(second * SECOND, passed(second, 0));
    }
    let now = 7190 * SECOND;
    let steps = known(&history, now);
    assert_eq!(steps.len(), STEPS - 1, "the newest has only begun");
    assert_eq!(steps.first().map(|step| step.0), Some(719 - 359));
    assert!(steps.iter().all(|step| (step.1, step.2) == (10_000, 10)), "{steps:?}");
    // Nothing is read for long: what is too old isn't shown.
    assert_eq!(known(&history, now + 1800 * SECOND).len(), STEPS - 1 - 180);
    // After a gap of more than an hour none of the old steps is left.
    history.add(now + 7200 * SECOND, passed(7190 + 7200, 7200));
    let steps = known(&history, now + 7200 * SECOND);
    assert!(steps.iter().all(|step| step.3 == 10), "{steps:?}");
    assert_eq!(steps.len(), STEPS - 1);
}

#[test]
fn counters_that_begin_again_tell_nothing_of_that_time() {
    let mut history = History::default();
    history.add(10 * SECOND, passed(1000, 0));
    history.add(20 * SECOND, passed(7, 0));
    assert_eq!(known(&history, 20 * SECOND), []);
    history.add(30 * SECOND, passed(10, 2));
    assert_eq!(known(&history, 30 * SECOND), [(2, 10_000, 3, 2)]);
}

#[test]
fn a_clock_that_stands_still_or_goes_back_loses_nothing() {
    let mut history = History::default();
    history.add(20 * SECOND, passed(0, 0));
    history.add(20 * SECOND, passed(5, 0));
    history.add(19 * SECOND, passed(6, 0));
    assert_eq!(known(&history, 20 * SECOND), []);
    history.add(30 * SECOND, passed(10, 0));
    assert_eq!(known(&history, 30 * SECOND), [(2, 10_000, 10, 0)]);
}

#[test]
fn a_storm_of_events_is_one() {
    let mut events = Events::default();
    events.note(Kind::InterfaceCame, "veth1", SECOND);
    events.note(Kind::Revalidated, "ruleset", 2 * SECOND);
    events.note(Kind::InterfaceCame, "veth2", 3 * SECOND);
    events.note(Kind::InterfaceCame, "veth1", 4 * SECOND);
    events.note(Kind::InterfaceCame, "veth3", 11 * SECOND);
    let told: Vec<_> = events.last_hour(11 * SECOND).into_iter().map(|e| (e.about, e.times)).collect();
    let expected =
        [("veth1, veth2", 3), ("ruleset", 1), ("veth3", 1)].map(|(about, times)| (about.to_owned(), times));
    assert_eq!(told, expected);
    assert_eq!(events.last_hour(3605 * SECOND).len(), 1, "an hour later");
}

#[test]
fn readiness_is_noted_when_it_changes() {
    let mut events = Events::default();
    for (second, problem) in
        [(0, None), (60, None), (120, Some("no table")), (180, Some("no table")), (240, None)]
    {
        events.readiness(problem.map(str::to_owned), second * SECOND);
    }
    let told: Vec<_> = events.last_hour(240 * SECOND).into_iter().map(|e| (e.kind, e.about)).collect();
    let expected = [(Kind::Ready, ""), (Kind::Degraded, "no table"), (Kind::Ready, "")];
    assert_eq!(told, expected.map(|(kind, about)| (kind, about.to_owned())));
}

proptest! {
    /// Whatever the times of readings, every packet is in one step as long as all readings are within the hour.
    #[test]
    fn nothing_is_lost_or_invented(begin in 0..u64::MAX / 2, gaps in prop::collection::vec((1..60 * SECOND, 0..1_000_000u64, 0..100u64), 1..50)) {
        let mut history = History::default();
        let (mut at, mut counters) = (begin, passed(0, 0));
        history.add(at, counters);
        for (gap, packets, percent) in gaps {
            at += gap;
            let fast = packets * percent / 100;
            counters = passed(counters.all.packets + packets, counters.fast.packets + fast);
            history.add(at, counters);
        }
        let mut sum = Passed::default();
        for (number, step) in history.steps(at) {
            prop_assert!(number <= at / STEP_NS && step.covered_ns <= STEP_NS);
            sum.all.packets += step.passed.all.packets;
            sum.all.bytes += step.passed.all.bytes;
            sum.fast.packets += step.passed.fast.packets;
            sum.fast.bytes += step.passed.fast.bytes;
        }
        prop_assert_eq!(sum, counters);
    }
}
