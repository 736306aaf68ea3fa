//! Subcommands, a file for each.

mod canary;
pub mod cleanup;
pub mod doctor;
pub mod flow_table;
pub mod flow_writer;
pub mod flows;
pub mod follow;
mod names;
pub mod render;
pub mod revalidate;
pub mod revoke;
pub mod rules;
mod running;
pub mod status;
pub mod top;
mod units;
pub mod why;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;

use crate::{
    cli::{Cli, Command, RunArgs},
    config::Config,
    core::printable::printable,
    daemon,
    kernel::probe,
    logging, pages,
};

/// Runs the subcommand.
///
/// # Errors
///
/// With what to tell the user. A command that did its work with a bad result says so itself, and ends with
/// [`ExitCode::FAILURE`].
pub fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Run(args) => run_agent(args),
        Command::Render(args) => render::run(args),
        Command::Status(args) => status::run(args),
        Command::Flows(args) => flows::run(args),
        Command::Top(args) => top::run(args),
        Command::Revalidate => revalidate::run(),
        Command::Revoke(args) => revoke::run(args),
        Command::Why(args) => why::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Canary(args) => canary::run(args),
        Command::Cleanup(args) => cleanup::run(args),
        Command::Completions { shell } => print(&String::from_utf8_lossy(&pages::completion(*shell))),
        Command::Pages { directory } => {
            pages::write(directory)
                .with_context(|| format!("cannot write man pages to {}", directory.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_agent(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let config = Config::new(args, hostname())?;
    logging::start(config.log_format, config.verbosity)?;
    let kernel = probe::probe();
    runtime()?.block_on(daemon::run(config, &kernel))?;
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Metrics are read beside the loop; nothing is left of that a moment later.
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .context("cannot start the event loop")
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| printable(name.as_encoded_bytes()).into_owned())
        .unwrap_or_else(|_| "localhost".to_owned())
}

/// Prints to standard output; a reader that has gone away is no error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.context("cannot write to standard output")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_json(value: &impl Serialize) -> anyhow::Result<ExitCode> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}
