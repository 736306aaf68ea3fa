//! Tells the agent which of many flows were offloaded since it last armed them. Sees no packets, changes nothing.

use aya_ebpf::programs::TcContext;
use fastpath_common::{Ask, FlowCounters, FlowKey};

use crate::maps::FLOWS;

/// A bit for each key, the lowest for the first.
#[inline(always)]
pub fn ask(ctx: &TcContext) -> u32 {
    let mut answers = 0;
    for place in 0..Ask::KEYS {
        let Ok(key) = ctx.load::<FlowKey>(Ask::OFFSET + place * size_of::<FlowKey>()) else { break };
        if let Some(counters) = FLOWS.get_ptr(key) {
            // SAFETY: a map value that the verifier has checked.
            let flags = unsafe { (*counters).flags };
            let went_over =
                flags & (FlowCounters::WENT_OVER | FlowCounters::ARMED) == FlowCounters::WENT_OVER;
            answers |= u32::from(went_over) << place;
        }
    }
    answers
}
