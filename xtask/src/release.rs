//! `cargo xtask release`: all files of a release in one directory, checked by other programs and tried on arm64. What each of them is
//! made of is said where it is made; here is only the list.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use fs_err as fs;

use crate::{
    arch::Arch,
    build,
    guest::{
        fleet::{self, How},
        kernels,
    },
    image::{
        self,
        archive::{append, hex},
        version,
    },
    package,
    setup::{self, Need},
    tally::List,
    workspace,
};

/// What `cargo xtask release` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// For which processors; for all if none is named. Repeatable.
    #[arg(long, value_enum)]
    arch: Vec<Arch>,
    /// Don't try the agent and the image for arm64 in the guest.
    #[arg(long)]
    without_trial: bool,
}

/// The package's own number.
const REVISION: u32 = 1;

/// The file with the digests of all others. It is written last: without it a release isn't complete.
pub(crate) const SUMS: &str = "SHA256SUMS";

/// The kernel of tests/kernels.toml that arm64 is tried on.
const KERNEL: &str = "6.12-arm64";
/// Tests that are run there: the image in a container offloads a flow; what a running agent gave up; the probe in the kernel.
const TRIAL: &[&str] = &[
    "container::offloads_a_flow",
    "host::sandbox::an_agent_that_runs_holds_cap_net_admin_only",
    "host::sandbox::what_is_forbidden_fails",
    "metrics::flows_that_go_over_by_themselves_are_counted_without_a_signal",
];

/// Where the files are, of a clone whose target directory is the usual one too.
pub(crate) fn directory(target: &Path) -> PathBuf {
    target.join("dist").join(version())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let arches = if options.arch.is_empty() { Arch::ALL.to_vec() } else { options.arch.clone() };
    let kernels = kernels::wanted(&[KERNEL.to_owned()])?;
    let tried = arches.contains(&Arch::Arm64) && !options.without_trial;
    let mut needs = vec![Need::Build, Need::Image, Need::Package, Need::Release];
    needs.extend(arches.contains(&Arch::Arm64).then_some(Need::Arm64));
    needs.extend(tried.then_some(Need::Guest(&kernels)));
    setup::ensure(&needs)?;

    let directory = directory(&workspace::target());
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)?;
    let (mut agents, mut packages) = (Vec::new(), Vec::new());
    for arch in arches {
        eprintln!("building the agent for {}", arch.debian());
        let agent = build::agent("release", arch)?;
        let named = format!("fastpath-agent_{}-{REVISION}_{}.deb", version(), arch.debian());
        let package = package::build(&agent, arch, "release", REVISION, &directory)?;
        packages.push(directory.join(named));
        fs::rename(package, &packages[packages.len() - 1])?;
        tarball(&agent, arch, &directory)?;
        agents.push((arch, agent));
    }
    package::check(&packages)?;
    eprintln!("packing the image");
    let digest = image::for_release(&agents, &directory)?;
    if tried {
        for (_, agent) in agents.iter().filter(|(arch, _)| arch.is_foreign()) {
            trial(&kernels, agent)?;
        }
    }
    let sums = sums(&directory)?;
    let text: String = sums.iter().map(|(name, (sum, _))| format!("{sum}  {name}\n")).collect();
    fs::write(directory.join(SUMS), text)?;
    for (name, (sum, size)) in &sums {
        println!("{name:<46} {:>6.2} MB  {}…", *size as f64 / 1e6, &sum[..16]);
    }
    println!("in a registry the image is {digest}\n{}", directory.display());
    Ok(())
}

/// Digest and size of each file.
fn sums(directory: &Path) -> Result<BTreeMap<String, (String, usize)>> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let content = fs::read(entry.path())?;
        sums.insert(entry.file_name().to_string_lossy().into_owned(), (hex(&content), content.len()));
    }
    Ok(sums)
}

/// Agent, man pages, completions, unit, configuration and documents, for systems without dpkg.
fn tarball(agent: &Path, arch: Arch, directory: &Path) -> Result<()> {
    let root = workspace::root();
    let name = format!("fastpath-agent-{}-{}", version(), arch.debian());
    let mut files = BTreeMap::from([("fastpath-agent".to_owned(), agent.to_owned())]);
    for file in ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md"] {
        files.insert(file.to_owned(), root.join(file));
    }
    // The package has been made, and with it the pages.
    let pages = agent.with_file_name("pages");
    for (to, from) in [
        ("man", pages.join("man")),
        ("completions", pages.join("completions")),
        ("systemd", root.join("deploy/systemd")),
        ("docs", root.join("docs")),
        ("docs/decisions", root.join("docs/decisions")),
    ] {
        for entry in fs::read_dir(&from)? {
            let path = entry?.path();
            let file = path.file_name().context("a file has a name")?.to_string_lossy();
            if path.is_file() {
                files.insert(format!("{to}/{file}"), path.clone());
            }
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (path, source) in &files {
        let content = fs::read(source)?;
        let mode = if source == agent { 0o755 } else { 0o644 };
        append(&mut tar, &format!("{name}/{path}"), mode, Some(&content))?;
    }
    let mut packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    packed.write_all(&tar.into_inner()?)?;
    fs::write(directory.join(format!("{name}.tar.gz")), packed.finish()?)?;
    Ok(())
}

/// Runs tests of the guest with an agent that is going to be released.
fn trial(kernels: &[kernels::Wanted], agent: &Path) -> Result<()> {
    eprintln!("building the tests for arm64");
    let mut binaries = build::for_tests(Arch::Arm64)?;
    binaries.insert("fastpath-agent".to_owned(), agent.to_owned());
    let image = image::for_tests(&binaries, Arch::Arm64)?;
    let tests = List { names: TRIAL.iter().map(|name| (*name).to_owned()).collect(), ignored: 0 };
    let limit = Duration::from_secs(60);
    let how = How { limit, variables: Vec::new(), kvm: false, told: false, once: None };
    let counts = fleet::run(kernels, &binaries, &image, &tests, &how)?;
    if counts.passed != TRIAL.len() {
        bail!("the agent for arm64 failed its trial");
    }
    Ok(())
}
