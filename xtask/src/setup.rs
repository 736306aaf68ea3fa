//! Finds what a command needs and this machine lacks, and installs it: packages of the distribution, a compiler for
//! eBPF programs with bpf-linker, kernels for the test guest. With nothing missing it says nothing and starts nothing.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

mod packages;

use packages::{
    DEBIAN_CLIPPY, DEBIAN_COMPILER, FOR_ARM64, FOR_ARM64_SYSTEM, FOR_BUILD, FOR_FIELD_TRIAL, FOR_GUESTS,
    FOR_PACKAGE, FOR_PACKAGE_TRIAL, FOR_PAGE, FOR_RELEASE, FOR_TESTS, Package,
};

use crate::{
    arch::{self, Arch},
    cargo_tool,
    guest::{
        debian,
        initramfs::find_program,
        kernels::{self, Wanted},
    },
    process, progress, prometheus,
    toolchain::{self, Compiler, Origin},
    workspace,
};

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
    /// Run fuzz targets and Miri.
    Fuzz,
    /// Run tests in namespaces of this kernel.
    Host,
    /// Ask a Prometheus.
    Prometheus,
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
    Ubuntu2404,
    Other,
}

impl Distribution {
    fn here() -> Self {
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        match (value("ID").as_str(), value("VERSION_ID").as_str()) {
            ("debian", "12") => Self::Debian12,
            ("ubuntu", "24.04") => Self::Ubuntu2404,
            _ => Self::Other,
        }
    }
}

/// What is missing.
struct Missing {
    packages: Vec<&'static str>,
    /// rustfmt or clippy, beside the cargo that runs this.
    checkers: bool,
    compiler: bool,
    /// Clippy for eBPF programs, where there is a compiler for them.
    ebpf_clippy: bool,
    linker: bool,
    deny: bool,
    fuzz: bool,
    /// Miri, where there is a nightly for it.
    miri: bool,
    prometheus: bool,
    cyclonedx: bool,
    cargo_deb: bool,
    /// The small system that the package is tried in.
    small_system: bool,
    /// The one with the software of the field.
    field_system: bool,
    /// The one that arm64's libraries and programs come from.
    arm64_system: bool,
    /// Rust's standard library for arm64.
    arm64_target: bool,
    kernels: Vec<Wanted>,
}

/// Installs what any command needs.
pub(crate) fn everything() -> Result<()> {
    let mut kernels = kernels::all()?;
    kernels.retain(|kernel| !kernel.is_for_field_only() && !kernel.arch.is_foreign());
    let mut needs = vec![
        Need::Build,
        Need::Lint,
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
            "set-up knows Debian 12 and Ubuntu 24.04; on this distribution please install the packages above by hand \
             (package names are Debian's)"
        );
    }
    if missing.checkers {
        let mut add = Command::new("rustup");
        progress::step("adding rustfmt and clippy", add.args(["component", "add", "rustfmt", "clippy"]))?;
    }
    if missing.arm64_target {
        add_arm64_target()?;
    }
    let mut packages = missing.packages.clone();
    if missing.compiler && !install_nightly()? {
        if distribution != Distribution::Debian12 {
            bail!(
                "rustup cannot install {}; a compiler with its library source is needed for the eBPF programs: \
                 install rustup (https://rustup.rs), then run this again",
                toolchain::PINNED_NIGHTLY
            );
        }
        packages.extend(DEBIAN_COMPILER);
    } else if missing.linker && toolchain::compiler().is_some_and(|found| found.origin == Origin::Debian) {
        packages.extend(DEBIAN_COMPILER); // perhaps not all of it is there
    }
    if distribution == Distribution::Ubuntu2404 && !missing.kernels.is_empty() {
        packages.extend(["debian-archive-keyring", "python-apt-common"]); // the guest's kernels are Debian's
    }
    if missing.ebpf_clippy {
        packages.extend(clippy_for_ebpf()?);
    }
    install_packages(&packages)?;
    if missing.compiler || missing.linker {
        install_linker()?;
    }
    if missing.deny {
        cargo_tool::DENY.install()?;
    }
    if missing.fuzz && toolchain::nightly().is_ok() {
        cargo_tool::FUZZ.install()?;
    }
    if missing.miri {
        add_miri()?;
    }
    if missing.prometheus {
        download_prometheus()?;
    }
    if missing.cyclonedx {
        cargo_tool::CYCLONEDX.install()?;
    }
    if missing.cargo_deb {
        cargo_tool::DEB.install()?;
    }
    if missing.small_system {
        debian::SMALL.make()?;
    }
    if missing.field_system {
        debian::FIELD.make()?;
    }
    if missing.arm64_system {
        debian::ARM64.make()?;
    }
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
        let mut tables: Vec<&[Package]> = Vec::new();
        let mut missing = Self {
            packages: Vec::new(),
            checkers: false,
            compiler: false,
            ebpf_clippy: false,
            linker: false,
            deny: false,
            fuzz: false,
            miri: false,
            prometheus: false,
            cyclonedx: false,
            cargo_deb: false,
            small_system: false,
            field_system: false,
            arm64_system: false,
            arm64_target: false,
            kernels: Vec::new(),
        };
        for need in needs {
            match need {
                Need::Build => {
                    tables.push(FOR_BUILD);
                    let compiler = toolchain::compiler();
                    missing.compiler = compiler.is_none();
                    missing.linker = compiler.as_ref().map(Compiler::linker).transpose()?.flatten().is_none();
                }
                Need::Lint => {
                    missing.checkers = !has_checkers();
                    missing.ebpf_clippy = toolchain::compiler().is_some_and(|found| !found.has_clippy());
                    missing.deny = !cargo_tool::DENY.installed()?;
                }
                Need::Fuzz => {
                    // Debian's compiler can do neither, which is said where they are run.
                    let compiler = toolchain::compiler();
                    let nightly = compiler.as_ref().filter(|found| found.origin == Origin::Rustup);
                    missing.fuzz =
                        (compiler.is_none() || nightly.is_some()) && !cargo_tool::FUZZ.installed()?;
                    missing.miri = nightly.is_some_and(|nightly| !nightly.has_miri());
                }
                Need::Host => {
                    tables.push(FOR_TESTS);
                    if distribution != Distribution::Ubuntu2404 {
                        tables.push(FOR_PAGE);
                    }
                    missing.prometheus = !prometheus::is_there()?;
                }
                Need::Prometheus => missing.prometheus = !prometheus::is_there()?,
                Need::Image => missing.cyclonedx = !cargo_tool::CYCLONEDX.installed()?,
                Need::Package => {
                    tables.push(FOR_PACKAGE);
                    missing.cargo_deb = !cargo_tool::DEB.installed()?;
                }
                Need::PackageTrial => {
                    missing.small_system = debian::SMALL.cached()?.is_none();
                    if missing.small_system {
                        tables.push(FOR_PACKAGE_TRIAL);
                    }
                }
                Need::FieldTrial => {
                    missing.field_system = debian::FIELD.cached()?.is_none();
                    if missing.field_system {
                        tables.push(FOR_FIELD_TRIAL);
                    }
                }
                Need::Arm64 => missing.want_arm64(&mut tables)?,
                Need::Release => tables.push(FOR_RELEASE),
                Need::Guest(wanted) => {
                    tables.extend([FOR_TESTS, FOR_GUESTS]);
                    for wanted in *wanted {
                        if wanted.arch.is_foreign() {
                            missing.want_arm64(&mut tables)?;
                        } else if kernels::cached(wanted)?.is_none() {
                            missing.kernels.push(wanted.clone());
                        }
                    }
                }
            }
        }
        for Package(debian, ubuntu, probe) in tables.into_iter().flatten() {
            let name = ubuntu.filter(|_| distribution == Distribution::Ubuntu2404).unwrap_or(debian);
            if !missing.packages.contains(&name) && !probe.found() {
                missing.packages.push(name);
            }
        }
        Ok(missing)
    }

    fn want_arm64(&mut self, tables: &mut Vec<&[Package]>) -> Result<()> {
        tables.push(FOR_ARM64);
        self.arm64_target = !arch::has_standard_library(Arch::Arm64)?;
        self.arm64_system = debian::ARM64.cached()?.is_none();
        if self.arm64_system {
            tables.push(FOR_ARM64_SYSTEM);
        }
        Ok(())
    }

    fn nothing(&self) -> bool {
        self.packages.is_empty()
            && !self.checkers
            && !self.compiler
            && !self.ebpf_clippy
            && !self.linker
            && !self.deny
            && !self.fuzz
            && !self.miri
            && !self.prometheus
            && !self.cyclonedx
            && !self.cargo_deb
            && !self.small_system
            && !self.field_system
            && !self.arm64_system
            && !self.arm64_target
            && self.kernels.is_empty()
    }

    fn announce(&self) {
        eprintln!("Set-up; this machine still needs:");
        if !self.packages.is_empty() {
            eprintln!("  packages {} (about a minute)", self.packages.join(" "));
        }
        if self.checkers {
            eprintln!("  rustfmt and clippy");
        }
        if self.compiler {
            eprintln!(
                "  a Rust compiler with its library source, for eBPF: rustup's {}, else Debian's rustc-web (about a minute)",
                toolchain::PINNED_NIGHTLY
            );
        }
        if self.ebpf_clippy {
            eprintln!("  clippy for that compiler");
        }
        if self.deny {
            eprintln!("  {}", cargo_tool::DENY.described());
        }
        if self.fuzz {
            eprintln!("  {}", cargo_tool::FUZZ.described());
        }
        if self.miri {
            eprintln!("  miri for the nightly");
        }
        if self.prometheus {
            eprintln!("  prometheus for tests, downloaded and not installed (40 MB)");
        }
        if self.cyclonedx {
            eprintln!("  {}", cargo_tool::CYCLONEDX.described());
        }
        if self.cargo_deb {
            eprintln!("  {}", cargo_tool::DEB.described());
        }
        if self.small_system {
            eprintln!(
                "  a small system with systemd for the test guest, from the distribution's packages (about a minute)"
            );
        }
        if self.field_system {
            eprintln!(
                "  a system with firewalls, container engines and tunnels for the test guest, from the distribution's \
                 packages (some minutes, 2 GB of disk)"
            );
        }
        if self.arm64_target {
            eprintln!("  rustup's standard library for {}", Arch::Arm64.triple());
        }
        if self.arm64_system {
            eprintln!(
                "  arm64's libraries, programs and kernel, unpacked and not installed (half a minute, 400 MB)"
            );
        }
        if self.linker {
            eprintln!("  bpf-linker {}, built for that compiler (1 to 3 minutes)", toolchain::BPF_LINKER);
        }
        for kernel in &self.kernels {
            eprintln!("  kernel {} for the test guest, downloaded and not installed (30 MB)", kernel.name);
        }
    }
}

/// Whether cargo's toolchain has rustfmt and clippy. rustup's proxies in the path are there in any case.
fn has_checkers() -> bool {
    let Some(cargo) = env::var_os("CARGO").map(PathBuf::from) else { return true }; // not run by cargo
    ["cargo-fmt", "cargo-clippy"].iter().all(|name| cargo.with_file_name(name).exists())
}

/// The package with clippy for the eBPF compiler, if it is Debian's; a nightly gets it from rustup.
fn clippy_for_ebpf() -> Result<Option<&'static str>> {
    let compiler = toolchain::compiler().context("no compiler for eBPF programs")?;
    if compiler.origin == Origin::Debian {
        return Ok(Some(DEBIAN_CLIPPY));
    }
    let name = compiler.sysroot.file_name().context("a toolchain's directory has a name")?;
    let mut add = Command::new("rustup");
    add.args(["component", "add", "clippy", "--toolchain"]).arg(name);
    progress::step("adding clippy for eBPF", &mut add)?;
    Ok(None)
}

fn add_arm64_target() -> Result<()> {
    let triple = Arch::Arm64.triple();
    if find_program("rustup").is_none() {
        bail!(
            "the Rust compiler here has no standard library for {triple}, and there is no rustup to add it: install \
             rustup (https://rustup.rs), or leave arm64 out with --arch=amd64"
        );
    }
    progress::step(&format!("adding {triple}"), Command::new("rustup").args(["target", "add", &triple]))
}

fn add_miri() -> Result<()> {
    let compiler = toolchain::nightly()?;
    let name = compiler.sysroot.file_name().context("a toolchain's directory has a name")?;
    let mut add = Command::new("rustup");
    add.args(["component", "add", "miri", "--toolchain"]).arg(name);
    progress::step("adding miri", &mut add)
}

/// Tries to get the pinned nightly from rustup; whether there is a usable compiler now. Existing toolchains and rustup
/// itself are left as they are.
fn install_nightly() -> Result<bool> {
    if find_program("rustup").is_none() {
        return Ok(false);
    }
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", toolchain::PINNED_NIGHTLY, "--profile", "minimal"]);
    command.args(["--component", "rust-src,clippy,miri", "--no-self-update"]);
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

fn install_linker() -> Result<()> {
    let compiler = toolchain::compiler().context("there is still no compiler for eBPF programs")?;
    if compiler.linker()?.is_none() {
        progress::step("building bpf-linker", &mut compiler.install_linker()?)?;
        compiler.remove_linker_build()?;
    }
    Ok(())
}

fn download_prometheus() -> Result<()> {
    eprintln!("downloading prometheus");
    prometheus::download().or_else(|error| {
        // No lists yet, or older than what the archive holds now.
        eprintln!("  {error:#}");
        update_lists()?;
        prometheus::download()
    })
}

fn download_kernels(wanted: &[Wanted], distribution: Distribution) -> Result<()> {
    let apt = if distribution == Distribution::Debian12 { Vec::new() } else { debian_archive()? };
    for wanted in wanted {
        eprintln!("downloading kernel {}", wanted.name);
        let kernel = kernels::download(wanted, &apt).or_else(|error| {
            // No lists yet, or older than what the archive holds now.
            eprintln!("  {error:#}");
            if distribution == Distribution::Debian12 {
                update_lists()?;
            }
            kernels::download(wanted, &apt)
        })?;
        eprintln!("  {}", kernel.release);
    }
    Ok(())
}

/// Where the archives of distributions are, from the package python-apt-common.
const DEBIAN_TEMPLATE: &str = "/usr/share/python-apt/templates/Debian.info";

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
        fs::create_dir_all(path(name)).with_context(|| format!("cannot make {}", path(name).display()))?;
    }
    let template = fs::read_to_string(DEBIAN_TEMPLATE)
        .with_context(|| format!("cannot read {DEBIAN_TEMPLATE}, which says where Debian's archive is"))?;
    let sources = debian_sources(&template)
        .with_context(|| format!("{DEBIAN_TEMPLATE} doesn't say where Debian's archive is"))?;
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
