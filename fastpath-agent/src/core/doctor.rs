//! `doctor`: judges what is known of a node. Facts in, findings out, each with what was found and the remedy.
//!
//! Green: as it should be. Amber: flows are accelerated, but something is worse than it need be or couldn't be looked
//! at. Red: flows aren't accelerated, or connections may break.

use serde::Serialize;

mod canary;
pub mod facts;
mod forward;
mod host;
mod network;
mod rules;
mod surroundings;
#[cfg(test)]
#[path = "doctor_tests.rs"]
mod tests;
mod threshold;

use facts::{Canary, NodeFacts};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Green,
    /// Works, but worse than it could.
    Amber,
    /// Doesn't work, or may break connections.
    Red,
}

impl Level {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Green => "green",
            Self::Amber => "amber",
            Self::Red => "red",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check: a stable name (docs/doctor.md has them all).
    pub check: &'static str,
    /// What it is about, where a check looks at several things: an interface, a family, a flow.
    pub subject: Option<String>,
    /// How bad it is.
    pub level: Level,
    /// What was found, one line.
    pub found: String,
    /// What to do about it, one sentence; there for all that isn't green.
    pub remedy: Option<String>,
}

impl Finding {
    fn green(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, subject: None, level: Level::Green, found: found.into(), remedy: None }
    }

    fn amber(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { check, subject: None, level: Level::Amber, found: found.into(), remedy }
    }

    fn red(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Red, ..Self::amber(check, found, remedy) }
    }

    fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: Some(subject.into()), ..self }
    }
}

/// Makes every check, in the order in which a reader wants to see them.
pub fn examine(facts: &NodeFacts, canary: &Canary) -> Vec<Finding> {
    let mut findings = host::findings(facts);
    findings.extend(network::findings(facts));
    findings.extend(forward::findings(facts));
    findings.extend(threshold::findings(facts));
    findings.extend(rules::findings(facts));
    findings.extend(surroundings::findings(facts));
    findings.extend(canary::findings(facts, canary));
    findings
}

/// The worst of them.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Green)
}

/// Whether a flow can be offloaded at all as far as the kernel goes.
fn lacks_flowtable(facts: &NodeFacts) -> Option<&str> {
    let missing =
        |feature: &facts::Feature| feature.vital && feature.missing.as_ref().is_some_and(|m| m.certain);
    let feature = facts.kernel.features.iter().find(|feature| missing(feature))?;
    feature.missing.as_ref().map(|missing| missing.reason.as_str())
}

/// The first few of a list, and how many more.
fn some<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    const SHOWN: usize = 8;
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.len().saturating_sub(SHOWN) {
        0 => items.join(", "),
        more => format!("{} and {more} more", items[..SHOWN].join(", ")),
    }
}
