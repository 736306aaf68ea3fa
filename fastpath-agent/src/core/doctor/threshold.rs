//! Whether another threshold would save this node more work, by the lengths of its connections.

use super::{Finding, facts::NodeFacts};
use crate::core::threshold::{DEFAULT, LADDER};

const CHECK: &str = "threshold";

pub(super) fn findings(facts: &NodeFacts) -> Option<Finding> {
    let standing = facts.policy.threshold;
    let lengths = facts.lengths.as_ref().filter(|_| standing > 0)?;
    let Some(advice) = lengths.advise(standing) else {
        let few = lengths.directions();
        let found =
            format!("{standing}: too few flows seen to tell whether another is better ({few} directions)");
        return Some(Finding::green(CHECK, found));
    };
    if !advice.is_to_change() {
        let found = format!("{standing}: {advice}; no other threshold would save much more work");
        return Some(Finding::green(CHECK, found));
    }
    let best = advice.best;
    let found = format!("{standing}: {advice}; {} saves more work ({} %)", best.threshold, best.fast_percent);
    Some(if facts.chooses_threshold {
        Finding::green(CHECK, format!("{found}, which the agent takes at its next check"))
    } else {
        let (low, high) = (LADDER[0], LADDER[LADDER.len() - 1]);
        let remedy = format!(
            "start the agent with --fastpath-threshold={}, or with auto, which chooses from {low} to {high}; {DEFAULT} is the default",
            best.threshold
        );
        Finding::amber(CHECK, found, remedy)
    })
}
