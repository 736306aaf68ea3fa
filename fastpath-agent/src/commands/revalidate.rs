//! `revalidate`: empties the flowtable, so that every flow passes the filters again. Works without a running agent.

use std::{fmt, process::ExitCode};

use crate::{
    commands::print,
    core::model::TABLE,
    daemon::revalidate::{Emptied, EmptyError, empty_flowtable},
    kernel::{conntrack, nft::Nft},
};

/// Runs it.
///
/// # Errors
///
/// If the ruleset can't be read or changed.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    print(&by_hand()?.to_string())
}

/// What `fastpath-agent revalidate` did.
#[derive(Debug)]
pub struct ByHand {
    emptied: Emptied,
    /// Connections that were in a flowtable, of so many; unknown where the kernel doesn't list them.
    offloaded: Option<(u64, u64)>,
}

/// Empties the flowtable, also while no agent runs. A running agent has nothing to put back.
pub fn by_hand() -> Result<ByHand, EmptyError> {
    let mut nft = Nft::open()?;
    let offloaded = conntrack::summary().ok().map(|summary| (summary.offloaded, summary.entries));
    Ok(ByHand { emptied: empty_flowtable(&mut nft, None)?, offloaded })
}

impl fmt::Display for ByHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.emptied, self.offloaded) {
            (Emptied::Absent, _) => {
                writeln!(f, "nothing to do: the agent has no flowtable in table inet {TABLE}")
            }
            (_, Some((offloaded, entries))) => writeln!(
                f,
                "flowtable emptied: {offloaded} of {entries} connections were offloaded. Their next packets pass the \
                 filters; accepted flows are offloaded again"
            ),
            (_, None) => writeln!(f, "flowtable emptied: the next packets of all flows pass the filters"),
        }
    }
}
