//! cargo-deb, which makes the Debian package: where it is, and how it is installed.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::workspace;

/// The release that set-up installs.
pub(crate) const RELEASE: &str = "3.8.0";

/// Where it is installed: beside cargo-deny, since what is in the user's own cargo directory is the user's.
fn root() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("cargo-deb"))
}

/// The program.
pub(crate) fn program() -> Result<PathBuf> {
    Ok(root()?.join("bin/cargo-deb"))
}

/// Whether this release is installed.
pub(crate) fn installed() -> Result<bool> {
    // Cargo's record of what it installed there.
    let record = fs::read_to_string(root()?.join(".crates2.json")).unwrap_or_default();
    Ok(record.contains(&format!("\"cargo-deb {RELEASE} ")))
}

/// The command that installs it. Without optimisation, and without its own xz: the program `xz` does that, and much
/// faster than an xz that wasn't optimised. It took 58 s on two cores that others used too.
pub(crate) fn install() -> Result<Command> {
    let mut command = Command::new("cargo");
    command
        .args(["install", "cargo-deb", "--version", RELEASE, "--locked", "--force", "--debug"])
        .arg("--no-default-features")
        .arg("--root")
        .arg(root()?)
        .env("CARGO_TARGET_DIR", root()?.join("build"))
        .env("CARGO_PROFILE_DEV_DEBUG", "none");
    Ok(command)
}

/// What `install` leaves behind that nobody needs.
pub(crate) fn remove_build() -> Result<()> {
    let _ = fs::remove_dir_all(root()?.join("build"));
    Ok(())
}
