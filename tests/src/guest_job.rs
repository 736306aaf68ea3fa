//! Running one job in the test guest: a process of its own in fresh namespaces, its output relayed line by line, a
//! time limit, and nothing left running afterwards. Only PID 1 may use it: it kills every other process.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// How a job ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The process ended by itself.
    Exited(ExitStatus),
    /// It was killed at its time limit.
    TimeLimit,
}

/// Runs `command` to its end or its limit and copies what it prints to `port`, each line behind `| `.
pub(crate) fn run(
    mut command: Command,
    limit: Duration,
    port: &mut (impl Write + Send),
) -> io::Result<(End, Duration)> {
    let began = Instant::now();
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    drop(command); // it holds the pipe's writing end

    let (ended, end) = mpsc::channel();
    thread::scope(|scope| {
        let relay = scope.spawn(move || relay(reader, port).map(|()| port));
        let waiter = scope.spawn(move || {
            let status = child.wait();
            let _ = ended.send(());
            status
        });
        let in_time = !matches!(end.recv_timeout(limit), Err(RecvTimeoutError::Timeout));
        let took = began.elapsed();
        if !in_time {
            // On the console: the port carries the job's own lines.
            let _ = describe_processes(&mut io::stderr());
        }
        kill_all();
        let status = waiter.join().expect("the waiting thread does not panic")?;
        relay.join().expect("the relaying thread does not panic")?;
        reap();
        Ok((if in_time { End::Exited(status) } else { End::TimeLimit }, took))
    })
}

/// One word and a number for `end`, as the host's side reads them.
#[must_use]
pub(crate) fn describe(end: &End) -> String {
    match end {
        End::TimeLimit => "time-limit 0".to_owned(),
        End::Exited(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("signal {}", signal.unwrap_or(0)),
        },
    }
}

fn relay(reader: impl Read, port: &mut impl Write) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        port.write_all(b"| ")?;
        port.write_all(&line)?;
        line.clear();
    }
    port.flush()
}

/// Kills every process but this one, as only PID 1 can: descendants that made themselves daemons included.
fn kill_all() {
    match kill(Pid::from_raw(-1), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => eprintln!("init: cannot kill what the job left behind: {e}"),
    }
}

/// Collects orphans that have ended, which PID 1 inherits.
fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// What every process is doing in the kernel, for a job that hangs.
fn describe_processes(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "init: time limit reached; processes:")?;
    for entry in fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let name = entry.file_name();
        let number = name.to_string_lossy().parse::<u32>();
        if command.is_empty() || number.is_err() || number == Ok(1) {
            continue; // not a process, a kernel thread, or this one
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        writeln!(out, "init: {} {command}", name.display())?;
        for line in fs::read(path.join("stack")).unwrap_or_default().lines().map_while(Result::ok).take(6) {
            writeln!(out, "init:     {line}")?;
        }
    }
    Ok(())
}
