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
        initramfs::Archive,
        kernels::{self, Wanted},
        new_log,
        qemu::{Machine, Processor},
        systemd::{self, Files},
        verdict::End,
    },
    process, workspace,
};

/// For all that is tried. With twenty programs that wanted the same two processors, half of it took five minutes.
const LIMIT: Duration = Duration::from_secs(900);

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
    let agent = &binaries["fastpath-agent"];
    let package = |revision| build(agent, Arch::default(), "guest", revision, &directory().join("guest"));
    // A package and the one that it is upgraded to, of the same agent.
    let (old, new) = (package(1)?, package(2)?);
    super::check(std::slice::from_ref(&old))?;
    let mut files =
        vec![("package", binaries["package"].clone()), ("old.deb", old.clone()), ("new.deb", new)];
    // One that passed at an earlier commit, if one did on this machine.
    files.extend(earlier()?.pop().map(|before| ("before.deb", before)));
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let trials: Vec<_> =
            wanted.iter().map(|kernel| scope.spawn(|| run_on(kernel, &files, kvm))).collect();
        let results = trials.into_iter().map(|trial| trial.join());
        results.map(|result| result.unwrap_or_else(|_| bail!("trying the package panicked"))).collect()
    });
    if results.iter().all(Result::is_ok) {
        // Kept for the trials of later commits, in place of those of earlier ones.
        fs::create_dir_all(passed()?)?;
        fs::copy(&old, passed()?.join(format!("{}.deb", commit()?)))?;
        let mut earlier = earlier()?;
        earlier.pop();
        earlier.iter().try_for_each(fs::remove_file)?;
    }
    Ok(results)
}

fn run_on(wanted: &Wanted, files: &Files, kvm: bool) -> Result<()> {
    let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
    let system = debian::SMALL.cached()?.context("set-up has made the small system")?;
    let mut extra = Archive::default();
    extra.link("init", &format!("/{}", systemd::INIT));
    systemd::add(&mut extra, "");
    let initramfs = systemd::file_system(&kernel, "package", Some(&system), extra, files)?;
    let log = new_log(&format!("{}-package.log", kernel.name))?;
    let machine = Machine::new(&kernel, &initramfs, log, Processor::virtualised(kvm));
    let mut guest = machine.boot()?;
    println!("package {}: systemd is up after {:.1} s", kernel.name, guest.booted_in().as_secs_f64());
    let words: Vec<_> = files.iter().map(|(name, _)| format!("/job/{name}")).collect();
    let end = guest.run(&words.join(" "), LIMIT, |line| println!("package {}: {line}", kernel.name));
    let broken = |reason| anyhow!("package {}: {reason}; see {}", kernel.name, machine.log.display());
    let (end, took) = end.map_err(broken)?;
    if end != End::Exit(0) {
        bail!("package {}: FAILED: {end}; see {}", kernel.name, machine.log.display());
    }
    println!("ok      {:<5} package ({:.0} s)", kernel.name, took.as_secs_f64());
    Ok(())
}
