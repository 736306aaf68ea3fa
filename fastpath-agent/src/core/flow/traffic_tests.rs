//! What counts as having bypassed the forward path, from reading to reading.

use std::net::Ipv4Addr;

use fastpath_common::FlowCounters;

use super::*;
use crate::core::{
    flow::connection::{Entry, Status, TCP},
    why_not::WhyNot,
};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1000 * SECOND;
const THRESHOLD: u64 = 20;

fn node(seconds: u64) -> Node {
    Node {
        threshold: Some(THRESHOLD as u32),
        managed: [IfIndex(2), IfIndex(3)].into(),
        now_ns: START + seconds * SECOND,
        ..Node::default()
    }
}

fn tuple(port: u16) -> Tuple {
    let address = |last| Ipv4Addr::new(10, 0, 0, last).into();
    Tuple {
        source: address(1),
        destination: address(2),
        source_port: port,
        destination_port: 443,
        protocol: TCP,
    }
}

/// Of one direction, begun a second after the start.
fn counted(packets: u64, ifindex: u32) -> Option<FlowCounters> {
    Some(FlowCounters {
        packets,
        bytes: packets * 100,
        first_seen_ns: START + SECOND,
        last_seen_ns: START + 2 * SECOND,
        ifindex,
        ..FlowCounters::default()
    })
}

fn flow(state: State, packets: [u64; 2]) -> Flow {
    let entry = Entry {
        id: 7,
        original: tuple(1),
        reply: tuple(2),
        status: Status::default(),
        zone: 0,
        tcp_state: None,
        helper: None,
        mark: 0,
        counters: None,
    };
    Flow {
        original: entry.original,
        reply: Some(entry.reply),
        entry: Some(entry),
        seen: [counted(packets[0], 2), counted(packets[1], 3)],
        state,
        path: Path::default(),
    }
}

fn gone(packets: u64) -> Flow {
    Flow { entry: None, reply: None, seen: [counted(packets, 2), None], ..flow(State::Gone, [0, 0]) }
}

fn metered(packets: u64) -> Option<Metered> {
    Some(if packets == 0 { Metered::Nothing } else { Metered::Packets { packets, from_ns: 0, to_ns: 0 } })
}

/// Readings 10 s apart, each of one flow.
fn read(marked: bool, readings: &[(Flow, Option<Metered>)]) -> Traffic {
    let mut traffic = Traffic::new(16, START);
    let mut marks = traffic.marks();
    if marked {
        marks.mark(&tuple(1));
    }
    for (number, (flow, metered)) in readings.iter().enumerate() {
        let node = node(10 * (1 + number as u64));
        let mut adding = traffic.begin(&node, marks.take());
        adding.add(flow, metered.as_ref());
        adding.end();
    }
    traffic
}

fn packets(traffic: &Traffic) -> (u64, u64) {
    traffic.interfaces().fold((0, 0), |(all, fast), (_, p)| (all + p.all.packets, fast + p.fast.packets))
}

#[test]
fn what_bypassed_is_what_came_in_past_the_threshold_less_what_was_metered() {
    let offloaded = |packets| flow(State::Offloaded, packets);
    type Case<'a> = (&'a str, bool, &'a [(Flow, Option<Metered>)], (u64, u64));
    let cases: &[Case<'_>] = &[
        ("offloaded", false, &[(offloaded([60, 61]), metered(0))], (121, 100)),
        ("some were metered", false, &[(offloaded([60, 61]), metered(10))], (121, 90)),
        ("all were metered", false, &[(offloaded([60, 61]), metered(500))], (121, 0)),
        ("not offloaded", false, &[(flow(State::not(WhyNot::Unknown), [60, 61]), None)], (121, 0)),
        (
            "two readings",
            false,
            &[(offloaded([60, 61]), metered(2)), (offloaded([160, 161]), metered(12))],
            (321, 98 + 190),
        ),
        (
            "the meter has forgotten it meanwhile",
            false,
            &[(offloaded([60, 61]), metered(50)), (offloaded([160, 161]), metered(0))],
            (321, 50 + 200),
        ),
        ("ended, and was marked", true, &[(flow(State::Closing, [60, 61]), metered(4))], (121, 96)),
        ("ended, never offloaded", false, &[(flow(State::Closing, [60, 61]), metered(4))], (121, 0)),
        ("gone, and was marked", true, &[(gone(121), None)], (121, 100)),
        ("gone, never offloaded", false, &[(gone(121), None)], (121, 0)),
        (
            "ended since the last reading",
            false,
            &[(offloaded([60, 61]), metered(0)), (flow(State::Closing, [100, 100]), metered(4))],
            (200, 100 + 75),
        ),
        (
            "gone since the last reading",
            false,
            &[(offloaded([60, 0]), metered(0)), (gone(100), None)],
            (100, 39 + 40),
        ),
        (
            "thrown out since the last reading, and not ended",
            true,
            &[(offloaded([60, 61]), metered(0)), (flow(State::BelowThreshold, [100, 100]), None)],
            (200, 100),
        ),
        ("the meter is full", false, &[(offloaded([60, 61]), Some(Metered::Unknown))], (121, 0)),
    ];
    for (name, marked, readings, expected) in cases {
        assert_eq!(packets(&read(*marked, readings)), *expected, "{name}");
    }
    assert_eq!(read(false, &[(offloaded([60, 61]), Some(Metered::Unknown))]).unmeasured(), 121);
}

#[test]
fn packets_and_bytes_go_to_the_interfaces_that_they_came_in_on() {
    let traffic = read(false, &[(flow(State::Offloaded, [42, 84]), metered(0))]);
    let found: Vec<_> = traffic.interfaces().collect();
    let passed = |packets, fast_packets, fast_bytes| Passed {
        all: Tally { packets, bytes: packets * 100 },
        fast: Tally { packets: fast_packets, bytes: fast_bytes },
    };
    assert_eq!(found, [(IfIndex(2), passed(42, 35, 3500)), (IfIndex(3), passed(84, 70, 7000))]);
}

#[test]
fn what_was_there_before_the_start_counts_from_the_first_reading_on() {
    let old = |packets| {
        let mut flow = flow(State::Offloaded, [packets, 0]);
        flow.seen = flow.seen.map(|seen| seen.map(|c| FlowCounters { first_seen_ns: START - SECOND, ..c }));
        for counters in flow.seen.iter_mut().flatten() {
            counters.last_seen_ns = START + 100 * SECOND;
        }
        flow
    };
    let traffic = read(false, &[(old(1000), metered(0)), (old(1050), metered(0))]);
    assert_eq!(packets(&traffic), (50, 50));
}

#[test]
fn interfaces_that_are_gone_are_forgotten() {
    let mut traffic = read(false, &[(flow(State::Offloaded, [42, 84]), metered(0))]);
    traffic.keep(|index| index == IfIndex(3));
    assert_eq!(traffic.interfaces().map(|(index, _)| index).collect::<Vec<_>>(), [IfIndex(3)]);
}

#[test]
fn marks_are_bounded_and_taken_once() {
    let traffic = Traffic::new(16, START);
    let mut marks = traffic.marks();
    for _ in 0..=MAX_MARKED {
        marks.mark(&tuple(1));
    }
    assert_eq!(marks.take().len(), MAX_MARKED);
    assert!(marks.take().is_empty());
}
