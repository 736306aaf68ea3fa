//! Entry points of the eBPF programs: one for each kind of link layer. They count, and change nothing: whatever a
//! packet contains, the next program and then the stack get it as it came. Only `fastpath_peer`, which is off unless
//! asked for, takes packets on.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod account;
mod added;
mod ask;
mod atomic;
mod forward;
mod frame;
mod hot;
mod kernel;
mod maps;
mod mark;
mod parse;
mod plain;
mod say;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, kprobe, xdp},
    programs::{ProbeContext, TcContext, XdpContext},
};
use fastpath_common::{
    PROGRAM_ADDED, PROGRAM_ASK, PROGRAM_ETHERNET, PROGRAM_ETHERNET_FORWARD, PROGRAM_FORWARD, PROGRAM_L3,
    PROGRAM_MARK, PROGRAM_XDP, PROGRAM_XDP_IDLE,
};

use crate::{
    frame::Frame,
    hot::Counted,
    parse::{Ethernet, NetworkLayer},
};

/// "Go on": the next classifier, or the stack. The same number is `TCX_NEXT`.
const GO_ON: i32 = TC_ACT_UNSPEC;

/// Devices with an Ethernet header: packet data begins with it.
#[classifier]
fn fastpath_tc(ctx: TcContext) -> i32 {
    count::<false>(&ctx);
    GO_ON
}

/// The same where packets of offloaded flows may be forwarded.
#[classifier]
fn fastpath_tc_fwd(ctx: TcContext) -> i32 {
    if count::<true>(&ctx) {
        forward::begin(&ctx);
    }
    GO_ON
}

/// Called by `fastpath_tc_fwd`, in its place.
#[classifier]
fn fastpath_peer(ctx: TcContext) -> i32 {
    forward::forward(&ctx).unwrap_or(GO_ON)
}

/// The same before there is an skb, where the driver can do that. Frames may be larger than a page (`frags`), so jumbo
/// frames and what GRO puts together in hardware stay what they are.
#[xdp(frags)]
fn fastpath_xdp(ctx: XdpContext) -> u32 {
    count::<false>(&ctx);
    xdp_action::XDP_PASS
}

/// Replaces `fastpath_xdp` while it and a TC program would count the same packets.
#[xdp(frags)]
fn fastpath_idle(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// True if the packet may be forwarded, which only `FORWARD` finds out.
#[inline(always)]
fn count<const FORWARD: bool>(ctx: &impl Frame) -> bool {
    let packet = match hot::count::<FORWARD>(ctx) {
        Counted::Short { forward } => return forward,
        Counted::Not(Some(packet)) => packet,
        Counted::Not(None) => match parse::parse(&Ethernet(ctx)) {
            Ok(packet) => packet,
            Err(reason) => {
                account::uncounted(ctx, &reason);
                return false;
            }
        },
    };
    account::flow::<true, FORWARD>(ctx, &packet)
}

/// Devices without one. Where packet data begins differs between tunnels (some leave the outer header in front), so
/// everything is read relative to the network header.
#[classifier]
fn fastpath_tc_l3(ctx: TcContext) -> i32 {
    match parse::parse(&NetworkLayer(&ctx)) {
        Ok(packet) => {
            account::flow::<false, false>(&ctx, &packet);
        }
        Err(reason) => account::uncounted(&ctx, &reason),
    }
    GO_ON
}

/// Never attached.
#[classifier]
fn fastpath_mark(ctx: TcContext) -> i32 {
    mark::mark(&ctx).into()
}

/// Never attached.
#[classifier]
fn fastpath_ask(ctx: TcContext) -> i32 {
    ask::ask(&ctx) as i32
}

/// At the beginning of `flow_offload_add`, on whatever flowtable of this machine.
#[kprobe]
fn fastpath_added(ctx: ProbeContext) -> u32 {
    let _ = added::note(&ctx);
    0
}

/// The agent finds the programs by their names.
const _: () = {
    assert!(matches!(PROGRAM_ETHERNET.as_bytes(), b"fastpath_tc"));
    assert!(matches!(PROGRAM_ETHERNET_FORWARD.as_bytes(), b"fastpath_tc_fwd"));
    assert!(matches!(PROGRAM_FORWARD.as_bytes(), b"fastpath_peer"));
    assert!(matches!(PROGRAM_L3.as_bytes(), b"fastpath_tc_l3"));
    assert!(matches!(PROGRAM_MARK.as_bytes(), b"fastpath_mark"));
    assert!(matches!(PROGRAM_ASK.as_bytes(), b"fastpath_ask"));
    assert!(matches!(PROGRAM_ADDED.as_bytes(), b"fastpath_added"));
    assert!(matches!(PROGRAM_XDP.as_bytes(), b"fastpath_xdp"));
    assert!(matches!(PROGRAM_XDP_IDLE.as_bytes(), b"fastpath_idle"));
};

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
