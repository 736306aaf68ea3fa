//! Coming, staying, being replaced and going, beside others.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use fastpath_agent::{
    core::model::{IfIndex, Link},
    kernel::bpf::{
        Attachment, BpfError, Chatter, FlowEyes, Hook, LoadConfig, Mechanism, Pinned, Programs, WithoutXdp,
        cleanup, inspect, is_inspected, load,
    },
};
use fastpath_common::{ABI_VERSION, Config, Tally};
use fastpath_tests::{emulated, netns::Netns};
use nix::libc;

use super::{frames::*, setup::*};

const MECHANISMS: [&str; 4] = ["tcx", "clsact", "xdp", "xdp-generic"];

fn frame() -> Vec<u8> {
    ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1, 2, 40)))
}

fn attach(pair: &Pair, programs: &mut Programs) -> Attachment {
    pair.node.run(|| programs.attach(&pair.rx0()).unwrap())
}

fn load_for(pair: &Pair, mechanism: &str) -> Programs {
    match mechanism {
        "tcx" => pair.load(0, 1024),
        "clsact" => pair.load(0, 1024).without_tcx(),
        "xdp" => pair.load_at(Hook::Xdp, 0, 1024),
        "xdp-generic" => pair.load_at(Hook::XdpGeneric, 0, 1024),
        other => panic!("{other}"),
    }
}

#[track_caller]
fn assert_mechanism(found: Mechanism, expected: &str) {
    let name = match found {
        Mechanism::Xdp => "xdp",
        Mechanism::XdpGeneric => "xdp-generic",
        // Where there is no TCX.
        Mechanism::Clsact { .. } if kernel_version() < (6, 6) && expected == "tcx" => "tcx",
        Mechanism::Clsact { .. } => "clsact",
        Mechanism::Tcx => "tcx",
    };
    assert_eq!(name, expected);
}

fn filters(ns: &Netns) -> String {
    ns.output("tc", &["filter", "show", "dev", "rx0", "ingress"])
}

/// Sends frames until told to stop, and returns how many.
fn send_until(stop: &AtomicBool, raw: &RawSocket) -> u64 {
    let mut sent = 0;
    while !stop.load(Relaxed) {
        raw.send(&frame());
        sent += 1;
        thread::sleep(Duration::from_micros(50));
    }
    sent
}

#[test]
fn counting_goes_on_without_an_agent() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let mut programs = load_for(&pair, mechanism);
        attach(&pair, &mut programs);
        let raw = RawSocket::open(&pair.sender, "tx0");
        raw.send(&frame());
        assert_eq!(pair.stats_of(1).counted.packets, 1);
        drop(programs);
        raw.send(&frame());
        assert_eq!(pair.stats_of(2).counted.packets, 2);
    }
}

#[test]
fn a_restart_under_traffic_loses_no_packet_and_counts_none_twice() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let mut programs = load_for(&pair, mechanism);
        let first = attach(&pair, &mut programs);
        assert_eq!(first.without_xdp, None);
        assert_mechanism(first.mechanism, mechanism);
        let raw = RawSocket::open(&pair.sender, "tx0");
        let stop = AtomicBool::new(false);
        let sent = thread::scope(|scope| {
            let sender = scope.spawn(|| send_until(&stop, &raw));
            let programs = &mut programs;
            for _ in 0..3 {
                *programs = load_for(&pair, mechanism);
                assert_eq!(attach(&pair, programs), first);
                // Also when nothing is new.
                assert_eq!(attach(&pair, programs), first);
            }
            stop.store(true, Relaxed);
            sender.join().unwrap()
        });
        assert!(sent > 100, "{sent}");
        assert_eq!(pair.stats_of(sent).counted.packets, sent, "{mechanism}");
        assert_eq!(pair.flows()[&key4(UDP, 1, 2)].packets, sent);
        assert_eq!(pair.node.run(|| programs.attachments().unwrap()), [first]);
    }
}

#[test]
fn a_change_of_mechanism_counts_nothing_twice() {
    let pair = Pair::new();
    let raw = RawSocket::open(&pair.sender, "tx0");
    let changes = ["tcx", "clsact", "xdp", "tcx", "xdp-generic", "xdp", "clsact", "xdp-generic", "tcx"];
    for (sent, mechanism) in (1..).zip(changes) {
        let mut programs = load_for(&pair, mechanism);
        let attachment = attach(&pair, &mut programs);
        assert_mechanism(attachment.mechanism, mechanism);
        raw.send(&frame());
        pair.stats_of(sent);
        assert_eq!(pair.node.run(|| programs.attachments().unwrap()), [attachment]);
    }
}

#[test]
fn a_change_between_tc_and_xdp_under_traffic_counts_nothing_twice() {
    let pair = Pair::new();
    let raw = RawSocket::open(&pair.sender, "tx0");
    let stop = AtomicBool::new(false);
    let mut programs = load_for(&pair, "tcx");
    attach(&pair, &mut programs);
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(&stop, &raw));
        let mechanisms = ["xdp", "tcx", "xdp-generic", "clsact", "xdp", "clsact", "xdp-generic", "tcx"];
        for mechanism in mechanisms.repeat(if emulated() { 1 } else { 3 }) {
            programs = load_for(&pair, mechanism);
            attach(&pair, &mut programs);
        }
        stop.store(true, Relaxed);
        sender.join().unwrap()
    });
    thread::sleep(Duration::from_millis(50));
    let counted = pair.pinned().stats().unwrap().counted.packets;
    // Some may be missed between one and the other.
    assert!(counted <= sent && counted > sent / 2, "{counted} of {sent}");
    assert_eq!(pair.flows()[&key4(UDP, 1, 2)].packets, counted);
}

#[test]
fn filters_of_others_stay_as_they_are() {
    const U32: &str =
        "filter add dev rx0 ingress pref 1 protocol ip u32 match ip dst 203.0.113.1/32 flowid 1:1";
    // Drops everything: who comes after it sees nothing.
    const DROP: &str = "filter add dev rx0 ingress pref 1 protocol all bpf bytecode 1,6_0_0_2 direct-action";
    for (qdisc, filter, priority) in
        [("clsact", U32, 2), ("ingress", U32, 2), ("clsact", DROP, 1), ("ingress", DROP, 1)]
    {
        let pair = Pair::new();
        let tc = |args: &str| {
            let args: Vec<_> = args.split(' ').map(|a| a.replace('_', " ")).collect();
            pair.node.output("tc", &args);
        };
        tc(&format!("qdisc add dev rx0 {qdisc}"));
        tc(filter);
        let qdiscs = || pair.node.output("tc", &["qdisc", "show", "dev", "rx0"]);
        let before = (filters(&pair.node), qdiscs());
        assert!(!before.0.is_empty());

        let mut programs = load_for(&pair, "clsact");
        for _ in 0..2 {
            assert_eq!(attach(&pair, &mut programs).mechanism, Mechanism::Clsact { priority });
        }
        let during = filters(&pair.node);
        for line in before.0.lines() {
            assert!(during.contains(line), "{line} is gone:\n{during}");
        }
        assert_eq!(during.matches("fastpath_tc").count(), 2, "one filter, named twice:\n{during}");
        RawSocket::open(&pair.sender, "tx0").send(&frame());
        assert_eq!(pair.stats_of(1).counted.packets, 1);

        pair.node.run(|| programs.detach(pair.rx0().index).unwrap());
        assert_eq!((filters(&pair.node), qdiscs()), before);

        attach(&pair, &mut programs);
        let report = pair.node.run(|| cleanup(&pair.bpffs.pin_path()).unwrap());
        assert_eq!(report.detached, ["rx0"]);
        assert_eq!((filters(&pair.node), qdiscs()), before);
    }
}

fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().unwrap().release().to_str().unwrap().to_owned();
    let mut numbers = release.split('.').map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

#[test]
fn another_programs_tcx_program_stays() {
    // Another program's: the same program, pinned elsewhere.
    let pair = Pair::new();
    let theirs = Bpffs::mount();
    let mut their_programs = load(&LoadConfig {
        pin_path: theirs.pin_path(),
        max_flows: 16,
        threshold: 0,
        hook: Hook::Tc,
        forward: false,
        chatter: Chatter::Silent,
    })
    .unwrap();
    let has_tcx = kernel_version() >= (6, 6);
    assert_eq!(attach(&pair, &mut their_programs).mechanism == Mechanism::Tcx, has_tcx);
    if !has_tcx {
        // Clsact filters are told apart by their names, so theirs couldn't be the same program.
        return;
    }
    let mut own = pair.load(0, 1024);
    attach(&pair, &mut own);
    let raw = RawSocket::open(&pair.sender, "tx0");
    raw.send(&frame());
    pair.stats_of(1);
    assert_eq!(pair.node.run(|| cleanup(&pair.bpffs.pin_path()).unwrap().detached), ["rx0"]);
    raw.send(&frame());
    raw.send(&frame());
    let stats = || Pinned::open(&theirs.pin_path()).unwrap().stats().unwrap().counted.packets;
    fastpath_tests::wait_until("their three packets", Duration::from_secs(10), || stats() == 3);
}

/// The agent's pins tell whose a program is; filters are told by their names.
#[test]
fn programs_of_others_are_told_from_ours() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let index = pair.rx0().index;
        let (own, theirs) = (pair.bpffs.pin_path(), Bpffs::mount());
        let inspected = |pins: &Path| pair.node.run(|| is_inspected(index, pins)).unwrap();
        assert!(!inspected(&own));
        let mut programs = load_for(&pair, mechanism);
        let by_name = matches!(attach(&pair, &mut programs).mechanism, Mechanism::Clsact { .. });
        assert!(!inspected(&own), "{mechanism}");
        assert_eq!(inspected(&theirs.pin_path()), !by_name, "{mechanism}");
        // Other filters may hang on a clsact qdisc that is there already.
        let _ = pair.node.try_run("tc", &["qdisc", "add", "dev", "rx0", "clsact"], "");
        assert!(!inspected(&own), "{mechanism}");
        let filter = ["ingress", "bpf", "bytecode", "1,6 0 0 0", "classid", "1:1"];
        pair.node.output("tc", &[&["filter", "add", "dev", "rx0"], filter.as_slice()].concat());
        assert!(inspected(&own), "{mechanism}");
    }
    let gone = Pair::new().node.run(|| is_inspected(IfIndex(4711), Path::new("/")));
    assert!(!gone.unwrap());
}

#[test]
fn detaching_one_interface_leaves_the_others() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        pair.node.ip("link add d0 type veth peer name d1\nlink set d0 up\nlink set d1 up\n");
        let mut programs = load_for(&pair, mechanism);
        let kept = attach(&pair, &mut programs);
        let d0 = pair.node.run(|| ethernet_link("d0"));
        pair.node.run(|| {
            let attachment = programs.attach(&d0).unwrap();
            assert_eq!(attachment.name.as_str(), "d0");
            assert_eq!(programs.attachments().unwrap().len(), 2);
            programs.detach(d0.index).unwrap();
            programs.detach(d0.index).unwrap();
            programs.detach(IfIndex(4711)).unwrap();
            assert_eq!(programs.attachments().unwrap(), [kept]);
        });
        RawSocket::open(&pair.sender, "tx0").send(&frame());
        assert_eq!(pair.stats_of(1).counted.packets, 1);
    }
}

#[test]
fn an_interface_that_went_and_came_back_under_the_same_index() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let mut programs = load_for(&pair, mechanism);
        let before = attach(&pair, &mut programs);
        pair.sender.ip("link del tx0\n");
        pair.sender.ip(&format!(
            "link add tx0 index 77 type veth peer name new0 index {} netns {}\nlink set tx0 up\n",
            before.index,
            pair.node.path()
        ));
        pair.node.ip("link set new0 name rx0\nlink set rx0 up\n");
        pair.wait_for_carrier();
        assert_eq!(pair.node.run(|| programs.attachments().unwrap()), []);
        assert_eq!(attach(&pair, &mut programs), before);
        RawSocket::open(&pair.sender, "tx0").send(&frame());
        assert_eq!(pair.stats_of(1).counted.packets, 1);
    }
}

#[test]
fn an_interface_that_is_gone_is_an_error_with_its_name() {
    let pair = Pair::new();
    let mut programs = pair.load(0, 16);
    let gone = Link { index: IfIndex(4711), ..pair.rx0() };
    let error = pair.node.run(|| programs.attach(&gone).unwrap_err());
    assert!(matches!(error, BpfError::Attach { .. }), "{error:?}");
    assert!(error.to_string().starts_with("cannot attach to rx0: No such device"), "{error}");
}

#[test]
fn maps_of_another_size_or_version_are_replaced() {
    let pair = Pair::new();
    let raw = RawSocket::open(&pair.sender, "tx0");
    let pin_path = pair.bpffs.pin_path();
    let mut sent = 0;
    let mut send_and_expect = |counted| {
        raw.send(&frame());
        sent += 1;
        pair.stats_of(counted);
        assert_eq!(pair.flows()[&key4(UDP, 1, 2)].packets, counted, "after {sent}");
    };
    attach(&pair, &mut pair.load(0, 1024));
    send_and_expect(1);
    attach(&pair, &mut pair.load(0, 1024));
    send_and_expect(2);
    attach(&pair, &mut pair.load(0, 2048));
    send_and_expect(1);
    assert_eq!(pair.pinned().occupancy().unwrap(), (1, 2048));

    // As an agent of another version would have left it.
    let config = pin_path.join("fastpath_config");
    let config = config.to_str().unwrap();
    let value = format!("200{}", " 0".repeat(size_of::<Config>() - 1));
    pair.node.output("bpftool", &words(&format!("map update pinned {config} key 0 0 0 0 value {value}")));
    let error = Pinned::open(&pin_path).err().expect("another version's maps aren't read");
    assert!(matches!(error, BpfError::AbiMismatch { found: 200, expected: ABI_VERSION, .. }), "{error:?}");
    attach(&pair, &mut pair.load(0, 2048));
    send_and_expect(1);

    // Part of the pins gone: nothing to take over.
    fs::remove_file(pin_path.join("fastpath_stats")).unwrap();
    assert!(matches!(Pinned::open(&pin_path), Err(BpfError::NotPinned { .. })));
    attach(&pair, &mut pair.load(0, 2048));
    send_and_expect(1);
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

#[test]
fn inspection_and_cleanup_need_no_agent() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let pin_path = pair.bpffs.pin_path();
        let nothing = pair.node.run(|| inspect(&pin_path).unwrap());
        assert!(nothing.maps.is_none() && nothing.attachments.is_empty());

        let mut programs = load_for(&pair, mechanism);
        programs.set_threshold(9).unwrap();
        let attachment = attach(&pair, &mut programs);
        drop(programs);
        RawSocket::open(&pair.sender, "tx0").send(&frame());
        pair.stats_of(1);
        let found = pair.node.run(|| inspect(&pin_path).unwrap());
        assert_eq!(found.attachments, [attachment]);
        let maps = found.maps.unwrap();
        assert_eq!((maps.flows, maps.max_flows, maps.threshold, maps.counted_packets), (1, 1024, 9, 1));
        assert_eq!((maps.uncounted_packets, maps.flows_left, maps.events_lost), (0, 0, 0));

        // Not the agent's: stays, and its directory with it.
        let foreign = pin_path.join("foreign");
        fs::create_dir(&foreign).unwrap();
        let report = pair.node.run(|| cleanup(&pin_path).unwrap());
        assert_eq!(report.detached, ["rx0"]);
        assert_eq!(
            report.unpinned,
            [
                "fastpath_flows",
                "fastpath_hot",
                "fastpath_stats",
                "fastpath_config",
                "fastpath_events",
                "fastpath_no_xdp"
            ]
        );
        assert_eq!(entries(&pin_path), ["foreign"]);
        assert_eq!(filters(&pair.node), "");
        assert!(pair.node.run(|| inspect(&pin_path).unwrap()).attachments.is_empty());

        fs::remove_dir(&foreign).unwrap();
        let report = pair.node.run(|| cleanup(&pin_path).unwrap());
        assert!(report.detached.is_empty() && report.unpinned.is_empty());
        assert!(!pin_path.exists());
        pair.node.run(|| cleanup(&pin_path).unwrap());
    }
}

#[test]
fn without_a_bpf_file_system_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let pin_path = directory.path().join("a/b");
    let error = load(&LoadConfig {
        pin_path: pin_path.clone(),
        max_flows: 16,
        threshold: 0,
        hook: Hook::Tc,
        forward: false,
        chatter: Chatter::Silent,
    })
    .err()
    .unwrap();
    assert!(matches!(error, BpfError::NoBpffs { .. }), "{error:?}");
    assert!(error.to_string().contains("mount -t bpf bpf /sys/fs/bpf"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    assert!(matches!(Pinned::open(&pin_path), Err(BpfError::NotPinned { .. })));
}

/// A tun device: packets written to the file come in on it, without an Ethernet header.
#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn tun(name: &str) -> File {
    if !Path::new("/dev/net/tun").exists() {
        assert!(Command::new("modprobe").arg("tun").status().unwrap().success(), "modprobe tun");
    }
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request is what TUNSETIFF takes, and lives until the call returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    file
}

#[test]
fn devices_without_an_ethernet_header() {
    for mechanism in MECHANISMS {
        let pair = Pair::new();
        let mut file = pair.node.run(|| tun("tun0"));
        pair.node.ip("link set tun0 up\n");
        let mut programs = load_for(&pair, mechanism);
        pair.node.run(|| {
            let link = Link { ethernet: false, ..ethernet_link("tun0") };
            let attachment = programs.attach(&link).unwrap();
            let expected = mechanism.starts_with("xdp").then_some(WithoutXdp::NoEthernet);
            assert_eq!(attachment.without_xdp, expected);
            assert_eq!(programs.attachments().unwrap(), [attachment]);
        });
        let packets = [
            ipv4(UDP, &[], 0, &udp(1, 2, 10)),
            ipv4(TCP, &[1; 8], 0, &tcp(3, 4, 2, 10)),
            ipv6(UDP, &udp(5, 6, 10)),
            ipv6(HOP_BY_HOP, &extension(TCP, 3, &tcp(7, 8, 2, 10))),
            ipv4(1, &[], 0, &[0; 8]),
            ipv4(UDP, &[], 0x2001, &[0; 8]),
        ];
        for packet in &packets {
            assert_eq!(file.write(packet).unwrap(), packet.len());
        }
        let stats = pair.stats_of(packets.len() as u64);
        assert_eq!(
            stats.counted,
            Tally { packets: 4, bytes: packets[..4].iter().map(|p| p.len() as u64).sum() }
        );
        assert_eq!(stats.other_protocol, Tally { packets: 1, bytes: 28 });
        assert_eq!(stats.later_fragment, Tally { packets: 1, bytes: 28 });
        let flows = pair.flows();
        for (key, packet) in
            [key4(UDP, 1, 2), key4(TCP, 3, 4), key6(UDP, 5, 6), key6(TCP, 7, 8)].iter().zip(&packets)
        {
            assert_eq!((flows[key].packets, flows[key].bytes), (1, packet.len() as u64), "{key:?}");
        }
    }
}

#[test]
fn the_verifier_has_little_work() {
    // Old verifiers take a hundred times as long once the compiler makes a call of something (memset, memcmp). Only
    // newer kernels than 5.16 say how much it was.
    let pair = Pair::new();
    let _programs = pair.load_at(Hook::Xdp, 0, 16);
    let map = aya::maps::MapInfo::from_pin(pair.bpffs.pin_path().join("fastpath_flows")).unwrap().id();
    let verified: Vec<_> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| program.map_ids().ok().flatten().is_some_and(|ids| ids.contains(&map)))
        .map(|program| program.verified_instruction_count().expect("Linux 5.16"))
        .collect();
    // All but the idle one, which uses no map.
    assert_eq!(verified.len(), 6, "{verified:?}");
    assert!(verified.iter().all(|&count| count < 20_000), "{verified:?}");
}
