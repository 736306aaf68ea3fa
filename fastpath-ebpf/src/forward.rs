//! Forwards packets between pods ahead of the flowtable, from the end of one veth straight to the other end of another. It
//! knows nothing by itself: conntrack says that the connection is offloaded and what NAT makes of its packets, the routing table
//! says where they go, and both are asked again when a lease of some milliseconds is over. Everything unusual is left to the
//! kernel.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_update, bpf_fib_lookup, bpf_jiffies64, bpf_l4_csum_replace, bpf_redirect_peer},
    programs::TcContext,
};
use fastpath_common::{Family, ForwardConfig, HotFlow, Way, forward};

use crate::{
    frame::Frame,
    kernel::{self, Tuple},
    maps::{FORWARD_CONFIG, FORWARD_DEVICES, FORWARD_PROGRAMS, HOT, WAYS},
    plain::{self, Plain, V4, V6, load},
};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
/// FIN, SYN and RST, and ACK alone.
const BEGIN_OR_END: u64 = 0x07;
const ACK: u64 = 0x10;
/// Ethernet with a tag, IPv6, TCP with options, and a tunnel's own header, at most.
const INSIDE: u64 = 18 + 40 + 60 + 32;
/// A packet may have waited for a pure ACK for so many times the refresh.
const OVERDUE: u64 = 5;

/// Hands the packet to the program below; returns only where there is none.
#[inline(always)]
pub fn begin(ctx: &TcContext) {
    // SAFETY: nothing has to be dropped.
    unsafe { FORWARD_PROGRAMS.tail_call(ctx, 0) };
}

/// What differs between the two families. Offsets count from the beginning of the frame.
trait Rewrite: Plain {
    const FAMILY: Family;
    /// Of the transport header.
    const TRANSPORT: usize;
    /// Of the byte that counts hops.
    const HOPS: usize;
    /// Of the source address; ports follow the addresses without a gap, as a tuple wants them.
    const ADDRESSES: usize;
    /// Traffic class as the routing table is asked with it.
    fn class(data: usize) -> u32;
    /// Addresses, hops, and the header's checksum.
    fn write(data: usize, way: &Way);
    /// What this changes in what a card has summed up (`CHECKSUM_COMPLETE`), where it isn't undone by the header's own checksum.
    fn complete(way: &Way) -> Option<u32>;
}

/// Stores to a packet.
macro_rules! store {
    ($type:literal, $data:expr, $at:expr, $value:expr) => {{
        // SAFETY: within the packet, as the verifier makes sure.
        unsafe {
            asm!(
                concat!("*(", $type, " *)({p} + {o}) = {v}"),
                p = in(reg) $data, v = in(reg) u64::from($value), o = const $at,
                options(nostack)
            );
        }
    }};
}

impl Rewrite for V4 {
    const FAMILY: Family = Family::V4;
    const TRANSPORT: usize = ETHERNET + 20;
    const HOPS: usize = ETHERNET + 8;
    const ADDRESSES: usize = ETHERNET + 12;

    #[inline(always)]
    fn class(data: usize) -> u32 {
        load!("u8", data, ETHERNET + 1) as u32
    }

    #[inline(always)]
    fn write(data: usize, way: &Way) {
        let hops = load!("u8", data, Self::HOPS) as u8;
        store!("u8", data, Self::HOPS, hops.wrapping_sub(1));
        let before = !(load!("u16", data, ETHERNET + 10) as u16);
        // One hop less, as RFC 1624 adds it; the byte is the first of its half word.
        let sum = fold(u32::from(before) + halves(way.addresses) + 0xfffe);
        store!("u16", data, ETHERNET + 10, !sum);
        store!("u32", data, Self::ADDRESSES, way.src[0]);
        store!("u32", data, Self::ADDRESSES + 4, way.dst[0]);
    }

    #[inline(always)]
    fn complete(_: &Way) -> Option<u32> {
        None
    }
}

impl Rewrite for V6 {
    const FAMILY: Family = Family::V6;
    const TRANSPORT: usize = ETHERNET + 40;
    const HOPS: usize = ETHERNET + 7;
    const ADDRESSES: usize = ETHERNET + 8;

    /// The header's first word but for the version, as `flowinfo` has it.
    #[inline(always)]
    fn class(data: usize) -> u32 {
        load!("u32", data, ETHERNET) as u32 & u32::from_ne_bytes([0x0f, 0xff, 0xff, 0xff])
    }

    #[inline(always)]
    fn write(data: usize, way: &Way) {
        let hops = load!("u8", data, Self::HOPS) as u8;
        store!("u8", data, Self::HOPS, hops.wrapping_sub(1));
        if way.addresses != 0 {
            store!("u32", data, Self::ADDRESSES, way.src[0]);
            store!("u32", data, Self::ADDRESSES + 4, way.src[1]);
            store!("u32", data, Self::ADDRESSES + 8, way.src[2]);
            store!("u32", data, Self::ADDRESSES + 12, way.src[3]);
            store!("u32", data, Self::ADDRESSES + 16, way.dst[0]);
            store!("u32", data, Self::ADDRESSES + 20, way.dst[1]);
            store!("u32", data, Self::ADDRESSES + 24, way.dst[2]);
            store!("u32", data, Self::ADDRESSES + 28, way.dst[3]);
        }
    }

    /// A hop less, the second byte of its half word. The change of addresses is undone by that of the transport's checksum, but
    /// `bpf_l4_csum_replace` took it off as for IPv4.
    #[inline(always)]
    fn complete(way: &Way) -> Option<u32> {
        Some(halves(way.addresses) + 0xfeff)
    }
}

/// The packet's fate; `None`: it goes on as if this program weren't there.
#[inline(always)]
pub fn forward(ctx: &TcContext) -> Option<i32> {
    match plain::family(ctx.data(), ctx.data_end())? {
        Family::V4 => forward_as::<V4, 1>(ctx),
        Family::V6 => forward_as::<V6, 4>(ctx),
    }
}

#[inline(always)]
fn forward_as<P: Rewrite, const WORDS: usize>(ctx: &TcContext) -> Option<i32> {
    let data = ctx.data();
    if data + P::TRANSPORT + 20 > ctx.data_end() {
        return None;
    }
    let words = P::words(data);
    let slot = words.slot();
    // SAFETY: the elements of this CPU; programs on one CPU don't interrupt each other (softirqs are off).
    let (hot, way) = unsafe { (&mut *HOT.get_ptr_mut(slot)?, &mut *WAYS.get_ptr_mut(slot)?) };
    if hot.words != words || !P::is_of(data, &hot.key) {
        return None;
    }
    let skb = ctx.skb.skb;
    // SAFETY: the context is a valid __sk_buff for the whole run.
    let (kind, tagged, marked, segment) =
        unsafe { ((*skb).pkt_type, (*skb).vlan_present, (*skb).mark | (*skb).priority, (*skb).gso_size) };
    // PACKET_HOST is 0. A veth takes mark and priority off; `bpf_redirect_peer` would hand them to the pod.
    if kind != 0 || tagged != 0 || marked != 0 || load!("u8", data, P::HOPS) <= 1 {
        return None;
    }
    let bytes = P::bytes(ctx, data)?;
    let is_tcp = hot.key.protocol == TCP;
    let flags = if is_tcp { P::tcp_flags(data) } else { 0 };
    if flags & BEGIN_OR_END != 0 {
        // The flowtable lets the flow go, and conntrack has to see what comes behind it.
        way.until = 0;
        return None;
    }
    let headers = if is_tcp {
        // Four bits, in units of four bytes.
        (P::TRANSPORT - ETHERNET) as u64 + (load!("u8", data, P::TRANSPORT + 12) >> 4) * 4
    } else {
        // Segments may be those of what is inside a tunnel, which has more headers.
        (P::TRANSPORT - ETHERNET) as u64 + 8 + INSIDE
    };
    let config = FORWARD_CONFIG.get(0)?;
    // SAFETY: no preconditions.
    let tick = unsafe { bpf_jiffies64() };
    let known = hot.is_forwarded();
    if !known || way.until <= tick || way.generation != config.generation {
        // An IPsec policy, say, which no look-up here knows: the flowtable then lets the flow go. Of a new flow it isn't known whether
        // the flowtable has seen a packet since.
        let is_new = hot.forward == HotFlow::NEW;
        if is_new || way.generation < config.judged {
            (way.generation, way.until) = (config.generation, 0);
            if is_new {
                hot.forward = tick;
            }
            return None;
        }
        // Not worth asking for. It isn't tried again at once, or its packets would be overtaken again and again.
        if hot.forward == HotFlow::SPARSE && hot.packets == 0 {
            hot.forward = way.until + config.retry;
            return None;
        }
        if !known {
            way.refresh = tick + config.refresh;
        }
        if let Err(ticks) = ask::<P, WORDS>(ctx, data, hot.key.protocol, way, config) {
            hot.forward = tick + ticks;
            return None;
        }
        way.generation = config.generation;
        way.until = tick + config.lease;
        hot.forward = HotFlow::FORWARDED;
    }
    // Another one's may have the same tuple, as a forged packet has.
    if way.into != ctx.ifindex() {
        return None;
    }
    let largest = if segment == 0 { bytes } else { headers + u64::from(segment) };
    if largest > u64::from(way.mtu) {
        return None;
    }
    // The flowtable would forget it. What overtakes a pure ACK does no harm.
    if way.refresh <= tick
        && (flags == ACK && bytes == headers || way.refresh + OVERDUE * config.refresh <= tick)
    {
        way.refresh = tick + config.refresh;
        return None;
    }
    let data = transport_checksum::<P>(ctx, data, is_tcp, way)?;
    store!("u16", data, 0, way.macs[0]);
    store!("u16", data, 2, way.macs[1]);
    store!("u16", data, 4, way.macs[2]);
    store!("u16", data, 6, way.macs[3]);
    store!("u16", data, 8, way.macs[4]);
    store!("u16", data, 10, way.macs[5]);
    P::write(data, way);
    store!("u32", data, P::TRANSPORT, way.ports);
    hot.forwarded += 1;
    // SAFETY: no preconditions.
    Some(unsafe { bpf_redirect_peer(way.ifindex, 0) } as i32)
}

/// Brings the transport's checksum up to date, and what a card has summed up. Returns where the packet is then.
#[inline(always)]
fn transport_checksum<P: Rewrite>(ctx: &TcContext, data: usize, is_tcp: bool, way: &Way) -> Option<usize> {
    let skb = ctx.skb.skb;
    if let Some(difference) = P::complete(way) {
        // SAFETY: the context is a valid __sk_buff. Fails where a card has summed up nothing.
        unsafe { bpf_csum_update(skb, difference) };
    }
    if way.addresses == 0 && way.changed_ports == 0 {
        return Some(data);
    }
    let (at, flags) =
        if is_tcp { (P::TRANSPORT + 16, 0) } else { (P::TRANSPORT + 6, u64::from(BPF_F_MARK_MANGLED_0)) };
    // SAFETY: the context is a valid __sk_buff. The helper knows what stands in the place of a checksum that the hardware has to
    // finish. What it can fail for, memory, it fails for before it changes anything, and only the first time.
    unsafe {
        let (from, to) = (u64::from(way.addresses), u64::from(way.changed_ports));
        if from != 0 && bpf_l4_csum_replace(skb, at as u32, 0, from, flags | u64::from(BPF_F_PSEUDO_HDR)) != 0
        {
            return None;
        }
        if to != 0 && bpf_l4_csum_replace(skb, at as u32, 0, to, flags) != 0 {
            return None;
        }
    }
    let data = ctx.data();
    if data + P::TRANSPORT + 20 > ctx.data_end() {
        return None;
    }
    Some(data)
}

/// Asks the kernel for a packet's way; fails with the ticks after which it may be asked again.
#[inline(always)]
fn ask<P: Rewrite, const WORDS: usize>(
    ctx: &TcContext,
    data: usize,
    protocol: u8,
    way: &mut Way,
    config: &ForwardConfig,
) -> Result<(), u64> {
    let mut tuple = [0; 9];
    macro_rules! copy {
        ($($word:literal)+) => {$(tuple[$word] = load!("u32", data, P::ADDRESSES + 4 * $word) as u32;)+};
    }
    copy!(0 1 2);
    if WORDS == 4 {
        copy!(3 4 5 6 7 8);
    }
    let size = (WORDS * 8 + 4) as u64;
    let (connection, direction) =
        kernel::connection(ctx.skb.skb, &tuple, size, protocol).ok_or(config.retry)?;
    let offloaded = connection.is_offloaded();
    let other = connection.other::<WORDS>(direction);
    connection.release();
    if !offloaded {
        return Err(config.retry);
    }
    let mut before =
        Tuple { src: [tuple[0], 0, 0, 0], dst: [tuple[WORDS], 0, 0, 0], src_port: 0, dst_port: 0 };
    if WORDS == 4 {
        before.src = [tuple[0], tuple[1], tuple[2], tuple[3]];
        before.dst = [tuple[4], tuple[5], tuple[6], tuple[7]];
    }
    let ports = tuple[2 * WORDS];
    let into = ctx.ifindex();
    if part(into) & forward::IN == 0 {
        return Err(config.refused);
    }
    // Routing comes behind the change of the destination, and ahead of that of the source.
    let routed = ports & u32::from_ne_bytes([0xff, 0xff, 0, 0]) | other.src_port << 16;
    let mut route = Route::new::<P>(data, protocol, into, routed);
    (route.src, route.dst) = (before.src, other.src);
    // SAFETY: the helper reads and writes as many bytes as it is told, which live on the stack.
    let answer =
        unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut route).cast(), size_of::<Route>() as i32, 0) };
    if answer != 0 {
        return Err(config.retry);
    }
    let out = route.ifindex;
    let device = part(out);
    // The other end would take what isn't for its address, which it drops if it comes over the veth.
    if out == into
        || device & forward::OUT == 0
        || device & forward::ADDRESS != forward::address(route.destination)
    {
        return Err(config.refused);
    }
    // As the flowtable has it: packets come in where answers leave.
    let mut back = Route::new::<P>(data, protocol, out, routed.rotate_left(16));
    (back.src, back.dst) = (other.src, before.src);
    // SAFETY: as above.
    let answer =
        unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut back).cast(), size_of::<Route>() as i32, 0) };
    if answer != 0 {
        return Err(config.retry);
    }
    if back.ifindex != into {
        return Err(config.refused);
    }
    way.ports = other.dst_port | other.src_port << 16;
    let changed = [difference(&before.src, &other.dst), difference(&before.dst, &other.src)];
    way.addresses = changed[0] + changed[1];
    way.changed_ports = if way.ports == ports { 0 } else { halves(!ports) + halves(way.ports) };
    (way.src, way.dst) = (other.dst, other.src);
    way.macs = route.macs();
    (way.into, way.ifindex) = (into, out);
    way.mtu = u32::from(route.length);
    Ok(())
}

/// An interface's part in forwarding.
#[inline(always)]
fn part(ifindex: u32) -> u64 {
    // SAFETY: the agent changes it in one store.
    unsafe { FORWARD_DEVICES.get(ifindex).copied().unwrap_or(0) }
}

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Route {
    family: u8,
    protocol: u8,
    src_port: u16,
    dst_port: u16,
    /// In: a packet's length, to be answered with the route's MTU.
    length: u16,
    ifindex: u32,
    class: u32,
    src: [u32; 4],
    dst: [u32; 4],
    vlan: u32,
    /// Source and destination of the Ethernet header.
    source: [u16; 3],
    destination: [u16; 3],
}

impl Route {
    #[inline(always)]
    fn new<P: Rewrite>(data: usize, protocol: u8, ifindex: u32, ports: u32) -> Self {
        Self {
            // AF_INET, AF_INET6.
            family: match P::FAMILY {
                Family::V4 => 2,
                Family::V6 => 10,
            },
            protocol,
            src_port: ports as u16,
            dst_port: (ports >> 16) as u16,
            length: 1,
            ifindex,
            class: P::class(data),
            src: [0; 4],
            dst: [0; 4],
            vlan: 0,
            source: [0; 3],
            destination: [0; 3],
        }
    }

    #[inline(always)]
    fn macs(&self) -> [u16; 6] {
        let ([a, b, c], [d, e, f]) = (self.destination, self.source);
        [a, b, c, d, e, f]
    }
}

/// What the change of an address adds to a checksum.
#[inline(always)]
fn difference(before: &[u32; 4], after: &[u32; 4]) -> u32 {
    let mut sum = 0;
    for word in 0..4 {
        if before[word] != after[word] {
            sum += halves(!before[word]) + halves(after[word]);
        }
    }
    sum
}

/// The sum of both halves.
#[inline(always)]
fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = halves(sum);
    halves(sum) as u16
}
