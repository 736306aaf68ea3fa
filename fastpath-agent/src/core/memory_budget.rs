//! How large the flows map may be where the agent's memory is limited. It is decided before the kernel is asked: a limit that is
//! passed ends the process.

use fastpath_common::{HotFlow, limits};

/// What an agent takes at most beside its maps: most of it while it loads its programs, for the kernel's types. Measured with the
/// test `faults::memory::what_fits_into_a_limit_is_watched`.
const AGENT_BYTES: u64 = 24 << 20;
/// An entry of the flows map, of an LRU hash: key, value and what the kernel adds.
const FLOW_BYTES: u64 = 177;

const PAGE_BYTES: u64 = 4096;

/// How many flows there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// All that were asked for.
    All,
    /// Fewer: so many.
    Fewer(u32),
    /// None: the programs can't be loaded.
    None,
}

/// What it takes to watch that many flows, in bytes.
pub fn needed(cpus: u32, flows: u32) -> u64 {
    // The kernel takes a limit down to whole pages.
    (fixed(cpus) + u64::from(flows) * FLOW_BYTES).next_multiple_of(PAGE_BYTES)
}

fn fixed(cpus: u32) -> u64 {
    let a_cpu = u64::from(limits::HOT_SLOTS) * size_of::<HotFlow>() as u64;
    AGENT_BYTES + u64::from(limits::EVENT_RING_BYTES) + u64::from(cpus) * a_cpu
}

/// Room within a limit in bytes, on a machine with that many processors (those that may come included).
pub fn room(limit: u64, cpus: u32, max_flows: u32) -> Room {
    if needed(cpus, max_flows) <= limit {
        return Room::All;
    }
    let pages = limit / PAGE_BYTES * PAGE_BYTES;
    let fit = pages.saturating_sub(fixed(cpus)) / FLOW_BYTES;
    // The kernel's own steps are smaller; a number that people recognise.
    let flows = u32::try_from(fit).unwrap_or(u32::MAX) / limits::MIN_FLOWS * limits::MIN_FLOWS;
    if flows == 0 { Room::None } else { Room::Fewer(flows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let needed = needed(2, 65_536);
        assert_eq!(room(needed, 2, 65_536), Room::All);
        assert_eq!(room(needed - 1, 2, 65_536), Room::Fewer(64_512));
        assert_eq!(room(0, 2, 65_536), Room::None);
        assert_eq!(room(u64::MAX, 4096, limits::MAX_FLOWS), Room::All);
        let least = super::needed(2, limits::MIN_FLOWS);
        assert_eq!(room(least, 2, 65_536), Room::Fewer(limits::MIN_FLOWS));
        assert_eq!(room(least - 1, 2, 65_536), Room::None);
    }

    #[test]
    fn processors_take_room() {
        assert_eq!(room(needed(2, 65_536), 64, 65_536), Room::Fewer(43_008));
    }
}
