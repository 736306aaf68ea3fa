//! Builds the eBPF object with a compiler that has its library source.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{process, workspace};

/// Builds the eBPF programs and returns the object's path.
pub(crate) fn build() -> Result<PathBuf> {
    let target = workspace::target().join("ebpf");
    process::run(
        Command::new("/usr/bin/cargo")
            .args(["build", "--release", "-Zbuild-std=core", "--target", "bpfel-unknown-none"])
            .args(["-p", "fastpath-ebpf"])
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", &target)
            .env(
                "RUSTFLAGS",
                format!(
                    "-C linker={} -C link-arg=--btf -C debuginfo=2",
                    workspace::cache()?.join("bpf-linker/bin/bpf-linker").display()
                ),
            )
            .current_dir(workspace::root()),
    )?;
    Ok(target.join("bpfel-unknown-none/release/fastpath-ebpf"))
}
