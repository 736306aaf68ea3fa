//! `cargo xtask test`: all kinds of tests, one summary.

use std::{
    io::{BufRead, BufReader},
    panic::resume_unwind,
    process::Stdio,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{
    arch::Arch,
    bench,
    build::{self, Binaries},
    field, fuzz,
    guest::{
        debian,
        fleet::{self, How},
        kernels::{self, Wanted},
        newest, verdict,
    },
    image, lint, miri,
    package::trial,
    process, prometheus,
    setup::{self, Need},
    soak,
    tally::{Counts, List},
    toolchain, twin, workspace,
};

/// What `cargo xtask test` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kinds of tests to run. If none is named: all but `package`, `twin`, `faults` and `soak`, and of `field` the part that takes four
    /// minutes.
    /// Repeatable.
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Which guest kernels (see tests/kernels.toml); all if none is named. Repeatable.
    #[arg(long)]
    kernel: Vec<String>,
    /// Only tests whose name contains this, or one of several that commas separate.
    #[arg(long, default_value = "")]
    filter: String,
    /// Run guests with KVM instead of software emulation.
    #[arg(long)]
    kvm: bool,
    /// Seconds that a test may take in the guest or on this kernel; 60 if nothing is said, 3600 in the tier of faults.
    #[arg(long)]
    time_limit: Option<u64>,
    /// Tier soak: draw what the agent took, as docs/soak.svg.
    #[arg(long)]
    save: bool,
    #[command(flatten)]
    twin: twin::Range,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Tier {
    /// Format, clippy, documentation, rules of the repository.
    Lint,
    /// Unit and property tests.
    Unit,
    /// Fuzz targets, and unit tests under Miri.
    Fuzz,
    /// Tests in namespaces of this kernel, as root.
    Host,
    /// Tests on the guest's kernels.
    Guest,
    /// The Debian package in the guest, with systemd. Only if it is named: it takes minutes.
    Package,
    /// What a packet costs in the guest, compared with the numbers in the repository.
    Bench,
    /// Random operations on two nodes alike in the guest, one of which has the agent. Only if it is named.
    Twin,
    /// What goes wrong around the agent, on the guest's kernels, as often as is worth it: minutes to an hour. Only if it is named; of
    /// each fault the guest tier has some rounds.
    Faults,
    /// Minutes in which pods, connections, rules and agents come and go, in one guest (6.12 if none is named). Only if it is named.
    Soak,
    /// The agent beside real software, on Debian 12 with systemd. Only Docker and the CNI plugins, on 6.12, if no tier is named.
    Field,
}

impl Options {
    /// Whether the filter leaves this test.
    fn asks_for(&self, name: &str) -> bool {
        self.filter.split(',').any(|part| name.contains(part))
    }

    /// The seed for tests that draw something, as a variable of their environment.
    fn seed(&self, otherwise: Option<u64>) -> Vec<String> {
        self.twin.seed.or(otherwise).map(|seed| format!("FASTPATH_SEED={seed}")).into_iter().collect()
    }

    /// The trials of the field that were asked for. The usual ones are skipped where their system can't be made.
    fn field(&self, counts: &mut Counts) -> Result<Option<field::Part<'_>>> {
        if self.tier.contains(&Tier::Field) {
            return Ok(Some(field::Part::Named(&self.filter)));
        }
        if !self.tier.is_empty() || !self.filter.is_empty() {
            return Ok(None);
        }
        if let Some(reason) = debian::FIELD.hindrance()? {
            println!("skipped field: {reason}");
            counts.skipped += 1;
            return Ok(None);
        }
        Ok(Some(field::Part::Usual))
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let has = |tier| options.tier.is_empty() || options.tier.contains(&tier);
    let package = options.tier.contains(&Tier::Package);
    let twin = options.tier.contains(&Tier::Twin);
    let faults = options.tier.contains(&Tier::Faults);
    let soak = options.tier.contains(&Tier::Soak);
    let wanted = kernels::wanted(&options.kernel)?;
    let mut counts = Counts::default();
    let field = options.field(&mut counts)?;
    let full = field.map_or(Ok(Vec::new()), |part| part.kernels(&wanted))?;
    // Those with tests of their own as well.
    let mut guests = if options.kernel.is_empty() { kernels::all()? } else { wanted.clone() };
    let arch = wanted.first().map_or_else(Arch::default, |kernel| kernel.arch);
    if wanted.iter().any(|kernel| kernel.arch != arch) || arch.is_foreign() && options.tier != [Tier::Guest] {
        bail!("on a kernel for another processor only --tier=guest runs, and no other kernel with it");
    }
    guests.retain(|kernel| !kernel.is_for_field_only() && kernel.arch == arch);
    let mut needs = vec![Need::Build];
    needs.extend(has(Tier::Lint).then_some(Need::Lint));
    needs.extend(has(Tier::Unit).then_some(Need::Manifests));
    needs.extend(has(Tier::Fuzz).then_some(Need::Fuzz));
    let frames_here = has(Tier::Fuzz) && options.twin.minutes.is_some();
    needs.extend((has(Tier::Host) || frames_here).then_some(Need::Host));
    if has(Tier::Guest) && options.filter.is_empty() {
        needs.push(Need::Guest(&guests));
    } else if has(Tier::Guest) || has(Tier::Bench) || package || twin || faults || soak {
        needs.push(Need::Guest(&wanted));
    }
    needs.extend((has(Tier::Guest) || faults).then_some(Need::Image));
    if package {
        needs.extend([Need::Package, Need::PackageTrial, Need::Release]);
    }
    if !full.is_empty() {
        needs.extend([Need::Guest(&full), Need::Package, Need::FieldTrial, Need::Release]);
    }
    setup::ensure(&needs)?;

    let limit = Duration::from_secs(options.time_limit.unwrap_or(60));
    if has(Tier::Lint) {
        counts.require(lint::run());
    }
    if has(Tier::Unit) {
        counts.add(&unit_tests(&options.filter)?);
    }
    let mut runs_miri = false;
    if has(Tier::Fuzz) {
        match toolchain::nightly() {
            Ok(_) => {
                counts.add(&fuzz::run(options.twin.minutes, &options.filter)?);
                runs_miri = options.asks_for("miri");
            }
            Err(error) => {
                println!("skipped fuzz: {error:#}");
                counts.skipped += 1;
            }
        }
    }
    let bench = has(Tier::Bench) && options.filter.is_empty();
    // By hand only: the host tier draws some in any case.
    let frames = options.twin.minutes.filter(|_| has(Tier::Fuzz) && options.asks_for(FRAMES_TESTS));
    let binaries = match has(Tier::Host) || has(Tier::Guest) || faults || frames.is_some() {
        true if has(Tier::Guest) && options.asks_for(OTHER_MAPS_TESTS) && !arch.is_foreign() => {
            Some(build::for_tests_and_other_maps()?)
        }
        true => Some(build::for_tests(arch)?),
        false => None,
    };
    // Those that are there already, since others would be built with other features.
    let with = |program| binaries.clone().map_or_else(|| build::with_program(program), Ok);
    // The field tier is one guest, and so takes one processor, as Miri does: everything else runs beside them.
    let (field, beside) = thread::scope(|scope| -> Result<_> {
        let field = field.filter(|_| !full.is_empty());
        let field = field.map(|part| -> Result<_> {
            let binaries = with("field")?;
            let full = &full;
            Ok(scope.spawn(move || field::run(full, &binaries, part, options.kvm)))
        });
        let field = field.transpose()?;
        let mut beside = Counts::default();
        if let Some(binaries) = binaries.as_ref().filter(|_| has(Tier::Host)) {
            beside.add(&host_tier(options, binaries, arch, limit)?);
        }
        // After the host tier, some tests of which look at the clock.
        let miri = runs_miri.then(|| scope.spawn(miri::run));
        if let Some(binaries) = binaries.as_ref().filter(|_| has(Tier::Guest)) {
            beside.add(&guest_tier(options, guests, binaries, arch, limit)?);
        }
        if let Some(miri) = miri {
            beside.check(miri.join().unwrap_or_else(|payload| resume_unwind(payload)));
        }
        let field = field.map(|field| field.join().unwrap_or_else(|payload| resume_unwind(payload)));
        Ok((field.transpose()?, beside))
    })?;
    counts.add(&beside);
    counts.add(&field.unwrap_or_default());
    if let Some(binaries) = &binaries {
        if let Some(minutes) = frames {
            let tests = List::of(&binaries["it"], arch, FRAMES_TESTS)?;
            let limit = Duration::from_secs(60 + 600 * minutes);
            counts.add(&host_tests(binaries, &tests, limit, Some(minutes * FRAMES_A_MINUTE))?);
        }
        if faults {
            let image = image::for_tests(binaries, arch)?;
            let tests = List::of(&binaries["it"], arch, &options.filter)?;
            let faults = tests.filtered(|name| name.starts_with(FAULTS));
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
            let variables = [options.seed(Some(now)), vec!["FASTPATH_FAULTS=full".to_owned()]].concat();
            let limit = Duration::from_secs(options.time_limit.unwrap_or(3600));
            let how = How { limit, variables, kvm: options.kvm, told: true, once: None };
            counts.add(&fleet::run(&wanted, binaries, &image, &faults, &how)?);
        }
    }
    // Without a filter, since they have no single tests.
    if package && options.filter.is_empty() {
        for result in trial::run(&wanted, &build::for_tests(arch)?, options.kvm)? {
            counts.check(result);
        }
    }
    if twin {
        counts.add(&twin::run(&options.twin, &wanted, &build::with_program("twin")?)?);
    }
    if soak {
        let wanted = if options.kernel.is_empty() { vec![newest(None)?] } else { wanted.clone() };
        let asked = soak::Asked {
            minutes: options.twin.minutes.unwrap_or(10),
            seed: options.twin.seed,
            save: options.save,
        };
        let binaries = build::with_program_and_other_maps("soak")?;
        for wanted in &wanted {
            counts.check(soak::run(&asked, wanted, &binaries));
        }
    }
    if bench {
        let binaries = with("bench")?;
        counts.check(bench::check(&options.kernel, &binaries));
    }
    let only_lint = options.tier.iter().all(|tier| *tier == Tier::Lint) && !options.tier.is_empty();
    counts.report(only_lint)
}

/// Tests on this kernel.
fn host_tier(options: &Options, binaries: &Binaries, arch: Arch, limit: Duration) -> Result<Counts> {
    let tests = List::of(&binaries["it"], arch, &options.filter)?;
    let mut here = tests.filtered(|name| name.starts_with("host::") || name.starts_with(ONLY_HERE));
    let mut counts = Counts::default();
    // Set-up has installed it where the distribution has it.
    if setup::browser().is_none() && here.names.iter().any(|name| name.starts_with(PAGE_TESTS)) {
        println!("skipped {PAGE_TESTS}: this distribution has no package of the browser");
        here = here.filtered(|name| !name.starts_with(PAGE_TESTS));
        counts.skipped += 1;
    }
    counts.add(&host_tests(binaries, &here, limit, None)?);
    Ok(counts)
}

/// Tests on the kernels of `guests`.
fn guest_tier(
    options: &Options,
    mut guests: Vec<Wanted>,
    binaries: &Binaries,
    arch: Arch,
    limit: Duration,
) -> Result<Counts> {
    let mut counts = Counts::default();
    let image = image::for_tests(binaries, arch)?;
    if options.asks_for("image") {
        counts.check(image::check(&image, &["oci-archive", "docker-archive"], &[arch]));
    }
    let tests = List::of(&binaries["it"], arch, &options.filter)?;
    let tests = tests.filtered(|name| !name.starts_with(ONLY_HERE));
    let all = kernels::all()?;
    guests.retain(|kernel| tests.names.iter().any(|name| kernel.runs(name, &all)));
    setup::ensure(&[Need::Guest(&guests)])?;
    let once = options.tier.is_empty() && options.kernel.is_empty() && options.filter.is_empty();
    let once = once.then(kernels::Once::by_commit).transpose()?;
    let how = How { limit, variables: options.seed(None), kvm: options.kvm, told: false, once };
    counts.add(&fleet::run(&guests, binaries, &image, &tests, &how)?);
    Ok(counts)
}

/// `cargo test` for the packages that need nothing special, its output shown as it comes.
fn unit_tests(filter: &str) -> Result<Counts> {
    let mut command = process::command("cargo test --no-fail-fast");
    command.current_dir(workspace::root()).stdout(Stdio::piped());
    if !filter.is_empty() {
        command.args(["--", filter]);
    }
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
    let mut counts = Counts::default();
    for line in BufReader::new(child.stdout.take().context("cargo's stdout is a pipe")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(found) = summary(&line) {
            counts.add(&found);
        }
    }
    if !child.wait()?.success() && counts.failed == 0 {
        counts.failed = 1; // it didn't compile, or a test binary died
    }
    Ok(counts)
}

/// libtest's "test result: ok. 3 passed; 0 failed; 1 ignored; …".
fn summary(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        numbers
            .split("; ")
            .find_map(|part| part.strip_suffix(what)?.trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    Some(Counts { passed: count("passed"), failed: count("failed"), skipped: count("ignored") })
}

/// Tests that draw frames for the eBPF programs, and how many for each minute of `--tier=fuzz --minutes`.
const FRAMES_TESTS: &str = "host::ebpf::parser::agrees";
const FRAMES_A_MINUTE: u64 = 50_000;

/// Tests that want another agent besides, whose maps have another layout.
const OTHER_MAPS_TESTS: &str = "soak::seed_1";

/// Tests below this need programs that the guest hasn't, and nothing of the kernel that differs there.
const ONLY_HERE: &str = "here::";

/// Tests that show the page to a browser.
const PAGE_TESTS: &str = "here::page::";

/// What goes wrong around the agent.
const FAULTS: &str = "faults::";

/// Each test by itself on this kernel, as root, in fresh namespaces, so that neither it nor what it leaves behind
/// touches this machine.
///
/// `frames`: so many go through the eBPF programs in each test that draws them, and its output is shown.
fn host_tests(binaries: &Binaries, tests: &List, limit: Duration, frames: Option<u64>) -> Result<Counts> {
    let mut counts = Counts::default();
    for name in &tests.names {
        let mut command = process::as_root("env")?.context(
            "tests on this kernel need root, and sudo wants a password here: run `sudo -v` first, or leave them out \
             with --tier",
        )?;
        command.arg(format!("FASTPATH_AGENT={}", binaries["fastpath-agent"].display()));
        command.arg(format!("FASTPATH_PROMETHEUS={}", prometheus::directory()?.display()));
        command.args(setup::browser().map(|browser| format!("FASTPATH_CHROMIUM={}", browser.display())));
        let update = std::env::var_os("FASTPATH_UPDATE_DOCS").map(|_| "FASTPATH_UPDATE_DOCS=1");
        command.args(update);
        command.args(frames.map(|frames| format!("FASTPATH_FRAMES={frames}")));
        command.args(["timeout", "--foreground", "--signal=KILL", &limit.as_secs().to_string()]);
        command.args(process::ISOLATED).arg(&binaries["init"]).arg("isolated").arg(&binaries["it"]);
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
        let began = Instant::now();
        let output = command.stdin(Stdio::null()).output().context("cannot run a test as root")?;
        let end = match output.status.code() {
            Some(137) | None => verdict::End::TimeLimit,
            Some(code) => verdict::End::Exit(code),
        };
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let verdict = verdict::judge(end, text.lines());
        counts.count(&verdict);
        print!("{}", verdict::shown(&verdict, "host", name, began.elapsed(), text.lines()));
        if frames.is_some() {
            text.lines()
                .filter(|line| line.contains("frames at "))
                .for_each(|line| println!("        {line}"));
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn cargo_test_summaries_are_added_up() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        let counts = summary(line).expect("a summary");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (12, 1, 2));
        assert!(summary("test a ... ok").is_none());
    }
}
