//! The run that is recorded: `record` (tests/src/bin/record.rs) in a guest, and what it says.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    clock,
    recording::{Line, Recording},
};
use crate::{
    build::Binaries,
    guest::{
        self,
        initramfs::Archive,
        kernels::Kernel,
        qemu::{Machine, Processor},
        verdict::End,
    },
    process,
};

/// For the whole run, in the guest's time, and in this machine's, which may be longer.
const LIMIT: Duration = Duration::from_secs(1800);

pub(super) fn record(kernel: &Kernel, binaries: &Binaries) -> Result<Recording> {
    let version = process::output(Command::new("qemu-system-x86_64").arg("--version"))?;
    let version = version.lines().next().unwrap_or_default();
    let mut recording = Recording::default();
    recording.add(Line::Run { emulator: version.to_owned(), kernel: kernel.release.clone() });
    let own = guest::own_directory(kernel)?;
    let initramfs =
        guest::with_command(kernel, &own.0, binaries, Archive::default(), &["record".to_owned()], LIMIT)?;
    let log = guest::new_log(&format!("dashboard-{}.log", kernel.name))?;
    // Whatever else this machine does, the guest's clock doesn't see it.
    let machine = Machine::new(kernel, &initramfs, log, Processor::Counted { seed: 1 });
    eprintln!(
        "booting Linux {} in QEMU, and recording two nodes for four minutes of its time",
        kernel.release
    );
    let mut booted = machine.boot()?;
    let began = Instant::now();
    let mut unexpected = None;
    let end = booted.job(LIMIT, |line| {
        let Some(json) = line.strip_prefix("@@RECORD ") else {
            eprintln!("      {line}");
            return;
        };
        match serde_json::from_str::<Line>(json) {
            Ok(line) => {
                if let Line::Event(event) = &line {
                    eprintln!("{:>5} {}", clock(event.at), event.what);
                }
                recording.add(line);
            }
            Err(error) => unexpected = Some(error),
        }
    });
    let (end, _) = end.map_err(|broken| anyhow!("{broken}; see {}", machine.log.display()))?;
    if let Some(error) = unexpected {
        return Err(error).context("the guest's recorder said something else than expected");
    }
    if end != End::Exit(0) {
        bail!("the recorder failed: {end}; see {}", machine.log.display());
    }
    eprintln!("recorded in {} of our time", clock(began.elapsed().as_secs_f64()));
    Ok(recording)
}
