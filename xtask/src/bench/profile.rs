//! `--profile`: what each function of the guest's kernel takes of a packet or a connection, counted instruction by instruction.
//!
//! The emulator is told over its monitor to translate one instruction at a time and to log each that it executes. That
//! is exact and slow, so it does it for a few hundred packets only. Which instruction belongs to which function the guest
//! says, programs included.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use super::{report::number, symbols::Symbols};
use crate::{
    build::Binaries,
    guest::{
        self,
        initramfs::Archive,
        kernels::{self, Wanted},
        qemu::{Machine, Processor},
    },
    process,
};

/// From the guest's start to the end of the profile, on the guest's clock.
const LIMIT: Duration = Duration::from_secs(600);
/// How many packets, or whole connections, of a row are looked at.
#[derive(Clone, Copy)]
struct Span {
    /// Those that come first, while the emulator and the guest still settle.
    warm_up: u64,
    looked_at: u64,
}

impl Span {
    /// A connection has as many instructions as a hundred packets.
    fn of(row: &str) -> Self {
        if row.contains("-rounds/") {
            Self { warm_up: 10, looked_at: 30 }
        } else {
            Self { warm_up: 50, looked_at: 300 }
        }
    }
}

/// Functions with less than this are put together, in instructions a packet.
const LEAST: f64 = 40.0;

/// Instructions a packet of each function, and how often a packet calls it.
#[derive(Default, PartialEq, Debug)]
struct Profile {
    functions: BTreeMap<String, (f64, f64)>,
}

/// Profiles each row on each kernel, and prints a table for each kernel: a line for each function, a column for each row.
pub(super) fn run(wanted: &[Wanted], binaries: &Binaries, rows: &[String], seed: u32) -> Result<()> {
    for wanted in wanted {
        let mut profiles = Vec::new();
        for row in rows {
            eprintln!("{:<5} {row}", wanted.name);
            profiles.push(measure(wanted, binaries, row, seed)?);
        }
        println!(
            "\nLinux {}, instructions a packet (calls a packet)\n\n{}",
            wanted.name,
            table(rows, &profiles)
        );
    }
    Ok(())
}

fn measure(wanted: &Wanted, binaries: &Binaries, row: &str, seed: u32) -> Result<Profile> {
    let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
    let own = guest::own_directory(&kernel)?;
    let mut symbols = Symbols::known(&kernel.release);
    let which = if symbols.of_kernel.is_empty() { "all" } else { "modules" };
    let command = ["bench", "profile", which, row].map(str::to_owned);
    let initramfs = guest::with_command(&kernel, &own.0, binaries, Archive::default(), &command, LIMIT)?;
    let (monitor, trace) = (own.0.join("monitor"), own.0.join("trace"));
    process::run(Command::new("mkfifo").arg(&trace))?;
    let log = guest::new_log(&format!("profile-{}.log", kernel.name))?;
    let machine = Machine {
        monitor: Some(monitor.clone()),
        ..Machine::new(&kernel, &initramfs, log, Processor::Counted { seed })
    };
    let (span, mut result) = (Span::of(row), None);
    let ended = machine.boot()?.job(LIMIT, |line| {
        if let Some((address, name)) = line.strip_prefix("@@SYMBOL ").and_then(|line| line.split_once(' ')) {
            if let Ok(address) = u64::from_str_radix(address, 16) {
                symbols.add(address, name);
            }
        } else if let Some(once) = line.strip_prefix("@@PROFILE ") {
            result = Some(executed(&monitor, &trace, symbols.complete(), once, span));
        } else {
            eprintln!("      {line}");
        }
    });
    let Some(counts) = result else {
        bail!("the guest sent no packets: {ended:?}; see {}", machine.log.display());
    };
    symbols.remember(&kernel.release)?;
    Ok(profile(symbols.complete(), &counts?, span.looked_at))
}

/// How often each instruction was executed while those of `span` were sent, by its address. Ends the guest.
///
/// `once` is the function that is called once for each.
fn executed(
    monitor: &Path,
    trace: &Path,
    symbols: &BTreeMap<u64, String>,
    once: &str,
    span: Span,
) -> Result<HashMap<u64, u64>> {
    let sends = symbols.iter().find(|(_, name)| *name == once).with_context(|| format!("no {once}"))?.0;
    let mut monitor = UnixStream::connect(monitor).context("cannot connect to QEMU's monitor")?;
    let mut answers = monitor.try_clone()?;
    std::thread::spawn(move || {
        // The answers don't matter, but it stops without a reader.
        let _ = std::io::copy(&mut answers, &mut std::io::sink());
    });
    // The second is for emulators before 8.1, the first for later ones; each refuses the other in words.
    writeln!(monitor, "one-insn-per-tb on\nsinglestep on\nlogfile {}\nlog exec,nochain", trace.display())?;
    let lines = BufReader::with_capacity(1 << 20, fs::File::open(trace)?);
    let mut counts = HashMap::new();
    let mut packets = 0;
    for line in lines.split(b'\n') {
        let Some(address) = address(&String::from_utf8_lossy(&line?)) else { continue };
        packets += u64::from(address == *sends);
        if packets > span.warm_up + span.looked_at {
            writeln!(monitor, "quit")?;
            return Ok(counts);
        }
        if packets > span.warm_up {
            *counts.entry(address).or_insert(0) += 1;
        }
    }
    bail!("QEMU's log ended after {packets} packets")
}

/// The address in `Trace 0: 0x7f1c40000100 [00000000/ffffffff81a0b2c0/00c0c2b1/ff020000]`.
fn address(line: &str) -> Option<u64> {
    let inside = line.strip_prefix("Trace ")?.split_once('[')?.1;
    u64::from_str_radix(inside.split('/').nth(1)?, 16).ok()
}

/// Instructions by function. Names come from the nearest symbol below.
fn profile(symbols: &BTreeMap<u64, String>, counts: &HashMap<u64, u64>, times: u64) -> Profile {
    let mut functions: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (&address, &count) in counts {
        // The upper half of the addresses is the kernel's.
        let found = symbols.range(..=address).next_back().filter(|_| address >> 63 == 1);
        let (name, calls) = match found {
            Some((&start, name)) => (name.as_str(), if start == address { count } else { 0 }),
            None => ("(programs)", 0),
        };
        let function = functions.entry(name.to_owned()).or_default();
        function.0 += count as f64;
        function.1 += calls as f64;
    }
    for function in functions.values_mut() {
        *function = (function.0 / times as f64, function.1 / times as f64);
    }
    Profile { functions }
}

/// A line for each function, those that take most first, as a table in Markdown.
fn table(rows: &[String], profiles: &[Profile]) -> String {
    let mut names: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, (instructions, _)) in profiles.iter().flat_map(|profile| &profile.functions) {
        let most = names.entry(name).or_default();
        *most = most.max(*instructions);
    }
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by(|a, b| b.1.total_cmp(&a.1));
    let (shown, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, most)| *most >= LEAST);
    let mut text = "| function |".to_owned();
    text += &rows.iter().map(|row| format!(" `{row}` |")).collect::<String>();
    text += &format!("\n| --- |{}\n| all |", " ---: |".repeat(rows.len()));
    let sum = |profile: &Profile| profile.functions.values().map(|function| function.0).sum::<f64>();
    text +=
        &profiles.iter().map(|profile| format!(" {} |", number(sum(profile).round()))).collect::<String>();
    text.push('\n');
    for (name, _) in &shown {
        text += &format!("| `{name}` |");
        for profile in profiles {
            text += &profile.functions.get(*name).map_or_else(
                || " |".to_owned(),
                |(instructions, calls)| {
                    let calls = if *calls < 0.05 {
                        String::new()
                    } else {
                        format!(" ({})", number((calls * 10.0).round() / 10.0))
                    };
                    format!(" {}{calls} |", number(instructions.round()))
                },
            );
        }
        text.push('\n');
    }
    text += &format!("| {} others |", rest.len());
    for profile in profiles {
        let of = |name: &&str| profile.functions.get(*name).map_or(0.0, |function| function.0);
        text += &format!(" {} |", number(rest.iter().map(|(name, _)| of(name)).sum::<f64>().round()));
    }
    text.push('\n');
    text
}
