//! The join and the judgement of flows.

use proptest::prelude::*;

use super::*;
use crate::core::{
    flow::connection::{Status, TCP, UDP},
    model::Counter,
};

const NOW_NS: u64 = 10_000_000_000;
const SEEN_REPLY: u32 = 1 << 1;
const OFFLOAD: u32 = 1 << 14;
const HW_OFFLOAD: u32 = 1 << 15;

fn tuple(source: &str, destination: &str) -> Tuple {
    Tuple {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: TCP,
        source_port: 40000,
        destination_port: 443,
    }
}

/// A masqueraded TCP connection with 30 packets each way.
fn entry() -> Entry {
    let counter = Counter { packets: 30, bytes: 3000 };
    Entry {
        id: 7,
        original: tuple("10.1.0.2", "192.0.2.9"),
        reply: tuple("192.0.2.9", "198.51.100.1"),
        status: Status(SEEN_REPLY),
        tcp_state: Some(TcpState::Established),
        helper: None,
        zone: 0,
        mark: 0,
        counters: Some([counter, counter]),
    }
}

fn seen(ifindex: u32) -> Option<FlowCounters> {
    let (first_seen_ns, last_seen_ns) = (1, NOW_NS);
    let counters =
        FlowCounters { packets: 30, bytes: 3000, first_seen_ns, last_seen_ns, ifindex, ..Default::default() };
    Some(counters)
}

fn node() -> Node {
    Node {
        threshold: Some(20),
        metered: true,
        managed: [IfIndex(2), IfIndex(3)].into(),
        names: [(IfIndex(9), IfName::new("wan").unwrap())].into(),
        addresses: ["10.1.0.1".parse().unwrap(), "198.51.100.1".parse().unwrap()].into(),
        now_ns: NOW_NS,
        tick_ns: 4_000_000,
        ..Node::default()
    }
}

fn state(entry: Entry, seen: [Option<FlowCounters>; 2], node: &Node) -> State {
    Flow::join(entry, seen, node).state
}

#[test]
fn every_state_and_every_cause_has_its_flow() {
    let both = [seen(2), seen(3)];
    let fin = seen(2).map(|c| FlowCounters { flags: 1 | 16, ..c });
    let few = Counter { packets: 10, bytes: 1000 };
    let cases = [
        (Entry { status: Status(SEEN_REPLY | OFFLOAD), ..entry() }, both, State::Offloaded),
        (Entry { status: Status(SEEN_REPLY | OFFLOAD | HW_OFFLOAD), ..entry() }, both, State::HwOffloaded),
        (entry(), [fin, seen(3)], State::Closing),
        (Entry { tcp_state: Some(TcpState::Closing), ..entry() }, both, State::Closing),
        (Entry { counters: Some([few, few]), ..entry() }, both, State::BelowThreshold),
        (
            entry(),
            [seen(2).map(|c| FlowCounters { first_seen_ns: 9_500_000_000, ..c }), None],
            State::Crossed,
        ),
        (Entry { status: Status(0), ..entry() }, both, State::not(WhyNot::OneWay)),
        (Entry { tcp_state: Some(TcpState::Opening), ..entry() }, both, State::not(WhyNot::NotEstablished)),
        (
            Entry { helper: Some("ftp".to_owned()), ..entry() },
            both,
            State::because(Cause::about(WhyNot::Helper, "ftp".to_owned())),
        ),
        (Entry { counters: None, ..entry() }, both, State::not(WhyNot::NotCounted)),
        (Entry { reply: tuple("10.1.0.1", "10.1.0.2"), ..entry() }, both, State::not(WhyNot::Local)),
        (entry(), [seen(2), seen(9)], State::because(Cause::about(WhyNot::Interface, "wan".to_owned()))),
        // An interface that has gone.
        (entry(), [seen(2), seen(77)], State::not(WhyNot::Unknown)),
        (entry(), [seen(2), None], State::not(WhyNot::NotWatched)),
        (entry(), both, State::not(WhyNot::Unknown)),
        (
            Entry { original: Tuple { protocol: 132, ..entry().original }, ..entry() },
            both,
            State::not(WhyNot::Protocol),
        ),
    ];
    for (entry, seen, expected) in cases {
        assert_eq!(state(entry.clone(), seen, &node()), expected, "{entry:?}");
    }
    assert_eq!(state(entry(), both, &Node { threshold: None, ..node() }), State::not(WhyNot::NoRule));
    let exclusions = Arc::new(Exclusions::new(&["10.1.0.0/16".to_owned()], "").unwrap());
    let node = Node { exclusions, ..node() };
    let excluded = State::because(Cause::about(WhyNot::Excluded, "10.1.0.0/16".to_owned()));
    assert_eq!(state(entry(), both, &node), excluded);
    // Nor is it helped.
    let old = Flow::settled(Entry { counters: None, ..entry() }, both, &node);
    assert_eq!((old.uncounted(&node), old.state), (None, excluded));
}

#[test]
fn without_packets_it_is_idle_unless_something_keeps_it_out() {
    let last = |last_seen_ns| [seen(2), seen(3)].map(|c| c.map(|c| FlowCounters { last_seen_ns, ..c }));
    assert_eq!(state(entry(), last(NOW_NS - IDLE_NS), &node()), State::not(WhyNot::Unknown));
    assert_eq!(state(entry(), last(NOW_NS - IDLE_NS - 1), &node()), State::Idle);
    let one_way = Entry { status: Status(0), ..entry() };
    assert_eq!(state(one_way, last(1), &node()), State::not(WhyNot::OneWay));
    let offloaded = Entry { status: Status(SEEN_REPLY | OFFLOAD), ..entry() };
    assert_eq!(state(offloaded, last(1), &node()), State::Offloaded);
    assert_eq!(state(entry(), [None; 2], &node()), State::not(WhyNot::Unknown), "nothing was counted");
}

#[test]
fn exactly_the_threshold_is_below_it() {
    for (packets, expected) in [(20, State::BelowThreshold), (21, State::not(WhyNot::Unknown))] {
        let counters = Some([Counter { packets, bytes: 0 }, Counter::default()]);
        assert_eq!(state(Entry { counters, ..entry() }, [seen(2), seen(3)], &node()), expected);
    }
}

proptest! {
    #[test]
    fn the_join_is_symmetric_in_direction(
        status in 0u32..1 << 16, tcp_state in 0u8..10, protocol in prop::sample::select(vec![TCP, UDP]),
        packets in prop::collection::vec(0u64..60, 4), flags in 0u64..64, indices in prop::collection::vec(1u32..5, 2),
    ) {
        let counter = |i: usize| Counter { packets: packets[i], bytes: 0 };
        let counted = |i: usize| Some(FlowCounters {
            packets: packets[2 + i], flags: flags * i as u64, ifindex: indices[i], ..FlowCounters::default()
        });
        let mut forth = Entry {
            status: Status(status), tcp_state: Some(TcpState::new(tcp_state)),
            counters: Some([counter(0), counter(1)]), ..entry()
        };
        forth.original.protocol = protocol;
        forth.reply = tuple("192.0.2.9", "10.1.0.2");
        forth.reply.protocol = protocol;
        let mut back = forth.clone();
        std::mem::swap(&mut back.original, &mut back.reply);
        back.counters = Some([counter(1), counter(0)]);
        let node = node();
        let forth = Flow::join(forth, [counted(0), counted(1)], &node);
        let back = Flow::join(back, [counted(1), counted(0)], &node);
        prop_assert_eq!(forth.state.name(), back.state.name());
        prop_assert_eq!(forth.packets(), back.packets());
        prop_assert_eq!(forth.last_seen_ns(), back.last_seen_ns());
    }
}

#[test]
fn what_conntrack_doesnt_have_is_gone_unless_packets_come() {
    let node = Node { now_ns: 10_000_000_000, ..Node::default() };
    let counted = |last_seen_ns, flags| {
        Some(FlowCounters { packets: 9, last_seen_ns, flags, ..FlowCounters::default() })
    };
    let tuple = entry().original;
    let (old, now) = (5_000_000_000, 9_900_000_000);
    for (seen, state) in [
        ([counted(old, 0), None], State::Gone),
        ([counted(now, 0), None], State::not(WhyNot::UnknownToConntrack)),
        ([counted(old, 0), counted(now, 0)], State::not(WhyNot::UnknownToConntrack)),
        ([counted(now, 1), counted(now, 0)], State::Gone),
    ] {
        let flow = Flow::unknown(tuple, seen, &node);
        assert_eq!(flow.state, state, "{seen:?}");
        assert_eq!(flow.reply, seen[1].map(|_| tuple.reversed()));
        assert_eq!(flow.group(), group::Group::Never);
    }
}

#[test]
fn interfaces_that_were_left_out_by_choice_are_no_fault() {
    let by_choice =
        Node { unselected: node().names.keys().copied().collect(), managed: BTreeSet::new(), ..node() };
    let cause = Flow::settled(entry(), [seen(2), seen(9)], &by_choice).state.why_not();
    assert_eq!(cause, Some(WhyNot::Excluded));
    // Nor is one over it that is older than the rules told that it will be helped.
    let old = Flow::settled(Entry { counters: None, ..entry() }, [seen(2), seen(9)], &by_choice);
    assert_eq!(old.state.why_not(), Some(WhyNot::Excluded));
    assert_eq!(old.uncounted(&by_choice).map(|cause| cause.why), Some(WhyNot::Excluded));
}
