//! `cargo xtask test`.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    ebpf,
    guest::{
        initramfs::{self, Archive},
        kernels::{self, Kernel},
        qemu::Machine,
        verdict::{self, Verdict},
    },
    process, workspace,
};

/// What `cargo xtask test` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kinds of tests to run; all if none is named.
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Which guest kernels (see tests/kernels.toml); all if none is named.
    #[arg(long)]
    kernel: Vec<String>,
    /// Only tests whose name contains this.
    #[arg(long, default_value = "")]
    filter: String,
    /// Run guests with KVM instead of software emulation.
    #[arg(long)]
    kvm: bool,
    /// Seconds that a test may take in the guest or on this kernel.
    #[arg(long, default_value_t = 60)]
    time_limit: u64,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Tier {
    /// Format, clippy, rules of the repository.
    Lint,
    /// Unit and property tests.
    Unit,
    /// Tests in network namespaces of this kernel.
    Host,
    /// Tests on the guest's kernels.
    Guest,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let tier = |tier| options.tier.is_empty() || options.tier.contains(&tier);
    let mut counts = Counts::default();
    if tier(Tier::Guest) {
        let binaries = binaries()?;
        counts.add(&guest_tests(options, &binaries)?);
    }
    counts.report()
}

#[derive(Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn report(&self) -> Result<()> {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        println!("{} passed, {} failed{skipped}", self.passed, self.failed);
        if self.failed > 0 {
            bail!("{} failed", self.failed);
        }
        if self.passed == 0 {
            bail!("no test was run");
        }
        if self.skipped > 0 && std::env::var_os("CI").is_some_and(|ci| ci == "true") {
            bail!("{} skipped, which CI does not accept", self.skipped);
        }
        Ok(())
    }
}

/// What runs in the guest, by name.
type Binaries = BTreeMap<String, PathBuf>;

/// Builds the agent, the test binary and the guest's PID 1.
fn binaries() -> Result<Binaries> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }

    let object = ebpf::build()?;
    let mut command = Command::new("cargo");
    command
        .args(["build", "--profile", "guest", "-p", "fastpath-agent", "-p", "fastpath-tests", "--bins"])
        .args(["--test", "it", "--message-format", "json-render-diagnostics"])
        .env("FASTPATH_EBPF_OBJECT", object)
        .current_dir(workspace::root())
        .stderr(Stdio::inherit());
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", process::shown(&command), output.status);
    }
    let mut found = Binaries::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Message = serde_json::from_str(line).context("cargo's messages")?;
        if let Message { executable: Some(executable), target: Some(target) } = message {
            found.insert(target.name, executable);
        }
    }
    for name in ["fastpath-agent", "init", "it"] {
        if !found.contains_key(name) {
            bail!("cargo built no {name}");
        }
    }
    Ok(found)
}

/// The names of the tests in the `it` binary, all or only the ignored ones.
fn list(it: &Path, ignored: bool) -> Result<Vec<String>> {
    let mut command = Command::new(it);
    command.args(["--list", "--format", "terse"]).args(ignored.then_some("--ignored"));
    let text = process::output(&mut command)?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// One result, and where it was obtained.
struct Result1 {
    name: String,
    verdict: Verdict,
    took: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn guest_tests(options: &Options, binaries: &Binaries) -> Result<Counts> {
    let it = &binaries["it"];
    let ignored = list(it, true)?;
    let names: Vec<_> = list(it, false)?.into_iter().filter(|name| name.contains(&options.filter)).collect();
    let wanted = kernels::wanted(&options.kernel)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let shards = (cores / wanted.len()).clamp(1, 4).min(names.len().max(1));
    let directory = workspace::target().join("guest");

    let mut jobs = Vec::new();
    for wanted in &wanted {
        let kernel = match kernels::cached(wanted)? {
            Some(kernel) => kernel,
            None => kernels::download(wanted, &[])?,
        };
        let initramfs = initramfs_with(&kernel, &directory.join(&kernel.name), binaries)?;
        let (skipped, queue): (Vec<_>, Vec<_>) =
            names.iter().cloned().partition(|name| ignored.contains(name));
        jobs.push(Job { kernel, initramfs, queue: Mutex::new(queue.into()), skipped: skipped.len() });
    }
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for job in &jobs {
            for shard in 1..=shards {
                let log = directory.join(format!("{}-{shard}.log", job.kernel.name));
                let results = &results;
                scope.spawn(move || work(options, job, &log, results));
            }
        }
    });
    let mut counts = Counts { skipped: jobs.iter().map(|job| job.skipped).sum(), ..Counts::default() };
    for result in lock(&results).iter() {
        match &result.verdict {
            Verdict::Passed => counts.passed += 1,
            Verdict::Failed(_) => counts.failed += 1,
            Verdict::Skipped => counts.skipped += 1,
            Verdict::NotApplicable(_) => {}
        }
    }
    Ok(counts)
}

/// The tests of one kernel.
struct Job {
    kernel: Kernel,
    initramfs: PathBuf,
    queue: Mutex<VecDeque<String>>,
    skipped: usize,
}

/// Takes tests from the queue until it is empty, in a guest of its own; in another one after a guest broke.
fn work(options: &Options, job: &Job, log: &Path, results: &Mutex<Vec<Result1>>) {
    let machine = Machine {
        kernel: &job.kernel,
        initramfs: &job.initramfs,
        log: log.to_owned(),
        kvm: options.kvm,
        cpus: 1,
        memory_mib: 1536,
    };
    let limit = Duration::from_secs(options.time_limit);
    let mut guest = None;
    loop {
        let Some(name) = lock(&job.queue).pop_front() else { return };
        let mut running = match guest.take().map_or_else(|| machine.boot(), Ok) {
            Ok(guest) => guest,
            Err(error) => {
                println!("{error:#}");
                return;
            }
        };
        let mut output = Vec::new();
        let (verdict, took) = match running.test(&name, limit, |line| output.push(line.to_owned())) {
            Ok((end, took)) => {
                let verdict = verdict::judge(end, output.iter().map(String::as_str));
                guest = Some(running);
                (verdict, took)
            }
            Err(broken) => (Verdict::Failed(broken), Duration::ZERO),
        };
        println!("{:?} {} {name} {:.1}s", verdict, job.kernel.name, took.as_secs_f64());
        if matches!(verdict, Verdict::Failed(_)) {
            for line in &output {
                println!("    {line}");
            }
        }
        lock(results).push(Result1 { name, verdict, took });
    }
}

/// The whole initial file system: the kernel's base and our binaries.
pub(crate) fn initramfs_with(kernel: &Kernel, directory: &Path, binaries: &Binaries) -> Result<PathBuf> {
    let base = initramfs::base(kernel, directory)?;
    let mut ours = Archive::default();
    for (name, source) in binaries {
        let path = if name == "init" { "init".to_owned() } else { format!("usr/bin/{name}") };
        ours.program(&path, source)?;
    }
    let (ours_path, whole) = (directory.join("ours.cpio"), directory.join("initramfs.cpio"));
    ours.write(&ours_path)?;
    initramfs::concatenate(&[&base, &ours_path], &whole)?;
    Ok(whole)
}
