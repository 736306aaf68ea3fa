//! How many connections there are of each kind. Counts one flow after the other and holds none.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use strum::IntoEnumIterator;

use super::{Flow, group::Group, left_out};
use crate::core::why_not::{Cause, WhyNot};

/// Names of the states that connections in conntrack are counted by ([`super::State::name`]).
pub const COUNTED_STATES: [&str; 8] =
    ["offloaded", "hw-offloaded", "crossed", "stalled", "never", "idle", "below-threshold", "closing"];

/// Connections of each kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowSums {
    /// By state, one of [`COUNTED_STATES`].
    pub states: BTreeMap<&'static str, u64>,
    /// By group.
    pub groups: BTreeMap<Group, u64>,
    /// Stalled ones by [`WhyNot::name`].
    pub stalled: BTreeMap<&'static str, u64>,
    /// Those of them that a rule of another program wants every packet of, by the rule's family, table and chain.
    pub left_out: BTreeMap<String, u64>,
    /// Offloaded ones whose packets are still on the normal path.
    pub slow: u64,
}

impl FlowSums {
    /// The next flow. Those that conntrack doesn't have (any more) don't count.
    pub fn add(&mut self, flow: &Flow) {
        if flow.entry.is_none() {
            return;
        }
        *self.states.entry(flow.state.name()).or_default() += 1;
        *self.groups.entry(flow.group()).or_default() += 1;
        self.slow += u64::from(flow.slow());
        if let Some(cause) = flow.state.cause() {
            *self.stalled.entry(cause.why.name()).or_default() += 1;
            if let Cause { why: WhyNot::EveryPacket, about: Some(rule) } = cause {
                let place = left_out::place(rule);
                match self.left_out.get_mut(place) {
                    Some(count) => *count += 1,
                    None => drop(self.left_out.insert(place.to_owned(), 1)),
                }
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.states.values().sum()
    }
}

impl fmt::Display for FlowSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, group) in Group::iter().enumerate() {
            let separator = if number > 0 { ", " } else { "" };
            write!(f, "{separator}{} {}", self.groups.get(&group).copied().unwrap_or(0), group.words())?;
            let stalled = self.states.get("stalled").copied().unwrap_or(0) + self.slow;
            if group == Group::CouldBeFast && stalled > 0 {
                write!(f, " ({stalled} of them have had enough packets: `fastpath-agent why --top`)")?;
            }
        }
        Ok(())
    }
}
