//! Programs of a system with systemd, and the agent as its service there. They run in the caller's own namespaces.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use crate::wait_until;

/// The agent's unit.
pub const AGENT: &str = "fastpath-agent.service";

/// How long a service may take to start or stop in the emulator, on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Runs a command that must succeed, and gives what it prints.
#[track_caller]
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// Runs a script with `bash -eu` that must succeed, and gives what it prints.
#[track_caller]
pub fn sh(script: &str) -> String {
    run("bash", &["-euc", script])
}

/// What a command prints, whatever becomes of it.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output
        .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A property of a unit, as `systemctl show` has it.
pub fn property(unit: &str, name: &str) -> String {
    said("systemctl", &["show", "--value", "-p", name, unit]).trim().to_owned()
}

/// What a service and systemd said about it.
pub fn journal(unit: &str) -> String {
    said("journalctl", &["--no-pager", "-o", "cat", "-u", unit])
}

/// What `systemctl status` and the journal have of a service, for messages.
pub fn described(unit: &str) -> String {
    format!("{}\n{}", said("systemctl", &["status", "--full", "--no-pager", unit]), journal(unit))
}

/// Starts a service and waits until systemd calls it active.
#[track_caller]
pub fn start(unit: &str) {
    let started = Command::new("systemctl").args(["start", unit]).status().expect("systemctl");
    assert!(started.success(), "{unit} doesn't start:\n{}", described(unit));
    wait_until(&format!("{unit} is active"), LIMIT, || property(unit, "ActiveState") == "active");
}
