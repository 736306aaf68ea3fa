//! `cargo xtask bench`: what a packet costs, counted in instructions in the emulated guest, so that the numbers are the
//! same on every machine.

mod break_even;
mod chart;
mod compare;
mod curves;
mod document;
mod guest;
mod host;
mod profile;
mod report;
mod symbols;
mod targets;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};

use self::report::Report;
use crate::{
    build::{self, Binaries},
    guest::kernels,
    setup::{self, Need},
    workspace,
};

/// What `cargo xtask bench` was asked for.
#[derive(clap::Args, Default)]
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
    /// Also write the results as JSON to this file; rows in it that weren't measured now stay.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the results in this file, or those in the repository; fail if a number grew by more than 2 %.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = BASELINE)]
    compare: Option<PathBuf>,
    /// Measure nothing; write the charts and the numbers in docs/benchmark.md from the results in the repository.
    #[arg(long, exclusive = true)]
    render: bool,
    /// Instead of counting in the guest, measure throughput, CPU and packets a second on this machine's own kernel.
    #[arg(long, exclusive = true)]
    host: bool,
    /// Print what each function of the kernel takes of a packet of this row. Repeatable: rows beside each other.
    #[arg(long, value_name = "ROW", conflicts_with_all = ["filter", "quick", "save", "compare"])]
    profile: Vec<String>,
    /// Only the rows that CI compares, which take about a minute.
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
    /// What all that is random in the guest follows from. With the same one, runs are the same to the instruction.
    #[arg(long, default_value_t = SEED)]
    seed: u32,
}

/// The course that the results in the repository took.
const SEED: u32 = 1;

/// The results in the repository, below its top directory.
const BASELINE: &str = "bench/baseline.json";

/// Rows that show a regression of the rules or the programs soonest.
const QUICK: &[&str] = &[
    "udp4-64/no-fastpath",
    "udp4-64/young/ours",
    "udp4-64/young/ours-ebpf",
    "udp4-64-10-exclusions/young/ours-ebpf",
    "udp4-64/offloaded/kindnet",
    "udp4-64/offloaded/ours-ebpf",
];

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Default)]
enum Output {
    #[default]
    Table,
    Json,
}

/// A row in which the agent has a part, beside packets, clocks and chance: what differs between two runs, differs here.
const REPEATED: &str = "tcp4-7-rounds/ours-ebpf-threshold-6";

/// What CI runs: the quick rows on `kernels`, held against the results in the repository; and one row twice, which must
/// give the same.
pub(crate) fn check(kernels: &[String], binaries: &Binaries) -> Result<()> {
    let rows = [REPEATED.to_owned()];
    let wanted = kernels::wanted(kernels)?;
    let (first, failed) = guest::measure(&wanted, binaries, &rows, SEED)?;
    let (second, failed_again) = guest::measure(&wanted, binaries, &rows, SEED)?;
    if failed + failed_again > 0 {
        bail!("{REPEATED} could not be measured");
    }
    if first != second {
        bail!("two runs of the same programs differ:\n{}{}", first.table(), second.table());
    }
    let options = Options {
        kernel: kernels.to_vec(),
        compare: Some(BASELINE.into()),
        quick: true,
        seed: SEED,
        ..Options::default()
    };
    measure(&options, binaries).map(|_| ())
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.render {
        document::render(&Report::read(&workspace::root().join(BASELINE))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if options.host {
        setup::ensure(&[Need::Build, Need::Host])?;
        host::measure(&build::with_program("bench")?)?;
        return Ok(ExitCode::SUCCESS);
    }
    setup::ensure(&[Need::Build, Need::Guest(&kernels::wanted(&options.kernel)?)])?;
    measure(options, &build::with_program("bench")?)
}

fn measure(options: &Options, binaries: &Binaries) -> Result<ExitCode> {
    let wanted = kernels::wanted(&options.kernel)?;
    if !options.profile.is_empty() {
        profile::run(&wanted, binaries, &options.profile, options.seed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = guest::rows(binaries, &options.filter)?;
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
    let (mut report, failed) = guest::measure(&wanted, binaries, &rows, options.seed)?;
    match options.output {
        Output::Table => {
            print!("{}\n{}", report.table(), targets::shown(&targets::outcomes(&report)));
            for line in break_even::lines(&report) {
                println!("{line}");
            }
        }
        Output::Json => print!("{}", report.to_json()?),
    }
    // Read before it may be written below.
    let before = match &options.compare {
        Some(path) => Some((path, Report::read(&workspace::root().join(path))?)),
        None => None,
    };
    let comparison = before.map(|(path, before)| (path, compare::compare(&before, &report)));
    if let Some(path) = &options.save {
        if path.exists() {
            report.fill_in(Report::read(path)?);
            report.retain(&guest::rows(binaries, &[])?);
        }
        report.write(path)?;
    }
    if failed > 0 {
        bail!("{failed} rows could not be measured");
    }
    if let Some((path, found)) = comparison {
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
