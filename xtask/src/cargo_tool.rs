//! Tools of cargo's that set-up builds: where they are, and how they are installed. Beside bpf-linker, since what is in the
//! user's own cargo directory is the user's.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use fs_err as fs;

use crate::{progress, workspace};

/// A tool that is built for this project.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CargoTool {
    name: &'static str,
    release: &'static str,
    /// More for `cargo install`.
    arguments: &'static [&'static str],
}

/// Checks licences and sources.
pub(crate) const DENY: CargoTool = CargoTool { name: "cargo-deny", release: "0.20.2", arguments: &[] };
/// Makes the Debian package. Without its own xz: the program `xz` does that, and much faster than an xz that wasn't
/// optimised.
pub(crate) const DEB: CargoTool =
    CargoTool { name: "cargo-deb", release: "3.8.0", arguments: &["--no-default-features"] };
/// Lists the crates that the image is built from.
pub(crate) const CYCLONEDX: CargoTool =
    CargoTool { name: "cargo-cyclonedx", release: "0.5.9", arguments: &[] };
/// Builds fuzz targets.
pub(crate) const FUZZ: CargoTool = CargoTool { name: "cargo-fuzz", release: "0.13.2", arguments: &[] };

impl CargoTool {
    fn root(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join(self.name))
    }

    /// The program.
    pub(crate) fn program(&self) -> Result<PathBuf> {
        Ok(self.root()?.join("bin").join(self.name))
    }

    /// Whether this release is installed.
    pub(crate) fn installed(&self) -> Result<bool> {
        // Cargo's record of what it installed there.
        let record = fs::read_to_string(self.root()?.join(".crates2.json")).unwrap_or_default();
        Ok(record.contains(&format!("\"{} {} ", self.name, self.release)))
    }

    /// Installs it. Without optimisation, since it runs for seconds and takes minutes to build.
    pub(crate) fn install(&self) -> Result<()> {
        let build = self.root()?.join("build");
        let mut command = Command::new("cargo");
        command
            .args(["install", self.name, "--version", self.release, "--locked", "--force", "--debug"])
            .args(self.arguments)
            .arg("--root")
            .arg(self.root()?)
            .env("CARGO_TARGET_DIR", &build)
            .env("CARGO_PROFILE_DEV_DEBUG", "none");
        progress::step(&format!("building {}", self.name), &mut command)?;
        let _ = fs::remove_dir_all(build);
        Ok(())
    }

    /// What is installed, for who is asked whether it may be.
    pub(crate) fn described(&self) -> String {
        format!("{} {}, built here", self.name, self.release)
    }
}
