//! `cargo xtask`: set-up, build, test, benchmark and demonstration. Only this program knows how the pieces are built; it needs no
//! native library itself.

mod arch;
mod bench;
mod build;
mod cargo_tool;
mod dashboard;
mod document;
#[cfg(test)]
mod documented;
mod draw;
mod ebpf;
mod field;
mod fuzz;
mod guest;
mod image;
mod links;
mod lint;
mod miri;
mod package;
mod process;
mod progress;
mod prometheus;
mod release;
mod reproduce;
mod run;
mod setup;
mod soak;
mod tally;
mod test;
mod toolchain;
mod twin;
mod unsafe_code;
mod wheel;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, tests and demonstrates Fastpath; installs what that needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other commands need (they do it by themselves too)
    Setup,
    /// Build the eBPF object and the agent, and print the agent's path
    Build(build::Options),
    /// Check format, clippy, documentation and the repository's own rules
    Lint,
    /// Run the tests
    Test(test::Options),
    /// Measure what a packet costs, with and without fast path, and compare with the numbers in the repository
    Bench(bench::Options),
    /// Record two agents in the test guest, and draw every panel of the Grafana dashboard from that for docs/dashboard.md
    Dashboard(dashboard::Options),
    /// Build the Debian package, with man pages, completions and the systemd unit, and print its path
    Package(package::Options),
    /// Run the agent on this node, or show what it does in the test guest
    Run(run::Options),
    /// Build the agent's container image, without a registry
    Image(image::Options),
    /// Make all that a release consists of, for amd64 and arm64
    Release(release::Options),
    /// Make the last commit's release twice, and compare the artefacts byte by byte
    Reproduce(reproduce::Options),
    /// Open a shell in the test guest, or run one command there
    Guest(guest::Options),
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Task::Setup => setup::everything()?,
        Task::Build(options) => {
            setup::ensure(&[setup::Need::Build])?;
            build::run(&options)?;
        }
        Task::Image(options) => {
            image::run(&options)?;
        }
        Task::Release(options) => release::run(&options)?,
        Task::Reproduce(options) => reproduce::run(&options)?,
        Task::Lint => {
            setup::ensure(&[setup::Need::Build, setup::Need::Lint])?;
            lint::run()?;
        }
        Task::Dashboard(options) => dashboard::run(&options)?,
        Task::Package(options) => package::run(&options)?,
        Task::Test(options) => test::run(&options)?,
        Task::Bench(options) => return bench::run(&options),
        Task::Run(options) => return run::run(&options),
        Task::Guest(options) => return guest::run(&options),
    }
    Ok(ExitCode::SUCCESS)
}
