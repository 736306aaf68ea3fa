//! Tests of `rates`: nothing is counted twice or made up, the rows kept are the right ones, and memory is bounded.

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::core::{
    flow::{
        State,
        connection::{Entry, Status, TCP},
        path::Metered,
    },
    why_not::WhyNot,
};

const SECOND: u64 = 1_000_000_000;
const OFFLOADED: u32 = 1 << 14;

fn tuple(number: u8) -> Tuple {
    Tuple {
        source: IpAddr::from([10, 0, 0, number]),
        destination: IpAddr::from([192, 0, 2, 9]),
        protocol: TCP,
        source_port: 40000,
        destination_port: 443,
    }
}

fn turned(tuple: Tuple) -> Tuple {
    Tuple {
        source: tuple.destination,
        destination: tuple.source,
        source_port: tuple.destination_port,
        destination_port: tuple.source_port,
        ..tuple
    }
}

fn counters(packets: u64, first_seen_ns: u64, ifindex: u32) -> FlowCounters {
    let last_seen_ns = first_seen_ns;
    FlowCounters { packets, bytes: 100 * packets, first_seen_ns, last_seen_ns, ifindex, ..Default::default() }
}

fn node(now_ns: u64) -> Node {
    Node { now_ns, ..Node::default() }
}

fn flow(number: u8, packets: u64) -> Flow {
    Flow::gone(tuple(number), counters(packets, 1, 2))
}

fn connection(status: u32, original: FlowCounters, reply: FlowCounters, node: &Node) -> Flow {
    let entry = Entry {
        id: 1,
        original: tuple(1),
        reply: turned(tuple(1)),
        status: Status(status),
        zone: 0,
        tcp_state: None,
        helper: None,
        mark: 0,
        counters: None,
    };
    Flow::join(entry, [Some(original), Some(reply)], node)
}

fn wanted(order: Order, rows: usize) -> Wanted {
    Wanted { order, reversed: false, search: Search::default(), rows }
}

fn read(rates: &mut Rates, now_ns: u64, wanted: &Wanted, flows: &[Flow]) -> Sample {
    let node = node(now_ns);
    let mut collector = Collector::begin(rates, &node, wanted);
    flows.iter().for_each(|flow| collector.add(flow.clone()));
    collector.end()
}

#[test]
fn a_rate_takes_two_readings() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    let first = read(&mut rates, 10 * SECOND, &wanted, &[flow(1, 1000)]);
    assert_eq!(first.rows[0].rate, None);
    assert_eq!(first.rate(first.total.all), None);
    let second = read(&mut rates, 12 * SECOND, &wanted, &[flow(1, 1500)]);
    assert_eq!(second.rows[0].rate, Some(Rate { packets: 250.0, bits: 200_000.0 }));
    assert_eq!(second.total.all, Tally { packets: 500, bytes: 50_000 });
}

#[test]
fn a_flow_that_began_since_counts_whole_and_one_of_unknown_past_not_at_all() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    read(&mut rates, 10 * SECOND, &wanted, &[]);
    let young = Flow::gone(tuple(1), counters(7, 10 * SECOND + 1, 2));
    let old = Flow::gone(tuple(2), FlowCounters { last_seen_ns: 11 * SECOND, ..counters(1000, 1, 2) });
    let idle = Flow::gone(tuple(3), counters(1, 1, 2));
    let sample = read(&mut rates, 11 * SECOND, &wanted, &[young, old, idle]);
    let packets: Vec<_> = sample.rows.iter().map(|row| row.rate.map(|r| r.packets)).collect();
    assert_eq!(packets, [Some(7.0), Some(0.0), None]);
    assert_eq!(sample.total.all.packets, 7);
}

#[test]
fn counters_that_began_anew_count_whole() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    read(&mut rates, 10 * SECOND, &wanted, &[flow(1, 1000)]);
    let sample = read(&mut rates, 11 * SECOND, &wanted, &[flow(1, 3)]);
    assert_eq!(sample.total.all.packets, 3);
}

#[test]
fn a_flow_that_comes_twice_counts_once() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    read(&mut rates, 10 * SECOND, &wanted, &[flow(1, 10)]);
    let sample = read(&mut rates, 11 * SECOND, &wanted, &[flow(1, 30), flow(1, 30)]);
    assert_eq!(sample.total.all.packets, 20);
}

#[test]
fn readings_of_the_same_moment_give_no_rate() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    read(&mut rates, SECOND, &wanted, &[flow(1, 10)]);
    assert_eq!(read(&mut rates, SECOND, &wanted, &[flow(1, 20)]).rows[0].rate, None);
}

/// An offloaded flow that comes in on interfaces 2 and 3, twice as many packets on the second.
fn offloaded(packets: u64, metered: &Metered, now: u64) -> Flow {
    let node = Node { threshold: Some(20), ..node(now) };
    connection(OFFLOADED, counters(packets, 1, 2), counters(2 * packets, 1, 3), &node)
        .measured(metered, &node)
}

fn metered(packets: u64) -> Metered {
    Metered::Packets { packets, from_ns: 0, to_ns: 0 }
}

#[test]
fn interfaces_and_shares_tell_flows_apart() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    let at = |now: u64, packets: u64| {
        [offloaded(packets, &Metered::Nothing, now), Flow::gone(tuple(9), counters(packets, 1, 2))]
    };
    read(&mut rates, SECOND, &wanted, &at(SECOND, 100));
    let sample = read(&mut rates, 2 * SECOND, &wanted, &at(2 * SECOND, 200));
    assert_eq!((sample.total.flows, sample.total.offloaded_flows), (1, 1), "what is gone is no flow");
    assert_eq!(sample.total.share(), Some(0.75));
    assert_eq!(sample.interfaces[&IfIndex(2)].share(), Some(0.5));
    assert_eq!(sample.interfaces[&IfIndex(3)].share(), Some(1.0));
    assert_eq!(sample.interfaces[&IfIndex(3)].all.packets, 200);
}

#[test]
fn packets_on_the_forward_path_are_not_on_the_fast_path_though_their_flow_is_offloaded() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    let mut share = |second: u64, packets: u64, metered: Metered| {
        let flow = offloaded(packets, &metered, second * SECOND);
        read(&mut rates, second * SECOND, &wanted, &[flow]).total.share()
    };
    share(1, 100, metered(10));
    assert_eq!(share(2, 200, metered(10)), Some(1.0), "what was metered before doesn't count again");
    assert_eq!(share(3, 300, metered(160)), Some(0.5));
    assert_eq!(share(4, 400, metered(75)), Some(0.75), "the meter forgot it and started again");
    assert_eq!(share(5, 500, Metered::Unknown), None);
}

#[test]
fn packets_up_to_the_threshold_were_not_on_the_fast_path() {
    let mut rates = Rates::new(100);
    let wanted = wanted(Order::Packets, 10);
    read(&mut rates, SECOND, &wanted, &[]);
    let mut flow = offloaded(14, &Metered::Nothing, 2 * SECOND);
    for counters in flow.seen.iter_mut().flatten() {
        counters.first_seen_ns = SECOND + 1;
    }
    // 42 packets; the 21st offloaded the flow.
    assert_eq!(read(&mut rates, 2 * SECOND, &wanted, &[flow]).total.share(), Some(0.5));
}

#[test]
fn a_flow_back_out_of_its_interface_is_one_flow_there() {
    let mut rates = Rates::new(100);
    let hairpin = connection(0, counters(1, 1, 2), counters(1, 1, 2), &node(SECOND));
    let sample = read(&mut rates, SECOND, &wanted(Order::Packets, 10), &[hairpin]);
    assert_eq!(sample.interfaces[&IfIndex(2)].flows, 1);
}

#[test]
fn what_is_never_offloaded_is_not_stalled() {
    let mut rates = Rates::new(100);
    let mut flow = connection(0, counters(99, 1, 2), counters(99, 1, 3), &node(SECOND));
    let mut stalled = |why: WhyNot| {
        flow.state = State::not(why);
        read(&mut rates, SECOND, &wanted(Order::Packets, 10), std::slice::from_ref(&flow)).total.stalled_flows
    };
    assert_eq!(
        [WhyNot::Local, WhyNot::Protocol, WhyNot::OneWay, WhyNot::NoRule].map(&mut stalled),
        [0, 0, 1, 1]
    );
}

#[test]
fn idle_flows_make_room_for_busy_ones() {
    let mut rates = Rates::new(2);
    let wanted = wanted(Order::Packets, 10);
    let mut readings = (1..=5u64).map(|second| {
        let busy = FlowCounters { last_seen_ns: second * SECOND, ..counters(10 * second, 1, 2) };
        let flows = [flow(1, 5), flow(2, 5), Flow::gone(tuple(3), busy)];
        read(&mut rates, second * SECOND, &wanted, &flows)
    });
    let second = readings.nth(1).unwrap();
    assert_eq!(second.turned_away, 1);
    assert_eq!(second.rows[2].rate, None, "it isn't known yet, and nothing is made up");
    let fourth = readings.nth(1).unwrap();
    assert_eq!(fourth.rows[0].rate.map(|r| r.packets), Some(10.0));
    assert_eq!(fourth.rows[1].rate.map(|r| r.packets), Some(0.0), "no packets since: known anyway");
}

#[test]
fn there_is_room_again_when_others_are_gone() {
    let mut rates = Rates::new(2);
    let wanted = wanted(Order::Packets, 10);
    let flows = [flow(1, 5), flow(2, 5), flow(3, 5)];
    let turned_away = [3, 3, 3, 2, 2].iter().enumerate().map(|(second, count)| {
        read(&mut rates, (second as u64 + 1) * SECOND, &wanted, &flows[..*count]).turned_away
    });
    assert_eq!(turned_away.collect::<Vec<_>>(), [1, 1, 3, 2, 0]);
}

#[test]
fn the_search_narrows_rows_and_not_sums() {
    let mut rates = Rates::new(100);
    let wanted = Wanted { search: Search::new("10.0.0.2", Arc::default()), ..wanted(Order::Packets, 10) };
    read(&mut rates, SECOND, &wanted, &[flow(1, 0), flow(2, 0)]);
    let sample = read(&mut rates, 2 * SECOND, &wanted, &[flow(1, 5), flow(2, 5)]);
    assert_eq!((sample.rows.len(), sample.matched, sample.total.all.packets), (1, 1, 10));
}

#[test]
fn history_is_bounded_and_newest_comes_first() {
    let mut rates = Rates::new(100);
    let mut history = History::new(3);
    for second in 1..=5 {
        let sample =
            read(&mut rates, second * SECOND, &wanted(Order::Packets, 1), &[flow(1, second * second)]);
        history.push(&sample);
    }
    let points: Vec<_> =
        history.newest_first().map(|p| (p.at_ns / SECOND, p.rate.map(|r| r.packets))).collect();
    assert_eq!(points, [(5, Some(9.0)), (4, Some(7.0)), (3, Some(5.0))]);
}

fn order() -> impl Strategy<Value = Order> {
    prop::sample::select(vec![Order::Packets, Order::Bits, Order::Total, Order::Age, Order::State])
}

proptest! {
    #[test]
    fn rows_are_the_first_of_all_in_whatever_order_they_come(
        mut counts in prop::collection::vec((0..=255u8, 0..50u64, 0..5u64), 0..60),
        order in order(),
        reversed: bool,
        rows in 0..20usize,
    ) {
        counts.sort_by_key(|(number, ..)| *number);
        counts.dedup_by_key(|(number, ..)| *number);
        let flows = |grown: bool| -> Vec<Flow> {
            let each = |(n, packets, more): &(u8, u64, u64)| flow(*n, packets + if grown { *more } else { 0 });
            counts.iter().map(each).collect()
        };
        let measured = |wanted: &Wanted, flows: &dyn Fn(bool) -> Vec<Flow>| {
            let mut rates = Rates::new(1000);
            read(&mut rates, SECOND, wanted, &flows(false));
            read(&mut rates, 2 * SECOND, wanted, &flows(true)).rows
        };
        let some = Wanted { reversed, ..wanted(order, rows) };
        let all = Wanted { reversed, ..wanted(order, 1000) };
        let backwards = |grown: bool| { let mut f = flows(grown); f.reverse(); f };
        let mut expected = measured(&all, &flows);
        expected.truncate(rows);
        prop_assert_eq!(&measured(&some, &flows), &expected);
        prop_assert_eq!(&measured(&some, &backwards), &expected);
    }

    #[test]
    fn what_is_measured_adds_up_to_what_was_counted(
        readings in prop::collection::vec(prop::collection::vec(0..1000u64, 8), 2..10),
    ) {
        let mut rates = Rates::new(1000);
        let mut counted = [0u64; 8];
        let mut measured = 0;
        let mut at_first = 0;
        for (second, grown) in readings.iter().enumerate() {
            counted.iter_mut().zip(grown).for_each(|(count, more)| *count += more);
            let flows: Vec<_> = (0..8u8).map(|n| flow(n, counted[usize::from(n)])).collect();
            let now = (second as u64 + 1) * SECOND;
            let sample = read(&mut rates, now, &wanted(Order::Packets, 1), &flows);
            measured += sample.total.all.packets;
            if second == 0 {
                at_first = counted.iter().sum();
            }
        }
        prop_assert_eq!(at_first + measured, counted.iter().sum::<u64>());
    }

    #[test]
    fn no_more_is_remembered_than_the_limit(
        readings in prop::collection::vec(prop::collection::vec((0..=255u8, 0..9u64), 0..60), 1..6),
        limit in 0..20usize,
    ) {
        let mut rates = Rates::new(limit);
        for (second, flows) in readings.iter().enumerate() {
            let flows: Vec<_> = flows.iter().map(|(n, packets)| flow(*n, *packets)).collect();
            let sample = read(&mut rates, second as u64 * SECOND, &wanted(Order::Packets, 3), &flows);
            prop_assert!(rates.remembered.len() <= limit);
            prop_assert!(sample.rows.len() <= 3);
        }
    }
}
