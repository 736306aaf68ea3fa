//! Least privilege: what the process may do is cut down once before it starts and once when it has started. Nothing of it can be
//! taken back by the process, and threads that it starts later have no more.

mod calls;
mod files;

use std::{collections::HashSet, io, path::Path};

use caps::{CapSet, Capability};

pub use files::Files;

/// What starting takes: the ruleset and links, maps and programs, the probe at a function of the kernel. The last one replaces
/// two of them where a container runtime doesn't know those, and Debian's kernels need it for probes (`kernel.perf_event_paranoid`).
const TO_START: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BROADCAST,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
];
/// What is left then. Programs that are loaded are attached with it, too.
const TO_RUN: [Capability; 1] = [Capability::CAP_NET_ADMIN];

/// A part that couldn't be done.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Capabilities stay.
    #[error("capabilities can't be given up: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// All system calls stay allowed.
    #[error("system calls can't be filtered: {0}")]
    Calls(#[from] calls::FilterError),
    /// All files that root may touch stay open to it.
    #[error("access to files can't be restricted: {0}")]
    Files(#[from] landlock::RulesetError),
}

/// How far access to files is restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restriction {
    /// As far as this version knows how to.
    Full,
    /// As far as this kernel can.
    Part,
    /// The kernel has no Landlock, or it was switched off at boot.
    None,
}

/// Gives up all capabilities but those that starting takes. One that isn't there isn't missed here.
pub fn before_start() -> Result<(), ConfineError> {
    keep(&TO_START)
}

/// Gives up what only starting takes: capabilities but `CAP_NET_ADMIN`, system calls that a running agent doesn't make, files but
/// those in `files`, connections but those to its port. Each part is tried even if another one fails.
pub fn when_started(files: &Files) -> (Result<Restriction, ConfineError>, Vec<ConfineError>) {
    // Landlock and a filter take CAP_SYS_ADMIN, or this. Both crates set it too.
    let restriction = files.restrict();
    let mut failures = Vec::new();
    if let Err(error) = keep(&TO_RUN) {
        failures.push(error);
    }
    // Last: it doesn't allow what the others call.
    if let Err(error) = calls::filter(files.connects()) {
        failures.push(error.into());
    }
    (restriction.map_err(Into::into), failures)
}

/// Takes all others from the calling thread. Ambient ones go with the inheritable ones (capabilities(7)).
fn keep(wanted: &[Capability]) -> Result<(), ConfineError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept: HashSet<_> = wanted.iter().copied().filter(|one| permitted.contains(one)).collect();
    caps::set(None, CapSet::Inheritable, &HashSet::new())?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}

/// Whether the file can still be read.
pub fn readable(path: &Path) -> io::Result<()> {
    std::fs::File::open(path).map(drop)
}
