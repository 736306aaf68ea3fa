//! A running guest: QEMU's command line, the port to PID 1, the kernel's console, time limits.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use crate::arch::Arch;

use super::{
    MEMORY_MIB, cards,
    kernels::Kernel,
    verdict::{self, End, Line},
};

/// From QEMU's start to PID 1's first word, on a busy machine; with systemd it takes the longest.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// What PID 1 needs beyond a job's own time limit, to kill it and say so.
const GRACE: Duration = Duration::from_secs(15);
/// A broken kernel's last words come in this time after the first.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The emulated processor: all that can be emulated but fast string instructions (ERMS, FSRM). The kernel copies and clears memory
/// byte by byte on a processor that has them, and the emulator takes, and counts, an instruction for each.
const EMULATED: &str = "max,erms=off,fsrm=off";
/// For 64-bit ARM the smallest that has all that Linux uses: signed pointers and long vectors cost the emulator most.
const EMULATED_ARM: &str = "cortex-a76";

/// How the guest's processor comes about.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Processor {
    /// Emulated, as fast as it goes.
    Emulated,
    /// Emulated, and its clock counts instructions: a nanosecond each, and idle time passes at once. One CPU only.
    ///
    /// Nothing from outside reaches the guest, neither this machine's clock nor its entropy, so runs of the same programs are
    /// the same to the instruction. What is random in the guest follows from this number.
    Counted { seed: u32 },
    /// This machine's own, virtualised.
    Kvm,
}

impl Processor {
    /// Virtualised if that is wanted.
    pub(crate) fn virtualised(wanted: bool) -> Self {
        if wanted { Self::Kvm } else { Self::Emulated }
    }

    /// How many of our seconds one of the guest's may take, when other work keeps this machine busy too.
    fn slowness(self) -> u32 {
        match self {
            // It executes some 150 million instructions in a second of this machine's.
            Self::Counted { .. } => 20,
            Self::Emulated | Self::Kvm => 1,
        }
    }
}

/// What to boot.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a Path,
    /// Everything that the guest says is appended here.
    pub(crate) log: PathBuf,
    pub(crate) processor: Processor,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// A file that is the guest's disk; what the guest writes is gone with it.
    pub(crate) disk: Option<&'a Path>,
    /// Where QEMU listens for commands of its monitor.
    pub(crate) monitor: Option<PathBuf>,
    /// Whether it has network cards, and the monitor for itself. Its clock doesn't pass over idle time then, since the cards' packets are
    /// on their way meanwhile.
    pub(crate) cards: bool,
    /// One more word for the command in the initramfs, so that several guests can share one.
    pub(crate) word: Option<&'a str>,
}

impl<'a> Machine<'a> {
    /// One CPU and the usual memory, and nothing out of the ordinary.
    pub(crate) fn new(kernel: &'a Kernel, initramfs: &'a Path, log: PathBuf, processor: Processor) -> Self {
        Self {
            kernel,
            initramfs,
            log,
            processor,
            cpus: 1,
            memory_mib: MEMORY_MIB,
            disk: None,
            monitor: None,
            cards: false,
            word: None,
        }
    }

    /// QEMU with the port to PID 1 on its stdin and stdout, and the console on its stderr.
    fn command(&self, mode: &str) -> Command {
        // Should this program be killed, its guests go with it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if self.cards {
            command.args(cards::surroundings());
        }
        let arch = self.kernel.arch;
        command.arg(format!("qemu-system-{}", arch.machine())).args(["-no-user-config", "-nodefaults"]);
        // ARM's machine has one serial port, and room on PCI for the two that a PC has.
        let (machine, emulated, serial) = match arch {
            Arch::Amd64 => ("pc", EMULATED, ["-serial", "chardev:"]),
            Arch::Arm64 => ("virt", EMULATED_ARM, ["-device", "pci-serial,chardev="]),
        };
        let (acceleration, cpu) = match self.processor {
            Processor::Emulated => ("tcg,thread=multi", emulated),
            Processor::Counted { .. } => ("tcg", emulated),
            Processor::Kvm => ("kvm", "host"),
        };
        command.args(["-machine", machine, "-accel", acceleration, "-cpu", cpu]);
        command.args(["-display", "none", "-no-reboot"]);
        // A broken kernel ends QEMU. Self-tests take half the boot; the timer can be late on a busy machine, which 6.1
        // takes for broken; with the same addresses each time, the emulator needn't translate programs again.
        let mut append = format!(
            "console=ttyS0,115200 loglevel=5 panic=-1 oops=panic mitigations=off cryptomgr.notests no_timer_check \
             norandmaps rdinit=/init fastpath.mode={mode}"
        );
        if let Processor::Counted { seed } = self.processor {
            let sleep = if self.cards { "on" } else { "off" };
            command.args(["-icount", &format!("shift=0,sleep={sleep}"), "-rtc", "base=2026-01-01,clock=vm"]);
            command.args(["-seed", &seed.to_string()]);
            // To learn how fast this timer runs takes 0.2 s of reading the clock, at which the emulator is slowest.
            append += " nolapic_timer";
        }
        if let Some(word) = self.word {
            append += &format!(" fastpath.word={word}");
        }
        command.args(["-smp", &self.cpus.to_string(), "-m", &format!("{}M", self.memory_mib)]);
        command.args(["-chardev", "file,id=console,path=/dev/fd/2,append=on"]);
        command.args(["-chardev", "stdio,id=port,signal=off"]);
        for port in ["console", "port"] {
            command.args([serial[0], &format!("{}{port}", serial[1])]);
        }
        if let Some(disk) = self.disk {
            let disk = disk.display();
            command.args(["-drive", &format!("file={disk},format=raw,if=virtio,snapshot=on")]);
        }
        if let Some(socket) = self.monitor.as_ref().filter(|_| self.cards) {
            command.args(cards::arguments(socket));
        } else if let Some(socket) = &self.monitor {
            command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", socket.display()));
        }
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initramfs);
        command.arg("-append").arg(append);
        command
    }

    /// Gives this terminal to a shell in the guest, until it ends.
    pub(crate) fn shell(&self) -> Result<()> {
        let log = fs::File::create(&self.log)?.into_file();
        let status = self.command("shell").stderr(log).status().context("cannot run QEMU")?;
        if !status.success() {
            bail!("QEMU failed ({status}), see {}", self.log.display());
        }
        Ok(())
    }

    /// Boots the guest and waits until PID 1 takes requests.
    pub(crate) fn boot(&self) -> Result<Guest> {
        // After the log of the guest that this one replaces.
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut qemu = self
            .command("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run QEMU")?;
        let (sender, events) = mpsc::channel();
        let stdout = qemu.stdout.take().context("QEMU's stdout is a pipe")?;
        let stderr = qemu.stderr.take().context("QEMU's stderr is a pipe")?;
        read_lines(stdout, sender.clone(), Event::Port);
        read_lines(stderr, sender, Event::Console);
        let port = qemu.stdin.take().context("QEMU's stdin is a pipe")?;
        let slowness = self.processor.slowness();
        let mut guest = Guest { qemu, port, events, log, booted_in: Duration::ZERO, slowness };
        let began = Instant::now();
        match guest.follow(BOOT_LIMIT, |line| (line == Line::Ready).then_some(())) {
            Ok(()) => {
                guest.booted_in = began.elapsed();
                Ok(guest)
            }
            Err(broken) => Err(anyhow!("the guest with kernel {} did not boot: {broken}", self.kernel.name)),
        }
    }
}

enum Event {
    Port(String),
    Console(String),
}

fn read_lines(stream: impl Read + Send + 'static, to: Sender<Event>, event: fn(String) -> Event) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            if to.send(event(text.trim_end_matches(['\r', '\n']).to_owned())).is_err() {
                break; // nothing follows this guest any more
            }
            line.clear();
        }
    });
}

/// A guest whose PID 1 takes requests. Dropping it ends it.
pub(crate) struct Guest {
    qemu: Child,
    port: ChildStdin,
    events: Receiver<Event>,
    log: fs::File,
    booted_in: Duration,
    slowness: u32,
}

/// Why a guest can't go on.
pub(crate) type Broken = String;

impl Guest {
    pub(crate) fn booted_in(&self) -> Duration {
        self.booted_in
    }

    /// Runs one test of the `it` binary, with these variables (`NAME=VALUE`, without spaces) in its environment.
    pub(crate) fn test(
        &mut self,
        name: &str,
        variables: &[String],
        limit: Duration,
        on_line: impl FnMut(&str),
    ) -> Result<(End, Duration), Broken> {
        let words = [&[name.to_owned()], variables].concat().join(" ");
        self.request(&format!("test {} {words}", limit.as_secs()), limit, on_line)
    }

    /// Runs a program of the guest's, by its path and arguments, none of which has a space in it.
    pub(crate) fn run(
        &mut self,
        words: &str,
        limit: Duration,
        on_line: impl FnMut(&str),
    ) -> Result<(End, Duration), Broken> {
        self.request(&format!("run {} {words}", limit.as_secs()), limit, on_line)
    }

    fn request(
        &mut self,
        request: &str,
        limit: Duration,
        on_line: impl FnMut(&str),
    ) -> Result<(End, Duration), Broken> {
        let _ = writeln!(self.log, "[host] {request}");
        writeln!(self.port, "{request}").map_err(|e| format!("the guest's port is closed: {e}"))?;
        self.job(limit, on_line)
    }

    /// What becomes of the command that was put into the initramfs with that limit; it has begun by itself.
    pub(crate) fn job(
        &mut self,
        limit: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<(End, Duration), Broken> {
        self.follow(limit * self.slowness + GRACE, |line| match line {
            Line::End(end, took) => Some((end, took)),
            Line::Output(output) => {
                on_line(output);
                None
            }
            Line::Ready | Line::Noise(_) => None,
        })
    }

    /// Reads what the guest says until `wanted` finds something, the limit is reached or the kernel breaks.
    fn follow<T>(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(Line<'_>) -> Option<T>,
    ) -> Result<T, Broken> {
        let deadline = Instant::now() + limit;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Port(line)) => {
                    let _ = writeln!(self.log, "{line}");
                    if let Some(found) = wanted(verdict::line(&line)) {
                        return Ok(found);
                    }
                }
                Ok(Event::Console(line)) => {
                    let _ = writeln!(self.log, "[kernel] {line}");
                    if let Some(alarm) = verdict::alarm(&line) {
                        self.last_words();
                        return Err(format!("{alarm}: {line}"));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("no progress for {} s", limit.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                    return Err(format!("the guest ended by itself (QEMU: {status})"));
                }
            }
        }
    }

    /// Puts into the log what else a broken kernel says.
    fn last_words(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while let Ok(event) = self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            let _ = match event {
                Event::Port(line) => writeln!(self.log, "{line}"),
                Event::Console(line) => writeln!(self.log, "[kernel] {line}"),
            };
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Nothing in it is worth an orderly shutdown.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
