//! `cargo xtask`: set-up, build, test and demonstration.

mod ebpf;
mod guest;
mod process;
mod test;
mod workspace;

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
    /// Run the tests.
    Test(test::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Task::Test(options) => test::run(&options),
    }
}
