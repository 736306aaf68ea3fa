//! What set-up installs besides packages and kernels: how it is seen to be there, what it takes, and how it is made.

use std::{env, path::PathBuf};

use anyhow::{Context, Result, bail};

use super::packages::{FOR_SYSTEMS, FOR_WHEELS, Package};
use crate::{
    arch::{self, Arch},
    cargo_tool::{self, CargoTool},
    guest::{debian::System, initramfs::find_program},
    process, progress, prometheus,
    toolchain::{self, Compiler, Origin},
    wheel::Wheel,
};

/// Something to install, in this order: what is behind `EbpfClippy` may need the packages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// rustfmt and clippy, beside the cargo that runs this.
    Checkers,
    /// Rust's standard library for arm64.
    Arm64Target,
    /// A compiler for eBPF programs.
    Compiler,
    /// Clippy for eBPF programs, where there is a compiler for them.
    EbpfClippy,
    Linker,
    /// Miri, where there is a nightly for it.
    Miri,
    Tool(&'static CargoTool),
    Prometheus,
    Wheel(&'static Wheel),
    System(&'static System),
}

/// About so many seconds on two processors, and megabytes to download.
#[derive(Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) seconds: u64,
    pub(super) megabytes: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = Self { seconds: self.seconds + other.seconds, megabytes: self.megabytes + other.megabytes };
    }
}

impl Part {
    /// Packages that only making it takes.
    pub(super) fn packages(self) -> &'static [Package] {
        match self {
            Self::Wheel(_) => FOR_WHEELS,
            Self::System(_) => FOR_SYSTEMS,
            _ => &[],
        }
    }

    /// Whether it is there, or can't be: Debian's compiler has no nightly's tools, which is said where they are run.
    pub(super) fn is_there(self) -> Result<bool> {
        let compiler = toolchain::compiler();
        Ok(match self {
            Self::Checkers => has_checkers(),
            Self::Arm64Target => arch::has_standard_library(Arch::Arm64)?,
            Self::Compiler => compiler.is_some(),
            Self::EbpfClippy => compiler.is_none_or(|found| found.has_clippy()),
            Self::Linker => compiler.as_ref().map(Compiler::linker).transpose()?.flatten().is_some(),
            Self::Miri => compiler.is_none_or(|found| found.origin != Origin::Rustup || found.has_miri()),
            Self::Tool(tool) => {
                let is_of_a_nightly = *tool == cargo_tool::FUZZ;
                is_of_a_nightly && compiler.is_some_and(|found| found.origin != Origin::Rustup)
                    || tool.installed()?
            }
            Self::Prometheus => prometheus::is_there()?,
            Self::Wheel(wheel) => wheel.is_there()?,
            Self::System(system) => system.cached()?.is_some(),
        })
    }

    /// What it is, for who is asked whether it may be installed, and what it takes. Roughly: what the compiler, its parts and prometheus
    /// take is the size of their files; the rest is judged by what set-up took.
    pub(super) fn about(self) -> (String, Cost) {
        let (text, seconds, megabytes) = match self {
            Self::Checkers => ("rustfmt and clippy".to_owned(), 5, 7),
            Self::Arm64Target => (format!("rustup's standard library for {}", Arch::Arm64.triple()), 5, 28),
            Self::Compiler => {
                let nightly = toolchain::PINNED_NIGHTLY;
                let what = "a Rust compiler with its library source, for eBPF";
                (format!("{what}: rustup's {nightly}, else Debian's rustc-web"), 15, 136)
            }
            Self::EbpfClippy => ("clippy for the compiler of eBPF programs".to_owned(), 5, 5),
            Self::Linker => {
                (format!("bpf-linker {}, built for that compiler", toolchain::BPF_LINKER), 90, 15)
            }
            Self::Miri => ("miri for the nightly".to_owned(), 5, 5),
            Self::Tool(tool) => (tool.described(), 60, 20),
            Self::Prometheus => ("prometheus for tests, not installed".to_owned(), 10, 20),
            Self::Wheel(wheel) => {
                (format!("{}, out of a Python package, not installed", wheel.described), 5, wheel.megabytes)
            }
            Self::System(system) => (system.described.to_owned(), system.cost.0, system.cost.1),
        };
        (text, Cost { seconds, megabytes })
    }

    /// Installs it; what packages may do instead is decided by the caller.
    pub(super) fn install(self) -> Result<()> {
        match self {
            Self::Checkers => {
                let mut add = process::command("rustup component add rustfmt clippy");
                progress::step("adding rustfmt and clippy", &mut add)
            }
            Self::Arm64Target => add_arm64_target(),
            Self::Compiler | Self::EbpfClippy => Ok(()),
            Self::Linker => install_linker(),
            Self::Miri => add_component(&toolchain::nightly()?, "miri"),
            Self::Tool(tool) if *tool == cargo_tool::FUZZ && toolchain::nightly().is_err() => Ok(()),
            Self::Tool(tool) => tool.install(),
            Self::Prometheus => super::download_prometheus(),
            Self::Wheel(wheel) => wheel.download(),
            Self::System(system) => system.make(),
        }
    }
}

/// Whether cargo's toolchain has rustfmt and clippy. rustup's proxies in the path are there in any case.
fn has_checkers() -> bool {
    let Some(cargo) = env::var_os("CARGO").map(PathBuf::from) else { return true }; // not run by cargo
    ["cargo-fmt", "cargo-clippy"].iter().all(|name| cargo.with_file_name(name).exists())
}

fn add_arm64_target() -> Result<()> {
    let triple = Arch::Arm64.triple();
    if find_program("rustup").is_none() {
        bail!(
            "the Rust compiler here has no standard library for {triple}, and there is no rustup to add it: install \
             rustup (https://rustup.rs), or leave arm64 out with --arch=amd64"
        );
    }
    progress::step(&format!("adding {triple}"), process::command("rustup target add").arg(&triple))
}

/// Has rustup add a component to one of its compilers.
pub(super) fn add_component(compiler: &Compiler, component: &str) -> Result<()> {
    let name = compiler.sysroot.file_name().context("a toolchain's directory has a name")?;
    let mut add = process::command(&format!("rustup component add {component} --toolchain"));
    progress::step(&format!("adding {component} to {}", name.display()), add.arg(name))
}

fn install_linker() -> Result<()> {
    let compiler = toolchain::compiler().context("there is still no compiler for eBPF programs")?;
    if compiler.linker()?.is_none() {
        progress::step("building bpf-linker", &mut compiler.install_linker()?)?;
        compiler.remove_linker_build()?;
    }
    Ok(())
}
