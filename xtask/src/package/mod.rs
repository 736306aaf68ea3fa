//! `cargo xtask package`: the agent, its man pages, completions, unit and configuration as a Debian package. What is in
//! it is said in fastpath-agent/Cargo.toml.

pub(crate) mod trial;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{build, cargo_tool, process, progress, setup, workspace};

/// What `cargo xtask package` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The package's own number, behind the agent's version.
    #[arg(long, default_value_t = 1)]
    revision: u32,
    /// Where to put it; target/package if that isn't said.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[setup::Need::Build, setup::Need::Package])?;
    let agent = build::agent("release")?;
    let directory = options.output.clone().unwrap_or_else(directory);
    let package = build(&agent, "release", options.revision, &directory)?;
    println!("{}", package.display());
    Ok(())
}

/// Where packages are put.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("package")
}

/// Makes the package of an agent that was built with that profile; says where it is.
pub(crate) fn build(agent: &Path, profile: &str, revision: u32, directory: &Path) -> Result<PathBuf> {
    // Where cargo-deb looks for what isn't in the repository: beside the agent.
    let pages = agent.with_file_name("pages");
    let _ = fs::remove_dir_all(&pages); // of subcommands that are no more
    process::run(Command::new(agent).arg("pages").arg(&pages))?;
    // Without names and times, so that the same pages are the same bytes.
    let mut gzip = Command::new("gzip");
    process::run(gzip.args(["-9", "-n", "-r"]).arg(pages.join("man")))?;
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let revision = revision.to_string();
    let package = directory.join(format!("fastpath-agent-{revision}.deb"));
    // Of the files in it, for the same bytes each time.
    let mut time = Command::new("git");
    let time = process::output(time.args(["log", "-1", "--format=%ct"]).current_dir(workspace::root()));
    let mut command = Command::new(cargo_tool::DEB.program()?);
    if let Ok(time) = time {
        command.env("SOURCE_DATE_EPOCH", time.trim());
    }
    command
        .args(["--package", "fastpath-agent", "--profile", profile, "--no-build", "--locked", "--quiet"])
        .args(["--deb-revision", &revision, "--output"])
        .arg(&package)
        .current_dir(workspace::root());
    progress::step("making the Debian package", &mut command)?;
    Ok(package)
}
