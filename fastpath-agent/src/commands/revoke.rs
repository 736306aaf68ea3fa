//! `revoke`: ends the acceleration of connections, or the connections themselves. Works without a running agent; one that
//! runs keeps what is done here (`core::ruleset::desired::keep_revoked`).

use std::{
    fmt,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cli::RevokeArgs,
    commands::print,
    core::{
        flow::{
            connection::{Entry, TCP, UDP},
            filter::Filter,
        },
        ruleset::{empty, observed::Owner, sets::OwnSet},
    },
    daemon::revalidate::EmptyError,
    kernel::{
        Ruleset,
        conntrack::{Conntrack, ConntrackError, Deletion},
        nft::{CommitError, Nft},
    },
};

/// Runs `revoke`.
pub(super) fn run(args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    print(&revoke(args)?.to_string())
}

/// Transactions that may lose against other programs' before the agent gives up.
const ATTEMPTS: u32 = 8;
/// How long the kernel may take to free connections that have left the flowtable.
const FREED_WITHIN: Duration = Duration::from_secs(5);
/// How long deleted connections are remembered.
const KILLED_TIMEOUT_MS: u64 = 60_000;

/// Connections can't be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// They can't be read or deleted.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// They can't be kept out of the flowtable.
    #[error(transparent)]
    Empty(#[from] EmptyError),
    /// The set of revoked connections is full.
    #[error(
        "{matching} connections match, and at most {most} can be revoked: narrow the selection, or exclude them from offloading"
    )]
    TooMany {
        /// How many match.
        matching: usize,
        /// How many fit.
        most: u32,
    },
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Revoked {
    matching: usize,
    offloaded: usize,
    /// Connections deleted; `None` without `--kill`.
    killed: Option<usize>,
    /// Connections that are still in a flowtable, which is another program's then.
    left: usize,
    /// The agent has no flowtable.
    absent: bool,
}

/// Revokes the connections of the calling thread's network namespace that `args` describe.
pub fn revoke(args: &RevokeArgs) -> Result<Revoked, RevokeError> {
    let filter = Filter {
        networks: args.address.clone(),
        ports: args.port.clone(),
        protocols: args.protocol.iter().map(|protocol| protocol.number()).collect(),
        ..Filter::default()
    };
    let mut conntrack = Conntrack::open()?;
    let mut entries = Vec::new();
    conntrack.dump(|entry| {
        let protocol = entry.original.protocol;
        if (args.kill || protocol == TCP || protocol == UDP)
            && filter.admits_ends(&entry.original, Some(&entry.reply))
        {
            entries.push(entry);
        }
    })?;
    let mut revoked = Revoked {
        matching: entries.len(),
        offloaded: entries.iter().filter(|entry| entry.status.offloaded()).count(),
        ..Revoked::default()
    };
    if entries.is_empty() {
        return Ok(revoked);
    }
    // Deletion needs it only for those that the kernel wouldn't delete.
    let held = |entry: &&Entry| !args.kill || entry.status.offloaded();
    let ids: Vec<u32> = entries.iter().filter(held).map(|entry| entry.id).collect();
    let shape = OwnSet::Revoked.shape();
    if ids.len() > shape.size as usize {
        return Err(RevokeError::TooMany { matching: ids.len(), most: shape.size });
    }
    let timeout_ms = if args.kill { KILLED_TIMEOUT_MS } else { shape.timeout_ms };
    if !ids.is_empty() {
        revoked.absent = !hold_out(&ids, timeout_ms)?;
    }
    if args.kill {
        kill(&mut conntrack, entries, &mut revoked)?;
    }
    Ok(revoked)
}

/// Empties the flowtable and keeps these connections from coming back; false if the agent has no flowtable.
fn hold_out(ids: &[u32], timeout_ms: u64) -> Result<bool, EmptyError> {
    let mut nft = Nft::open()?;
    let mut refusal = CommitError::Stale;
    for _ in 0..ATTEMPTS {
        let observed = nft.observe()?;
        let Some(table) = observed.table.filter(|table| table.owner == Owner::Agent) else {
            return Ok(false);
        };
        let ops = empty::revoke(&table, ids.to_vec(), timeout_ms)?;
        if ops.is_empty() {
            return Ok(false);
        }
        match nft.commit(&ops, observed.generation) {
            Ok(_) => return Ok(true),
            Err(CommitError::Io(error)) => return Err(error.into()),
            Err(error) => refusal = error,
        }
    }
    Err(EmptyError::Commit(refusal))
}

fn kill(
    conntrack: &mut Conntrack,
    mut entries: Vec<Entry>,
    revoked: &mut Revoked,
) -> Result<(), ConntrackError> {
    let start = Instant::now();
    let mut killed = 0;
    loop {
        let mut left = Vec::new();
        for entry in entries {
            match conntrack.delete(&entry)? {
                Deletion::Done => killed += 1,
                Deletion::Gone => {}
                Deletion::Offloaded => left.push(entry),
            }
        }
        entries = left;
        if entries.is_empty() || start.elapsed() > FREED_WITHIN {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    revoked.killed = Some(killed);
    revoked.left = entries.len();
    Ok(())
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { matching, offloaded, killed, left, absent } = self;
        if *matching == 0 {
            return writeln!(f, "no connection matches");
        }
        write!(f, "{matching} connections match, {offloaded} of them were offloaded: ")?;
        match killed {
            Some(killed) => write!(f, "{killed} were deleted")?,
            None if *absent => write!(f, "nothing to do: the agent has no flowtable")?,
            None => write!(f, "all of their packets pass the filters from now on")?,
        }
        if *left > 0 {
            write!(f, ", except for {left} in another program's flowtable")?;
        }
        writeln!(f)
    }
}
