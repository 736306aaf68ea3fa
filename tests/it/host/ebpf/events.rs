//! The crossing of the threshold.

use std::{collections::BTreeMap, path::Path, thread, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use fastpath_agent::kernel::bpf::{Events, FlowEyes};
use fastpath_common::{FlowCounters, FlowEvent, FlowKey, MAP_FLOWS, Signal};

use super::{frames::*, setup::*};

fn frame(port: u16) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(port, 1, 40)))
}

fn drain(events: &mut Events) -> Vec<FlowEvent> {
    std::iter::from_fn(|| events.next_event()).collect()
}

/// Events by flow; none may come twice.
#[track_caller]
fn by_flow(events: Vec<FlowEvent>) -> BTreeMap<FlowKey, FlowEvent> {
    let count = events.len();
    let map: BTreeMap<_, _> = events.into_iter().map(|event| (event.key, event)).collect();
    assert_eq!(map.len(), count, "a flow was signalled twice");
    map
}

#[test]
fn a_flow_is_signalled_once_with_the_packet_after_the_threshold() {
    for hook in HOOKS {
        const THRESHOLD: u64 = 10;
        const FLOWS: u16 = 100;
        let pair = Pair::new();
        let programs = pair.attach_at(hook, THRESHOLD as u32, 1024);
        let raw = RawSocket::open(&pair.sender, "tx0");
        let mut events = Events::open(programs.pin_path()).unwrap();
        let mut sent = 0;
        let mut round = |times: u64| {
            for _ in 0..times {
                for port in 0..FLOWS {
                    raw.send(&frame(port));
                }
            }
            sent += times * u64::from(FLOWS);
            pair.stats_of(sent)
        };

        round(THRESHOLD);
        assert_eq!(drain(&mut events), []);
        assert!(pair.flows().values().all(|c| c.signal == Signal::None as u64));

        round(1);
        let crossed = by_flow(drain(&mut events));
        assert_eq!(crossed.len(), usize::from(FLOWS));
        for port in 0..FLOWS {
            let event = crossed[&key4(UDP, port, 1)];
            assert_eq!((event.packets, u64::from(event.threshold)), (THRESHOLD + 1, THRESHOLD));
            assert_eq!(event.ifindex, pair.rx0().index.0);
            assert!(event.time_ns > 0);
        }

        let stats = round(2 * THRESHOLD);
        assert_eq!(drain(&mut events), []);
        assert_eq!((stats.events_sent, stats.events_lost), (FLOWS.into(), 0));
        assert!(pair.flows().values().all(|c| c.signal == Signal::Sent as u64));
    }
}

#[test]
fn in_a_burst_too_the_packet_after_the_threshold_signals() {
    for hook in HOOKS {
        let pair = Pair::new();
        let programs = pair.attach_at(hook, 10, 1024);
        let raw = RawSocket::open(&pair.sender, "tx0");
        for port in 0..50 {
            for _ in 0..30 {
                raw.send(&frame(port));
            }
        }
        pair.stats_of(50 * 30);
        let crossed = by_flow(drain(&mut Events::open(programs.pin_path()).unwrap()));
        assert_eq!(crossed.len(), 50);
        assert!(crossed.values().all(|event| event.packets == 11), "{crossed:?}");
    }
}

/// Packets in the flows map itself, without those that slots for hot flows hold.
fn in_the_map(pin_path: &Path, key: &FlowKey) -> u64 {
    let data = MapData::from_pin(pin_path.join(MAP_FLOWS)).unwrap();
    let flows: HashMap<_, FlowKey, FlowCounters> = Map::LruHashMap(data).try_into().unwrap();
    flows.get(key, 0).unwrap().packets
}

/// What the slots hold of them counts for the threshold, too.
#[test]
fn flows_below_the_threshold_are_hot_too() {
    const THRESHOLD: u64 = 1000;
    for hook in HOOKS {
        let pair = Pair::new();
        let programs = pair.attach_at(hook, THRESHOLD as u32, 1024);
        let raw = RawSocket::open(&pair.sender, "tx0");
        let mut events = Events::open(programs.pin_path()).unwrap();
        // Until a tick doesn't end in the middle.
        let sent = (10..THRESHOLD).step_by(10).find(|sent| {
            (0..10).for_each(|_| raw.send(&frame(1)));
            pair.stats_of(*sent);
            in_the_map(programs.pin_path(), &key4(UDP, 1, 1)) < *sent
        });
        let sent = sent.expect("packets that are in a slot only");
        assert_eq!(drain(&mut events), []);
        (sent..2 * THRESHOLD).for_each(|_| raw.send(&frame(1)));
        pair.stats_of(2 * THRESHOLD);
        assert_eq!(drain(&mut events).iter().map(|e| e.packets).collect::<Vec<_>>(), [THRESHOLD + 1]);
        assert_eq!(pair.flows()[&key4(UDP, 1, 1)].packets, 2 * THRESHOLD);
    }
}

#[test]
fn the_threshold_can_change_at_any_time() {
    for hook in HOOKS {
        let pair = Pair::new();
        let mut programs = pair.attach_at(hook, 0, 1024);
        let raw = RawSocket::open(&pair.sender, "tx0");
        let mut events = Events::open(programs.pin_path()).unwrap();
        let mut sent = 0;
        let mut packets = |n: u64| {
            for _ in 0..n {
                raw.send(&frame(1));
            }
            sent += n;
            pair.stats_of(sent);
        };
        let mut found = || drain(&mut events).iter().map(|e| (e.packets, e.threshold)).collect::<Vec<_>>();

        // Off.
        packets(50);
        assert_eq!(found(), []);
        programs.set_threshold(60).unwrap();
        packets(5);
        assert_eq!(found(), []);
        // Lowered below what the flow has: its next packet says so, or the first of the next tick.
        programs.set_threshold(20).unwrap();
        // On a machine that is kept from running, the kernel's tick may stand still for longer than that.
        let signalled = (0..10).map(|_| {
            thread::sleep(Duration::from_millis(20));
            packets(5);
            found()
        });
        let signalled = signalled.into_iter().find(|found| !found.is_empty()).unwrap_or_default();
        assert!(matches!(signalled[..], [(packets, 20)] if packets % 5 == 1), "{signalled:?}");
        // Raised: a flow that was signalled isn't again.
        programs.set_threshold(62).unwrap();
        packets(5);
        assert_eq!(found(), []);
        assert_eq!(pair.pinned().config().unwrap().threshold, 62);
    }
}

#[test]
fn events_without_room_are_counted_and_marked() {
    for hook in HOOKS {
        const FLOWS: u64 = 40_000;
        let pair = Pair::new();
        let programs = pair.attach_at(hook, 1, 65_536);
        let raw = RawSocket::open(&pair.sender, "tx0");
        for port in 0..FLOWS as u16 {
            raw.send(&frame(port));
            raw.send(&frame(port));
        }
        let stats = pair.stats_of(2 * FLOWS);
        assert_eq!(stats.events_sent + stats.events_lost, FLOWS);
        assert!(stats.events_lost > 0, "{stats:?}");

        let mut events = Events::open(programs.pin_path()).unwrap();
        let sent = by_flow(drain(&mut events));
        assert_eq!(sent.len() as u64, stats.events_sent);
        // Nothing is lost for good: the map tells them apart.
        for (key, counters) in pair.flows() {
            let expected = if sent.contains_key(&key) { Signal::Sent } else { Signal::Lost };
            assert_eq!(counters.signal, expected as u64, "{key:?}");
        }
        assert_eq!(pair.flows().len() as u64, FLOWS);
    }
}
