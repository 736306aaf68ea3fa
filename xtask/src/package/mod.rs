//! `cargo xtask package`: the agent, its man pages, completions, unit and configuration as a Debian package. What is in
//! it is said in fastpath-agent/Cargo.toml.

pub(crate) mod trial;

use std::{
    env,
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::{
    arch::{Arch, Root},
    build, cargo_tool, process, progress, setup, workspace,
};

/// What `cargo xtask package` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The package's own number, behind the agent's version.
    #[arg(long, default_value_t = 1)]
    revision: u32,
    /// Where to put it; target/package if that isn't said.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[setup::Need::Build, setup::Need::Package])?;
    let arch = Arch::default();
    let agent = build::agent("release", arch)?;
    let directory = options.output.clone().unwrap_or_else(directory);
    let package = build(&agent, arch, "release", options.revision, &directory)?;
    println!("{}", package.display());
    Ok(())
}

/// Where packages are put.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("package")
}

/// Man pages, completions and the package's changelog, written beside the agent: there cargo-deb looks for what isn't in the
/// repository.
pub(crate) fn pages(agent: &Path, arch: Arch, revision: u32) -> Result<PathBuf> {
    let pages = agent.with_file_name("pages");
    let _ = fs::remove_dir_all(&pages); // of subcommands that are no more
    process::run(Root::of(arch)?.command(agent).arg("pages").arg(&pages))?;
    fs::write(pages.join("changelog.Debian"), changelog(revision)?)?;
    // Without names and times, so that the same pages are the same bytes.
    let packed = [pages.join("man"), pages.join("changelog.Debian")];
    process::run(process::command("gzip -9 -n -r").args(packed))?;
    Ok(pages)
}

/// What Debian's tools read: this version, and where the changes are.
fn changelog(revision: u32) -> Result<String> {
    let date =
        process::output(process::command("date --utc --rfc-email --date").arg(format!("@{}", time()?)))?;
    Ok(format!(
        "fastpath-agent ({}-{revision}) unstable; urgency=medium\n\n  * For the changes see changelog.gz.\n\n -- {}  {date}",
        env!("CARGO_PKG_VERSION"),
        maintainer()?
    ))
}

/// Who makes the package: as Debian's tools are told, else as the manifest says.
fn maintainer() -> Result<String> {
    if let (Ok(name), Ok(address)) = (env::var("DEBFULLNAME"), env::var("DEBEMAIL")) {
        return Ok(format!("{name} <{address}>"));
    }
    let manifest = fs::read_to_string(workspace::root().join("fastpath-agent/Cargo.toml"))?;
    let manifest: toml::Value = toml::from_str(&manifest)?;
    let maintainer = manifest["package"]["metadata"]["deb"]["maintainer"].as_str();
    Ok(maintainer.context("fastpath-agent/Cargo.toml names no maintainer")?.to_owned())
}

/// When the source was committed, in seconds since 1970; now, where there is no repository.
fn time() -> Result<String> {
    let commit = process::git(&["log", "-1", "--format=%ct"]);
    let time = commit.or_else(|_| process::output(&mut process::command("date +%s")))?;
    Ok(time.trim().to_owned())
}

/// A directory with a `dpkg-shlibdeps` that looks into that processor's system. cargo-deb would make it look into the cross compiler's,
/// whose libc isn't the one that the package will meet. What depending on a library takes is in `DEBIAN` there.
fn shlibdeps_for(arch: Arch) -> Result<PathBuf> {
    let directories = Root::of(arch)?.library_directories();
    let directories: String = directories.iter().map(|lib| format!(" '-l{}'", lib.display())).collect();
    let script = format!(
        "#!/bin/sh\nfor word do\n\tshift\n\tcase $word in -l*) ;; *) set -- \"$@\" \"$word\" ;; esac\ndone\n\
         exec /usr/bin/dpkg-shlibdeps{directories} \"$@\"\n"
    );
    let place = workspace::target().join(format!("shlibdeps-{}", arch.debian()));
    fs::create_dir_all(&place)?;
    let file = place.join("dpkg-shlibdeps");
    fs::write(&file, script)?;
    fs::set_permissions(&file, Permissions::from_mode(0o755))?;
    Ok(place)
}

/// Lets lintian look for what is wrong with packages of one version, which must depend on the same libraries. What
/// deploy/debian/lintian-overrides names has a reason there.
pub(crate) fn check(packages: &[PathBuf]) -> Result<()> {
    let mut lintian = process::command("lintian --fail-on error,warning --allow-root --tag-display-limit 0");
    progress::step("checking the Debian package with lintian", lintian.args(packages))?;
    let depends = packages
        .iter()
        .map(|package| process::output(Command::new("dpkg-deb").arg("--field").arg(package).arg("Depends")));
    let depends = depends.collect::<Result<Vec<_>>>()?;
    if let Some(other) = depends.iter().find(|other| **other != depends[0]) {
        bail!("packages for two processors depend on {} and on {}", depends[0].trim(), other.trim());
    }
    Ok(())
}

/// Makes the package of an agent that was built with that profile; says where it is.
pub(crate) fn build(
    agent: &Path,
    arch: Arch,
    profile: &str,
    revision: u32,
    directory: &Path,
) -> Result<PathBuf> {
    pages(agent, arch, revision)?;
    fs::create_dir_all(directory)?;
    let revision = revision.to_string();
    let package = directory.join(format!("fastpath-agent-{revision}.deb"));
    let mut command = Command::new(cargo_tool::DEB.program()?);
    // Of the files in it, for the same bytes each time.
    command.env("SOURCE_DATE_EPOCH", time()?);
    if arch.is_foreign() {
        command.args(["--target", &arch.triple()]);
        let mut path = vec![shlibdeps_for(arch)?];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        command.env("PATH", env::join_paths(path)?);
    }
    command
        .args(["--package", "fastpath-agent", "--profile", profile, "--no-build", "--locked", "--quiet"])
        .args(["--maintainer", &maintainer()?, "--deb-revision", &revision, "--output"])
        .arg(&package)
        .current_dir(workspace::root());
    progress::step("making the Debian package", &mut command)?;
    Ok(package)
}
