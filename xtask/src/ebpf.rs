//! Builds the eBPF objects with a compiler that has its library source.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::{arch::Arch, process, toolchain, workspace};

/// The eBPF programs as objects.
pub(crate) struct Objects {
    /// Those for every day.
    pub(crate) plain: PathBuf,
    /// The same with code that logs.
    pub(crate) log: PathBuf,
}

/// Builds the eBPF programs for kernels of that processor: a probe finds a function's arguments in its registers.
pub(crate) fn build(arch: Arch) -> Result<Objects> {
    Ok(Objects { log: built("log", arch, &["--features", "log"])?, plain: built("plain", arch, &[])? })
}

/// The programs with maps of another layout. They don't log.
pub(crate) fn with_other_maps() -> Result<Objects> {
    let plain = built("other-maps", Arch::default(), &["--features", "other-maps"])?;
    Ok(Objects { log: plain.clone(), plain })
}

/// Builds them, and takes the object away from where cargo puts every one of them.
fn built(name: &str, arch: Arch, features: &[&str]) -> Result<PathBuf> {
    process::run(cargo("build", arch)?.arg("--release").args(features))?;
    let place = target(arch).join("bpfel-unknown-none/release/fastpath-ebpf");
    let object = place.with_file_name(format!("fastpath-ebpf-{name}"));
    let content = fs::read(&place)?;
    // Written only if it is another, so that the agent isn't built again for nothing.
    if fs::read(&object).ok().as_ref() != Some(&content) {
        fs::write(&object, content)?;
    }
    Ok(object)
}

/// Checks the eBPF programs with clippy.
pub(crate) fn clippy() -> Result<()> {
    for features in [&[][..], &["--features", "log"]] {
        let mut clippy = cargo("clippy", Arch::default())?;
        clippy.args(["--release", "--quiet"]).args(features).args(["--", "-D", "warnings"]);
        clippy.args(["-D", "clippy::undocumented_unsafe_blocks"]);
        process::run(&mut clippy)?;
    }
    Ok(())
}

/// Apart from the other packages' and the other processor's: compilers and flags would throw each other's results away.
fn target(arch: Arch) -> PathBuf {
    workspace::target().join(if arch.is_foreign() { "ebpf-foreign" } else { "ebpf" })
}

/// A cargo command for the eBPF crate, set up with all that its target needs.
fn cargo(subcommand: &str, arch: Arch) -> Result<Command> {
    let compiler = toolchain::compiler().context("no compiler for eBPF programs")?;
    let linker = compiler.linker()?.context("no bpf-linker")?;
    let mut flags = vec![
        format!("-Clinker={}", linker.display()),
        // Types of maps and functions for the kernel and bpftool, from debug information.
        "-Clink-arg=--btf".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        // Comparisons and arithmetic of 32 bits without conversions: Linux 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        format!("--cfg=bpf_target_arch=\"{}\"", arch.machine()),
    ];
    flags.extend(workspace::without_paths()?);
    // By its path: cargo itself would take rustup's cargo-clippy first, which belongs to another compiler.
    let program = if subcommand == "clippy" { "bin/cargo-clippy" } else { "bin/cargo" };
    let mut command = Command::new(compiler.sysroot.join(program));
    command
        .args([subcommand, "--locked", "--package", "fastpath-ebpf", "-Zbuild-std=core"])
        .args(["--target", "bpfel-unknown-none"])
        .env("RUSTC", compiler.sysroot.join("bin/rustc"))
        // Debian's compiler is not a nightly; a nightly doesn't mind.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_DIR", target(arch))
        .current_dir(workspace::root());
    toolchain::without_callers(&mut command);
    command.env("CARGO", compiler.sysroot.join("bin/cargo"));
    Ok(command)
}
