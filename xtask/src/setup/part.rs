//! What set-up installs besides packages and kernels: how it is seen to be there, what it takes, and how it is made.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use super::packages::{FOR_ARM64_SYSTEM, FOR_FIELD_TRIAL, FOR_MANIFESTS, FOR_PACKAGE_TRIAL, Package};
use crate::{
    arch::{self, Arch},
    cargo_tool::{self, CargoTool},
    cluster_tools,
    guest::{
        debian::{self, System},
        initramfs::find_program,
    },
    progress, prometheus,
    toolchain::{self, Compiler, Origin},
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
    Deny,
    Fuzz,
    /// Miri, where there is a nightly for it.
    Miri,
    Prometheus,
    ClusterTools,
    Cyclonedx,
    CargoDeb,
    /// The small system that the package is tried in.
    SmallSystem,
    /// The one with the software of the field.
    FieldSystem,
    /// The one that arm64's libraries and programs come from.
    Arm64System,
}

/// About so many seconds on two processors, and megabytes to download.
#[derive(Clone, Copy, Default)]
pub(super) struct Cost {
    pub(super) seconds: u64,
    pub(super) megabytes: u64,
}

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { seconds: self.seconds + other.seconds, megabytes: self.megabytes + other.megabytes }
    }
}

impl Part {
    fn tool(self) -> Option<&'static CargoTool> {
        match self {
            Self::Deny => Some(&cargo_tool::DENY),
            Self::Fuzz => Some(&cargo_tool::FUZZ),
            Self::Cyclonedx => Some(&cargo_tool::CYCLONEDX),
            Self::CargoDeb => Some(&cargo_tool::DEB),
            _ => None,
        }
    }

    fn system(self) -> Option<&'static System> {
        match self {
            Self::SmallSystem => Some(&debian::SMALL),
            Self::FieldSystem => Some(&debian::FIELD),
            Self::Arm64System => Some(&debian::ARM64),
            _ => None,
        }
    }

    /// Packages that only making it takes.
    pub(super) fn packages(self) -> &'static [Package] {
        match self {
            Self::ClusterTools => FOR_MANIFESTS,
            Self::SmallSystem => FOR_PACKAGE_TRIAL,
            Self::FieldSystem => FOR_FIELD_TRIAL,
            Self::Arm64System => FOR_ARM64_SYSTEM,
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
            Self::Fuzz if compiler.as_ref().is_some_and(|found| found.origin != Origin::Rustup) => true,
            Self::Miri => compiler.is_none_or(|found| found.origin != Origin::Rustup || found.has_miri()),
            Self::Prometheus => prometheus::is_there()?,
            Self::ClusterTools => cluster_tools::are_there()?,
            Self::Deny | Self::Fuzz | Self::Cyclonedx | Self::CargoDeb => {
                self.tool().context("it is a tool of cargo's")?.installed()?
            }
            Self::SmallSystem | Self::FieldSystem | Self::Arm64System => {
                self.system().context("it is a system")?.cached()?.is_some()
            }
        })
    }

    /// What it is, for who is asked whether it may be installed.
    pub(super) fn described(self) -> String {
        match self {
            Self::Checkers => "rustfmt and clippy".to_owned(),
            Self::Arm64Target => format!("rustup's standard library for {}", Arch::Arm64.triple()),
            Self::Compiler => format!(
                "a Rust compiler with its library source, for eBPF: rustup's {}, else Debian's rustc-web",
                toolchain::PINNED_NIGHTLY
            ),
            Self::EbpfClippy => "clippy for the compiler of eBPF programs".to_owned(),
            Self::Linker => format!("bpf-linker {}, built for that compiler", toolchain::BPF_LINKER),
            Self::Miri => "miri for the nightly".to_owned(),
            Self::Prometheus => "prometheus for tests, not installed".to_owned(),
            Self::ClusterTools => {
                "helm and kubectl for tests, out of a Python package, not installed".to_owned()
            }
            Self::SmallSystem => "a small system with systemd for the test guest".to_owned(),
            Self::FieldSystem => {
                "a system with firewalls, container engines and tunnels for the test guest (2 GB of disk)"
                    .to_owned()
            }
            Self::Arm64System => {
                "arm64's libraries, programs and kernel, unpacked and not installed".to_owned()
            }
            Self::Deny | Self::Fuzz | Self::Cyclonedx | Self::CargoDeb => {
                self.tool().map_or_else(String::new, CargoTool::described)
            }
        }
    }

    /// Roughly: what the compiler, its parts and prometheus take is the size of their files; the rest is judged by what set-up took.
    pub(super) fn cost(self) -> Cost {
        let (seconds, megabytes) = match self {
            Self::Checkers => (5, 7),
            Self::Arm64Target => (5, 28),
            Self::Compiler => (15, 136),
            Self::EbpfClippy | Self::Miri => (5, 5),
            Self::Linker => (90, 15),
            Self::Deny | Self::Fuzz | Self::Cyclonedx | Self::CargoDeb => (60, 20),
            Self::Prometheus => (10, 20),
            Self::ClusterTools => (5, 40),
            Self::SmallSystem => (60, 60),
            Self::FieldSystem => (180, 700),
            Self::Arm64System => (50, 90),
        };
        Cost { seconds, megabytes }
    }

    /// Installs it; what packages may do instead is decided by the caller.
    pub(super) fn install(self) -> Result<()> {
        match self {
            Self::Checkers => {
                let mut add = Command::new("rustup");
                progress::step(
                    "adding rustfmt and clippy",
                    add.args(["component", "add", "rustfmt", "clippy"]),
                )
            }
            Self::Arm64Target => add_arm64_target(),
            Self::Compiler | Self::EbpfClippy => Ok(()),
            Self::Linker => install_linker(),
            Self::Miri => add_miri(),
            Self::Prometheus => super::download_prometheus(),
            Self::ClusterTools => cluster_tools::download(),
            Self::Fuzz if toolchain::nightly().is_err() => Ok(()),
            Self::Deny | Self::Fuzz | Self::Cyclonedx | Self::CargoDeb => {
                self.tool().map_or(Ok(()), CargoTool::install)
            }
            Self::SmallSystem | Self::FieldSystem | Self::Arm64System => {
                self.system().map_or(Ok(()), System::make)
            }
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
    progress::step(&format!("adding {triple}"), Command::new("rustup").args(["target", "add", &triple]))
}

fn add_miri() -> Result<()> {
    let compiler = toolchain::nightly()?;
    let name = compiler.sysroot.file_name().context("a toolchain's directory has a name")?;
    let mut add = Command::new("rustup");
    add.args(["component", "add", "miri", "--toolchain"]).arg(name);
    progress::step("adding miri", &mut add)
}

fn install_linker() -> Result<()> {
    let compiler = toolchain::compiler().context("there is still no compiler for eBPF programs")?;
    if compiler.linker()?.is_none() {
        progress::step("building bpf-linker", &mut compiler.install_linker()?)?;
        compiler.remove_linker_build()?;
    }
    Ok(())
}
