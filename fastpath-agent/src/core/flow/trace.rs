//! Traces: what packets past the threshold leave for those of the other direction, and what they say of a flow that isn't
//! offloaded.

use serde::Serialize;

use crate::core::{model::IfIndex, ruleset::expr::Direction, why_not::WhyNot};

/// A packet of this direction was accepted within the last two seconds, and didn't offload its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// Its direction.
    #[serde(serialize_with = "as_word")]
    pub direction: Direction,
    /// Where it came in. Behind a postrouting filter it is the VRF's device instead of its link.
    pub input: IfIndex,
    /// Where it left.
    pub output: IfIndex,
    /// Milliseconds since the last packet like it.
    pub idle_ms: u64,
}

fn as_word<S: serde::Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(direction)
}

/// What the traces of a flow that isn't offloaded show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// No packet got as far as the rule that offloads.
    None,
    /// Only packets of this direction did.
    Only(Direction),
    /// Packets of both did, but not over the same two interfaces: these are their traces.
    Asymmetric([Trace; 2]),
    /// Packets of both did, over the same two interfaces.
    Both,
}

impl Evidence {
    /// Why a flow with it isn't offloaded, where that can be told.
    pub fn cause(self) -> Option<WhyNot> {
        match self {
            Self::Only(_) => Some(WhyNot::OneDirection),
            Self::Asymmetric(_) => Some(WhyNot::Asymmetric),
            Self::None | Self::Both => None,
        }
    }

    /// Of the traces of one flow.
    pub fn of(traces: &[Trace]) -> Self {
        let latest = |direction| {
            let of = traces.iter().filter(|trace| trace.direction == direction);
            of.min_by_key(|trace| trace.idle_ms).copied()
        };
        let mirrored = |trace: &Trace| {
            traces.iter().any(|other| {
                other.direction == trace.direction.other()
                    && (other.input, other.output) == (trace.output, trace.input)
            })
        };
        match (latest(Direction::Original), latest(Direction::Reply)) {
            (None, None) => Self::None,
            (Some(_), None) => Self::Only(Direction::Original),
            (None, Some(_)) => Self::Only(Direction::Reply),
            (Some(_), Some(_)) if traces.iter().any(mirrored) => Self::Both,
            (Some(original), Some(reply)) => Self::Asymmetric([original, reply]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_over_the_same_interfaces_are_evidence() {
        let trace = |direction, input, output| Trace {
            direction,
            input: IfIndex(input),
            output: IfIndex(output),
            idle_ms: 0,
        };
        let (original, reply) = (trace(Direction::Original, 2, 3), trace(Direction::Reply, 3, 2));
        let elsewhere = trace(Direction::Reply, 4, 2);
        for (traces, expected) in [
            (&[][..], Evidence::None),
            (&[original], Evidence::Only(Direction::Original)),
            (&[reply], Evidence::Only(Direction::Reply)),
            (&[original, reply], Evidence::Both),
            (&[original, elsewhere, reply], Evidence::Both),
            (&[elsewhere, original], Evidence::Asymmetric([original, elsewhere])),
        ] {
            assert_eq!(Evidence::of(traces), expected, "{traces:?}");
        }
    }
}
