//! Connections that the kernel tracks.

use std::{fmt, fs, io};

use serde::Serialize;

/// How many there are.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Entries in this network namespace.
    pub entries: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.entries)
    }
}

/// Counts them.
pub fn summary() -> Result<Summary, io::Error> {
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
    Ok(Summary { entries: count.trim().parse().map_err(io::Error::other)? })
}
