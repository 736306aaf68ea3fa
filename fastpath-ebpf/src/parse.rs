//! From packet to flow key. Reads headers, changes nothing, keeps nothing.
//!
//! Headers are copied out with helpers, so it doesn't matter whether they lie in the linear part of the packet.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_hdr_start_off::BPF_HDR_START_NET, helpers::bpf_skb_load_bytes_relative,
    programs::TcContext,
};
use fastpath_common::{
    Family, FlowCounters, FlowKey,
    limits::{MAX_EXTENSION_HEADERS, MAX_VLAN_TAGS},
};

use crate::frame::{Bytes, Frame};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Offset of the EtherType in an Ethernet header, and what follows it.
const ETHERTYPE_OFFSET: u32 = 12;
const ETHERNET_HEADER: u32 = 14;
const VLAN_TAG: u32 = 4;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;
const UDP_HEADER: u32 = 8;
/// Up to and with the byte that holds the flags.
const TCP_FLAGS_END: u32 = 14;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// A packet that belongs to a flow.
pub struct Packet {
    /// The flow's key, as [`FlowKey::words`] has it.
    pub words: [u64; 5],
    /// From the IP header on, without link-layer padding.
    pub bytes: u32,
    /// As [`FlowCounters::flags`]. TCP flags are 0 for UDP, and where the first fragment ends before them.
    pub flags: u32,
}

impl Packet {
    /// The flow's key.
    #[inline(always)]
    pub fn key(&self) -> &FlowKey {
        // SAFETY: same size and alignment, and any bytes are a key (the layout is asserted where it is defined).
        unsafe { &*core::ptr::from_ref(&self.words).cast() }
    }
}

/// Why a packet belongs to no flow; the tallies of `PacketStats` have the details.
pub enum Uncounted {
    NotIp,
    Malformed,
    LaterFragment,
    OtherProtocol,
    TooManyHeaders,
}

/// Access to a packet's headers.
pub trait Headers {
    /// VLAN tags in the data that are looked behind.
    const VLAN_TAGS: usize;
    /// EtherType of what begins at the offset given with it. VLAN tags may follow.
    fn start(&self) -> Option<(u16, u32)>;
    /// Copies the bytes at `offset`; `None` if the packet ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
    /// Bytes of the packet from `offset` on.
    fn remaining(&self, offset: u32) -> u32;
}

/// A packet whose data begins with an Ethernet header; offsets count from there.
pub struct Ethernet<'a, F>(pub &'a F);

impl<F: Frame> Headers for Ethernet<'_, F> {
    const VLAN_TAGS: usize = F::VLAN_TAGS;

    #[inline(always)]
    fn start(&self) -> Option<(u16, u32)> {
        Some((self.read::<2>(ETHERTYPE_OFFSET)?.be16(0), ETHERNET_HEADER))
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        self.0.load(offset)
    }

    #[inline(always)]
    fn remaining(&self, offset: u32) -> u32 {
        self.0.len().saturating_sub(offset)
    }
}

/// A packet of a device without Ethernet header; offsets count from the network header.
pub struct NetworkLayer<'a>(pub &'a TcContext);

impl Headers for NetworkLayer<'_> {
    const VLAN_TAGS: usize = MAX_VLAN_TAGS;

    #[inline(always)]
    fn start(&self) -> Option<(u16, u32)> {
        // SAFETY: the context is a valid __sk_buff for the whole run.
        let protocol = unsafe { (*self.0.skb.skb).protocol };
        Some((u16::from_be(protocol as u16), 0))
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<Bytes<N>> {
        let mut bytes = MaybeUninit::<Bytes<N>>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            let failed = bpf_skb_load_bytes_relative(
                self.0.as_ptr(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
                BPF_HDR_START_NET,
            ) != 0;
            if failed { None } else { Some(bytes.assume_init()) }
        }
    }

    /// Where the network header is in the data isn't known: at most this.
    #[inline(always)]
    fn remaining(&self, offset: u32) -> u32 {
        self.0.len().saturating_sub(offset)
    }
}

/// Where the transport header is, once the headers before it are read.
struct Transport {
    family: Family,
    protocol: u8,
    /// From the beginning of the IP header.
    offset: u32,
    /// First of several.
    fragment: bool,
}

/// Finds the flow that the packet belongs to.
#[inline(always)]
pub fn parse<H: Headers>(headers: &H) -> Result<Packet, Uncounted> {
    let (mut ethertype, mut l3) = headers.start().ok_or(Uncounted::Malformed)?;
    for _ in 0..H::VLAN_TAGS {
        if ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ {
            ethertype = headers.read::<4>(l3).ok_or(Uncounted::Malformed)?.be16(2);
            l3 += VLAN_TAG;
        }
    }
    let mut packet = Packet { words: [0; 5], bytes: 0, flags: 0 };
    let transport = match ethertype {
        ETHERTYPE_IPV4 => ipv4(headers, l3, &mut packet)?,
        ETHERTYPE_IPV6 => ipv6(headers, l3, &mut packet)?,
        _ => return Err(Uncounted::NotIp),
    };
    transport_header(headers, l3, &transport, &mut packet)?;
    Ok(packet)
}

/// RFC 791; refuses what `ip_rcv_core` (net/ipv4/ip_input.c) drops, checksums excepted.
#[inline(always)]
fn ipv4(headers: &impl Headers, l3: u32, packet: &mut Packet) -> Result<Transport, Uncounted> {
    let h: Bytes<{ IPV4_HEADER as usize }> = headers.read(l3).ok_or(Uncounted::Malformed)?;
    let header_len = u32::from(h.0[0] & 0xf) * 4;
    if h.0[0] >> 4 != 4 || header_len < IPV4_HEADER {
        return Err(Uncounted::Malformed);
    }
    packet.bytes = l3_len(headers, l3, u32::from(h.be16(2)))?;
    if packet.bytes < header_len {
        return Err(Uncounted::Malformed);
    }
    let fragment = h.be16(6);
    if fragment & 0x1fff != 0 {
        return Err(Uncounted::LaterFragment);
    }
    if header_len > IPV4_HEADER {
        packet.flags |= FlowCounters::IPV4_OPTIONS as u32;
    }
    packet.words[0] = h.word32(12);
    packet.words[2] = h.word32(16);
    Ok(Transport {
        family: Family::V4,
        protocol: h.0[9],
        offset: header_len,
        fragment: fragment & 0x2000 != 0,
    })
}

/// RFC 8200; walks the extension headers that `ipv6_skip_exthdr` (net/ipv6/exthdrs_core.c) walks.
#[inline(always)]
fn ipv6(headers: &impl Headers, l3: u32, packet: &mut Packet) -> Result<Transport, Uncounted> {
    let h: Bytes<{ IPV6_HEADER as usize }> = headers.read(l3).ok_or(Uncounted::Malformed)?;
    if h.0[0] >> 4 != 6 {
        return Err(Uncounted::Malformed);
    }
    let payload = u32::from(h.be16(4));
    packet.bytes = l3_len(headers, l3, if payload == 0 { 0 } else { payload + IPV6_HEADER })?;
    (packet.words[0], packet.words[1]) = (h.word64(8), h.word64(16));
    (packet.words[2], packet.words[3]) = (h.word64(24), h.word64(32));

    let mut next = h.0[6];
    let mut offset = IPV6_HEADER;
    let mut fragment = false;
    for _ in 0..MAX_EXTENSION_HEADERS {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                let x: Bytes<2> = headers.read(l3 + offset).ok_or(Uncounted::Malformed)?;
                // RFC 4302: the authentication header counts in units of four bytes, less two.
                let len = if next == AUTHENTICATION {
                    (u32::from(x.0[1]) + 2) * 4
                } else {
                    (u32::from(x.0[1]) + 1) * 8
                };
                next = x.0[0];
                offset += len;
            }
            FRAGMENT => {
                let x: Bytes<4> = headers.read(l3 + offset).ok_or(Uncounted::Malformed)?;
                let field = x.be16(2);
                if field & 0xfff8 != 0 {
                    return Err(Uncounted::LaterFragment);
                }
                fragment |= field & 1 != 0;
                next = x.0[0];
                offset += 8;
            }
            _ => return Ok(Transport { family: Family::V6, protocol: next, offset, fragment }),
        }
    }
    match next {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {
            Err(Uncounted::TooManyHeaders)
        }
        _ => Ok(Transport { family: Family::V6, protocol: next, offset, fragment }),
    }
}

/// Length from the IP header on: what the header says. It says 0 where it has no room for the length (BIG TCP,
/// jumbograms): then what is there.
#[inline(always)]
fn l3_len(headers: &impl Headers, l3: u32, said: u32) -> Result<u32, Uncounted> {
    let there = headers.remaining(l3);
    match said {
        0 => Ok(there),
        _ if said > there => Err(Uncounted::Malformed),
        _ => Ok(said),
    }
}

#[inline(always)]
fn transport_header(
    headers: &impl Headers,
    l3: u32,
    transport: &Transport,
    packet: &mut Packet,
) -> Result<(), Uncounted> {
    let header_len = match transport.protocol {
        // A fragment is a multiple of eight bytes: the ports are there, the rest of the header need not be.
        TCP if !transport.fragment => TCP_HEADER,
        TCP | UDP => UDP_HEADER,
        _ => return Err(Uncounted::OtherProtocol),
    };
    if transport.offset + header_len > packet.bytes {
        return Err(Uncounted::Malformed);
    }
    if transport.fragment {
        packet.flags |= FlowCounters::FIRST_FRAGMENT as u32;
    }
    let ports: Bytes<4> = headers.read(l3 + transport.offset).ok_or(Uncounted::Malformed)?;
    // Destination port, source port, protocol, family, in the order of a little-endian word.
    packet.words[4] = u64::from(ports.be16(2))
        | u64::from(ports.be16(0)) << 16
        | u64::from(transport.protocol) << 32
        | (transport.family as u64) << 40;
    if transport.protocol == TCP && transport.offset + TCP_FLAGS_END <= packet.bytes {
        let flags: Bytes<1> =
            headers.read(l3 + transport.offset + TCP_FLAGS_END - 1).ok_or(Uncounted::Malformed)?;
        packet.flags |= u32::from(flags.0[0]);
    }
    Ok(())
}
