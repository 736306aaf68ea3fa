//! The kernels that the guest boots: named in tests/kernels.toml, downloaded once with apt into the user's cache,
//! never installed.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use crate::{
    arch::{Arch, Root},
    process, workspace,
};

#[derive(Deserialize)]
struct File {
    both: Vec<String>,
    kernel: Vec<Wanted>,
}

/// In place of the names of tests: a kernel of the field tier.
const FIELD: &str = "field::";

/// A kernel that the tests want.
#[derive(Deserialize, Clone)]
pub(crate) struct Wanted {
    /// What the user calls it: `6.12`.
    pub(crate) name: String,
    /// The pattern of the Debian package's name, as `apt-cache search` takes it.
    package: String,
    /// How the names of the only tests begin that run on it; without any all do that no other kernel has for itself.
    #[serde(default)]
    only: Vec<String>,
    /// Its processor. A foreign one is emulated, and such a kernel comes with the system of that processor.
    #[serde(default)]
    pub(crate) arch: Arch,
}

impl Wanted {
    /// Whether only trials of the field tier run on it.
    pub(crate) fn is_for_field_only(&self) -> bool {
        self.only == [FIELD]
    }

    /// Whether it runs all that has no kernel of its own.
    pub(crate) fn has_all(&self) -> bool {
        self.only.is_empty() && !self.arch.is_foreign()
    }

    /// Whether a test runs on this kernel, of `all` that there are.
    pub(crate) fn runs(&self, test: &str, all: &[Self]) -> bool {
        let named = |kernel: &Self| kernel.only.iter().any(|prefix| test.starts_with(prefix));
        if self.only.is_empty() { !all.iter().any(named) } else { named(self) }
    }
}

/// A kernel that is in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The directory with `kernel/` and `modules.builtin`.
    pub(crate) modules: PathBuf,
    pub(crate) arch: Arch,
}

/// All kernels of tests/kernels.toml.
pub(crate) fn all() -> Result<Vec<Wanted>> {
    Ok(file()?.kernel)
}

fn file() -> Result<File> {
    let path = workspace::root().join("tests/kernels.toml");
    let text = fs::read_to_string(&path)?;
    toml::from_str(&text).context("tests/kernels.toml")
}

/// Which tests are run on one kernel only, and on which one.
pub(crate) struct Once {
    /// How the names of those begin that all kernels run.
    both: Vec<String>,
    turn: usize,
}

impl Once {
    /// Those of tests/kernels.toml; with each commit the kernels take turns.
    pub(crate) fn by_commit() -> Result<Self> {
        let count = process::git(&["rev-list", "--count", "HEAD"])?;
        let turn = count.parse().context("git counts commits")?;
        Ok(Self { both: file()?.both, turn })
    }

    /// Whether one kernel has to run it, and no more.
    pub(crate) fn is_meant(&self, name: &str) -> bool {
        !self.both.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Those of `tests` that kernel number `place` of so many doesn't run.
    pub(crate) fn elsewhere<'t>(
        &self,
        tests: &'t [String],
        place: usize,
        kernels: usize,
    ) -> HashSet<&'t str> {
        let meant = tests.iter().filter(|name| self.is_meant(name)).enumerate();
        let elsewhere = meant.filter(|(number, _)| (number + self.turn) % kernels != place);
        elsewhere.map(|(_, name)| name.as_str()).collect()
    }
}

/// The kernels of tests/kernels.toml that run all that has no kernel of its own, or those that are named.
pub(crate) fn wanted(names: &[String]) -> Result<Vec<Wanted>> {
    let mut all = all()?;
    if names.is_empty() {
        all.retain(Wanted::has_all);
        return Ok(all);
    }
    names
        .iter()
        .map(|name| {
            all.iter().find(|kernel| kernel.name == *name).cloned().with_context(|| {
                let known: Vec<_> = all.iter().map(|kernel| kernel.name.as_str()).collect();
                format!("no kernel {name}; there are {}", known.join(", "))
            })
        })
        .collect()
}

/// The kernel, if it is in the cache.
pub(crate) fn cached(wanted: &Wanted) -> Result<Option<Kernel>> {
    let directory = match wanted.arch.is_foreign() {
        true => Root::of(wanted.arch)?.path().to_owned(),
        false => directory(&wanted.name)?,
    };
    Ok(if directory.exists() { Some(open(wanted, &directory)?) } else { None })
}

fn directory(name: &str) -> Result<PathBuf> {
    Ok(workspace::cache()?.join("kernels").join(name))
}

fn open(wanted: &Wanted, directory: &Path) -> Result<Kernel> {
    let modules = directory.join("lib/modules");
    let mut releases = fs::read_dir(&modules)?;
    let Some(entry) = releases.next() else { bail!("{} is empty", modules.display()) };
    let release = entry?.file_name().into_string().ok().context("a kernel release is plain text")?;
    let image = directory.join("boot").join(format!("vmlinuz-{release}"));
    let (name, arch) = (wanted.name.clone(), wanted.arch);
    Ok(Kernel { name, modules: modules.join(&release), release, image, arch })
}

/// Downloads the kernel into the cache. `apt` holds options that every apt command gets.
pub(crate) fn download(wanted: &Wanted, apt: &[String]) -> Result<Kernel> {
    let package = newest_package(wanted, apt)?
        .with_context(|| format!("apt knows no package {} for kernel {}", wanted.package, wanted.name))?;
    let directory = directory(&wanted.name)?;
    unpack(&package, apt, &directory)?;
    open(wanted, &directory)
}

/// Downloads a package and unpacks it into a directory that isn't there yet, without installing it.
pub(crate) fn unpack(package: &str, apt: &[String], final_directory: &Path) -> Result<()> {
    // Unpacked beside and renamed, so that an interrupted download is never taken for a kernel.
    let scratch = final_directory.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&scratch)?;
    let unpack = || -> Result<()> {
        process::output(Command::new("apt-get").args(apt).args(["download", package]).current_dir(&scratch))?;
        let archive = workspace::file_with("deb", &scratch)?;
        process::run(Command::new("dpkg").arg("-x").arg(&archive).arg(&scratch))?;
        fs::remove_file(archive)?;
        Ok(())
    };
    let result = unpack().and_then(|()| Ok(fs::rename(&scratch, final_directory)?));
    if result.is_err() {
        let _ = fs::remove_dir_all(&scratch);
    }
    result
}

/// The newest package for the kernel that apt knows.
pub(crate) fn newest_package(wanted: &Wanted, apt: &[String]) -> Result<Option<String>> {
    let found = process::output(
        Command::new("apt-cache").args(apt).args(["search", "--names-only"]).arg(&wanted.package),
    )?;
    let names = found.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.max_by_key(|name| version_key(name)).map(str::to_owned))
}

/// The numbers in a package's name, which order its versions; an unsigned image before the same one signed, since
/// Debian offers it first.
fn version_key(package: &str) -> (Vec<u32>, bool) {
    let numbers = package.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    (numbers.collect(), package.ends_with("-unsigned"))
}

#[cfg(test)]
mod tests {
    use super::{Once, version_key};

    #[test]
    fn each_test_is_run_on_a_kernel_and_with_the_next_commit_on_the_other() {
        let tests: Vec<_> = ["why::a", "kept::b", "why::c", "why_path::d"].map(str::to_owned).into();
        let once = |turn| Once { both: vec!["kept::".to_owned()], turn };
        let elsewhere = |turn, place| {
            let mut names: Vec<_> = once(turn).elsewhere(&tests, place, 2).into_iter().collect();
            names.sort_unstable();
            names
        };
        assert_eq!([elsewhere(6, 0), elsewhere(6, 1)], [vec!["why::c"], vec!["why::a", "why_path::d"]]);
        assert_eq!([elsewhere(7, 0), elsewhere(7, 1)], [elsewhere(6, 1), elsewhere(6, 0)]);
        assert!(once(0).elsewhere(&tests, 0, 1).is_empty());
    }

    #[test]
    fn newest_is_by_number_not_by_letter() {
        let mut names = [
            "linux-image-6.12.107+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.9+deb12-cloud-amd64",
        ];
        names.sort_by_key(|name| version_key(name));
        assert_eq!(
            names,
            [
                "linux-image-6.12.9+deb12-cloud-amd64",
                "linux-image-6.12.107+deb12-cloud-amd64-unsigned",
                "linux-image-6.12.117+deb12-cloud-amd64",
                "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
            ]
        );
    }
}
