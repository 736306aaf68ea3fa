//! The canary in a process of its own: this program again, with a subcommand. So it can be ended at any moment,
//! whatever it waits for, and its namespaces with it.
#![expect(unsafe_code, reason = "what is done between fork and exec has no safe wrapper")]

use std::{
    env,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::Pid,
};

use crate::core::doctor::facts::CanaryFlow;

/// The subcommand that runs the canary and prints an outcome in JSON on each line. Its flags say what the ruleset looks
/// like; a low threshold makes it quick.
const SUBCOMMAND: [&str; 2] = ["canary", "--fastpath-threshold=6"];

/// Runs it, and calls `each` with every outcome as it comes. An error says in one line why it couldn't be run.
pub fn run_in_child(limit: Duration, mut each: impl FnMut(&CanaryFlow)) -> Result<Vec<CanaryFlow>, String> {
    let mut command = Command::new("/proc/self/exe");
    command.args(SUBCOMMAND).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The node's own settings are no business of the scratch namespaces.
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FASTPATH_")) {
        command.env_remove(name);
    }
    end_with_this_process(&mut command);
    let mut child =
        Killed(command.spawn().map_err(|error| format!("cannot start this program again: {error}"))?);
    let stdout = child.0.stdout.take().ok_or("it has no output")?;
    let stderr = child.0.stderr.take().ok_or("it has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let deadline = Instant::now() + limit;
    let mut flows = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let flow =
                    serde_json::from_str(&line).map_err(|error| format!("it said {line:?}: {error}"))?;
                each(&flow);
                flows.push(flow);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(format!("it wasn't done after {} s, and was ended", limit.as_secs()));
            }
        }
    }
    let status = child.0.wait().map_err(|error| error.to_string())?;
    if status.success() {
        return Ok(flows);
    }
    let mut said = String::new();
    let _ = { stderr }.read_to_string(&mut said);
    let error = said.lines().find_map(|line| line.strip_prefix("error: "));
    Err(error.map_or_else(|| format!("it ended with {status}"), str::to_owned))
}

/// The kernel kills the process when this one ends, however that comes about. Set before it becomes the program, so that
/// there is no moment without.
fn end_with_this_process(command: &mut Command) {
    let this = Pid::this();
    let tie = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // This process may have ended before.
        if Pid::parent() == this { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
    unsafe { command.pre_exec(tie) };
}

/// A process that doesn't outlive its handle.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
