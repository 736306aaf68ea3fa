//! PID 1 of the test guest: prepares the system, then runs on request what the host names over the second serial port
//! (see `serve`), or gives a shell. It decides nothing about tests: the host judges them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{self, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        reboot::{RebootMode, reboot},
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::sync,
};

#[path = "../guest_job.rs"]
mod guest_job;

/// The port to the host: a serial line, since some of the kernels have virtio as a module only.
const PORT: &str = "/dev/ttyS1";
/// A command to run without being asked: its time limit in seconds, and its words, each ended by a NUL.
const JOB: &str = "/job/arguments";
/// On the kernel's command line, in front of one more word for that command.
const WORD: &str = "fastpath.word=";

fn main() {
    if std::env::args_os().nth(1).is_some_and(|word| word == "isolated") {
        // `init isolated PROGRAM ARGUMENTS…` replaces itself.
        let error = isolated().map_or_else(|e| e, |never| match never {});
        eprintln!("init: {error:#}");
        process::exit(125);
    }
    if let Err(error) = boot() {
        eprintln!("init: {error:#}");
    }
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

fn boot() -> Result<()> {
    prepare()?;
    let mode = fs::read_to_string("/proc/cmdline")?;
    if mode.split_whitespace().any(|word| word == "fastpath.mode=shell") { shell() } else { serve() }
}

/// Makes the system what a program expects to find.
fn prepare() -> Result<()> {
    mount_at("proc", "/proc")?;
    mount_at("sysfs", "/sys")?;
    mount_at("devtmpfs", "/dev")?;
    mount_at("devpts", "/dev/pts")?;
    mount_at("tmpfs", "/dev/shm")?;
    mount_at("cgroup2", "/sys/fs/cgroup")?;
    mount_at("debugfs", "/sys/kernel/debug")?;
    mount_at("tracefs", "/sys/kernel/tracing")?;
    for (link, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        symlink(target, Path::new("/dev").join(link))?;
    }
    make_device_nodes()?;
    mount_for_a_job()?;
    mount_at("tmpfs", "/tmp")?;
    fs::write("/proc/sys/kernel/hostname", "fastpath-guest")?;
    run_ip_link_lo_up()?;
    // A failing job should say so, not fill the guest's memory with a core.
    fs::write("/proc/sys/kernel/core_pattern", "|/bin/false")?;
    Ok(())
}

/// The nodes by which a device's module is loaded when first opened (`/dev/net/tun`), which elsewhere udev makes.
fn make_device_nodes() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let list = fs::read_to_string(format!("/lib/modules/{}/modules.devname", release.trim()))?;
    // "tun net/tun c10:200", after a comment.
    for line in list.lines() {
        let mut words = line.split(' ');
        let (Some(_), Some(name), Some(device)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Some((major, minor)) = device.strip_prefix('c').and_then(|numbers| numbers.split_once(':'))
        else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        let path = Path::new("/dev").join(name);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(())
}

/// File systems of which each job gets its own, so that nothing of it outlives it: pins, named namespaces, sockets.
fn mount_for_a_job() -> Result<()> {
    mount_at("bpf", "/sys/fs/bpf")?;
    mount_at("tmpfs", "/run")
}

fn mount_at(kind: &str, target: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} at {target}"))
}

fn run_ip_link_lo_up() -> Result<()> {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    if !status.success() {
        bail!("cannot bring lo up");
    }
    Ok(())
}

/// An interactive shell on the port; the guest ends with it.
fn shell() -> Result<()> {
    let port = OpenOptions::new().read(true).write(true).open(PORT)?;
    let profile = "stty sane; [ -f /job/size ] && stty $(cat /job/size); cd /root; exec bash -l";
    Command::new("setsid")
        .args(["--ctty", "--wait", "bash", "-c", profile])
        .env("TERM", "vt220")
        .env("HOME", "/root")
        .stdin(port.try_clone()?)
        .stdout(port.try_clone()?)
        .stderr(port)
        .status()
        .context("cannot run a shell")?;
    Ok(())
}

/// Runs the command in `/job/arguments`, or, if there is none, obeys the host until it says `exit`: `test SECONDS NAME VARIABLE=VALUE…`
/// runs that one test of the `it` binary, `run SECONDS PROGRAM ARGUMENTS…` another program.
///
/// The command doesn't wait for a word of the host, which would arrive at another moment of the guest's time in each run.
/// Each line that the job prints comes back behind `| `, and at the end `@@END WORD NUMBER SECONDS`.
fn serve() -> Result<()> {
    let raw = Command::new("stty").args(["-F", PORT, "115200", "raw", "-echo"]).status()?;
    if !raw.success() {
        bail!("cannot set up {PORT}");
    }
    let mut port = File::options().write(true).open(PORT)?;
    writeln!(port, "@@READY")?;
    if Path::new(JOB).exists() {
        let (command, limit) = job()?;
        return run(command, limit, &mut port);
    }
    let requests = BufReader::new(File::open(PORT)?);
    for request in requests.lines() {
        let request = request.context("cannot read from the host")?;
        let mut words = request.split(' ');
        match (words.next(), words.next().and_then(|n| n.parse().ok()), words.next()) {
            (Some("exit"), ..) => return Ok(()),
            (Some("test"), Some(limit), Some(name)) => {
                let mut command = test_command(name);
                command.envs(words.filter_map(|word| word.split_once('=')));
                run(command, limit, &mut port)?;
            }
            (Some("run"), Some(limit), Some(program)) => {
                let mut command = isolated_command(program);
                command.args(words);
                run(command, limit, &mut port)?;
            }
            _ => writeln!(port, "@@UNKNOWN {request}")?,
        }
    }
    bail!("the host closed {PORT}")
}

fn run(command: Command, limit_seconds: u64, port: &mut File) -> Result<()> {
    let (end, took) = guest_job::run(command, Duration::from_secs(limit_seconds), port)?;
    writeln!(port, "@@END {} {:.3}", guest_job::describe(&end), took.as_secs_f64())?;
    Ok(())
}

fn test_command(name: &str) -> Command {
    let mut command = isolated_command("/usr/bin/it");
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command
}

/// The command to run without being asked, and its limit in seconds.
fn job() -> Result<(Command, u64)> {
    let job = fs::read_to_string(JOB)?;
    let mut words = job.split_terminator('\0');
    let limit = words.next().and_then(|n| n.parse().ok()).context("no time limit")?;
    let mut command = isolated_command(words.next().context("no command to run")?);
    command.args(words);
    let boot = fs::read_to_string("/proc/cmdline")?;
    command.args(boot.split_whitespace().filter_map(|word| word.strip_prefix(WORD)));
    Ok((command, limit))
}

fn isolated_command(program: &str) -> Command {
    let mut command = Command::new("/init");
    command.args(["isolated", program]);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .env("RUST_BACKTRACE", "1")
        .env("FASTPATH_GUEST", "1")
        .process_group(0);
    command
}

/// Enters network and mount namespaces of its own and becomes the program named on the command line. Used on the
/// developer's kernel too.
fn isolated() -> Result<std::convert::Infallible> {
    let mut words = std::env::args_os().skip(2);
    let program = words.next().context("nothing to run")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot leave the namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make mounts private")?;
    // A sysfs mounted here shows this network namespace; what was below the old one goes on top again.
    mount_at("sysfs", "/sys")?;
    mount_at("cgroup2", "/sys/fs/cgroup")?;
    mount_at("debugfs", "/sys/kernel/debug")?;
    mount_at("tracefs", "/sys/kernel/tracing")?;
    mount_for_a_job()?;
    run_ip_link_lo_up()?;
    let error: io::Error = Command::new(&program).args(words).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}
