//! Runs rows in guests whose clock counts instructions, one guest after the other, and collects their results.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::report::{KernelResults, Report, Row, number};
use crate::{
    build::Binaries,
    guest::{
        self, MEMORY_MIB,
        initramfs::Archive,
        kernels::{self, Wanted},
        qemu::{Machine, Processor},
    },
    process,
};

/// For all rows of a kernel, in the guest's time, which is longer than ours when it does little.
const LIMIT: Duration = Duration::from_secs(3600);

/// Names of the rows that contain one of `filters`; all if there are none.
pub(super) fn rows(binaries: &Binaries, filters: &[String]) -> Result<Vec<String>> {
    let list = process::output(Command::new(&binaries["bench"]).arg("list"))?;
    let wanted = |name: &&str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    Ok(list.lines().filter(wanted).map(str::to_owned).collect())
}

/// Measures on each kernel; also says how many rows failed.
pub(super) fn measure(wanted: &[Wanted], binaries: &Binaries, rows: &[String]) -> Result<(Report, usize)> {
    let version = process::output(Command::new("qemu-system-x86_64").arg("--version"))?;
    let mut report =
        Report { emulator: version.lines().next().unwrap_or_default().to_owned(), ..Report::default() };
    let mut failed = 0;
    for wanted in wanted {
        let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
        let own = guest::own_directory(&kernel)?;
        let mut command = vec!["bench".to_owned(), "run".to_owned()];
        command.extend(rows.iter().cloned());
        let initramfs = guest::with_command(&kernel, &own.0, binaries, Archive::default(), &command)?;
        let machine = Machine {
            kernel: &kernel,
            initramfs: &initramfs,
            log: guest::new_log(&format!("bench-{}.log", kernel.name))?,
            processor: Processor::Counted,
            cpus: 1,
            memory_mib: MEMORY_MIB,
            monitor: None,
        };
        let mut results = KernelResults { release: kernel.release.clone(), rows: Vec::new() };
        let mut booted = machine.boot()?;
        let mut began = Instant::now();
        let mut done = 0;
        let mut unexpected = None;
        let end = booted.exec(LIMIT, |line| {
            if let Some(json) = line.strip_prefix("@@ROW ") {
                match serde_json::from_str::<Row>(json) {
                    Ok(row) => {
                        done += 1;
                        eprintln!(
                            "{:<5} {done:>3}/{} {}: {} {} ({:.1} s)",
                            kernel.name,
                            rows.len(),
                            row.name,
                            number(row.value),
                            row.unit,
                            began.elapsed().as_secs_f64()
                        );
                        results.rows.push(row);
                    }
                    Err(error) => unexpected = Some(anyhow!("cannot understand {json:?}: {error}")),
                }
                began = Instant::now();
            } else if let Some(name) = line.strip_prefix("@@FAILED ") {
                done += 1;
                failed += 1;
                eprintln!("{:<5} {done:>3}/{} {name}: FAILED", kernel.name, rows.len());
                began = Instant::now();
            } else {
                eprintln!("      {line}");
            }
        });
        let (end, _) = end.map_err(|broken| anyhow!("{broken}; see {}", machine.log.display()))?;
        if let Some(error) = unexpected {
            return Err(error);
        }
        if done != rows.len() {
            return Err(anyhow!(
                "the guest's runner ended after {done} of {} rows ({end}); see {}",
                rows.len(),
                machine.log.display()
            ));
        }
        report.kernels.insert(kernel.name.clone(), results);
    }
    Ok((report, failed))
}
