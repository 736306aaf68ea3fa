//! Prometheus for the tests: Debian's package, downloaded and unpacked but not installed, since installing it would start a
//! server on this machine.

use std::path::PathBuf;

use anyhow::Result;

use crate::{guest::kernels, workspace};

/// Where `prometheus` and `promtool` are, or will be.
pub(crate) fn directory() -> Result<PathBuf> {
    Ok(unpacked()?.join("usr/bin"))
}

pub(crate) fn is_there() -> Result<bool> {
    let directory = directory()?;
    Ok(["prometheus", "promtool"].iter().all(|program| directory.join(program).exists()))
}

pub(crate) fn download() -> Result<()> {
    kernels::unpack("prometheus", &[], &unpacked()?)
}

fn unpacked() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("prometheus"))
}
