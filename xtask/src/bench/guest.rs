//! Measures rows, each in a guest of its own whose clock counts instructions, several guests at a time.
//!
//! What one row leaves in a kernel's memory would tell in the next one's number. By itself a row takes the same course whichever
//! others are measured.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::report::{KernelResults, Report, Row, number};
use crate::{
    build::Binaries,
    guest::{
        self, RemoveLater,
        initramfs::Archive,
        kernels::{self, Kernel, Wanted},
        qemu::{Machine, Processor},
        verdict::End,
    },
    process,
};

/// For a row, in the guest's time, which is longer than this machine's when it does little.
const LIMIT: Duration = Duration::from_secs(900);
/// Guests at a time, each of which takes some 500 MB of memory.
const MOST_GUESTS: usize = 8;

/// Names of the rows that contain one of `filters`; all if there are none.
pub(super) fn rows(binaries: &Binaries, filters: &[String]) -> Result<Vec<String>> {
    let list = process::output(Command::new(&binaries["bench"]).arg("list"))?;
    let wanted = |name: &&str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    Ok(list.lines().filter(wanted).map(str::to_owned).collect())
}

/// What the guests of a kernel boot.
struct System {
    kernel: Kernel,
    initramfs: PathBuf,
    /// Where that is, until the last guest has ended.
    _own: RemoveLater,
}

/// Measures the rows on all kernels; also says how many failed.
pub(super) fn measure(
    wanted: &[Wanted],
    binaries: &Binaries,
    rows: &[String],
    seed: u32,
) -> Result<(Report, usize)> {
    let systems = wanted.iter().map(|wanted| System::new(wanted, binaries)).collect::<Result<Vec<_>>>()?;
    let jobs: Vec<_> = rows.iter().flat_map(|row| systems.iter().map(move |system| (system, row))).collect();
    let workers = thread::available_parallelism().map_or(1, usize::from).min(MOST_GUESTS).min(jobs.len());
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<Row>>> = Mutex::new(vec![None; jobs.len()]);
    let take = || {
        let place = next.fetch_add(1, Ordering::Relaxed);
        jobs.get(place).map(|job| (place, job))
    };
    let work = |worker: usize| -> Result<()> {
        let log = guest::new_log(&format!("bench-{worker}.log"))?;
        while let Some((place, (system, name))) = take() {
            let began = Instant::now();
            let row = system.measure(name, &log, seed);
            let (done, of) = (done.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
            let took = began.elapsed().as_secs_f64();
            let kernel = &system.kernel.name;
            match row {
                Ok(row) => {
                    let (value, unit) = (number(row.value), &row.unit);
                    eprintln!("{done:>3}/{of} {kernel:<5} {name}: {value} {unit} ({took:.1} s)");
                    results.lock().expect("results")[place] = Some(row);
                }
                Err(error) => eprintln!("{done:>3}/{of} {kernel:<5} {name}: FAILED: {error:#}"),
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (1..=workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("measuring panicked"))?)
    })?;

    let version = process::output(Command::new("qemu-system-x86_64").arg("--version"))?;
    let mut report =
        Report { emulator: version.lines().next().unwrap_or_default().to_owned(), ..Report::default() };
    for system in &systems {
        let results = KernelResults { release: system.kernel.release.clone(), rows: Vec::new() };
        report.kernels.insert(system.kernel.name.clone(), results);
    }
    let results = results.into_inner().expect("results");
    let failed = results.iter().filter(|row| row.is_none()).count();
    for ((system, _), row) in jobs.iter().zip(results) {
        if let (Some(kernel), Some(row)) = (report.kernels.get_mut(&system.kernel.name), row) {
            kernel.rows.push(row);
        }
    }
    Ok((report, failed))
}

impl System {
    fn new(wanted: &Wanted, binaries: &Binaries) -> Result<Self> {
        let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
        let own = guest::own_directory(&kernel)?;
        let command = ["bench", "run"].map(str::to_owned);
        let initramfs = guest::with_command(&kernel, &own.0, binaries, Archive::default(), &command, LIMIT)?;
        Ok(Self { kernel, initramfs, _own: own })
    }

    /// The row's number, from a fresh guest.
    fn measure(&self, name: &str, log: &Path, seed: u32) -> Result<Row> {
        let machine = Machine {
            word: Some(name),
            ..Machine::new(&self.kernel, &self.initramfs, log.to_owned(), Processor::Counted { seed })
        };
        let mut row = None;
        let mut said = Vec::new();
        let end = machine.boot()?.job(LIMIT, |line| match line.strip_prefix("@@ROW ") {
            Some(json) => row = Some(serde_json::from_str(json)),
            None => said.push(line.to_owned()),
        });
        let (end, _) = end.map_err(|broken| anyhow!("{broken}; see {}", log.display()))?;
        match row {
            Some(row) if end == End::Exit(0) => row.context("the guest said something else than a row"),
            _ => bail!("{end}\n{}", said.join("\n")),
        }
    }
}
