//! `cargo xtask test --tier=twin`: sequences of operations on two nodes alike, one with the agent, seed after seed, in a guest of
//! each kernel. What a sequence is and what must hold is in `tests/src/twin/random`; this says which seeds run.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::{
    build::Binaries,
    guest::{
        assemble,
        fleet::lock,
        initramfs::Archive,
        kernels::{self, Kernel, Wanted},
        new_log, own_directory,
        qemu::{Guest, Machine, Processor},
        verdict::End,
    },
    tally::Counts,
};

/// Seconds of the guest's that a seed may take, with the runs that make it shorter.
const LIMIT: Duration = Duration::from_secs(1200);

/// Which seeds.
#[derive(clap::Args)]
pub(crate) struct Range {
    /// Tier twin: how many seeds; one if --seed is given, else 20.
    #[arg(long)]
    seeds: Option<u64>,
    /// Tier twin: go on for so long instead. Soak: minutes of the guest's; else 10. Fuzz: so long in all, shared out over the targets; else 18
    /// seconds.
    #[arg(long, conflicts_with = "seeds")]
    pub(crate) minutes: Option<u64>,
    /// Tier twin: the first seed, to run it again; else one that depends on the time. Faults, soak: the seed of what is drawn.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Tier twin: without the agent on either node, where nothing may differ.
    #[arg(long)]
    without_agent: bool,
    /// Tier twin: the agent forwards packets between pods in eBPF (--forward=peer).
    #[arg(long, conflicts_with = "without_agent")]
    forward: bool,
}

/// Seeds that are handed out one by one.
struct Seeds<'a> {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    /// What the program in the guest is told besides the seed.
    word: &'static str,
    results: &'a Mutex<Counts>,
}

impl Range {
    fn seeds<'a>(&self, results: &'a Mutex<Counts>) -> Result<Seeds<'a>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
        let first = self.seed.unwrap_or(now);
        let number = match (self.seeds, self.minutes, self.seed) {
            (Some(number), ..) => number,
            (None, Some(_), _) => u64::MAX - first,
            (None, None, Some(_)) => 1,
            (None, None, None) => 20,
        };
        let until = self.minutes.map(|minutes| Instant::now() + Duration::from_secs(minutes * 60));
        let next = AtomicU64::new(first);
        let end = first.saturating_add(number);
        let word = match (self.without_agent, self.forward) {
            (true, _) => " without-agent",
            (false, true) => " forward",
            (false, false) => "",
        };
        Ok(Seeds { next, end, until, word, results })
    }
}

pub(crate) fn run(range: &Range, wanted: &[Wanted], binaries: &Binaries) -> Result<Counts> {
    let results = Mutex::new(Counts::default());
    let mut guests = Vec::new();
    for wanted in wanted {
        let kernel = kernels::cached(wanted)?.context("set-up has fetched the kernel")?;
        let own = own_directory(&kernel)?;
        let initramfs = assemble(&kernel, &own.0, binaries, Archive::default())?;
        guests.push((kernel, own, initramfs, range.seeds(&results)?));
    }
    thread::scope(|scope| {
        for (kernel, _, initramfs, seeds) in &guests {
            scope.spawn(move || {
                if let Err(error) = work(kernel, initramfs, seeds) {
                    println!("FAILED  {:<5} twin: {error:#}", kernel.name);
                    lock(seeds.results).failed += 1;
                }
            });
        }
    });
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn work(kernel: &Kernel, initramfs: &std::path::Path, seeds: &Seeds<'_>) -> Result<()> {
    let log = new_log(&format!("{}-twin.log", kernel.name))?;
    // Its clock stops while it has no processor of this machine's: no seed fails because this one is busy.
    let machine = Machine::new(kernel, initramfs, log, Processor::Counted { seed: 1 });
    let mut idle: Option<Guest> = None;
    while seeds.until.is_none_or(|until| Instant::now() < until) {
        let seed = seeds.next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds.end {
            break;
        }
        let mut guest = idle.take().map_or_else(|| machine.boot(), Ok)?;
        let words = format!("/usr/bin/twin {seed}{}", seeds.word);
        let (mut output, began) = (Vec::new(), Instant::now());
        let end = guest.run(&words, LIMIT, |line| output.push(line.to_owned()));
        let seconds = began.elapsed().as_secs_f64();
        let mut results = lock(seeds.results); // also keeps the guests' reports apart
        if let Ok((End::Exit(0), _)) = end {
            results.passed += 1;
            println!(
                "ok      {:<5} {} ({seconds:.1} s)",
                kernel.name,
                output.last().map_or("", String::as_str)
            );
            idle = Some(guest);
            continue;
        }
        results.failed += 1;
        let reason = end.map_or_else(|broken| broken, |(end, _)| end.to_string());
        println!("FAILED  {:<5} seed {seed}: {reason} ({seconds:.1} s)", kernel.name);
        output.iter().for_each(|line| println!("    {line}"));
        let flag = if seeds.word == " forward" { " --forward" } else { "" };
        println!("  again: cargo xtask test --tier=twin --kernel={} --seed={seed}{flag}", kernel.name);
    }
    Ok(())
}
