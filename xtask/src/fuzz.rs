//! `cargo xtask test --tier=fuzz`: bytes that others make, by libFuzzer through everything that reads them. Targets and what must hold
//! are in `fastpath-agent/fuzz`; this builds them, shares out the time, and says what was found.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::{cargo_tool, process, tally::Counts, toolchain, workspace};

/// Seconds of all targets together, without `--minutes`.
const USUAL: Duration = Duration::from_secs(18);
/// A fraction of them for each target, at least.
const LEAST: Duration = Duration::from_secs(1);
/// What an input may take: seconds, and megabytes at once and in all.
const LIMITS: [&str; 4] = ["-timeout=10", "-malloc_limit_mb=64", "-rss_limit_mb=1024", "-max_len=4096"];

/// Runs all targets whose name contains `filter`, or says why that can't be.
pub(crate) fn run(minutes: Option<u64>, filter: &str) -> Result<Counts> {
    let targets: Vec<String> =
        names()?.into_iter().filter(|name| filter.split(',').any(|part| name.contains(part))).collect();
    if targets.is_empty() {
        return Ok(Counts::default());
    }
    let programs = build(minutes.is_some())?;
    let total = minutes.map_or(USUAL, |minutes| Duration::from_secs(60 * minutes));
    let at_once = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    let rounds = targets.len().div_ceil(at_once) as u32;
    let each = (total / rounds).max(LEAST);
    let mut counts = Counts::default();
    for targets in targets.chunks(at_once) {
        let running: Result<Vec<_>> =
            targets.iter().map(|name| Target::start(name, &programs, each)).collect();
        for target in running? {
            counts.check(target.finish());
        }
    }
    Ok(counts)
}

fn directory() -> PathBuf {
    workspace::root().join("fastpath-agent/fuzz")
}

/// Where inputs that were found are kept, and those that fail.
fn findings() -> PathBuf {
    workspace::target().join("fuzz")
}

/// By the files of the targets.
fn names() -> Result<Vec<String>> {
    let files = workspace::files_below(&directory().join("targets"))?;
    let name = |path: &PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut names: Vec<_> = files.iter().filter_map(name).collect();
    names.sort();
    Ok(names)
}

/// Builds all targets; where their programs are. For a run of minutes with the address sanitizer and optimised; otherwise to be built
/// soon, which takes longer than such a run itself.
fn build(thorough: bool) -> Result<PathBuf> {
    let compiler = toolchain::nightly()?;
    let mut command = compiler.command(cargo_tool::FUZZ.program()?)?;
    command.args(["fuzz", "build", "--fuzz-dir"]).arg(directory()).arg("--target-dir").arg(findings());
    if !thorough {
        command.args(["--sanitizer", "none"]);
    }
    command
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", if thorough { "1" } else { "0" })
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .current_dir(workspace::root().join("fastpath-agent"));
    process::run(&mut command)?;
    Ok(findings().join("x86_64-unknown-linux-gnu/release"))
}

/// A target at work.
struct Target {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Target {
    fn start(name: &str, programs: &Path, time: Duration) -> Result<Self> {
        let place = |kind: &str| findings().join(kind).join(name);
        let (corpus, failing) = (place("corpus"), place("failing"));
        for directory in [&corpus, &failing] {
            fs::create_dir_all(directory)?;
        }
        let log = findings().join(format!("{name}.log"));
        let output = fs::File::create(&log)?.into_file();
        let mut command = Command::new(programs.join(name));
        command
            // What is found goes into the first directory.
            .arg(&corpus)
            .arg(directory().join("seeds").join(name))
            .args(LIMITS)
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-artifact_prefix={}/", failing.display()))
            .arg("-print_final_stats=1")
            .current_dir(workspace::root())
            .stdout(Stdio::null())
            .stderr(output);
        let child = command.spawn().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    fn finish(mut self) -> Result<()> {
        let status = self.child.wait()?;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let executions = executions(&log);
        if status.success() && executions > 0 {
            println!("fuzz {}: {executions} inputs", self.name);
            return Ok(());
        }
        let reason =
            log.lines().find(|line| line.contains("panicked") || line.contains("ERROR")).unwrap_or("");
        let input = log
            .lines()
            .find_map(|line| line.split_once("Test unit written to "))
            .map_or("", |(_, path)| path);
        bail!(
            "fuzz {} FAILED ({status}, {executions} inputs): {reason}\n  the input: {input}\n  what was said: {}",
            self.name,
            self.log.display()
        )
    }
}

/// How many inputs libFuzzer says it ran.
fn executions(log: &str) -> u64 {
    let line = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_built_and_has_seeds() {
        let manifest = fs::read_to_string(directory().join("Cargo.toml")).unwrap();
        let names = names().unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), names.len());
        for name in names {
            assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name}");
            let seeds = fs::read_dir(directory().join("seeds").join(&name)).unwrap();
            assert!(seeds.count() > 0, "{name}");
        }
    }

    #[test]
    fn a_run_without_a_count_is_none() {
        assert_eq!(executions("INFO: x\nstat::number_of_executed_units: 1234\n"), 1234);
        assert_eq!(executions("Done 7 runs\n"), 0);
    }
}
