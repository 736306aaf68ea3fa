//! `--host`: the benchmark on this machine's own kernel, between namespaces, where that has flowtables.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::{build::Binaries, process, run};

/// As the runner prints it.
#[derive(Deserialize)]
struct Outcome {
    without: Side,
    with: Side,
    /// Of neighbouring turns, the median.
    ratio: f64,
}

#[derive(Deserialize)]
struct Side {
    gbit_per_second: f64,
    packets_per_second: f64,
    cpu_seconds_per_gigabyte: f64,
}

/// Measures and prints.
pub(super) fn measure(binaries: &Binaries) -> Result<()> {
    let agent = &binaries["fastpath-agent"];
    if let Some(reason) = run::lacks_flowtable(agent)? {
        bail!(
            "no flow can be offloaded on this machine: {reason}; without --host the benchmark runs in a guest"
        );
    }
    let mut command = process::as_root("env")?.context("--host needs root; run `sudo -v` first")?;
    command.arg(format!("FASTPATH_AGENT={}", agent.display()));
    // As tests on this kernel are run: in namespaces of its own, all of which ends with it.
    command
        .args(process::ISOLATED)
        .arg(&binaries["init"])
        .arg("isolated")
        .arg(&binaries["bench"])
        .arg("native");
    eprintln!("five turns of 2 s each, without and with the agent");
    let text = process::output(command.stderr(Stdio::inherit()))?;
    let json = text.lines().find_map(|line| line.strip_prefix("@@NATIVE ")).context("no result")?;
    print!("{}", shown(&serde_json::from_str(json)?, &machine()?));
    Ok(())
}

fn shown(outcome: &Outcome, machine: &str) -> String {
    let row = |what: &str, of: fn(&Side) -> f64, digits: usize| {
        let (without, with) = (of(&outcome.without), of(&outcome.with));
        format!("{what:<36}{without:>14.digits$}{with:>14.digits$}\n")
    };
    format!("{machine}\nTCP over IPv4, packets of 1,500 bytes, between namespaces, masqueraded; medians\n\n")
        + &format!("{:<36}{:>14}{:>14}\n", "", "without", "with")
        + &row("Gbit/s", |side| side.gbit_per_second, 2)
        + &row("packets/s", |side| side.packets_per_second, 0)
        + &row("CPU seconds for each GB", |side| side.cpu_seconds_per_gigabyte, 2)
        + &format!("throughput with : without, turn by turn: {:.2}\n", outcome.ratio)
}

/// The machine that the numbers are of.
fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let release = process::output(&mut process::command("uname -r"))?;
    let model = model.map_or("unknown processor", |(_, model)| model);
    Ok(format!("{count} x {model}, Linux {}", release.trim()))
}
