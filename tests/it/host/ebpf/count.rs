//! Every packet is counted, once, where it belongs.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use fastpath_agent::kernel::bpf::{FlowEyes, Hook, Pinned};
use fastpath_common::{Family, FlowCounters, FlowKey, PacketStats, Tally};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt::UdpGsoSegment},
    unistd::Pid,
};

use super::{frames::*, setup::*};

/// What a frame must be counted as: in a flow, with these bytes and flags, or under a reason.
enum As {
    Flow(fastpath_common::FlowKey, u64, u64),
    Reason(fn(&mut PacketStats) -> &mut Tally),
}

use As::{Flow, Reason};

const OPTIONS: u64 = FlowCounters::IPV4_OPTIONS;
const FRAGMENTS: u64 = FlowCounters::FIRST_FRAGMENT;
const NOT_IP: As = Reason(|s| &mut s.not_ip);
const MALFORMED: As = Reason(|s| &mut s.malformed);
const LATER_FRAGMENT: As = Reason(|s| &mut s.later_fragment);
const OTHER_PROTOCOL: As = Reason(|s| &mut s.other_protocol);
const TOO_MANY_HEADERS: As = Reason(|s| &mut s.too_many_headers);

/// Sends each case's frame five times through the pair and compares flows and statistics as a whole.
#[track_caller]
fn assert_counted(cases: &[(&str, Vec<u8>, As)]) {
    for hook in HOOKS {
        assert_counted_at(hook, cases);
    }
}

#[track_caller]
fn assert_counted_at(hook: Hook, cases: &[(&str, Vec<u8>, As)]) {
    // Enough for the flow to become hot, if they come in one tick.
    const TIMES: u64 = 5;
    let pair = Pair::new();
    let _programs = pair.attach_at(hook, 0, 1024);
    let raw = RawSocket::open(&pair.sender, "tx0");

    let mut sent = 0;
    let mut expected = PacketStats::default();
    let mut flows: BTreeMap<_, FlowCounters> = BTreeMap::new();
    for (name, frame, counted_as) in cases {
        for _ in 0..TIMES {
            raw.send(frame);
        }
        sent += TIMES;
        let (tally, bytes) = match *counted_as {
            Reason(tally) => {
                // XDP comes before the kernel takes the outermost VLAN tag out.
                let len = if hook == Hook::Tc { untagged_len(frame) } else { frame.len() as u64 };
                (tally(&mut expected), len)
            }
            Flow(key, bytes, flags) => {
                let flow = flows.entry(key).or_insert_with(|| {
                    expected.flows_entered += 1;
                    FlowCounters::default()
                });
                flow.packets += TIMES;
                flow.segments += TIMES;
                flow.bytes += TIMES * bytes;
                flow.flags |= flags;
                (&mut expected.counted, bytes)
            }
        };
        tally.packets += TIMES;
        tally.bytes += TIMES * bytes;
        assert_eq!(pair.stats_of(sent), expected, "{name}, {hook:?}");
    }
    let found: BTreeMap<_, _> = pair
        .flows()
        .into_iter()
        .map(|(key, c)| {
            assert!(c.first_seen_ns > 0 && c.first_seen_ns <= c.last_seen_ns, "{c:?}");
            assert_eq!(c.ifindex, pair.rx0().index.0);
            (key, FlowCounters { first_seen_ns: 0, last_seen_ns: 0, last_tick: 0, ifindex: 0, ..c })
        })
        .collect();
    assert_eq!(found, flows);
}

/// The kernel takes the outermost VLAN tag out of the frame.
fn untagged_len(frame: &[u8]) -> u64 {
    let tagged = matches!(u16::from_be_bytes([frame[12], frame[13]]), VLAN | QINQ);
    frame.len() as u64 - if tagged { 4 } else { 0 }
}

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(protocol, &[], 0, payload))
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], IPV6, &ipv6(next, payload))
}

#[test]
fn ipv4_frames() {
    let padded = {
        let mut frame = v4(UDP, &udp(7, 1, 1));
        frame.resize(60, 0);
        frame
    };
    let cut = |mut frame: Vec<u8>, len: usize| {
        frame.truncate(len);
        frame
    };
    let changed = |at: usize, value: u8| {
        let mut frame = v4(UDP, &udp(8, 1, 30));
        frame[at] = value;
        frame
    };
    assert_counted(&[
        ("UDP", v4(UDP, &udp(1000, 53, 100)), Flow(key4(UDP, 1000, 53), 128, 0)),
        ("UDP, without payload", v4(UDP, &udp(1001, 53, 0)), Flow(key4(UDP, 1001, 53), 28, 0)),
        ("TCP, SYN", v4(TCP, &tcp(1000, 80, 0x02, 0)), Flow(key4(TCP, 1000, 80), 40, 0x02)),
        ("the same flow, ACK", v4(TCP, &tcp(1000, 80, 0x10, 10)), Flow(key4(TCP, 1000, 80), 50, 0x10)),
        (
            "the other direction's ports",
            v4(TCP, &tcp(80, 1000, 0x12, 0)),
            Flow(key4(TCP, 80, 1000), 40, 0x12),
        ),
        (
            "options",
            ethernet(&[], IPV4, &ipv4(UDP, &[1; 12], 0, &udp(2, 1, 8))),
            Flow(key4(UDP, 2, 1), 48, OPTIONS),
        ),
        (
            "all options",
            ethernet(&[], IPV4, &ipv4(TCP, &[1; 40], 0, &tcp(2, 1, 1, 8))),
            Flow(key4(TCP, 2, 1), 88, 1 | OPTIONS),
        ),
        (
            "first fragment",
            ethernet(&[], IPV4, &ipv4(UDP, &[], 0x2000, &udp(3, 1, 64))),
            Flow(key4(UDP, 3, 1), 92, FRAGMENTS),
        ),
        (
            "short first fragment",
            ethernet(&[], IPV4, &ipv4(TCP, &[], 0x2000, &tcp(3, 1, 2, 0)[..8])),
            Flow(key4(TCP, 3, 1), 28, FRAGMENTS),
        ),
        ("later fragment", ethernet(&[], IPV4, &ipv4(UDP, &[], 0x2009, &[0; 64])), LATER_FRAGMENT),
        ("last fragment", ethernet(&[], IPV4, &ipv4(UDP, &[], 0x0011, &[0; 64])), LATER_FRAGMENT),
        ("far fragment", ethernet(&[], IPV4, &ipv4(UDP, &[], 0x1000, &[0; 64])), LATER_FRAGMENT),
        (
            "don't fragment",
            ethernet(&[], IPV4, &ipv4(UDP, &[], 0x4000, &udp(4, 1, 64))),
            Flow(key4(UDP, 4, 1), 92, 0),
        ),
        ("padding isn't counted", padded, Flow(key4(UDP, 7, 1), 29, 0)),
        ("ICMP", v4(1, &[8, 0, 0, 0, 0, 0, 0, 0]), OTHER_PROTOCOL),
        ("SCTP", v4(132, &[0; 20]), OTHER_PROTOCOL),
        ("ESP", v4(50, &[0; 20]), OTHER_PROTOCOL),
        ("no room for the header", cut(v4(UDP, &udp(8, 1, 0)), 30), MALFORMED),
        ("cut short", cut(v4(UDP, &udp(8, 1, 50)), 60), MALFORMED),
        ("version 5", changed(14, 0x55), MALFORMED),
        ("header length 16", changed(14, 0x44), MALFORMED),
        ("header longer than the packet", changed(17, 21), MALFORMED),
        ("UDP header cut short", v4(UDP, &udp(8, 1, 0)[..7]), MALFORMED),
        ("TCP header cut short", v4(TCP, &tcp(8, 1, 0, 0)[..19]), MALFORMED),
        ("ARP", ethernet(&[], 0x0806, &[0; 28]), NOT_IP),
        ("LLDP", ethernet(&[], 0x88cc, &[0; 46]), NOT_IP),
        ("an 802.3 length", ethernet(&[], 46, &[0; 46]), NOT_IP),
    ]);
}

#[test]
fn ipv6_frames() {
    let nested = |count: usize| {
        let mut payload = udp(20, 1, 10);
        let mut next = UDP;
        for _ in 0..count {
            payload = extension(next, 0, &payload);
            next = DESTINATION;
        }
        v6(next, &payload)
    };
    assert_counted(&[
        ("UDP", v6(UDP, &udp(1000, 53, 100)), Flow(key6(UDP, 1000, 53), 148, 0)),
        ("TCP", v6(TCP, &tcp(1000, 80, 0x18, 9)), Flow(key6(TCP, 1000, 80), 69, 0x18)),
        ("hop-by-hop", v6(HOP_BY_HOP, &extension(UDP, 0, &udp(1, 1, 0))), Flow(key6(UDP, 1, 1), 56, 0)),
        ("routing", v6(ROUTING, &extension(TCP, 4, &tcp(2, 1, 1, 0))), Flow(key6(TCP, 2, 1), 100, 1)),
        ("destination", v6(DESTINATION, &extension(UDP, 31, &udp(3, 1, 0))), Flow(key6(UDP, 3, 1), 304, 0)),
        (
            "authentication",
            v6(AUTHENTICATION, &authentication(UDP, 4, &udp(4, 1, 0))),
            Flow(key6(UDP, 4, 1), 72, 0),
        ),
        (
            "all of them",
            v6(
                HOP_BY_HOP,
                &extension(
                    DESTINATION,
                    1,
                    &extension(
                        ROUTING,
                        2,
                        &extension(AUTHENTICATION, 0, &authentication(TCP, 4, &tcp(5, 1, 4, 3))),
                    ),
                ),
            ),
            Flow(key6(TCP, 5, 1), 40 + 16 + 24 + 8 + 24 + 23, 4),
        ),
        (
            "first fragment",
            v6(FRAGMENT, &fragment(UDP, 0, true, &udp(6, 1, 64))),
            Flow(key6(UDP, 6, 1), 120, FRAGMENTS),
        ),
        (
            "short first fragment",
            v6(FRAGMENT, &fragment(TCP, 0, true, &tcp(6, 1, 2, 0)[..8])),
            Flow(key6(TCP, 6, 1), 56, FRAGMENTS),
        ),
        (
            "first fragment behind options",
            v6(DESTINATION, &extension(FRAGMENT, 0, &fragment(UDP, 0, true, &udp(7, 1, 64)))),
            Flow(key6(UDP, 7, 1), 128, FRAGMENTS),
        ),
        ("later fragment", v6(FRAGMENT, &fragment(UDP, 9, true, &[0; 64])), LATER_FRAGMENT),
        ("last fragment", v6(FRAGMENT, &fragment(UDP, 17, false, &[0; 5])), LATER_FRAGMENT),
        (
            "atomic fragment",
            v6(FRAGMENT, &fragment(TCP, 0, false, &tcp(8, 1, 2, 0))),
            Flow(key6(TCP, 8, 1), 68, 2),
        ),
        ("eight headers", nested(8), Flow(key6(UDP, 20, 1), 122, 0)),
        ("nine headers", nested(9), TOO_MANY_HEADERS),
        ("ICMPv6", v6(58, &[128, 0, 0, 0, 0, 0, 0, 0]), OTHER_PROTOCOL),
        ("no next header", v6(59, &[0; 8]), OTHER_PROTOCOL),
        ("header longer than the packet", v6(HOP_BY_HOP, &extension(UDP, 0, &udp(9, 1, 0))[..6]), MALFORMED),
        ("extension longer than the packet", v6(DESTINATION, &[UDP, 9, 0, 0, 0, 0, 0, 0]), MALFORMED),
        ("UDP header cut short", v6(UDP, &udp(9, 1, 0)[..7]), MALFORMED),
        (
            "version 4",
            {
                let mut frame = v6(UDP, &udp(9, 1, 0));
                frame[14] = 0x45;
                frame
            },
            MALFORMED,
        ),
    ]);
}

#[test]
fn tagged_frames() {
    let udp4 = |port| ipv4(UDP, &[], 0, &udp(port, 1, 30));
    let udp6 = |port| ipv6(UDP, &udp(port, 1, 30));
    let v4 = |port| Flow(key4(UDP, port, 1), 58, 0);
    let v6 = |port| Flow(key6(UDP, port, 1), 78, 0);
    assert_counted(&[
        ("802.1Q", ethernet(&[(VLAN, 5)], IPV4, &udp4(1)), v4(1)),
        ("802.1Q, v6", ethernet(&[(VLAN, 5)], IPV6, &udp6(1)), v6(1)),
        ("802.1ad", ethernet(&[(QINQ, 5)], IPV4, &udp4(2)), v4(2)),
        ("QinQ", ethernet(&[(QINQ, 5), (VLAN, 6)], IPV4, &udp4(3)), v4(3)),
        ("QinQ, v6", ethernet(&[(QINQ, 5), (VLAN, 6)], IPV6, &udp6(3)), v6(3)),
        ("three tags", ethernet(&[(QINQ, 5), (QINQ, 6), (VLAN, 7)], IPV4, &udp4(4)), v4(4)),
        ("four tags", ethernet(&[(QINQ, 5), (QINQ, 6), (VLAN, 7), (VLAN, 8)], IPV4, &udp4(5)), NOT_IP),
        ("ARP in a VLAN", ethernet(&[(VLAN, 5)], 0x0806, &[0; 28]), NOT_IP),
        ("the same flow in any VLAN", ethernet(&[(VLAN, 9)], IPV4, &udp4(1)), v4(1)),
        ("cut short in the second tag", ethernet(&[(QINQ, 5)], VLAN, &[0, 6, 8]), MALFORMED),
    ]);
}

/// Addresses of the pair's two ends.
fn ends(v6: bool) -> (SocketAddr, SocketAddr) {
    let (from, to) =
        if v6 { ("[fd00::1]:4001", "[fd00::2]:4002") } else { ("10.0.0.1:4001", "10.0.0.2:4002") };
    (from.parse().unwrap(), to.parse().unwrap())
}

fn key_of(v6: bool) -> fastpath_common::FlowKey {
    let (src, dst) = ends(v6);
    let bytes = |address: SocketAddr| match address {
        SocketAddr::V4(a) => {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&a.ip().octets());
            wide
        }
        SocketAddr::V6(a) => a.ip().octets(),
    };
    key(if v6 { Family::V6 } else { Family::V4 }, bytes(src), bytes(dst), UDP, src.port(), dst.port())
}

#[test]
fn datagrams_of_a_socket_and_their_gso_segments() {
    for without_tcx in [false, true] {
        for v6 in [false, true] {
            let pair = Pair::with_addresses();
            let mut programs = pair.load(0, 1024);
            if without_tcx {
                programs = programs.without_tcx();
            }
            pair.node.run(|| programs.attach(&pair.rx0()).unwrap());
            let (from, to) = ends(v6);
            let receiver = pair.node.run(|| UdpSocket::bind(to).unwrap());
            let sender = pair.sender.run(|| UdpSocket::bind(from).unwrap());
            let mut buffer = [0; 65536];
            for size in [0, 1, 100, 1400] {
                for _ in 0..25 {
                    sender.send_to(&vec![1; size], to).unwrap();
                    assert_eq!(receiver.recv(&mut buffer).unwrap(), size);
                }
            }
            let header = if v6 { 48 } else { 28 };
            let plain = pair.flows()[&key_of(v6)];
            assert_eq!((plain.packets, plain.segments), (100, 100));
            assert_eq!(plain.bytes, 100 * header + 25 * (1 + 100 + 1400));

            // One packet for the stack, ten for a wire.
            setsockopt(&sender, UdpGsoSegment, &1000).unwrap();
            sender.send_to(&[1; 9500], to).unwrap();
            for _ in 0..10 {
                receiver.recv(&mut buffer).unwrap();
            }
            let gso = pair.flows()[&key_of(v6)];
            assert_eq!((gso.packets - 100, gso.segments - 100), (1, 10));
            assert_eq!(gso.bytes - plain.bytes, header + 9500);
        }
    }
}

#[test]
fn more_flows_than_room_still_add_up() {
    for hook in HOOKS {
        const FLOWS: u64 = 20_000;
        let pair = Pair::new();
        let _programs = pair.attach_at(hook, 0, 1000);
        let raw = RawSocket::open(&pair.sender, "tx0");
        for port in 0..FLOWS as u16 {
            raw.send(&v4(UDP, &udp(port, 1, 10)));
        }
        let stats = pair.stats_of(FLOWS);
        let flows = pair.flows();
        assert!(flows.len() <= 1000 && flows.len() > 500, "{}", flows.len());
        // One packet each: what was entered, or not because there was no room, is all.
        assert_eq!(stats.flows_entered + stats.no_room.packets, FLOWS);
        assert_eq!(stats.counted.packets, stats.flows_entered);
        let kept: u64 = flows.values().map(|c| c.packets).sum();
        assert_eq!(kept, flows.len() as u64);
    }
}

/// By itself; among others, right at the beginning of a reading and a tick later; with all flows.
const WAYS_TO_READ: [fn(&Pinned, &FlowKey) -> Option<FlowCounters>; 4] = [
    |pinned, key| pinned.flow(key).unwrap(),
    |pinned, key| pinned.reading().unwrap().flow(key).unwrap(),
    |pinned, key| {
        let reading = pinned.reading().unwrap();
        thread::sleep(Duration::from_millis(5));
        reading.flow(key).unwrap()
    },
    |pinned, key| {
        let flows: BTreeMap<_, _> = pinned.flows().unwrap().collect::<Result<_, _>>().unwrap();
        flows.get(key).copied()
    },
];

#[test]
fn a_hot_flow_on_several_cpus_is_read_exactly_at_any_time() {
    for hook in HOOKS {
        const EACH: u64 = 30_000;
        for (protocol, payload) in [(UDP, udp(1, 2, 40)), (TCP, tcp(1, 2, 0x10, 40))] {
            let pair = Pair::new();
            // Crosses the threshold on the way.
            let _programs = pair.attach_at(hook, 1000, 1024);
            let key = key4(protocol, 1, 2);
            let frame = v4(protocol, &payload);
            let bytes = 20 + payload.len() as u64;
            let running = AtomicUsize::new(2);
            thread::scope(|scope| {
                for cpu in 0..2 {
                    let (pair, frame, running) = (&pair, &frame, &running);
                    scope.spawn(move || {
                        let mut cpus = CpuSet::new();
                        // On a machine with one CPU both are there.
                        cpus.set(cpu % thread::available_parallelism().unwrap().get()).unwrap();
                        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
                        let raw = RawSocket::open(&pair.sender, "tx0");
                        for _ in 0..EACH {
                            raw.send(frame);
                        }
                        running.fetch_sub(1, Relaxed);
                    });
                }
                let pinned = pair.pinned();
                let (mut last, mut reads) = (0, 0);
                while running.load(Relaxed) > 0 {
                    let Some(flow) = WAYS_TO_READ[reads % WAYS_TO_READ.len()](&pinned, &key) else {
                        continue;
                    };
                    assert!(flow.packets >= last && flow.packets <= 2 * EACH, "{flow:?} after {last}");
                    (last, reads) = (flow.packets, reads + 1);
                }
                assert!(reads > 10, "{reads}");
            });
            let stats = pair.stats_of(2 * EACH);
            assert_eq!(stats.counted, Tally { packets: 2 * EACH, bytes: 2 * EACH * bytes });
            assert_eq!((stats.events_sent, stats.events_lost), (1, 0));
            let flow = pair.flows()[&key];
            assert_eq!((flow.packets, flow.segments, flow.bytes), (2 * EACH, 2 * EACH, 2 * EACH * bytes));
            assert_eq!(flow.flags, if protocol == TCP { 0x10 } else { 0 });
        }
    }
}

#[test]
fn the_two_directions_between_equal_ports_are_two_flows() {
    for hook in HOOKS {
        const EACH: u64 = 500;
        let mirrored = |frame: &[u8], len: usize| {
            // The addresses are the last of the IP header.
            let end = 14 + if len == 4 { 20 } else { 40 };
            let mut mirrored = frame.to_vec();
            mirrored[end - 2 * len..end].rotate_left(len);
            mirrored
        };
        let payload = udp(500, 500, 40);
        for (there, key, len) in
            [(v4(UDP, &payload), key4(UDP, 500, 500), 4), (v6(UDP, &payload), key6(UDP, 500, 500), 16)]
        {
            let back = mirrored(&there, len);
            let back_key = fastpath_common::FlowKey { src: key.dst, dst: key.src, ..key };
            let pair = Pair::new();
            let _programs = pair.attach_at(hook, 0, 1024);
            let raw = RawSocket::open(&pair.sender, "tx0");
            for _ in 0..EACH {
                raw.send(&there);
                raw.send(&there);
                raw.send(&back);
            }
            pair.stats_of(3 * EACH);
            let flows = pair.flows();
            assert_eq!(flows.len(), 2);
            assert_eq!((flows[&key].packets, flows[&back_key].packets), (2 * EACH, EACH));
        }
    }
}
