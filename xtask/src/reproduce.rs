//! `cargo xtask reproduce`: whether two builds of the last commit, each from a clone of its own, are the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{process, progress, workspace};

/// Of different length, so that a path which got into a build shows.
const CLONES: [&str; 2] = ["one", "the-other"];

pub(crate) fn run() -> Result<()> {
    let place = workspace::target().join("reproduce");
    let mut builds = Vec::new();
    for name in CLONES {
        let clone = place.join(name);
        builds.push(artefacts(&clone)?);
        fs::remove_dir_all(&clone).with_context(|| format!("cannot remove {}", clone.display()))?;
    }
    let mut differ = Vec::new();
    for ((name, sum), (_, other)) in builds[0].iter().zip(&builds[1]) {
        println!("{sum}  {name}");
        if sum != other {
            println!("{other}  {name}, the other");
            differ.push(*name);
        }
    }
    if differ.is_empty() { Ok(()) } else { bail!("two builds differ: {}", differ.join(", ")) }
}

/// Builds the clone; the sum of each artefact.
fn artefacts(clone: &Path) -> Result<Vec<(&'static str, String)>> {
    let _ = fs::remove_dir_all(clone); // of a run that was interrupted
    process::run(Command::new("git").args(["clone", "--quiet"]).arg(workspace::root()).arg(clone))?;
    let xtask = |what: &str| {
        let mut command = Command::new("cargo");
        command.args(["xtask", what]).current_dir(clone).env_remove("CARGO_TARGET_DIR");
        let shown = format!("{what} in {}", clone.file_name().unwrap_or_default().display());
        progress::step(&shown, &mut command)
    };
    xtask("image")?;
    xtask("package")?;
    let target = clone.join("target");
    let version = env!("CARGO_PKG_VERSION");
    let files: [(&str, PathBuf); 3] = [
        ("fastpath-agent", "release/fastpath-agent".into()),
        ("the image", format!("image/fastpath-agent-{version}.tar").into()),
        ("the package", "package/fastpath-agent-1.deb".into()),
    ];
    files.into_iter().map(|(name, file)| Ok((name, sum(&target.join(file))?))).collect()
}

fn sum(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}
