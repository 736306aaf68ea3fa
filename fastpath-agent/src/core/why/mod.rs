//! Why a flow is accelerated or isn't: from what was read of it to a story in steps and one verdict. Pure; reading is
//! `kernel::why`'s, words for people and programs are made here, lines are `report`'s.

mod facts;
mod flow_spec;
mod obstacles;
mod reason;
mod story;
mod wanted;

use crate::core::why_not::Reason;
use serde::Serialize;

pub use self::{
    facts::{Direction, FlowFacts, Flowtable, Moved, Program, Route, Ruleset, Slow, Wanted, Way},
    flow_spec::{BadFlow, FlowSpec},
    story::{Step, StepMark, StepName},
    wanted::{matching, named, packets},
};

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// What was found out, in the order in which a packet meets it.
    pub steps: Vec<Step>,
    /// What comes of it.
    pub verdict: Verdict,
}

/// Whether the flow is accelerated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether its packets bypass the forward path.
    pub accelerated: Accelerated,
    /// Why not, or why not with all packets: the first of all reasons that hold.
    #[serde(flatten)]
    pub reason: Option<Reason>,
    /// Measured or read, not concluded.
    pub certain: bool,
    /// In one line.
    pub text: String,
    /// What can be done about it, if anything can.
    pub remedy: Option<String>,
}

/// Whether packets bypass the forward path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerated {
    /// They do.
    Yes,
    /// The flow is in the flowtable, and no packet came while it was watched.
    Quiet,
    /// Some do.
    Partly,
    /// They don't.
    No,
    /// Neither conntrack nor our counters know the flow.
    NotFound,
}

/// Explains.
pub fn explain(facts: &FlowFacts) -> Explanation {
    let obstacles = obstacles::of(facts);
    Explanation { steps: story::tell(facts, &obstacles), verdict: verdict(facts, obstacles) }
}

fn verdict(facts: &FlowFacts, obstacles: Vec<obstacles::Obstacle>) -> Verdict {
    let first = obstacles.into_iter().next();
    let (accelerated, text) = match (facts.way(), &first) {
        (None, _) => (Accelerated::NotFound, None),
        (Some(_), Some(obstacle))
            if matches!(obstacle.reason, Reason::DeadNeighbour { .. } | Reason::Lost { .. }) =>
        {
            (Accelerated::No, None)
        }
        (Some(Way::Fast), Some(obstacle)) if matches!(obstacle.reason, Reason::Interface { .. }) => {
            (Accelerated::No, None)
        }
        (Some(Way::Fast), _) if facts.moved() == 0 => (Accelerated::Quiet, Some(story::accelerated(facts))),
        (Some(Way::Fast), _) => (Accelerated::Yes, Some(story::accelerated(facts))),
        (Some(Way::Mixed), Some(_)) => (Accelerated::Partly, None),
        (Some(Way::Mixed), None) => (Accelerated::Partly, Some(story::accelerated(facts))),
        (Some(Way::Slow), _) => (Accelerated::No, None),
    };
    match (accelerated, first) {
        (Accelerated::Yes | Accelerated::Quiet | Accelerated::Partly, None) => Verdict {
            accelerated,
            reason: None,
            certain: facts.measured(),
            text: text.unwrap_or_default(),
            remedy: None,
        },
        (Accelerated::NotFound, first) => Verdict {
            accelerated,
            certain: first.as_ref().is_none_or(|obstacle| obstacle.certain),
            text: story::not_found(facts, first.as_ref()),
            remedy: Some(story::not_found_remedy(facts)),
            reason: first.map(|obstacle| obstacle.reason),
        },
        (_, first) => {
            let obstacle = first.unwrap_or(obstacles::Obstacle { reason: Reason::Unknown, certain: true });
            let text = text.map_or_else(
                || story::hindered(accelerated, &obstacle, facts),
                |text| format!("{text}; {}", obstacle.reason.text(facts)),
            );
            Verdict {
                accelerated,
                certain: obstacle.certain,
                remedy: obstacle.reason.remedy(facts),
                text,
                reason: Some(obstacle.reason),
            }
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
