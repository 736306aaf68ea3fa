//! The processors that the agent is built for: what tools call each, and the Debian system that its programs and libraries come
//! from. That is this machine for its own processor, and for the other one a system in the cache that is only unpacked.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::{guest::debian, process};

/// A processor, as Debian, Go and OCI name it.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Arch {
    /// This machine's: set-up knows no other.
    #[default]
    Amd64,
    Arm64,
}

impl Arch {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// As in names of packages and platforms of images.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As compilers and QEMU say it.
    pub(crate) fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Rust's target.
    pub(crate) fn triple(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }

    /// The directory of its libraries.
    pub(crate) fn multiarch(self) -> String {
        format!("{}-linux-gnu", self.machine())
    }

    /// Whether it isn't this machine's.
    pub(crate) fn is_foreign(self) -> bool {
        self != Self::default()
    }

    /// Makes `cargo build` build for it. What this machine has needs no words, so that it is the same build as without them.
    pub(crate) fn build_for(self, command: &mut Command) -> Result<()> {
        if self.is_foreign() {
            let root = Root::of(self)?;
            let triple = self.triple();
            let pkg_config = root.outside(&format!("usr/lib/{}/pkgconfig", self.multiarch()));
            command.args(["--target", &triple]).env("PKG_CONFIG_ALLOW_CROSS", "1");
            command.env(format!("PKG_CONFIG_SYSROOT_DIR_{triple}"), root.path());
            command.env(format!("PKG_CONFIG_LIBDIR_{triple}"), pkg_config);
        }
        Ok(())
    }
}

/// A Debian system.
#[derive(Clone, Default)]
pub(crate) struct Root {
    /// Where it is if it isn't the running one.
    foreign: Option<(Arch, PathBuf)>,
}

impl Root {
    /// That of a processor.
    pub(crate) fn of(arch: Arch) -> Result<Self> {
        let foreign = || -> Result<_> {
            Ok((arch, debian::ARM64.cached()?.context("set-up has made a system of arm64's packages")?))
        };
        Ok(Self { foreign: arch.is_foreign().then(foreign).transpose()? })
    }

    /// Whether it isn't this machine's.
    pub(crate) fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// Its top directory.
    pub(crate) fn path(&self) -> &Path {
        self.foreign.as_ref().map_or(Path::new("/"), |(_, path)| path)
    }

    /// Where a file of the system is on this machine.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        self.path().join(path.trim_start_matches('/'))
    }

    /// What a file on this machine is called in the system, with links resolved.
    pub(crate) fn inside(&self, file: &Path) -> Result<PathBuf> {
        let real = fs::canonicalize(file)?;
        let top = fs::canonicalize(self.path())?;
        Ok(Path::new("/").join(real.strip_prefix(&top).unwrap_or(&real)))
    }

    /// The file that runs under that name in a foreign system.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        let (_, top) = self.foreign.as_ref()?;
        let places = ["usr/sbin", "usr/bin", "sbin", "bin"];
        places.into_iter().map(|place| top.join(place).join(name)).find(|file| file.is_file())
    }

    /// A command that runs a program of this processor: emulated if it isn't this machine's.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let Some((arch, top)) = &self.foreign else { return Command::new(program) };
        let mut command = Command::new(format!("qemu-{}", arch.machine()));
        command.arg("-L").arg(top).arg(program);
        command
    }

    /// dpkg's tool, asked about this system.
    pub(crate) fn dpkg_query(&self) -> Command {
        let mut command = Command::new("dpkg-query");
        let database = self.foreign.as_ref().map(|(_, top)| top.join("var/lib/dpkg"));
        command.args(database.map(|database| format!("--admindir={}", database.display())));
        command
    }

    /// A foreign system's directories of libraries.
    pub(crate) fn library_directories(&self) -> Vec<PathBuf> {
        let foreign = self.foreign.iter();
        foreign
            .flat_map(|(arch, top)| ["lib", "usr/lib"].map(|lib| top.join(lib).join(arch.multiarch())))
            .collect()
    }

    /// The shared libraries of a program or a library, the loader included, by their paths in the system.
    pub(crate) fn libraries(&self, program: &Path) -> Result<Vec<PathBuf>> {
        let (mut command, loader) = match &self.foreign {
            None => (Command::new("ldd"), None),
            Some((arch, top)) => {
                let name = format!("lib/ld-linux-{}.so.1", arch.machine());
                let mut command = self.command(&top.join(&name));
                command.args(["--inhibit-cache", "--list"]);
                (command, Some((top.join(&name), PathBuf::from("/").join(name))))
            }
        };
        let output = command.arg(program).output();
        let output = output.with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        if loader.is_some() && !output.status.success() {
            bail!("{}: {}", program.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
            bail!("{} needs a library that isn't here: {}", program.display(), missing.trim());
        }
        // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)"; none for the vDSO.
        let found =
            text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
        let inside = |path: PathBuf| match &loader {
            Some((outside, inside)) if *outside == path => inside.clone(),
            _ => path,
        };
        Ok(found.map(|path| inside(PathBuf::from(path))).collect())
    }
}

/// That rustup has the standard library of a processor, or what to do about it.
pub(crate) fn has_standard_library(arch: Arch) -> Result<bool> {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", &arch.triple()]);
    let directory = process::output(&mut rustc)?;
    Ok(fs::read_dir(directory.trim()).is_ok_and(|mut files| files.next().is_some()))
}
