//! cargo-deny, which checks licences and sources: where it is, and how it is installed.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use crate::workspace;

/// The release that set-up installs.
pub(crate) const RELEASE: &str = "0.20.2";

/// Where it is installed: beside bpf-linker, since what is in the user's own cargo directory is the user's.
fn root() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("cargo-deny"))
}

/// The program.
pub(crate) fn program() -> Result<PathBuf> {
    Ok(root()?.join("bin/cargo-deny"))
}

/// Whether this release is installed.
pub(crate) fn installed() -> Result<bool> {
    // Cargo's record of what it installed there.
    let record = fs::read_to_string(root()?.join(".crates2.json")).unwrap_or_default();
    Ok(record.contains(&format!("\"cargo-deny {RELEASE} ")))
}

/// The command that installs it; without optimisation, since it runs for a second and takes minutes to build.
pub(crate) fn install() -> Result<Command> {
    let mut command = Command::new("cargo");
    command
        .args(["install", "cargo-deny", "--version", RELEASE, "--locked", "--force", "--debug"])
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
