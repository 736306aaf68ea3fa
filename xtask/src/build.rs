//! Builds what runs: the eBPF objects first, then the agent that carries them, then the tests.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::{
    arch::Arch,
    ebpf::{self, Objects},
    process, workspace,
};

/// What `cargo xtask build` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Cargo's profile for the agent.
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Programs by name.
pub(crate) type Binaries = BTreeMap<String, PathBuf>;

pub(crate) fn run(options: &Options) -> Result<()> {
    println!("{}", agent(&options.profile, Arch::default())?.display());
    Ok(())
}

/// The agent, with the eBPF object in it.
pub(crate) fn agent(profile: &str, arch: Arch) -> Result<PathBuf> {
    let mut built = cargo(profile, arch, &["-p", "fastpath-agent", "--bins"], &ebpf::build(arch)?)?;
    built.remove("fastpath-agent").context("cargo built no fastpath-agent")
}

/// The agent, the guest's PID 1, and another of the guest's programs.
pub(crate) fn with_program(program: &str) -> Result<Binaries> {
    // The same packages as below: with fewer of them cargo would choose other features, and build all of it twice.
    let what = ["-p", "fastpath-agent", "-p", "fastpath-tests", "--bins"];
    complete(cargo("guest", Arch::default(), &what, &ebpf::build(Arch::default())?)?, &[program])
}

/// The same, and the agent whose maps have another layout.
pub(crate) fn with_program_and_other_maps(program: &str) -> Result<Binaries> {
    and_other_maps(|| with_program(program))
}

/// An agent whose maps have another layout than the usual agent's, as another version's may.
const OTHER_MAPS: &str = "fastpath-agent-other-maps";

/// Cargo puts both agents in the same place: the usual one comes first, and takes its place again at once.
fn and_other_maps(usual: impl Fn() -> Result<Binaries>) -> Result<Binaries> {
    usual()?;
    let other = other_maps()?;
    let mut built = usual()?;
    built.insert(OTHER_MAPS.to_owned(), other);
    Ok(built)
}

fn other_maps() -> Result<PathBuf> {
    let what = ["-p", "fastpath-agent", "-p", "fastpath-tests", "--bin", "fastpath-agent"];
    // A fraction of what it takes to build otherwise.
    let quickly = ["--config", "profile.guest.package.fastpath-agent.opt-level=0"];
    let what = [&what[..], &["--features", "fastpath-agent/other-maps"], &quickly].concat();
    let mut built = cargo("guest", Arch::default(), &what, &ebpf::with_other_maps()?)?;
    let built = built.remove("fastpath-agent").context("cargo built no fastpath-agent")?;
    let other = built.with_file_name(OTHER_MAPS);
    fs::copy(&built, &other)?;
    Ok(other)
}

/// The agent and everything of the package `fastpath-tests`: also the test binary `it`.
pub(crate) fn for_tests(arch: Arch) -> Result<Binaries> {
    let what = ["-p", "fastpath-agent", "-p", "fastpath-tests", "--bins", "--test", "it"];
    complete(cargo("guest", arch, &what, &ebpf::build(arch)?)?, &["it", "package"])
}

/// The same, and the agent whose maps have another layout.
pub(crate) fn for_tests_and_other_maps() -> Result<Binaries> {
    and_other_maps(|| for_tests(Arch::default()))
}

fn complete(built: Binaries, more: &[&str]) -> Result<Binaries> {
    for name in ["fastpath-agent", "init"].iter().chain(more) {
        if !built.contains_key(*name) {
            bail!("cargo built no {name}");
        }
    }
    Ok(built)
}

fn cargo(profile: &str, arch: Arch, what: &[&str], objects: &Objects) -> Result<Binaries> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    let mut command = Command::new("cargo");
    command
        .args(["build", "--locked", "--profile", profile])
        .args(what)
        .args(["--message-format", "json-render-diagnostics"])
        .env("FASTPATH_EBPF_OBJECT", &objects.plain)
        .env("FASTPATH_EBPF_LOG_OBJECT", &objects.log)
        .current_dir(workspace::root())
        .stderr(Stdio::inherit());
    // Not where people debug: there they look for the source where it is.
    if profile == "release" {
        command.env("CARGO_ENCODED_RUSTFLAGS", workspace::without_paths()?.join("\x1f"));
    }
    arch.build_for(&mut command)?;
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", process::shown(&command), output.status);
    }
    let mut built = Binaries::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Message = serde_json::from_str(line).context("cannot read cargo's messages")?;
        if let Message { executable: Some(executable), target: Some(target) } = message {
            built.insert(target.name, executable);
        }
    }
    Ok(built)
}
