//! The parser against another one (etherparse), with arbitrary frames through `BPF_PROG_TEST_RUN`. Each frame is run
//! several times, so that the short way of hot flows is compared too.
#![expect(unsafe_code, reason = "BPF_PROG_TEST_RUN has no safe wrapper")]

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::{
    maps::MapInfo,
    programs::{ProgramFd, ProgramInfo, loaded_programs},
};
use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice, UdpHeaderSlice, ether_type, ip_number,
};
use fastpath_agent::kernel::bpf::Hook;
use fastpath_common::{
    Family, FlowCounters, FlowKey, PacketStats,
    limits::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS, MAX_VLAN_TAGS_XDP},
};
use nix::libc;
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestRunner},
};

use super::{frames, frames::*, setup::*};

/// What a frame should be counted as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Flow { key: FlowKey, bytes: u64, flags: u64 },
    NotIp,
    Malformed,
    LaterFragment,
    OtherProtocol,
    TooManyHeaders,
}

use Outcome::{Flow, LaterFragment, Malformed, NotIp, OtherProtocol, TooManyHeaders};

/// What etherparse makes of a frame, or why it belongs to no flow.
fn expected(frame: &[u8], hook: Hook) -> Result<Outcome, Outcome> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Malformed)?;
    let mut kind = ethernet.ether_type();
    let mut rest = &frame[ethernet.slice().len()..];
    for _ in 0..if hook == Hook::Tc { MAX_VLAN_TAGS } else { MAX_VLAN_TAGS_XDP } {
        if kind == EtherType(VLAN) || kind == EtherType(QINQ) {
            let tag = SingleVlanHeaderSlice::from_slice(rest).map_err(|_| Malformed)?;
            kind = tag.ether_type();
            rest = &rest[tag.slice().len()..];
        }
    }
    match kind {
        ether_type::IPV4 => expected_v4(rest),
        ether_type::IPV6 => expected_v6(rest),
        _ => Err(NotIp),
    }
}

fn expected_v4(packet: &[u8]) -> Result<Outcome, Outcome> {
    let header = Ipv4HeaderSlice::from_slice(packet);
    // Lengths come before options: a packet whose header is cut short is malformed either way.
    let header = header.map_err(|_| Malformed)?;
    let total = match usize::from(header.total_len()) {
        0 => packet.len(),
        total if total > packet.len() || total < header.slice().len() => return Err(Malformed),
        total => total,
    };
    if header.fragments_offset().value() != 0 {
        return Err(LaterFragment);
    }
    let key = frames::key(Family::V4, wide(&header.source()), wide(&header.destination()), 0, 0, 0);
    let payload = &packet[header.slice().len()..total];
    let options = if header.slice().len() > 20 { FlowCounters::IPV4_OPTIONS } else { 0 };
    let outcome = transport(key, header.protocol(), header.more_fragments(), payload, total)?;
    let Flow { key, bytes, flags } = outcome else { return Ok(outcome) };
    Ok(Flow { key, bytes, flags: flags | options })
}

fn expected_v6(packet: &[u8]) -> Result<Outcome, Outcome> {
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_| Malformed)?;
    let total = match usize::from(header.payload_length()) {
        0 => packet.len(),
        payload if 40 + payload > packet.len() => return Err(Malformed),
        payload => 40 + payload,
    };
    let key = frames::key(Family::V6, header.source(), header.destination(), 0, 0, 0);
    let mut next = header.next_header();
    let mut fragment = false;
    // Extension headers are read as far as the frame goes; that the transport header is inside the packet is
    // for the end.
    let mut rest = &packet[40..];
    let mut used = 40;
    for count in 0.. {
        let is_extension = [
            ip_number::IPV6_HEADER_HOP_BY_HOP,
            ip_number::IPV6_ROUTE_HEADER,
            ip_number::IPV6_DESTINATION_OPTIONS,
            ip_number::IPV6_FRAGMENTATION_HEADER,
            ip_number::AUTHENTICATION_HEADER,
        ]
        .contains(&next);
        if !is_extension {
            break;
        }
        if count == MAX_EXTENSION_HEADERS {
            return Err(TooManyHeaders);
        }
        let len = match next {
            ip_number::IPV6_FRAGMENTATION_HEADER => {
                // Only its first half is looked at.
                let mut whole = rest.get(..4).ok_or(Malformed)?.to_vec();
                whole.resize(8, 0);
                let header = Ipv6FragmentHeaderSlice::from_slice(&whole).expect("eight bytes");
                if header.fragment_offset().value() != 0 {
                    return Err(LaterFragment);
                }
                fragment |= header.more_fragments();
                next = header.next_header();
                8
            }
            kind => {
                // The next header may lie beyond the end: then that one is what's missing.
                let mut whole = rest.get(..2).ok_or(Malformed)?.to_vec();
                whole.resize(8 * 256, 0);
                if kind == ip_number::AUTHENTICATION_HEADER {
                    // Shorter than the fixed part: nothing that etherparse takes.
                    next = IpNumber(whole[0]);
                    match IpAuthHeaderSlice::from_slice(&whole) {
                        Ok(header) => header.slice().len(),
                        Err(_) => 8,
                    }
                } else {
                    let header = Ipv6RawExtHeaderSlice::from_slice(&whole).expect("long enough");
                    next = header.next_header();
                    header.slice().len()
                }
            }
        };
        rest = rest.get(len..).unwrap_or_default();
        used += len;
    }
    let payload = packet.get(used..total).unwrap_or_default();
    transport(key, next, fragment, payload, total)
}

fn transport(
    key: FlowKey,
    protocol: IpNumber,
    fragment: bool,
    payload: &[u8],
    total: usize,
) -> Result<Outcome, Outcome> {
    let needs = match protocol {
        ip_number::TCP if !fragment => 20,
        ip_number::TCP | ip_number::UDP => 8,
        _ => return Err(OtherProtocol),
    };
    if payload.len() < needs {
        return Err(Malformed);
    }
    // The ports are in the same place in both.
    let ports = UdpHeaderSlice::from_slice(payload).map_err(|_| Malformed)?;
    let key = FlowKey {
        src_port: ports.source_port(),
        dst_port: ports.destination_port(),
        protocol: protocol.0,
        ..key
    };
    let flags = if protocol == ip_number::TCP { payload.get(13).copied().unwrap_or(0) } else { 0 };
    let fragments = if fragment { FlowCounters::FIRST_FRAGMENT } else { 0 };
    Ok(Flow { key, bytes: total as u64, flags: u64::from(flags) | fragments })
}

fn wide(address: &[u8; 4]) -> [u8; 16] {
    let mut wide = [0; 16];
    wide[..4].copy_from_slice(address);
    wide
}

/// The loaded program for Ethernet frames: the one that uses the flows map that is pinned there.
pub(crate) fn program(pin_path: &Path, hook: Hook) -> ProgramInfo {
    let name = if hook == Hook::Tc { "fastpath_tc" } else { "fastpath_xdp" };
    let map = MapInfo::from_pin(pin_path.join("fastpath_flows")).unwrap().id();
    loaded_programs()
        // Those of other programs may go meanwhile.
        .filter_map(Result::ok)
        .filter(|info| info.name_as_str() == Some(name))
        .find(|info| info.map_ids().ok().flatten().is_some_and(|ids| ids.contains(&map)))
        .expect("the program is loaded")
}

/// The member `test` of union bpf_attr (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

const BPF_PROG_TEST_RUN: libc::c_int = 10;
/// Where struct __sk_buff has `data_end`, in words (include/uapi/linux/bpf.h).
const DATA_END: usize = 20;

/// Runs a program on a frame; the program's return value, and the frame as it is afterwards.
///
/// `linear`: so many bytes are in the packet's first piece, the others in pages.
fn test_run(
    program: &ProgramFd,
    frame: &[u8],
    repeat: u32,
    linear: Option<usize>,
) -> io::Result<(i32, Vec<u8>)> {
    let mut after = vec![0; frame.len()];
    // struct __sk_buff, of which only `data_end` is said.
    let mut context = [0_u32; 48];
    context[DATA_END] = linear.unwrap_or(0) as u32;
    let mut attributes = TestRun {
        prog_fd: program.as_fd().as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_size_out: after.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: after.as_mut_ptr() as u64,
        repeat,
        ctx_in: linear.map_or(0, |_| context.as_ptr() as u64),
        ctx_size_in: linear.map_or(0, |_| size_of_val(&context) as u32),
        ..TestRun::default()
    };
    // SAFETY: the attributes, and the buffers they point to, live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    after.truncate(attributes.data_size_out as usize);
    Ok((attributes.retval as i32, after))
}

/// The same; `None` if the kernel won't: newer ones refuse frames that end within the IP header.
fn run(program: &ProgramFd, frame: &[u8], repeat: u32, linear: Option<usize>) -> Option<(i32, Vec<u8>)> {
    match test_run(program, frame, repeat, linear) {
        Ok(done) => Some(done),
        Err(_) if linear.unwrap_or(frame.len()) < 14 + 40 => None,
        Err(error) => {
            panic!("BPF_PROG_TEST_RUN with {} bytes, {linear:?} in the first piece: {error}", frame.len())
        }
    }
}

/// Whether this kernel makes packets of several pieces for a test run of TC (it takes `data_end` for the length of the first one).
/// At XDP long frames are in several pieces on any kernel.
fn makes_pieces(program: &ProgramFd) -> bool {
    let frame = ethernet(&[], IPV4, &ipv4(UDP, &[], 0, &udp(1, 2, 400)));
    test_run(program, &frame, 1, Some(100)).is_ok()
}

/// How many cases, each of two frames: `FASTPATH_FRAMES` says how many frames, else `usual` cases.
fn cases(usual: u32) -> u32 {
    match std::env::var("FASTPATH_FRAMES") {
        Ok(frames) => frames.parse::<u32>().expect("a number") / 2,
        // What differs there are verifier and compiler, not the programs.
        Err(_) if fastpath_tests::emulated() => usual / 4,
        Err(_) => usual,
    }
}

/// Frames that are right, each with one that is cut, padded, changed or the same; and some that are made up.
fn any_frames(hook: Hook) -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    // For TC they have to be in one page.
    let longest = if hook == Hook::Tc { 3500_usize } else { 9000 };
    // Half of them as plain as the short way wants them.
    let tags = prop_oneof![
        2 => Just(Vec::new()),
        1 => vec((prop_oneof![Just(VLAN), Just(QINQ)], 0..4096_u16), 0..=3),
    ];
    let protocol = prop_oneof![4 => Just(TCP), 4 => Just(UDP), 1 => Just(1), 1 => Just(AUTHENTICATION), 1 => any::<u8>()];
    let fragment = prop_oneof![12 => Just(0), 4 => Just(0x4000), 2 => Just(0x2000), 1 => any::<u16>()];
    // Few addresses and ports, so that flows come again.
    let payload = (0..3_u16, 0..3_u16, any::<u8>(), 0..80_usize, any::<bool>()).prop_map(
        |(src, dst, flags, len, is_tcp)| {
            let mut payload = if is_tcp { tcp(src, dst, flags, 60) } else { udp(src, dst, 72) };
            payload.truncate(len);
            payload
        },
    );
    let v4 = (protocol.clone(), prop_oneof![2 => Just(0), 1 => 0..=10_usize], fragment, payload.clone())
        .prop_map(|(protocol, options, fragment, payload)| {
            (IPV4, ipv4(protocol, &vec![1; 4 * options], fragment, &payload))
        });
    let some_extensions = vec(
        (
            prop_oneof![
                Just(HOP_BY_HOP),
                Just(ROUTING),
                Just(DESTINATION),
                Just(AUTHENTICATION),
                Just(FRAGMENT)
            ],
            0..3_u8,
            prop_oneof![4 => Just((0, false)), 2 => Just((0, true)), 1 => (any::<u16>(), any::<bool>())],
        ),
        0..=10,
    );
    let extensions = prop_oneof![1 => Just(Vec::new()), 1 => some_extensions];
    let v6 = (protocol, extensions, payload).prop_map(|(protocol, extensions, mut payload)| {
        let mut next = protocol;
        for (kind, units, (offset, more)) in extensions {
            payload = match kind {
                FRAGMENT => frames::fragment(next, offset & 0x1fff, more, &payload),
                AUTHENTICATION => authentication(next, 1 + units, &payload),
                _ => extension(next, units, &payload),
            };
            next = kind;
        }
        (IPV6, ipv6(next, &payload))
    });
    let other = (any::<u16>(), vec(any::<u8>(), 0..100));
    let well_formed = (tags, prop_oneof![6 => v4, 6 => v6, 1 => other])
        .prop_map(|(tags, (kind, packet))| ethernet(&tags, kind, &packet));
    // Any value in a byte's place, or one bit turned.
    let change =
        prop_oneof![any::<u8>().prop_map(|value| (0, value)), (0..8_u32).prop_map(|bit| (0xff, 1 << bit))];
    let damaged = (
        well_formed,
        // Also very long ones, which at XDP are in several pieces.
        prop_oneof![12 => Just(None), 2 => (14..200_usize).prop_map(Some), 1 => (200..longest).prop_map(Some)],
        prop_oneof![3 => Just(Vec::new()), 2 => vec((any::<prop::sample::Index>(), change), 1..4)],
    )
        .prop_map(|(right, len, changes)| {
            let mut frame = right.clone();
            for (at, (kept, value)) in changes {
                let at = at.index(frame.len());
                frame[at] = frame[at] & kept ^ value;
            }
            // Shorter: cut. Longer: padded.
            frame.resize(len.unwrap_or(frame.len()), 0);
            (right, frame)
        });
    let made_up = vec(any::<u8>(), 14..150).prop_map(|frame| (frame.clone(), frame));
    prop_oneof![12 => damaged, 1 => made_up]
}

/// Runs a frame until its flow is hot, then another, and compares what was counted with what etherparse says.
fn check(
    pair: &Pair,
    hook: Hook,
    program: &ProgramFd,
    pieces: bool,
    frames: [&[u8]; 2],
) -> Result<(), TestCaseError> {
    // Every fourth also with only a part of it in the packet's first piece, where the kernel can make such packets.
    let linear = |frame: &[u8]| {
        let length = frame.iter().fold(frame.len(), |sum, byte| sum.wrapping_mul(31) + usize::from(*byte));
        (length % 4 == 0).then(|| 14 + length / 4 % (frame.len() - 13)).filter(|linear| *linear < frame.len())
    };
    // The first enters the flow, the second makes it hot (mostly: they have to be in one tick), the others take the
    // short way. That goes for the second frame too, if its flow is the same.
    const TIMES: u64 = 5;
    let pinned = pair.pinned();
    let without_events = |stats| PacketStats { flows_entered: 0, events_sent: 0, events_lost: 0, ..stats };
    let mut stats = without_events(pinned.stats().unwrap());
    let outcomes = frames.map(|frame| expected(frame, hook).unwrap_or_else(|reason| reason));
    let mut flows = BTreeMap::new();
    for outcome in outcomes {
        if let Flow { key, .. } = outcome {
            flows.insert(key, pinned.flow(&key).unwrap().unwrap_or_default());
        }
    }
    for (frame, outcome) in frames.iter().zip(outcomes) {
        let linear = linear(frame).filter(|_| pieces);
        let Some((result, after)) = run(program, frame, TIMES as u32, linear) else { continue };
        // TCX_NEXT and TC_ACT_UNSPEC; XDP_PASS.
        prop_assert_eq!(result, if hook == Hook::Tc { -1 } else { 2 }, "the program goes on with the next");
        prop_assert_eq!(after.as_slice(), *frame, "the frame is as it was");
        let tally = match outcome {
            Flow { .. } => &mut stats.counted,
            NotIp => &mut stats.not_ip,
            Malformed => &mut stats.malformed,
            LaterFragment => &mut stats.later_fragment,
            OtherProtocol => &mut stats.other_protocol,
            TooManyHeaders => &mut stats.too_many_headers,
        };
        let mut counted_bytes = frame.len() as u64;
        if let Flow { key, bytes, flags } = outcome {
            let flow = flows.get_mut(&key).expect("both are there");
            flow.packets += TIMES;
            flow.bytes += TIMES * bytes;
            flow.flags |= flags;
            counted_bytes = bytes;
        }
        tally.packets += TIMES;
        tally.bytes += TIMES * counted_bytes;
    }
    prop_assert_eq!(without_events(pinned.stats().unwrap()), stats, "{:?}", outcomes);
    for (key, expected) in flows {
        let found = pinned.flow(&key).unwrap().unwrap_or_default();
        prop_assert_eq!(
            (found.packets, found.bytes, found.flags),
            (expected.packets, expected.bytes, expected.flags)
        );
    }
    Ok(())
}

fn agrees_with_another_parser(hook: Hook, cases: u32) {
    let pair = Pair::new();
    let _programs = pair.attach_at(hook, 0, 65_536);
    let program = program(&pair.bpffs.pin_path(), hook).fd().unwrap();
    let pieces = hook == Hook::Tc && makes_pieces(&program);
    let past_failures = concat!(env!("CARGO_MANIFEST_DIR"), "/it/host/ebpf/parser.regressions");
    let mut runner = TestRunner::new(Config {
        cases: self::cases(cases),
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(past_failures))),
        ..Config::default()
    });
    runner
        .run(&any_frames(hook), |(right, frame)| check(&pair, hook, &program, pieces, [&right, &frame]))
        .unwrap_or_else(|e| panic!("{e}"));
    println!(
        "{} frames at {hook:?}, some in several pieces: {}",
        2 * self::cases(cases),
        pieces || hook == Hook::Xdp
    );
}

#[test]
fn agrees_with_another_parser_on_arbitrary_frames() {
    agrees_with_another_parser(Hook::Tc, 2000);
}

/// Fewer, since it is the same source.
#[test]
fn agrees_with_another_parser_at_xdp_too() {
    agrees_with_another_parser(Hook::Xdp, 1000);
}

#[test]
fn arbitrary_frames_are_of_every_kind() {
    // Otherwise the test above would show little.
    let mut counts = BTreeMap::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..1000 {
        use proptest::strategy::ValueTree;
        let (_, frame) = any_frames(Hook::Tc).new_tree(&mut runner).unwrap().current();
        let outcome = expected(&frame, Hook::Tc).unwrap_or_else(|reason| reason);
        let kind = match outcome {
            Flow { key, .. } => format!("flow v{} {}", key.family, key.protocol),
            reason => format!("{reason:?}"),
        };
        *counts.entry(kind).or_insert(0) += 1;
    }
    for kind in [
        "flow v4 6",
        "flow v4 17",
        "flow v6 6",
        "flow v6 17",
        "NotIp",
        "Malformed",
        "LaterFragment",
        "OtherProtocol",
        "TooManyHeaders",
    ] {
        assert!(counts.get(kind).is_some_and(|&n| n >= 10), "{kind}: {counts:?}");
    }
}
