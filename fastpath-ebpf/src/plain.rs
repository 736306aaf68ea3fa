//! The plainest packets, read with a handful of loads: Ethernet, no VLAN tag in the frame, no options or extension
//! headers, no fragment, headers in the linear part. Nearly all packets are like that. Everything else is for `parse`,
//! which decides whatever is in doubt; what both can read they read alike.

use core::arch::asm;

use fastpath_common::{Family, FlowKey, MatchWords};

use crate::{frame::Frame, parse::Packet};

/// EtherType, version and header length of a plain IPv4 packet, as the first three bytes of a word.
const PLAIN_V4: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
const PLAIN_V4_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
/// EtherType and version of an IPv6 packet.
const PLAIN_V6: u32 = u32::from_ne_bytes([0x86, 0xdd, 0x60, 0]);
const PLAIN_V6_MASK: u32 = u32::from_ne_bytes([0xff, 0xff, 0xf0, 0]);
/// Lengths. Offsets below count from the beginning of the frame.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// Of the four bytes from 6 on of an IPv4 header: more-fragments flag, fragment offset, protocol.
const FRAGMENT_PROTOCOL: i32 = i32::from_ne_bytes([0x3f, 0xff, 0, 0xff]);
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// Loads from a packet, at any alignment; `$at` is checked against the end by the caller, and by the verifier.
macro_rules! load {
    ($type:literal, $data:expr, $at:expr) => {{
        let value: u64;
        // SAFETY: within the packet, as the verifier makes sure. The compiler itself would load byte by byte.
        unsafe {
            asm!(
                concat!("{v} = *(", $type, " *)({p} + {o})"),
                v = out(reg) value, p = in(reg) $data, o = const $at,
                options(readonly, nostack)
            );
        }
        value
    }};
}

pub(crate) use load;

/// Whether `data` up to `end` may be a plain packet, by its link layer, and of which family.
#[inline(always)]
pub fn family(data: usize, end: usize) -> Option<Family> {
    if data + ETHERNET + IPV4 + TCP > end {
        return None;
    }
    if load!("u32", data, 12) as u32 & PLAIN_V4_MASK == PLAIN_V4 {
        return Some(Family::V4);
    }
    (load!("u32", data, 12) as u32 & PLAIN_V6_MASK == PLAIN_V6 && data + ETHERNET + IPV6 + TCP <= end)
        .then_some(Family::V6)
}

/// Reads packets of one family. `data` is where [`family`] has found a packet of it.
pub trait Plain {
    /// What a packet is told from those of other flows by. For a packet that isn't plain these are words that no flow has.
    fn words(data: usize) -> MatchWords;
    /// Whether a key whose words are the same is the packet's.
    fn is_of(data: usize, key: &FlowKey) -> bool;
    /// Bytes from the IP header on; `None` if the lengths don't allow all headers.
    fn bytes(ctx: &impl Frame, data: usize) -> Option<u64>;
    /// Byte 13 of a TCP header.
    fn tcp_flags(data: usize) -> u64;
    /// The packet, if it is plain.
    fn packet(data: usize, words: &MatchWords, bytes: u64) -> Option<Packet>;
}

/// IPv4.
pub struct V4;
/// IPv6.
pub struct V6;

impl Plain for V4 {
    #[inline(always)]
    fn words(data: usize) -> MatchWords {
        let mut protocol = load!("u32", data, ETHERNET + 6);
        // SAFETY: a number. (The compiler would take two instructions more for the same.)
        unsafe {
            asm!("{v} &= {m}", v = inout(reg) protocol, m = const FRAGMENT_PROTOCOL, options(pure, nomem, nostack));
        }
        MatchWords::new(load!("u64", data, ETHERNET + 12), load!("u32", data, ETHERNET + IPV4), protocol)
    }

    /// The words are all of it.
    #[inline(always)]
    fn is_of(_: usize, _: &FlowKey) -> bool {
        true
    }

    #[inline(always)]
    fn bytes(ctx: &impl Frame, data: usize) -> Option<u64> {
        fits(ctx, (load!("u16", data, ETHERNET + 2) as u16).swap_bytes().into(), IPV4 + TCP)
    }

    #[inline(always)]
    fn tcp_flags(data: usize) -> u64 {
        load!("u8", data, ETHERNET + IPV4 + 13)
    }

    #[inline(always)]
    fn packet(data: usize, words: &MatchWords, bytes: u64) -> Option<Packet> {
        // With a fragment's bits in it, it is neither of both.
        let protocol = match (words.rest >> 32) as u32 {
            v if v == u32::from_ne_bytes([0, 0, 0, PROTOCOL_TCP]) => PROTOCOL_TCP,
            v if v == u32::from_ne_bytes([0, 0, 0, PROTOCOL_UDP]) => PROTOCOL_UDP,
            _ => return None,
        };
        let addresses = words.addresses;
        let ends = [addresses & 0xffff_ffff, 0, addresses >> 32, 0];
        Some(packet::<Self>(data, ends, protocol, Family::V4, words, bytes))
    }
}

impl Plain for V6 {
    #[inline(always)]
    fn words(data: usize) -> MatchWords {
        let addresses = load!("u64", data, ETHERNET + 8)
            ^ load!("u64", data, ETHERNET + 16)
            ^ load!("u64", data, ETHERNET + 24)
            ^ load!("u64", data, ETHERNET + 32);
        let protocol = load!("u8", data, ETHERNET + 6) | MatchWords::V6;
        MatchWords::new(addresses, load!("u32", data, ETHERNET + IPV6), protocol)
    }

    /// With the xor of all four the same, three are enough.
    #[inline(always)]
    fn is_of(data: usize, key: &FlowKey) -> bool {
        let key = key.words();
        key[0] == load!("u64", data, ETHERNET + 8)
            && key[1] == load!("u64", data, ETHERNET + 16)
            && key[2] == load!("u64", data, ETHERNET + 24)
    }

    #[inline(always)]
    fn bytes(ctx: &impl Frame, data: usize) -> Option<u64> {
        let payload = u64::from((load!("u16", data, ETHERNET + 4) as u16).swap_bytes());
        fits(ctx, payload + IPV6 as u64, IPV6 + TCP)
    }

    #[inline(always)]
    fn tcp_flags(data: usize) -> u64 {
        load!("u8", data, ETHERNET + IPV6 + 13)
    }

    #[inline(always)]
    fn packet(data: usize, words: &MatchWords, bytes: u64) -> Option<Packet> {
        let protocol = match (words.rest >> 32) as u8 {
            PROTOCOL_TCP => PROTOCOL_TCP,
            PROTOCOL_UDP => PROTOCOL_UDP,
            _ => return None,
        };
        let ends = [
            load!("u64", data, ETHERNET + 8),
            load!("u64", data, ETHERNET + 16),
            load!("u64", data, ETHERNET + 24),
            load!("u64", data, ETHERNET + 32),
        ];
        Some(packet::<Self>(data, ends, protocol, Family::V6, words, bytes))
    }
}

/// `bytes`, if an IP packet of that size has room for its headers and isn't larger than the frame.
#[inline(always)]
fn fits(ctx: &impl Frame, bytes: u64, headers: usize) -> Option<u64> {
    // The frame is at least that long; a difference below zero is a large number.
    let fits =
        bytes.wrapping_sub(headers as u64) <= u64::from(ctx.len()).wrapping_sub((ETHERNET + headers) as u64);
    fits.then_some(bytes)
}

#[inline(always)]
fn packet<P: Plain>(
    data: usize,
    ends: [u64; 4],
    protocol: u8,
    family: Family,
    words: &MatchWords,
    bytes: u64,
) -> Packet {
    let ports = u64::from((words.rest as u32).swap_bytes());
    let rest = ports | u64::from(protocol) << 32 | (family as u64) << 40;
    Packet {
        words: [ends[0], ends[1], ends[2], ends[3], rest],
        bytes: bytes as u32,
        flags: if protocol == PROTOCOL_TCP { P::tcp_flags(data) as u32 } else { 0 },
    }
}
