//! One answer for each connection, whatever signals come in which order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::flow::connection::{Status, TcpState, UDP};

const OFFLOAD: u32 = 1 << 14;

fn tuple(host: u8, port: u16) -> Tuple {
    Tuple {
        source: [10, 1, 0, host].into(),
        destination: [10, 2, 0, 2].into(),
        protocol: UDP,
        source_port: port,
        destination_port: 443,
    }
}

/// A masqueraded connection: the reply's tuple isn't the original's turned round.
fn entry(id: u32, offloaded: bool) -> Entry {
    let original = tuple(id as u8, 1000);
    Entry {
        id,
        original,
        reply: Tuple {
            source: original.destination,
            destination: [192, 0, 2, 1].into(),
            source_port: 443,
            destination_port: 20_000 + id as u16,
            ..original
        },
        status: Status(if offloaded { OFFLOAD } else { 0 }),
        tcp_state: None,
        helper: None,
        zone: 0,
        mark: 0,
        counters: None,
    }
}

#[test]
fn both_directions_of_an_offloaded_flow_are_one_answer_at_once() {
    let mut crossings = Crossings::new(10);
    let entry = entry(1, true);
    assert_eq!(
        crossings.signalled(entry.original, Some(entry.clone()), 0),
        Some(Settled::Connection(entry.clone()))
    );
    assert_eq!(crossings.signalled(entry.reply, Some(entry.clone()), 5), None);
    assert_eq!(crossings.due_ms(), None, "nothing to wait for");
}

#[test]
fn what_is_not_offloaded_has_its_grace() {
    let mut crossings = Crossings::new(10);
    let before = entry(1, false);
    assert_eq!(crossings.signalled(before.reply, Some(before.clone()), 1000), None);
    assert_eq!(crossings.signalled(before.original, Some(before.clone()), 1001), None);
    assert_eq!(crossings.due_ms(), Some(1000 + GRACE_MS));
    assert!(crossings.take_due(1000 + GRACE_MS - 1, 10).is_empty());
    let due = crossings.take_due(1000 + GRACE_MS, 10);
    assert_eq!(
        due.iter().map(|w| w.tuple).collect::<Vec<_>>(),
        [before.reply],
        "one look for both directions"
    );
    let after = entry(1, true);
    assert_eq!(crossings.looked_again(due[0].clone(), Some(after.clone())), Some(Settled::Connection(after)));
    assert_eq!(crossings.due_ms(), None);
}

#[test]
fn what_is_closing_is_not_waited_for() {
    let mut crossings = Crossings::new(10);
    let closing = Entry { tcp_state: Some(TcpState::Closing), ..entry(1, false) };
    let told = crossings.signalled(closing.original, Some(closing.clone()), 0);
    assert_eq!(told, Some(Settled::Connection(closing)));
    assert_eq!(crossings.due_ms(), None);
}

#[test]
fn one_direction_is_looked_up_first_where_both_signal_at_once() {
    let [a, b, c] = [entry(1, true), entry(2, true), entry(3, true)];
    let plain = tuple(4, 5000);
    let dnat = Tuple { destination: [10, 9, 0, 1].into(), destination_port: 80, ..tuple(5, 60_000) };
    let backend = Tuple { destination: [10, 2, 0, 9].into(), destination_port: 8080, ..dnat }.reversed();
    let (first, others) =
        one_of_each(vec![plain, dnat, a.reply, plain.reversed(), backend, b.reply, c.reply, a.reply]);
    assert_eq!(first, [plain, dnat, a.reply, b.reply, c.reply]);
    assert_eq!(others, [plain.reversed(), backend, a.reply]);
}

#[test]
fn flows_that_end_meanwhile_are_told_with_what_was_known() {
    let mut crossings = Crossings::new(10);
    let known = entry(1, false);
    crossings.signalled(known.original, Some(known.clone()), 0);
    let never = tuple(9, 9);
    crossings.signalled(never, None, 0);
    let due = crossings.take_due(GRACE_MS, 10);
    let told: Vec<_> = due.into_iter().map(|waiting| crossings.looked_again(waiting, None)).collect();
    assert_eq!(told, [Some(Settled::Ended(known)), Some(Settled::Unknown(never))]);
}

/// Conntrack didn't have the connection when the first direction signalled, and has it for the second.
#[test]
fn a_connection_that_is_found_late_is_one_all_the_same() {
    let mut crossings = Crossings::new(10);
    let found = entry(1, true);
    assert_eq!(crossings.signalled(found.original, None, 0), None);
    assert!(crossings.signalled(found.reply, Some(found.clone()), 1).is_some());
    let due = crossings.take_due(GRACE_MS, 10);
    assert_eq!(crossings.looked_again(due[0].clone(), Some(found)), None);
}

#[test]
fn connections_with_one_id_are_two() {
    let mut crossings = Crossings::new(10);
    let (a, b) = (entry(1, true), Entry { original: tuple(7, 7), ..entry(1, true) });
    assert!(crossings.signalled(a.original, Some(a.clone()), 0).is_some());
    assert!(crossings.signalled(b.original, Some(b), 0).is_some());
}

#[test]
fn memory_is_bounded_and_the_latest_are_kept() {
    let mut recent = Recent::new(100);
    for member in 0..10_000 {
        assert!(recent.insert(member));
        assert!(recent.now.len() + recent.before.len() <= 201);
        for known in member.saturating_sub(99)..=member {
            assert!(!recent.insert(known), "{known} of {member}");
        }
    }
    let mut crossings = Crossings::new(10);
    while crossings.room() > 0 {
        crossings.signalled(tuple(1, 1), None, 0);
    }
    assert_eq!(crossings.take_due(GRACE_MS, 100).len(), 100);
    assert_eq!(crossings.room(), 100);
}

proptest! {
    /// Signals of both directions in any order, at any time, with connections that are offloaded at any time or vanish.
    #[test]
    fn every_connection_is_told_exactly_once(
        signals in prop::collection::vec((0u32..20, any::<bool>(), 0u64..3000), 1..60),
        offloaded_at in prop::collection::vec(0u64..4000, 20),
        gone_at in prop::collection::vec(1500u64..8000, 20),
    ) {
        let state = |id: u32, now: u64| {
            (now < gone_at[id as usize]).then(|| entry(id, now >= offloaded_at[id as usize]))
        };
        let id_of = |settled: &Settled| match settled {
            Settled::Connection(entry) | Settled::Ended(entry) => Some(entry.id),
            Settled::Unknown(_) => None,
        };
        let mut crossings = Crossings::new(100);
        let mut signals = signals;
        signals.sort_by_key(|(_, _, at)| *at);
        let mut told: BTreeMap<u32, u32> = BTreeMap::new();
        let mut signalled: BTreeMap<u32, u64> = BTreeMap::new();
        for now in 0..4000 {
            let due = crossings.take_due(now, usize::MAX);
            for waiting in due {
                let id = (0..20).find(|id| [entry(*id, false).original, entry(*id, false).reply].contains(&waiting.tuple)).unwrap();
                let settled = crossings.looked_again(waiting, state(id, now));
                if let Some(id) = settled.as_ref().and_then(id_of) { *told.entry(id).or_default() += 1; }
            }
            for (id, reply, _) in signals.iter().filter(|(_, _, at)| *at == now) {
                signalled.entry(*id).or_insert(now);
                let tuple = if *reply { entry(*id, false).reply } else { entry(*id, false).original };
                let settled = crossings.signalled(tuple, state(*id, now), now);
                if let Some(id) = settled.as_ref().and_then(id_of) { *told.entry(id).or_default() += 1; }
            }
        }
        prop_assert_eq!(crossings.due_ms(), None);
        for (id, at) in signalled {
            // One that was gone when it signalled for the first time has no connection to tell of.
            if at < gone_at[id as usize] {
                prop_assert_eq!(told.get(&id), Some(&1), "connection {}", id);
            }
        }
    }
}
