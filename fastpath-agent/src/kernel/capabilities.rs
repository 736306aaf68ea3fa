//! Capabilities of a process, as /proc has them.

use std::{fs, io, path::Path};

/// A set of capabilities in a `/proc/PID/status`: `CapEff:`, `CapBnd:` (proc(5)).
pub(super) fn capabilities(status: &Path, set: &str) -> io::Result<u64> {
    let text = fs::read_to_string(status)?;
    let field = text.lines().find_map(|line| line.strip_prefix(set)).ok_or(io::ErrorKind::InvalidData)?;
    u64::from_str_radix(field.trim(), 16).map_err(io::Error::other)
}
