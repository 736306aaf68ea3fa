//! Changes what is noted of a flow's signal, on the agent's request. Sees no packets.

use aya_ebpf::programs::TcContext;
use fastpath_common::{FlowCounters, Signal, SignalChange};

use crate::{atomic, maps::FLOWS};

/// True if the flow is there and its signal was what it had to be. The programs themselves never change a signal once
/// it isn't [`Signal::None`](fastpath_common::Signal::None), so nothing changes it in between.
#[inline(always)]
pub fn mark(ctx: &TcContext) -> bool {
    let Ok(mark) = ctx.load::<SignalChange>(SignalChange::OFFSET) else { return false };
    let Some(counters) = FLOWS.get_ptr_mut(mark.key) else { return false };
    // SAFETY: a map value that the verifier has checked, aligned; changed atomically.
    unsafe {
        if (*counters).signal != mark.from {
            return false;
        }
        if mark.to == mark.from {
            atomic::or(&raw mut (*counters).flags, FlowCounters::WENT_OVER);
        }
        if mark.to == Signal::None as u64 {
            atomic::or(&raw mut (*counters).flags, FlowCounters::ARMED);
        }
        atomic::swap(&raw mut (*counters).signal, mark.to) == mark.from
    }
}
