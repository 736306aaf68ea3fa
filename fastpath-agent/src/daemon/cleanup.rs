//! Removes all that the agent ever installed on this node, and nothing else.

use std::{fmt, path::Path};
use tracing::{debug, info};

use super::DaemonError;
use crate::{
    config::Config,
    core::{
        model::TABLE,
        ruleset::diff::{self, Decision, ForeignTable},
    },
    kernel::{
        Ruleset,
        bpf::{self, CleanupReport},
        event_socket, export_file,
        nft::{CommitError, Nft},
    },
};

/// Transactions that may lose against other programs' before the agent gives up.
const ATTEMPTS: u32 = 8;

/// Result for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCleanup {
    /// There was none.
    Absent,
    /// The agent's was removed.
    Removed,
    /// Another program's was left there.
    Foreign,
}

/// What a clean-up did.
#[derive(Debug)]
pub struct Cleanup {
    /// About the table.
    pub table: TableCleanup,
    /// About programs and maps.
    pub ebpf: bpf::CleanupReport,
    /// Whether an agent that is gone had left its socket behind.
    pub socket: bool,
    /// Whether there was a file of exported flow records.
    pub exported: bool,
}

/// Removes everything; another program's table of our name stays.
pub fn cleanup(pin_path: &Path, run_dir: &Path) -> Result<Cleanup, DaemonError> {
    let table = remove_table(&mut Nft::open()?)?;
    let ebpf = bpf::cleanup(pin_path)?;
    let exported = export_file::remove(run_dir).map_err(DaemonError::Exported)?;
    let socket = event_socket::cleanup(run_dir)?;
    Ok(Cleanup { table, ebpf, socket, exported })
}

/// Removes our table with all that is in it.
pub fn remove_table(ruleset: &mut impl Ruleset) -> Result<TableCleanup, DaemonError> {
    for _ in 0..ATTEMPTS {
        let observed = ruleset.observe()?;
        let ops = match diff::diff(&None, &observed, ForeignTable::Refuse) {
            Decision::Foreign => return Ok(TableCleanup::Foreign),
            Decision::Apply(ops) if ops.is_empty() => return Ok(TableCleanup::Absent),
            Decision::Apply(ops) => ops,
        };
        match ruleset.commit(&ops, observed.generation) {
            Ok(_) => return Ok(TableCleanup::Removed),
            Err(CommitError::Stale) => {}
            Err(error) => return Err(DaemonError::Remove(error)),
        }
    }
    Err(DaemonError::Remove(CommitError::Stale))
}

impl fmt::Display for Cleanup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.table {
            TableCleanup::Absent => writeln!(f, "table     none was there")?,
            TableCleanup::Removed => writeln!(f, "table     inet {TABLE} removed")?,
            TableCleanup::Foreign => {
                writeln!(f, "table     inet {TABLE} was made by another program: left alone")?
            }
        }
        match self.ebpf.detached.as_slice() {
            [] => writeln!(f, "programs  none were attached")?,
            names => writeln!(f, "programs  detached from {}", names.join(", "))?,
        }
        match self.ebpf.unpinned.as_slice() {
            [] => writeln!(f, "maps      none were pinned")?,
            names => writeln!(f, "maps      removed {}", names.join(", "))?,
        }
        if self.socket {
            writeln!(f, "socket    of an agent that is gone removed")?;
        }
        if self.exported {
            writeln!(f, "export    what was exported is forgotten")?;
        }
        Ok(())
    }
}

/// An earlier agent may have left programs attached that this one doesn't use.
pub(super) fn remove_leftovers(config: &Config) {
    match bpf::cleanup(&config.pin_path) {
        Ok(report) if report == CleanupReport::default() => {}
        Ok(report) => info!(
            detached = report.detached.join(", "),
            "programs of an earlier agent are removed (--ebpf=off)"
        ),
        Err(error) => debug!(%error, "programs of an earlier agent, if any, stay"),
    }
}
