//! Finds a Rust compiler that can build eBPF programs (one whose library source is installed with it), and the
//! bpf-linker that belongs to its LLVM. Looks at files only, so that it costs nothing; installing is `setup`'s job.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::workspace;

/// The nightly that set-up installs: the newest LLVM that both bpf-linker and Debian 12 know, and always the same one.
pub(crate) const PINNED_NIGHTLY: &str = "nightly-2026-05-20";
/// The release of bpf-linker, and the LLVM versions that it can be built for.
pub(crate) const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

/// A compiler with its library source.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The directory with `bin/rustc` and `bin/cargo`.
    pub(crate) sysroot: PathBuf,
    /// Major version.
    pub(crate) llvm: u32,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Origin {
    /// A nightly of rustup, which brings its LLVM.
    Rustup,
    /// Debian's `rustc-web`, `cargo-web` and `rust-web-src`, with Debian's LLVM.
    Debian,
}

/// The compiler to use, if there is one: a nightly of rustup, else Debian's.
pub(crate) fn compiler() -> Option<Compiler> {
    rustup_nightlies().into_iter().find_map(rustup_compiler).or_else(debian_compiler)
}

/// The nightly of rustup, for what only a nightly has: sanitizers and Miri. Without one an error that says so, in one line.
pub(crate) fn nightly() -> Result<Compiler> {
    match compiler() {
        Some(found) if found.origin == Origin::Rustup => Ok(found),
        _ => bail!(
            "fuzzing and Miri take a nightly of rustup's ({PINNED_NIGHTLY}); Debian's compiler has neither"
        ),
    }
}

/// What the calling cargo and rustup say to their children is about another compiler.
pub(crate) fn without_callers(command: &mut Command) {
    for name in ["RUSTUP_TOOLCHAIN", "RUSTDOC", "LD_LIBRARY_PATH", "RUSTC_WRAPPER"] {
        command.env_remove(name);
    }
}

/// Directories of rustup's plain nightly and of the pinned one.
fn rustup_nightlies() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let Some(toolchains) = home.map(|home| home.join("toolchains")) else { return Vec::new() };
    ["nightly", PINNED_NIGHTLY].map(|name| toolchains.join(format!("{name}-x86_64-unknown-linux-gnu"))).into()
}

fn rustup_compiler(sysroot: PathBuf) -> Option<Compiler> {
    // A nightly without the library source is of no use here.
    let llvm = rustup_llvm(&sysroot)?;
    (has_library_source(&sysroot) && BPF_LINKER_LLVMS.contains(&llvm.0)).then_some(Compiler {
        sysroot,
        llvm: llvm.0,
        origin: Origin::Rustup,
    })
}

/// The LLVM of a toolchain: `libLLVM.so.22.1-rust-1.97.0-nightly`.
fn rustup_llvm(sysroot: &Path) -> Option<(u32, PathBuf)> {
    fs::read_dir(sysroot.join("lib")).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        let version = name.to_str()?.strip_prefix("libLLVM.so.")?;
        Some((version.split('.').next()?.parse().ok()?, entry.path()))
    })
}

fn debian_compiler() -> Option<Compiler> {
    let sysroot = PathBuf::from("/usr");
    if !has_library_source(&sysroot) || !sysroot.join("bin/cargo").exists() {
        return None;
    }
    let output = Command::new("/usr/bin/rustc").arg("-vV").env_remove("LD_LIBRARY_PATH").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    let llvm = version.split('.').next()?.parse().ok()?;
    BPF_LINKER_LLVMS.contains(&llvm).then_some(Compiler { sysroot, llvm, origin: Origin::Debian })
}

fn has_library_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists()
}

impl Compiler {
    /// Whether clippy is there for it.
    pub(crate) fn has_clippy(&self) -> bool {
        self.sysroot.join("bin/cargo-clippy").exists()
    }

    /// Whether Miri is there for it.
    pub(crate) fn has_miri(&self) -> bool {
        self.sysroot.join("bin/cargo-miri").exists()
    }

    /// A program of its own, run with its own cargo and compiler.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let mut path = vec![self.sysroot.join("bin")];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let mut command = Command::new(program);
        without_callers(&mut command);
        command
            .env("PATH", env::join_paths(path)?)
            .env("RUSTC", self.sysroot.join("bin/rustc"))
            .env("CARGO", self.sysroot.join("bin/cargo"));
        Ok(command)
    }

    /// Where this compiler's bpf-linker is installed: linked to its LLVM.
    fn linker_root(&self) -> Result<PathBuf> {
        let name = match self.origin {
            Origin::Debian => "bpf-linker".to_owned(),
            Origin::Rustup => {
                let name = self.sysroot.file_name().context("a toolchain's directory has a name")?;
                format!("bpf-linker-{}", name.to_string_lossy())
            }
        };
        Ok(workspace::cache()?.join(name))
    }

    /// The bpf-linker that reads what this compiler writes, if it is installed.
    pub(crate) fn linker(&self) -> Result<Option<PathBuf>> {
        let root = self.linker_root()?;
        // Cargo's record of what it installed there.
        let record = fs::read_to_string(root.join(".crates2.json")).unwrap_or_default();
        let right_version = record.contains(&format!("\"bpf-linker {BPF_LINKER} "))
            && record.contains(&format!("\"llvm-{}\"", self.llvm));
        // After an update of the toolchain the library that the linker was made for is gone.
        let library_there = self.origin == Origin::Debian
            || rustup_llvm(&root.join("llvm")).is_some_and(|(_, path)| path.exists());
        Ok((right_version && library_there).then(|| root.join("bin/bpf-linker")))
    }

    /// The command that installs bpf-linker for this compiler.
    pub(crate) fn install_linker(&self) -> Result<Command> {
        let root = self.linker_root()?;
        let prefix = match self.origin {
            Origin::Debian => PathBuf::from(format!("/usr/lib/llvm-{}", self.llvm)),
            Origin::Rustup => link_to_rustup_llvm(&self.sysroot, &root.join("llvm"))?,
        };
        let mut command = Command::new("cargo");
        command
            .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"])
            .args(["--no-default-features", "--features", &format!("llvm-{}", self.llvm)])
            .arg("--root")
            .arg(&root)
            .env("LLVM_PREFIX", &prefix)
            .env(format!("LLVM_SYS_{}1_PREFIX", self.llvm), &prefix)
            .env("CARGO_TARGET_DIR", root.join("build"));
        Ok(command)
    }

    /// What `install_linker` leaves behind that isn't needed.
    pub(crate) fn remove_linker_build(&self) -> Result<()> {
        let _ = fs::remove_dir_all(self.linker_root()?.join("build"));
        Ok(())
    }
}

/// A prefix as bpf-linker's build looks for it, whose libLLVM is the toolchain's own. Found under the name at link
/// time and under its proper name at run time.
fn link_to_rustup_llvm(sysroot: &Path, prefix: &Path) -> Result<PathBuf> {
    let (_, library) = rustup_llvm(sysroot).context("the toolchain has no libLLVM")?;
    let name = library.file_name().context("a library has a name")?;
    let _ = fs::remove_dir_all(prefix);
    let directory = prefix.join("lib");
    fs::create_dir_all(&directory)?;
    std::os::unix::fs::symlink(&library, directory.join(name))?;
    std::os::unix::fs::symlink(&library, directory.join("libLLVM.so"))?;
    Ok(prefix.to_owned())
}
