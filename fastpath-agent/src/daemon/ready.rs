//! Whether the node is as the flags want it: one decision, for `/readyz`, metrics and the service manager. Pure.

use super::reconcile::Standing;
use crate::core::model::TABLE;

/// What it is judged by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inputs<'a> {
    /// The threshold in force; 0: flows are only watched.
    pub threshold: u32,
    /// Why this kernel can't offload flows, if it can't.
    pub lacks: Option<&'a str>,
    /// The bug of this kernel that offloading is switched off for.
    pub bug: Option<&'a str>,
    /// State of our table after the last reconcile; `None` before the first, or without flowtables.
    pub standing: Option<Standing>,
    /// Why the last reconcile failed, if it did.
    pub failure: Option<&'a str>,
    /// The eBPF programs are loaded, and attached to the interfaces that take them.
    pub watches: bool,
}

/// Why the node isn't ready; one line each, with the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// The first reconcile isn't done.
    #[error("starting: the ruleset isn't verified yet")]
    Starting,
    /// The kernel can't offload flows, and isn't told to do without.
    #[error("nothing is offloaded: {0}; to only watch flows, set --mode=watch")]
    NoFlowtable(String),
    /// Offloading is switched off for the node's own good.
    #[error(
        "nothing is offloaded: this kernel has the known bug {0} (docs/kernels.md); to only watch flows, set \
         --mode=watch"
    )]
    KnownBug(String),
    /// Another program's table has our name.
    #[error("table inet {TABLE} was made by another program: switch that program off, or use --takeover")]
    Foreign,
    /// The kernel doesn't have the table as it should be.
    #[error("table inet {TABLE} isn't as it should be: {0}; trying again")]
    Wrong(String),
    /// No flows are wanted offloaded, and none can be watched.
    #[error(
        "nothing is offloaded (threshold 0, or mode watch), and flows aren't watched either: see --ebpf, and the agent's log"
    )]
    NotWatched,
}

impl NotReady {
    /// Whether the agent has done all it can about it.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Starting | Self::Wrong(_))
    }
}

/// Whether the ruleset was verified in the kernel; where flows are only to be watched, whether they are.
///
/// The last reconcile's findings count: a change since then is seen within milliseconds.
pub fn ready(facts: &Inputs<'_>) -> Result<(), NotReady> {
    let offloads = facts.threshold != 0;
    match facts.standing {
        None if facts.lacks.is_none() => return Err(NotReady::Starting),
        Some(Standing::Foreign) if offloads => return Err(NotReady::Foreign),
        Some(Standing::Wrong) => {
            return Err(NotReady::Wrong(facts.failure.unwrap_or("the last attempt failed").to_owned()));
        }
        None | Some(Standing::Right | Standing::Foreign) => {}
    }
    match (offloads, facts.lacks, facts.bug) {
        (true, Some(reason), _) => Err(NotReady::NoFlowtable(reason.to_owned())),
        (true, None, Some(bug)) => Err(NotReady::KnownBug(bug.to_owned())),
        (true, None, None) => Ok(()),
        (false, ..) if facts.watches => Ok(()),
        (false, ..) => Err(NotReady::NotWatched),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_verified_or_watching_where_that_is_wanted() {
        let right = Inputs { threshold: 20, standing: Some(Standing::Right), ..Inputs::default() };
        let watching = Inputs { threshold: 0, watches: true, ..right };
        let lacks = Some("no flowtables");
        let cases = [
            ("verified", right, Ok(())),
            ("before the first reconcile", Inputs { standing: None, ..right }, Err("starting")),
            ("a stranger's table", Inputs { standing: Some(Standing::Foreign), ..right }, Err("--takeover")),
            (
                "refused",
                Inputs { standing: Some(Standing::Wrong), failure: Some("ENOMEM"), ..right },
                Err("ENOMEM"),
            ),
            ("a bug", Inputs { bug: Some("stale-route"), ..right }, Err("stale-route")),
            ("no flowtable", Inputs { standing: None, lacks, ..right }, Err("no flowtables; to only watch")),
            ("watching", watching, Ok(())),
            ("watching without a flowtable", Inputs { standing: None, lacks, ..watching }, Ok(())),
            (
                "watching beside a stranger's table",
                Inputs { standing: Some(Standing::Foreign), ..watching },
                Ok(()),
            ),
            ("watching a kernel with a bug", Inputs { bug: Some("stale-route"), ..watching }, Ok(())),
            (
                "our table can't be removed",
                Inputs { standing: Some(Standing::Wrong), ..watching },
                Err("isn't as it should"),
            ),
            ("not even watching", Inputs { watches: false, ..watching }, Err("threshold 0")),
            ("not yet watching", Inputs { standing: None, ..watching }, Err("starting")),
        ];
        for (name, facts, expected) in cases {
            match (ready(&facts).map_err(|e| e.to_string()), expected) {
                (Ok(()), Ok(())) => {}
                (Err(said), Err(words)) if said.contains(words) && !said.contains('\n') => {}
                (found, expected) => panic!("{name}: {found:?}, not {expected:?}"),
            }
        }
    }
}
