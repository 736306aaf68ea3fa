//! Which path the packets of an offloaded flow take: what came in, compared with what was metered on the normal path.
//!
//! The meter is a rule behind `flow add`: it counts packets that could have been offloaded, of flows with more packets
//! than the threshold, and that are still on the normal path, flow by flow.

use fastpath_common::FlowCounters;
use serde::{Deserialize, Serialize};

use super::Node;
use crate::core::model::IfIndex;

/// Packets that may be on the forward path when a flow is offloaded, without meaning anything.
const STRAYS: u64 = 2;

/// What was metered of a flow on the forward path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Metered {
    /// There is no meter, or it has no room.
    #[default]
    Unknown,
    /// Nothing, for as long as the meter remembers.
    Nothing,
    /// Packets.
    Packets {
        /// How many, since the meter knows the flow. It forgets it some time after the last.
        packets: u64,
        /// When the last of them was seen, `CLOCK_MONOTONIC` in ns, at the resolution of the kernel's tick: not before.
        from_ns: u64,
        /// And not after.
        to_ns: u64,
    },
}

/// Which way the packets of an offloaded flow take. All unknown if it isn't offloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Whether the last packets bypassed the forward path; `None` if that can't be told.
    pub accelerated: Option<bool>,
    /// Packets, both directions, that bypassed it; `None` if that can't be told. Too many if the flow was long before it
    /// could be offloaded, or the meter has forgotten it meanwhile.
    pub bypassed: Option<u64>,
    /// Packets that were metered on the forward path after the flow had crossed the threshold; `None` if there is no
    /// meter.
    pub metered: Option<u64>,
    /// Packets, both directions, that eBPF forwarded ahead of the flowtable (`--forward=peer`), a few less than it were;
    /// conntrack hasn't counted them.
    #[serde(default)]
    pub forwarded: u64,
}

impl Metered {
    /// Whether the last of them, metered before `seen` was read, isn't in it. The programs see what the meter sees, so they weren't
    /// attached then.
    fn was_missed(&self, seen: &[Option<FlowCounters>; 2], node: &Node) -> bool {
        let Self::Packets { from_ns, to_ns, .. } = *self else { return false };
        let unsure = 2 * node.tick_ns;
        let before =
            |counters: &Option<FlowCounters>| counters.is_some_and(|c| c.last_seen_ns + unsure < from_ns);
        seen.iter().all(before) && to_ns + unsure < node.now_ns
    }
}

impl Path {
    /// Of a flow that is offloaded. `metered` must have been read after `seen`.
    pub(super) fn measure(seen: &[Option<FlowCounters>; 2], metered: &Metered, node: &Node) -> Self {
        let forwarded = seen.iter().flatten().map(|c| c.forwarded).sum();
        let slow = match metered {
            Metered::Unknown => None,
            Metered::Nothing => Some(0),
            Metered::Packets { packets, .. } => Some(*packets),
        };
        let (Some(slow), Some(young)) = (slow, node.young_packets(seen)) else {
            return Self { metered: slow, forwarded, ..Self::default() };
        };
        if seen.iter().all(Option::is_none) {
            return Self { metered: Some(slow), ..Self::default() };
        }
        if metered.was_missed(seen, node) {
            return Self { metered: Some(slow), forwarded, ..Self::default() };
        }
        let came_in: u64 = seen.iter().flatten().map(|c| c.packets).sum();
        let bypassed = came_in.saturating_sub(young + slow);
        let accelerated = match *metered {
            Metered::Packets { from_ns, to_ns, .. } => {
                // Within a tick there is no telling what came first, and the kernel's coarse clock may be one behind.
                let unsure = 2 * node.tick_ns;
                let same_time = |at: u64| at + unsure > from_ns && at < to_ns + unsure;
                let last = || seen.iter().flatten().map(|c| c.last_seen_ns);
                let last_was_slow = last().all(|at| at < from_ns) || last().any(same_time);
                match last_was_slow {
                    // One direction's packets may be slow and the other's not: both are checked.
                    true if slow > STRAYS => Some(false),
                    true => None,
                    false => Some(true),
                }
            }
            // It has had no packet since it was offloaded.
            _ if bypassed == 0 => None,
            // What comes in elsewhere is turned away before the meter.
            _ if seen.iter().flatten().any(|c| !node.managed.contains(&IfIndex(c.ifindex))) => None,
            _ => Some(true),
        };
        Self { accelerated, bypassed: Some(bypassed), metered: Some(slow), forwarded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::flow::Earlier;

    const TICK: u64 = 4_000_000;
    const AT: u64 = 1000 * TICK;

    #[test]
    fn flows_from_before_a_change_of_the_threshold_may_have_had_more_young_packets() {
        let changed = Earlier { highest: 40, until_ns: 2 * AT };
        let bypassed = |began, earlier| {
            let seen = [
                Some(FlowCounters { packets: 100, first_seen_ns: began, ifindex: 2, ..Default::default() }),
                None,
            ];
            Path::measure(&seen, &Metered::Nothing, &Node { earlier, ..node() }).bypassed
        };
        assert_eq!(bypassed(AT, Earlier::default()), Some(79));
        assert_eq!(bypassed(AT, changed), Some(59));
        assert_eq!(bypassed(2 * AT, changed), Some(79), "it began after the change");
        assert_eq!(bypassed(AT, Earlier { highest: 6, ..changed }), Some(79), "the one in force is greater");
    }

    fn node() -> Node {
        Node { threshold: Some(20), tick_ns: TICK, managed: [IfIndex(2)].into(), ..Node::default() }
    }

    fn seen(packets: u64, last_seen_ns: u64) -> Option<FlowCounters> {
        Some(FlowCounters { packets, last_seen_ns, ifindex: 2, ..FlowCounters::default() })
    }

    fn elsewhere(seen: Option<FlowCounters>) -> Option<FlowCounters> {
        seen.map(|c| FlowCounters { ifindex: 3, ..c })
    }

    fn metered(packets: u64, at: u64) -> Metered {
        Metered::Packets { packets, from_ns: at, to_ns: at }
    }

    #[test]
    fn a_flow_is_accelerated_if_its_last_packets_were_not_metered() {
        let both = |original: u64, reply: u64| [seen(100, original), seen(100, reply)];
        let cases = [
            ("never metered", both(AT, AT), Metered::Nothing, Some(true)),
            ("a stray long ago", both(AT, AT), metered(1, AT - 10 * TICK), Some(true)),
            ("slow until two ticks ago", both(AT, AT), metered(150, AT - 2 * TICK), Some(true)),
            ("all slow", both(AT, AT), metered(150, AT), Some(false)),
            ("one direction slow", both(AT - 10 * TICK, AT), metered(79, AT - 10 * TICK), Some(false)),
            ("one direction was slow", both(AT - 10 * TICK, AT), metered(79, AT - 5 * TICK), Some(true)),
            ("a slow packet came while it was read", both(AT, AT), metered(150, AT + 3 * TICK), Some(false)),
            ("a stray in the last tick", both(AT, AT), metered(1, AT), None),
            ("no packet since the crossing", [seen(11, AT), seen(10, AT)], Metered::Nothing, None),
            ("not counted", [None; 2], Metered::Nothing, None),
            ("no meter", both(AT, AT), Metered::Unknown, None),
            ("not before the meter", both(AT, AT).map(elsewhere), Metered::Nothing, None),
        ];
        for (name, seen, metered, expected) in cases {
            assert_eq!(Path::measure(&seen, &metered, &node()).accelerated, expected, "{name}");
        }
    }

    #[test]
    fn counts_that_lack_a_metered_packet_tell_nothing() {
        let node = Node { now_ns: AT + 100 * TICK, ..node() };
        let measure = |seen: [_; 2], at| Path::measure(&seen, &metered(150, at), &node);
        let both = [seen(100, AT), seen(100, AT)];
        let missed = measure(both, AT + 50 * TICK);
        assert_eq!((missed.accelerated, missed.bypassed, missed.metered), (None, None, Some(150)));
        assert_eq!(
            measure(both, AT + 2 * TICK).accelerated,
            Some(false),
            "as well the last that was counted"
        );
        assert_eq!(
            measure(both, AT + 99 * TICK).accelerated,
            Some(false),
            "it may have come since they were read"
        );
        assert_eq!(
            measure([both[0], None], AT + 50 * TICK).accelerated,
            Some(false),
            "one direction isn't counted"
        );
    }

    #[test]
    fn what_bypassed_is_what_came_in_less_what_was_forwarded() {
        let bypassed =
            |packets, metered| Path::measure(&[seen(packets, AT), None], &metered, &node()).bypassed;
        assert_eq!(bypassed(100, Metered::Nothing), Some(79));
        assert_eq!(bypassed(100, metered(9, AT)), Some(70));
        assert_eq!(bypassed(10, metered(9, AT)), Some(0));
        assert_eq!(bypassed(100, Metered::Unknown), None);
        let none = Path::measure(&[None; 2], &metered(9, AT), &node());
        assert_eq!((none.bypassed, none.metered), (None, Some(9)));
    }
}
