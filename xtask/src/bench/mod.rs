//! `cargo xtask bench`: what a packet costs, counted in instructions in the emulated guest, so that the numbers are the
//! same on every machine.

mod compare;
mod guest;
mod report;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use self::report::Report;
use crate::{
    build,
    guest::kernels,
    setup::{self, Need},
    workspace,
};

/// What `cargo xtask bench` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which guest kernels (see tests/kernels.toml); all if none is named. Repeatable.
    #[arg(long)]
    kernel: Vec<String>,
    /// Only rows whose name contains this. Repeatable.
    #[arg(long)]
    filter: Vec<String>,
    /// Print the names of the rows and measure nothing.
    #[arg(long)]
    list: bool,
    /// What to print.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Also write the results as JSON to this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the results in this file, or those in the repository; fail if a number grew by more than 2 %.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE)]
    compare: Option<PathBuf>,
    /// Only the rows that CI compares, which take about a minute.
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
}

/// The results in the repository, below its top directory.
const BASELINE: &str = "bench/baseline.json";

/// Rows that show a regression of the rules or the programs soonest.
const QUICK: &[&str] = &[
    "udp4-64/no-fastpath",
    "udp4-64/young/ours",
    "udp4-64/young/ours-ebpf",
    "udp4-64/offloaded/kindnet",
    "udp4-64/offloaded/ours-ebpf",
];

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Output {
    Table,
    Json,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let wanted = kernels::wanted(&options.kernel)?;
    setup::ensure(&[Need::Build, Need::Guest(&wanted)])?;
    let binaries = build::for_benchmark()?;
    let mut rows = guest::rows(&binaries, &options.filter)?;
    if options.quick {
        rows.retain(|row| QUICK.contains(&row.as_str()));
    }
    if rows.is_empty() {
        bail!("no row's name contains {}; --list prints all", options.filter.join(" or "));
    }
    if options.list {
        for row in rows {
            println!("{row}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (report, failed) = guest::measure(&wanted, &binaries, &rows)?;
    match options.output {
        Output::Table => print!("{}\n{}", report.table(), targets::shown(&targets::outcomes(&report))),
        Output::Json => print!("{}", report.to_json()?),
    }
    if let Some(path) = &options.save {
        report.write(path)?;
    }
    if failed > 0 {
        bail!("{failed} rows could not be measured");
    }
    if let Some(path) = &options.compare {
        let path = workspace::root().join(path);
        let found = compare::compare(&Report::read(&path)?, &report);
        eprint!("{}", found.text);
        eprintln!("{} numbers compared with {}", found.compared, path.display());
        if found.compared == 0 {
            bail!("there is nothing to compare with");
        }
        if found.regressions > 0 {
            bail!("{} numbers grew by more than 2 %", found.regressions);
        }
    }
    Ok(ExitCode::SUCCESS)
}
