//! The test guest: kernels, its initramfs, QEMU, and what comes back from it; and `cargo xtask guest`, which keeps one
//! open or runs one command in it.

pub(crate) mod cards;
pub(crate) mod debian;
pub(crate) mod fleet;
pub(crate) mod initramfs;
pub(crate) mod kernels;
pub(crate) mod qemu;
pub(crate) mod systemd;
pub(crate) mod verdict;

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{self, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use self::{
    initramfs::Archive,
    kernels::{Kernel, Wanted},
    qemu::{Machine, Processor},
    verdict::End,
};
use crate::{
    arch::Root,
    build::{self, Binaries},
    setup, workspace,
};

/// What `cargo xtask guest` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kernel to boot (see tests/kernels.toml); the newest if none is named.
    #[arg(long)]
    kernel: Option<String>,
    /// Copy this file or directory of the host into the guest's top directory. Repeatable.
    #[arg(long, value_name = "PATH")]
    copy: Vec<PathBuf>,
    /// Run the guest with KVM instead of software emulation.
    #[arg(long)]
    kvm: bool,
    /// The guest's clock counts instructions, as in tests: waiting takes no time.
    #[arg(long, conflicts_with = "kvm")]
    counted: bool,
    /// The guest's processors.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// The guest's memory in MiB.
    #[arg(long, default_value_t = MEMORY_MIB)]
    memory: u32,
    /// Seconds that the command may take.
    #[arg(long, default_value_t = 600)]
    time_limit: u64,
    /// Run this instead of a shell, print its output, and exit with its exit status.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Enough for a test with hundreds of interfaces; the initramfs takes 100 of it.
pub(crate) const MEMORY_MIB: u32 = 1536;

/// Where guests' file systems and logs are.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("qemu")
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let wanted = newest(options.kernel.as_deref())?;
    setup::ensure(&[setup::Need::Build, setup::Need::Guest(std::slice::from_ref(&wanted))])?;
    let kernel = kernels::cached(&wanted)?.context("set-up has fetched the kernel")?;
    let mut extra = Archive::default();
    for path in &options.copy {
        let path = fs::canonicalize(path)?;
        let name =
            path.file_name().context("a path to copy must have a name")?.to_string_lossy().into_owned();
        extra.tree(&name, &path)?;
    }
    let processor = match options.counted {
        true => Processor::Counted { seed: 1 },
        false => Processor::virtualised(options.kvm),
    };
    let machine = |initramfs, log| Machine {
        cpus: options.cpus,
        memory_mib: options.memory,
        ..Machine::new(&kernel, initramfs, log, processor)
    };
    let own = own_directory(&kernel)?;
    let log = new_log(&format!("guest-{}.log", kernel.name))?;
    if options.command.is_empty() {
        if !std::io::stdin().is_terminal() {
            bail!("a shell needs a terminal; to run one command: cargo xtask guest -- COMMAND");
        }
        if let Ok(size) = Command::new("stty").arg("size").stdin(Stdio::inherit()).output()
            && let Some((rows, columns)) = String::from_utf8_lossy(&size.stdout).trim().split_once(' ')
        {
            extra.text("job/size", format!("rows {rows} cols {columns}\n"));
        }
        let initramfs = assemble(&kernel, &own.0, &build::for_tests(kernel.arch)?, extra)?;
        eprintln!("guest {}: the kernel's messages go to {}; leave with `exit`", kernel.name, log.display());
        machine(initramfs.as_path(), log).shell()?;
        return Ok(ExitCode::SUCCESS);
    }
    let limit = Duration::from_secs(options.time_limit);
    let initramfs =
        with_command(&kernel, &own.0, &build::for_tests(kernel.arch)?, extra, &options.command, limit)?;
    let machine = machine(initramfs.as_path(), log);
    match execute(&machine, limit)? {
        End::Exit(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        other => bail!("{other}; see {}", machine.log.display()),
    }
}

/// The kernel of that name, or the last of tests/kernels.toml.
pub(crate) fn newest(name: Option<&str>) -> Result<Wanted> {
    let names: Vec<_> = name.into_iter().map(str::to_owned).collect();
    kernels::wanted(&names)?.pop().context("tests/kernels.toml names no kernel")
}

/// An initial file system for running `command` for so long at most, with our programs and `extra` in it.
pub(crate) fn with_command(
    kernel: &Kernel,
    directory: &Path,
    binaries: &Binaries,
    mut extra: Archive,
    command: &[String],
    limit: Duration,
) -> Result<PathBuf> {
    let mut job = format!("{}\0", limit.as_secs());
    job.extend(command.iter().flat_map(|word| [word, "\0"]));
    extra.text("job/arguments", job);
    assemble(kernel, directory, binaries, extra)
}

/// Boots, runs the command that was put in, and prints what it prints.
pub(crate) fn execute(machine: &Machine<'_>, limit: Duration) -> Result<End> {
    let mut guest = machine.boot()?;
    eprintln!("guest {}: up after {:.1} s", machine.kernel.name, guest.booted_in().as_secs_f64());
    let (end, _) = guest
        .job(limit, |line| println!("{line}"))
        .map_err(|broken| anyhow!("{broken}; see {}", machine.log.display()))?;
    Ok(end)
}

/// The whole initial file system in `directory`: the kernel's base, our binaries, and `extra`.
pub(crate) fn assemble(
    kernel: &Kernel,
    directory: &Path,
    binaries: &Binaries,
    mut extra: Archive,
) -> Result<PathBuf> {
    let base = initramfs::base(kernel, &self::directory().join(&kernel.name))?;
    extra.root = Root::of(kernel.arch)?;
    for (name, source) in binaries {
        let path = if name == "init" { "init".to_owned() } else { format!("usr/bin/{name}") };
        extra.program(&path, source)?;
    }
    initramfs::whole(directory, &[&base], &extra)
}

/// The file for what a guest says, empty at first.
pub(crate) fn new_log(name: &str) -> Result<PathBuf> {
    let path = directory().join(name);
    fs::create_dir_all(directory())?;
    fs::write(&path, "")?;
    Ok(path)
}

/// A directory for the files of one guest, so that several at a time don't take each other's away.
pub(crate) fn own_directory(kernel: &Kernel) -> Result<RemoveLater> {
    let parent = directory();
    fs::create_dir_all(&parent)?;
    for entry in fs::read_dir(&parent)?.flatten() {
        // What an interrupted command left behind.
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('-')?.1.parse::<u32>().ok());
        if number.is_some_and(|number| !Path::new("/proc").join(number.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(RemoveLater(parent.join(format!("{}-{}", kernel.name, process::id()))))
}

/// Removes a directory when it goes out of use.
pub(crate) struct RemoveLater(pub(crate) PathBuf);

impl Drop for RemoveLater {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
