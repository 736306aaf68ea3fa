//! What is XDP's own: other programs' XDP programs, interfaces that can't, large frames. Counting itself is tested where TC's is.

use std::io::{Read, Write};

use fastpath_agent::{
    core::model::Link,
    kernel::bpf::{
        Chatter, FlowEyes, Hook, LoadConfig, Mechanism, Pinned, WithoutXdp, cleanup, inspect, load,
    },
};
use fastpath_common::Tally;
use fastpath_tests::wait_until;
use nix::libc;

use super::{frames::*, parser::program, setup::*};

fn frame() -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1, 2, 40)))
}

/// What `ip` says about XDP on `rx0`: the mode, and which program.
fn attached_to_rx0(pair: &Pair) -> String {
    let text = pair.node.output("ip", &["link", "show", "dev", "rx0"]);
    let mut words = text.split_whitespace();
    let mode = words.find(|word| word.starts_with("xdp")).unwrap_or_default();
    let program: Vec<_> = words.skip_while(|word| *word != "prog/xdp").take(3).collect();
    format!("{mode} {}", program.join(" "))
}

#[test]
fn another_programs_xdp_program_stays() {
    for theirs_by in ["a link", "xdpdrv", "xdpgeneric"] {
        for hook in [Hook::Xdp, Hook::XdpGeneric] {
            let pair = Pair::new();
            let raw = RawSocket::open(&pair.sender, "tx0");
            let their_pins = Bpffs::mount();
            let config = LoadConfig {
                pin_path: their_pins.pin_path(),
                max_flows: 16,
                threshold: 0,
                hook: Hook::Xdp,
                forward: false,
                chatter: Chatter::Silent,
            };
            let mut their_programs = load(&config).unwrap();
            if theirs_by == "a link" {
                pair.node.run(|| their_programs.attach(&pair.rx0()).unwrap());
            } else {
                let id = program(&their_pins.pin_path(), Hook::Xdp).id().to_string();
                pair.node.output("bpftool", &["net", "attach", theirs_by, "id", &id, "dev", "rx0"]);
            }
            let before = attached_to_rx0(&pair);
            assert!(before.contains("prog/xdp id"), "{before}");

            let mut own = pair.load_at(hook, 0, 1024);
            for _ in 0..2 {
                let attachment = pair.node.run(|| own.attach(&pair.rx0()).unwrap());
                let refused = attachment.without_xdp;
                assert!(
                    matches!(refused, Some(WithoutXdp::Refused { errno: libc::EBUSY | libc::EEXIST })),
                    "{theirs_by}, {hook:?}: {refused:?}"
                );
                assert!(!matches!(attachment.mechanism, Mechanism::Xdp | Mechanism::XdpGeneric));
                let found = pair.node.run(|| inspect(&pair.bpffs.pin_path()).unwrap());
                assert_eq!(found.attachments, [attachment]);
            }
            raw.send(&frame());
            pair.stats_of(1);
            assert_eq!(attached_to_rx0(&pair), before, "{theirs_by}, {hook:?}");

            let report = pair.node.run(|| cleanup(&pair.bpffs.pin_path()).unwrap());
            assert_eq!(report.detached, ["rx0"]);
            assert_eq!(attached_to_rx0(&pair), before, "{theirs_by}, {hook:?}");
            raw.send(&frame());
            let theirs = Pinned::open(&their_pins.pin_path()).unwrap();
            wait_until("their two packets", LIMIT, || theirs.stats().unwrap().counted.packets == 2);
        }
    }
}

#[test]
fn where_xdp_is_not_possible_tc_stands_in() {
    let pair = Pair::new();
    pair.node.ip("link add br0 type bridge\nlink set br0 up\n");
    // The driver of bridges has no native XDP. Of what kind it is isn't said here, so it is tried.
    let plain = pair.node.run(|| ethernet_link("br0"));
    let bridge = Link { kind: Some("bridge".to_owned()), ..plain.clone() };
    let not_supported = WithoutXdp::Refused { errno: libc::EOPNOTSUPP };
    for (hook, link, expected) in [
        (Hook::Xdp, &plain, Some(not_supported)),
        (Hook::XdpGeneric, &plain, None),
        (Hook::Xdp, &plain, Some(not_supported)),
        (Hook::Xdp, &bridge, Some(WithoutXdp::Stacked)),
        (Hook::XdpGeneric, &bridge, Some(WithoutXdp::Stacked)),
    ] {
        let mut programs = pair.load_at(hook, 0, 1024);
        let attachment = pair.node.run(|| programs.attach(link).unwrap());
        assert_eq!(attachment.without_xdp, expected, "{hook:?} {link:?}");
        assert_eq!(attachment.mechanism == Mechanism::XdpGeneric, expected.is_none());
        let found = pair.node.run(|| inspect(&pair.bpffs.pin_path()).unwrap().attachments);
        assert!(found.contains(&attachment), "{found:?}");
    }
    // TC again: there is nothing to excuse.
    let mut programs = pair.load(0, 1024);
    let attachment = pair.node.run(|| programs.attach(&plain).unwrap());
    assert_eq!(attachment.without_xdp, None);
    assert!(pair.node.run(|| programs.attachments().unwrap()).contains(&attachment));
}

fn offloads(pair: &Pair) -> String {
    let features = pair.sender.output("ethtool", &["-k", "tx0"]);
    let wanted = ["tcp-segmentation-offload", "generic-segmentation-offload", "scatter-gather:"];
    features.lines().filter(|line| wanted.iter().any(|w| line.starts_with(w))).collect::<Vec<_>>().join("\n")
}

/// Frames of several pages are counted as they are, and arrive.
#[test]
fn large_frames_pass_and_are_counted() {
    for hook in [Hook::Tc, Hook::Xdp, Hook::XdpGeneric] {
        let pair = Pair::with_addresses();
        pair.sender.ip("link set tx0 mtu 9000\n");
        pair.node.ip("link set rx0 mtu 9000\n");
        let before = offloads(&pair);
        assert!(before.contains("tcp-segmentation-offload: on"), "{before}");
        let _programs = pair.attach_at(hook, 0, 1024);
        // Of the other end of a veth pair with native XDP the kernel takes TSO (veth_fix_features), whatever the program.
        let after = if hook == Hook::Xdp {
            before.replace("tcp-segmentation-offload: on", "tcp-segmentation-offload: off")
        } else {
            before
        };
        assert_eq!(offloads(&pair), after, "{hook:?}");

        let jumbo = ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1, 2, 8950)));
        let raw = RawSocket::open(&pair.sender, "tx0");
        for _ in 0..20 {
            raw.send(&jumbo);
        }
        let flow = || pair.flows().get(&key4(UDP, 1, 2)).copied().unwrap_or_default();
        wait_until("20 jumbo frames", LIMIT, || flow().packets >= 20);
        assert_eq!((flow().packets, flow().bytes), (20, 20 * (28 + 8950)), "{hook:?}");

        const BYTES: usize = 4 << 20;
        let listener = pair.node.run(|| std::net::TcpListener::bind("10.0.0.2:7000").unwrap());
        let mut sender = pair.sender.run(|| std::net::TcpStream::connect("10.0.0.2:7000").unwrap());
        let (mut receiver, _) = listener.accept().unwrap();
        let writer = std::thread::spawn(move || sender.write_all(&vec![7; BYTES]).unwrap());
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        writer.join().unwrap();
        assert!(received.len() == BYTES && received.iter().all(|&byte| byte == 7), "{hook:?}");
        let tcp: Vec<_> = pair.flows().into_iter().filter(|(key, _)| key.dst_port == 7000).collect();
        let [(_, tcp)] = tcp.as_slice() else { panic!("{tcp:?}") };
        assert!(tcp.bytes >= BYTES as u64 + 40 * tcp.packets, "{tcp:?}");
        // One frame each; several, where they come as one.
        let least = if hook == Hook::Xdp { 4000 } else { 9000 };
        assert!(tcp.bytes / tcp.packets > least, "{hook:?}: {tcp:?}");
        assert_eq!(pair.pinned().stats().unwrap().malformed, Tally::default(), "{hook:?}");
    }
}
