//! Much traffic, and many flows: what was counted against what the interface counted itself.

use std::{collections::BTreeMap, fs, process::Command};

use fastpath_agent::kernel::bpf::{Hook, cleanup};
use fastpath_common::{FlowCounters, FlowKey};
use fastpath_tests::wait_until;

use super::{frames::*, setup::*};

/// Packets and bytes that `rx0` has received.
fn received(pair: &Pair) -> (u64, u64) {
    let table = pair.node.run(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = table.lines().find_map(|line| line.trim().strip_prefix("rx0:")).expect("rx0");
    let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap());
    let bytes = numbers.next().unwrap();
    (numbers.next().unwrap(), bytes)
}

/// Runs iperf3 from `tx0` to `rx0` and waits for its end.
fn iperf3(pair: &Pair, v6: bool) {
    let address = if v6 { "fd00::2" } else { "10.0.0.2" };
    let mut server = pair
        .node
        .spawn(Command::new("iperf3").args(["-s", "-1", "-B", address]).stdout(std::process::Stdio::null()));
    wait_until("iperf3's server", LIMIT, || pair.node.output("ss", &["-Hltn"]).contains(":5201"));
    pair.sender.output("iperf3", &["-c", address, "-n", "4M"]);
    assert!(server.wait().unwrap().success());
}

#[test]
fn iperf3_is_counted_to_the_packet_with_gro_and_without() {
    for hook in HOOKS {
        for (gro, v6) in [(false, false), (true, false), (true, true)] {
            let pair = Pair::with_addresses();
            // As a wire has them; what is put together again is GRO's doing.
            pair.sender.output("ethtool", &["-K", "tx0", "tso", "off", "gso", "off"]);
            // Neither counts what came before.
            let base = loop {
                let before = received(&pair);
                pair.attach_at(hook, 0, 1024);
                if received(&pair) == before {
                    break before;
                }
                pair.node.run(|| cleanup(&pair.bpffs.pin_path()).unwrap());
            };
            let received = || (received(&pair).0 - base.0, received(&pair).1 - base.1);
            pair.node.output("ethtool", &["-K", "rx0", "gro", if gro { "on" } else { "off" }]);
            iperf3(&pair, v6);
            let case = format!("{hook:?}, gro {gro}, v6 {v6}");
            let totals = || {
                let flows = pair.flows();
                flows.values().fold((0, 0, 0), |(p, s, b), c| (p + c.packets, s + c.segments, b + c.bytes))
            };
            let stats = || pair.pinned().stats().unwrap();
            let others = || seen(&stats()) - stats().counted.packets;
            // Neighbour discovery may go on meanwhile, so numbers of packets and of bytes are looked at together.
            let other_bytes = || -> u64 {
                let s = stats();
                [s.not_ip, s.malformed, s.other_protocol, s.later_fragment].iter().map(|t| t.bytes).sum()
            };
            // veth counts the Ethernet header, but not once it polls (veth_xdp_rcv).
            let header = if hook == Hook::Tc { 14 } else { 0 };
            let counted = || {
                let ((_, segments, bytes), others) = (totals(), others());
                (segments + others, bytes + other_bytes() - 14 * others + header * (segments + others))
            };
            let whole = !(gro && hook == Hook::Tc);
            let agree = || {
                let (own, its) = (counted(), received());
                own.0 == its.0 && (own.1 == its.1 || !whole)
            };
            wait_until(&format!("{case}: all packets and bytes that the interface counted"), LIMIT, agree);
            let (packets, segments, bytes) = totals();
            // iperf3 throws away what is in flight when it ends.
            assert!(segments > 1000, "{packets} {segments} {bytes}, {case}");
            if whole {
                assert_eq!(packets, segments, "{case}");
            } else {
                assert!(packets < segments, "nothing was put together: {packets} of {segments}, {case}");
            }
        }
    }
}

#[test]
fn a_hundred_thousand_flows_each_have_their_own_counts() {
    const FLOWS: u32 = 100_000;
    // Every twentieth has two packets more; all that they signal fits the ring.
    let packets = |i: u32| if i.is_multiple_of(20) { 3 } else { 1 };
    for hook in HOOKS {
        let pair = Pair::new();
        let _programs = pair.attach_at(hook, 2, 262_144);
        let raw = RawSocket::open(&pair.sender, "tx0");
        let mut sent = 0;
        let mut expected: BTreeMap<FlowKey, u64> = BTreeMap::new();
        for i in 0..FLOWS {
            let (src, dst) = ((i % 50_000) as u16, 1 + (i / 50_000) as u16);
            let frame = ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(src, dst, 10)));
            for _ in 0..packets(i) {
                raw.send(&frame);
            }
            sent += packets(i);
            expected.insert(key4(UDP, src, dst), packets(i));
        }
        let stats = pair.stats_of(sent);
        assert_eq!((stats.flows_entered, stats.no_room.packets), (FLOWS.into(), 0), "{hook:?}");
        assert_eq!((stats.events_sent, stats.events_lost), (u64::from(FLOWS) / 20, 0), "{hook:?}");
        let found = pair.flows();
        assert_eq!(found.len(), FLOWS as usize);
        for (key, FlowCounters { packets, bytes, .. }) in found {
            assert_eq!((packets, bytes), (expected[&key], expected[&key] * 38), "{key:?}");
        }
    }
}
