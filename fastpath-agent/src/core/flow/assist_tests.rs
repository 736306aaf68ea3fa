//! Who is helped, how long, and what is forgotten.

use fastpath_common::FlowCounters;

use super::*;
use crate::core::{
    flow::{
        Node,
        connection::{Status, TcpState, UDP},
    },
    model::{Counter, IfIndex, IfName},
};

const SEEN_REPLY: u32 = 1 << 1;
const OFFLOAD: u32 = 1 << 14;

fn entry(id: u32) -> Entry {
    let original = Tuple {
        source: [10, 1, (id >> 8) as u8, id as u8].into(),
        destination: [10, 2, 0, 2].into(),
        protocol: UDP,
        source_port: 40_000,
        destination_port: 443,
    };
    let reply = Tuple {
        source: original.destination,
        destination: original.source,
        source_port: 443,
        destination_port: 40_000,
        ..original
    };
    Entry {
        id,
        original,
        reply,
        status: Status(SEEN_REPLY),
        tcp_state: None,
        helper: None,
        zone: 0,
        mark: 0,
        counters: None,
    }
}

fn offloaded(id: u32) -> Entry {
    Entry { status: Status(SEEN_REPLY | OFFLOAD), ..entry(id) }
}

fn node() -> Node {
    Node { threshold: Some(20), managed: [IfIndex(2), IfIndex(3)].into(), ..Node::default() }
}

fn flow(entry: Entry) -> Flow {
    let seen = |ifindex| Some(FlowCounters { packets: 21, ifindex, ..FlowCounters::default() });
    Flow::settled(entry, [seen(2), seen(3)], &node())
}

fn consider(assist: &mut Assist, entry: Entry, now: u64) {
    assist.consider(&flow(entry), &node(), now);
}

#[test]
fn only_what_the_rule_would_take_but_for_the_counter_is_helped() {
    let counted = Counter { packets: 30, bytes: 3000 };
    let not = [
        Entry { counters: Some([counted, counted]), ..entry(1) },
        Entry { status: Status(0), ..entry(1) },
        Entry { helper: Some("sip".to_owned()), ..entry(1) },
        Entry { tcp_state: Some(TcpState::Opening), ..entry(1) },
        Entry { tcp_state: Some(TcpState::Closing), ..entry(1) },
        offloaded(1),
    ];
    for entry in not {
        let mut assist = Assist::default();
        consider(&mut assist, entry.clone(), 0);
        assert_eq!(assist.take_wanted(), None, "{entry:?}");
    }
    // By an interface that isn't managed, which it may be later.
    let names = [(IfIndex(3), IfName::new("eth1").unwrap())].into();
    let other = Node { managed: [IfIndex(2)].into(), names, ..node() };
    let mut assist = Assist::default();
    assist.consider(&Flow::settled(entry(1), flow(entry(1)).seen, &other), &other, 0);
    assert_eq!((assist.take_wanted(), assist.take_helped()), (None, vec![entry(1).original]));
    // Without a rule; of this node.
    let nodes =
        [Node { threshold: None, ..node() }, Node { addresses: [entry(1).reply.source].into(), ..node() }];
    for other in nodes {
        let mut assist = Assist::default();
        let flow = Flow::settled(entry(1), flow(entry(1)).seen, &other);
        assist.consider(&flow, &other, 0);
        assert_eq!(assist.take_wanted(), None, "{other:?}");
    }
    let mut assist = Assist::default();
    consider(&mut assist, entry(1), 0);
    consider(&mut assist, entry(1), 1);
    assert_eq!(assist.take_wanted(), Some(Wanted { rule: true, ids: vec![1] }), "once");
    assert_eq!(assist.take_wanted(), None, "nothing new");
}

#[test]
fn the_rule_goes_with_the_last_that_needs_it() {
    let mut assist = Assist::default();
    consider(&mut assist, entry(1), 0);
    consider(&mut assist, entry(2), 0);
    assist.take_wanted();
    assert_eq!(assist.due_ms(), Some(LOOK_MS));
    assert!(assist.take_due(LOOK_MS - 1).is_empty());
    assert_eq!(assist.take_due(LOOK_MS).len(), 2);
    assert_eq!(assist.looked(&entry(1).original, Some(&offloaded(1)), 30, LOOK_MS), Next::Nothing);
    assert_eq!(assist.looked(&entry(2).original, Some(&entry(2)), 21, LOOK_MS), Next::Nothing);
    assert_eq!(assist.take_wanted(), None);
    // Gone.
    assert_eq!(assist.looked(&entry(2).original, None, 0, 1000), Next::Nothing);
    assert_eq!(assist.take_wanted(), Some(Wanted { rule: false, ids: vec![] }));
    assert_eq!(assist.due_ms(), None, "no timer without a need");
    assert_eq!(assist.take_helped(), [entry(1).original]);
}

#[test]
fn an_idle_connection_is_armed_in_the_end_and_one_that_is_refused_is_left_alone() {
    let mut assist = Assist::default();
    consider(&mut assist, entry(1), 0);
    consider(&mut assist, entry(2), 0);
    let packets = flow(entry(1)).packets();
    let mut looks = 0;
    while let Some(now) = assist.due_ms() {
        assert!(looks < 20, "a look ever more rarely");
        looks += 1;
        for tuple in assist.take_due(now) {
            let idle = tuple == entry(1).original;
            let found = if idle { entry(1) } else { entry(2) };
            let next = assist.looked(&tuple, Some(&found), if idle { packets } else { packets + 100 }, now);
            let expected = if now >= LISTED_MS && idle { Next::Arm } else { Next::Nothing };
            assert_eq!(next, expected, "{now}");
        }
    }
    assert_eq!(assist.take_wanted().map(|wanted| wanted.rule), Some(false));
}

#[test]
fn a_helped_connection_that_fell_back_is_armed() {
    let mut assist = Assist::default();
    for id in 1..=3 {
        assist.remember(entry(id).original);
    }
    assert_eq!(assist.take_helped().len(), 3);
    assert_eq!(assist.looked(&entry(1).original, Some(&offloaded(1)), 0, 0), Next::Nothing);
    assert_eq!(assist.looked(&entry(2).original, Some(&entry(2)), 0, 0), Next::Arm);
    assert_eq!(assist.looked(&entry(3).original, None, 0, 0), Next::Nothing);
    assert_eq!(assist.take_helped(), [entry(1).original]);
}

#[test]
fn an_id_that_is_used_again_is_not_helped() {
    let counted = Counter { packets: 30, bytes: 3000 };
    let mut assist = Assist::default();
    consider(&mut assist, entry(1), 0);
    // The same tuple and id, with counters: newer than the ruleset.
    let again = Entry { counters: Some([counted, counted]), ..entry(1) };
    assert_eq!(assist.looked(&again.original, Some(&again), 99, LISTED_MS), Next::Nothing);
    assert_eq!(assist.due_ms(), None);
    // The same tuple with another id.
    consider(&mut assist, entry(1), 0);
    let other = Entry { id: 9, ..entry(1) };
    assert_eq!(assist.looked(&other.original, Some(&other), 99, 1), Next::Nothing);
    assert_eq!(assist.due_ms(), None);
}

#[test]
fn what_does_not_fit_has_its_turn_later() {
    let mut assist = Assist::default();
    for id in 0..MOST_LISTED as u32 + 10 {
        consider(&mut assist, entry(id), 0);
    }
    assert_eq!(assist.take_wanted().map(|wanted| wanted.ids.len()), Some(MOST_LISTED));
    let later = assist.take_helped();
    assert_eq!(later.len(), 10);
    assert_eq!(assist.looked(&later[0], Some(&entry(MOST_LISTED as u32)), 0, 1), Next::Arm);
}

/// Ids stay in the set for their time, also when their connection is offloaded long since.
#[test]
fn the_set_has_room_at_any_time() {
    let mut assist = Assist::default();
    let mut added = VecDeque::new();
    let mut id = 0;
    for now in (0..4 * LISTED_MS).step_by(100) {
        for _ in 0..400 {
            id += 1;
            let entry = entry(id % 60_000);
            consider(&mut assist, entry.clone(), now);
            assist.looked(
                &entry.original,
                Some(&Entry { status: Status(SEEN_REPLY | OFFLOAD), ..entry }),
                0,
                now,
            );
        }
        let ids = assist.take_wanted().map_or(0, |wanted| wanted.ids.len());
        added.push_back((now, ids));
        while added.front().is_some_and(|(at, _)| at + LISTED_MS < now) {
            added.pop_front();
        }
        assert!(added.iter().map(|(_, ids)| ids).sum::<usize>() < 65_536);
        assert!(assist.helped.len() <= MOST_HELPED);
    }
}

#[test]
fn helped_connections_are_looked_at_some_times_after_the_flowtable_was_emptied() {
    let mut assist = Assist::default();
    assist.emptied(0);
    assert_eq!(assist.due_ms(), None, "there are none");
    assist.remember(entry(1).original);
    assist.emptied(1000);
    let mut looks = Vec::new();
    while let Some(now) = assist.due_ms() {
        for tuple in assist.take_due(now) {
            // The kernel is slow.
            looks.push(now);
            assert_eq!(assist.looked(&tuple, Some(&offloaded(1)), 0, now), Next::Nothing);
        }
    }
    assert_eq!(looks, [1300, 2000, 3500]);
}
