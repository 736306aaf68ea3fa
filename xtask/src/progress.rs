//! Long steps: one line each, with a running clock on a terminal; what the step printed only when it failed.

use std::{
    io::{self, IsTerminal, Write},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::{process, workspace};

/// How much of a failed step's output is shown.
const SHOWN_LINES: usize = 30;

/// Runs a command as a step that the user waits for.
pub(crate) fn step(label: &str, command: &mut Command) -> Result<()> {
    let log_path = workspace::target().join("setup.log");
    if let Some(directory) = log_path.parent() {
        fs::create_dir_all(directory)?;
    }
    let log = fs::File::create(&log_path)?.into_file();
    let shown = process::shown(command);
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let terminal = io::stderr().is_terminal();
    if !terminal {
        eprintln!("{label} ...");
    }
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if terminal {
            eprint!("\r{label} ... {} s ", began.elapsed().as_secs());
            io::stderr().flush()?;
        }
        thread::sleep(Duration::from_millis(100));
    };
    let took = format!("{} s", began.elapsed().as_secs());
    match (terminal, status.success()) {
        (true, true) => eprintln!("\r{label} ... done in {took}"),
        (false, true) => eprintln!("  done in {took}"),
        (true, false) => eprintln!("\r{label} ... failed after {took}"),
        (false, false) => eprintln!("  failed after {took}"),
    }
    if !status.success() {
        let output = fs::read(&log_path).unwrap_or_default();
        let output = String::from_utf8_lossy(&output);
        let lines: Vec<_> = output.lines().collect();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        bail!("`{shown}` failed ({status}):\n{tail}");
    }
    Ok(())
}
