//! `cargo xtask reproduce`: whether two releases of the last commit, each built in a clone of its own, are the same bytes.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};
use fs_err as fs;

use crate::{arch::Arch, process, progress, release, workspace};

/// What `cargo xtask reproduce` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// For which processors; for all if none is named. Repeatable.
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
}

/// Of different length, so that a path which got into a build shows.
const CLONES: [&str; 2] = ["one", "the-other"];

pub(crate) fn run(options: &Options) -> Result<()> {
    let place = workspace::target().join("reproduce");
    let clones = CLONES.map(|name| place.join(name));
    // Both before the first is built: a commit that is made meanwhile has another time, which gets into the files.
    for clone in &clones {
        let _ = fs::remove_dir_all(clone); // of a run that was interrupted
        process::run(Command::new("git").args(["clone", "--quiet"]).arg(workspace::root()).arg(clone))?;
    }
    let mut builds = Vec::new();
    for clone in &clones {
        builds.push(sums(clone, &options.arch)?);
        fs::remove_dir_all(clone)?;
    }
    let [one, other] = &builds[..] else { bail!("two builds") };
    print!("{one}");
    let differ: Vec<_> = other.lines().filter(|line| !one.lines().any(|same| same == *line)).collect();
    if differ.is_empty() && !one.is_empty() {
        return Ok(());
    }
    bail!("two builds differ; the other one's:\n{}", differ.join("\n"))
}

/// Makes the clone's release; the digests of its files.
fn sums(clone: &Path, arches: &[Arch]) -> Result<String> {
    let mut command = Command::new("cargo");
    command.args(["xtask", "release", "--without-trial"]).current_dir(clone).env_remove("CARGO_TARGET_DIR");
    command.args(arches.iter().map(|arch| format!("--arch={}", arch.debian())));
    let label = format!("release in {}", clone.file_name().unwrap_or_default().display());
    progress::step(&label, &mut command)?;
    let file = release::directory(&clone.join("target")).join(release::SUMS);
    Ok(fs::read_to_string(&file)?)
}
