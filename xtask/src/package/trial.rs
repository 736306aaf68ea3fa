//! Tries the package for real: in a guest with systemd as PID 1, on each kernel. What is tried is said in
//! tests/src/bin/package.rs; here is only how the guest comes about.

use std::{path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use super::{build, directory};
use crate::{
    arch::Arch,
    build::Binaries,
    guest::{
        debian,
        initramfs::{self, Archive},
        kernels::{self, Kernel, Wanted},
        new_log,
        qemu::{Machine, Processor},
        systemd,
        verdict::End,
    },
    process, workspace,
};

/// For all that is tried. With twenty programs that wanted the same two processors, half of it took five minutes.
const LIMIT: Duration = Duration::from_secs(900);

/// What is tried.
struct Packages {
    /// A package and the one that it is upgraded to, of the same agent.
    old: PathBuf,
    new: PathBuf,
    /// One that passed at an earlier commit, if one did on this machine.
    before: Option<PathBuf>,
}

impl Packages {
    fn build(binaries: &Binaries) -> Result<Self> {
        let agent = binaries.get("fastpath-agent").context("cargo built no fastpath-agent")?;
        let package = |revision| build(agent, Arch::default(), "guest", revision, &directory().join("guest"));
        Ok(Self { old: package(1)?, new: package(2)?, before: earlier()?.pop() })
    }

    /// Keeps the package for the trials of later commits, in place of those of earlier ones.
    fn keep(&self) -> Result<()> {
        fs::create_dir_all(passed()?)?;
        fs::copy(&self.old, passed()?.join(format!("{}.deb", commit()?)))?;
        let mut earlier = earlier()?;
        earlier.pop();
        Ok(earlier.iter().try_for_each(fs::remove_file)?)
    }
}

/// Where packages are that have passed.
fn passed() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("packages"))
}

/// Those of other commits, the newest last.
fn earlier() -> Result<Vec<PathBuf>> {
    let this = format!("{}.deb", commit()?);
    let entries = fs::read_dir(passed()?).into_iter().flatten().filter_map(Result::ok);
    let others = entries.filter(|entry| entry.file_name() != *this);
    let mut others: Vec<_> =
        others.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    others.sort();
    Ok(others.into_iter().map(|(_, path)| path).collect())
}

fn commit() -> Result<String> {
    process::git(&["rev-parse", "--short=12", "HEAD"])
}

/// Tries the package on all these kernels, at the same time; a result for each.
pub(crate) fn run(wanted: &[Wanted], binaries: &Binaries, kvm: bool) -> Result<Vec<Result<()>>> {
    let packages = Packages::build(binaries)?;
    super::check(std::slice::from_ref(&packages.old))?;
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let trials: Vec<_> =
            wanted.iter().map(|kernel| scope.spawn(|| run_on(kernel, binaries, &packages, kvm))).collect();
        let results = trials.into_iter().map(|trial| trial.join());
        results.map(|result| result.unwrap_or_else(|_| bail!("trying the package panicked"))).collect()
    });
    if results.iter().all(Result::is_ok) {
        packages.keep()?;
    }
    Ok(results)
}

fn run_on(wanted: &Wanted, binaries: &Binaries, packages: &Packages, kvm: bool) -> Result<()> {
    let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
    let initramfs = file_system(&kernel, binaries, packages)?;
    let log = new_log(&format!("{}-package.log", kernel.name))?;
    let machine = Machine::new(&kernel, &initramfs, log, Processor::virtualised(kvm));
    let mut guest = machine.boot()?;
    println!("package {}: systemd is up after {:.1} s", kernel.name, guest.booted_in().as_secs_f64());
    let broken = |reason| anyhow!("package {}: {reason}; see {}", kernel.name, machine.log.display());
    let before = packages.before.as_ref().map(|_| "/job/before.deb");
    let (end, took) = guest
        .run(
            &["/job/package", "/job/old.deb", "/job/new.deb"]
                .into_iter()
                .chain(before)
                .collect::<Vec<_>>()
                .join(" "),
            LIMIT,
            |line| {
                println!("package {}: {line}", kernel.name);
            },
        )
        .map_err(broken)?;
    if end != End::Exit(0) {
        bail!("package {}: FAILED: {end}; see {}", kernel.name, machine.log.display());
    }
    println!("ok      {:<5} package ({:.0} s)", kernel.name, took.as_secs_f64());
    Ok(())
}

/// Tools and modules as in the other guests, the small system over them, and over that what is tried.
fn file_system(kernel: &Kernel, binaries: &Binaries, packages: &Packages) -> Result<PathBuf> {
    let own = crate::guest::directory().join(format!("{}-package", kernel.name));
    let base = initramfs::base(kernel, &crate::guest::directory().join(&kernel.name))?;
    let system = debian::SMALL.cached()?.context("set-up has made the small system")?;
    let trial = binaries.get("package").context("cargo built no program that tries the package")?;
    let mut extra = Archive::default();
    extra.link("init", &format!("/{}", systemd::INIT));
    extra.program("job/package", trial)?;
    extra.file("job/old.deb", &packages.old)?;
    extra.file("job/new.deb", &packages.new)?;
    if let Some(before) = &packages.before {
        extra.file("job/before.deb", before)?;
    }
    systemd::add(&mut extra, "");
    initramfs::whole(&own, &[&base, &system], &extra)
}
