//! Runs the tests on all kernels: several guests at a time, one for each processor of this machine, which take tests
//! from their kernel's queue. A guest that breaks fails the test that it ran and is replaced.

use std::{
    collections::{HashSet, VecDeque},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    assemble, directory,
    initramfs::Archive,
    kernels::{self, Kernel, Once, Wanted},
    new_log,
    qemu::{Machine, Processor},
    verdict::{self, Verdict},
};
use crate::{
    build::Binaries,
    tally::{Counts, List},
    workspace,
};

/// More guests for one kernel would cost more in booting than they save.
const MOST_GUESTS: usize = 4;

/// How tests are run.
pub(crate) struct How {
    /// How long one may take, by the guest's clock.
    pub(crate) limit: Duration,
    /// Variables of their environment.
    pub(crate) variables: Vec<String>,
    /// Virtualised instead of emulated.
    pub(crate) kvm: bool,
    /// Whether what they print is shown also if they pass.
    pub(crate) told: bool,
    /// Tests that are run on one kernel only.
    pub(crate) once: Option<Once>,
}

/// The tests of one kernel.
struct Job {
    kernel: Kernel,
    initramfs: PathBuf,
    queue: Mutex<VecDeque<String>>,
    /// Those that another kernel takes if it has nothing left to do.
    once: Mutex<VecDeque<String>>,
    /// It runs all that isn't another kernel's.
    general: bool,
}

impl Job {
    /// The next test for a guest of this kernel.
    fn next(&self, all: &[Self]) -> Option<String> {
        let own = lock(&self.queue).pop_front().or_else(|| lock(&self.once).pop_front());
        let others = || all.iter().find_map(|job| lock(&job.once).pop_back());
        own.or_else(|| others().filter(|_| self.general))
    }
}

pub(crate) fn run(
    wanted: &[Wanted],
    binaries: &Binaries,
    image: &Path,
    tests: &List,
    how: &How,
) -> Result<Counts> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let guests = (processors / wanted.len().max(1)).clamp(1, MOST_GUESTS).min(tests.names.len());
    let all = kernels::all()?;
    let mut jobs = Vec::new();
    // Those that have all that isn't another one's.
    let general: Vec<_> =
        wanted.iter().filter(|kernel| kernel.has_all()).map(|kernel| &kernel.name).collect();
    for wanted in wanted {
        let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
        let mut extra = Archive::default();
        extra.file("usr/share/fastpath/image.tar", image)?;
        extra.tree("usr/share/fastpath/deploy", &workspace::root().join("deploy"))?;
        let own = directory().join(format!("{}-tests", kernel.name));
        let initramfs = assemble(&kernel, &own, binaries, extra)?;
        let place = general.iter().position(|name| **name == wanted.name);
        let elsewhere = match (&how.once, place) {
            (Some(once), Some(place)) => once.elsewhere(&tests.names, place, general.len()),
            _ => HashSet::new(),
        };
        let runs = |name: &&String| wanted.runs(name, &all) && !elsewhere.contains(name.as_str());
        let is_once = |name: &String| how.once.as_ref().is_some_and(|once| once.is_meant(name));
        let (once, queue): (VecDeque<_>, _) = tests.names.iter().filter(runs).cloned().partition(is_once);
        if !elsewhere.is_empty() {
            println!(
                "guest {}: {} tests, and {} that one kernel has to run, {} more of them on the other kernel",
                kernel.name,
                queue.len(),
                once.len(),
                elsewhere.len()
            );
        }
        let (queue, once) = (Mutex::new(queue), Mutex::new(once));
        jobs.push(Job { kernel, initramfs, queue, once, general: place.is_some() });
    }
    // Its clock stops while the guest has no processor of this machine's, and waiting takes no time: how busy this machine is
    // makes no test fail, and none takes longer than what it computes.
    let processor = if how.kvm { Processor::Kvm } else { Processor::Counted { seed: 1 } };
    let results = Mutex::new(Counts { skipped: tests.ignored * jobs.len(), ..Counts::default() });
    let mut machines = Vec::new();
    for job in &jobs {
        for number in 1..=guests {
            let log = new_log(&format!("{}-{number}.log", job.kernel.name))?;
            let machine = Machine::new(&job.kernel, &job.initramfs, log, processor);
            machines.push((machine, job));
        }
    }
    thread::scope(|scope| {
        for (machine, job) in &machines {
            scope.spawn(|| work(machine, job, &jobs, how, &results));
        }
    });
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Takes tests until there are none for it.
fn work(machine: &Machine<'_>, job: &Job, all: &[Job], how: &How, results: &Mutex<Counts>) {
    let report = |verdict: &Verdict, name: &str, took: Duration, output: &[String]| {
        let lines = output.iter().map(String::as_str);
        let text = verdict::shown(verdict, &job.kernel.name, name, took, lines);
        let mut counts = lock(results); // also keeps the guests' reports apart
        counts.count(verdict);
        print!("{text}");
        if how.told && matches!(verdict, Verdict::Passed) {
            verdict::told(output.iter().map(String::as_str)).for_each(|line| println!("        {line}"));
        }
        if matches!(verdict, Verdict::Failed(_)) {
            println!("  guest's log: {}", relative(&machine.log));
        }
    };
    let mut idle = None;
    loop {
        let Some(name) = job.next(all) else { return };
        let mut guest = match idle.take().map_or_else(|| machine.boot(), Ok) {
            Ok(guest) => guest,
            Err(error) => {
                // It won't boot for the next test either.
                let verdict = Verdict::Failed(format!("{error:#}"));
                let left = [&job.queue, &job.once].map(|queue| std::mem::take(&mut *lock(queue)));
                for name in std::iter::once(name).chain(left.into_iter().flatten()) {
                    report(&verdict, &name, Duration::ZERO, &[]);
                }
                return;
            }
        };
        let mut output = Vec::new();
        // Of our time: how long it takes by the guest's clock, says nothing of how long anybody waits for it.
        let began = Instant::now();
        match guest.test(&name, &how.variables, how.limit, |line| output.push(line.to_owned())) {
            Ok((end, _)) => {
                let verdict = verdict::judge(end, output.iter().map(String::as_str));
                report(&verdict, &name, began.elapsed(), &output);
                idle = Some(guest);
            }
            Err(broken) => report(&Verdict::Failed(broken), &name, began.elapsed(), &output),
        }
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path as seen from the workspace.
fn relative(path: &Path) -> String {
    path.strip_prefix(crate::workspace::root()).unwrap_or(path).display().to_string()
}
