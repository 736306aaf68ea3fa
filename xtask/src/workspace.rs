//! Where things are: the workspace, its target directory, the user's cache.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fs_err as fs;

/// The workspace's top directory.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`, and right also after the directory was moved.
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Flags for rustc that keep this machine's directories out of what is built: the same source gives the same bytes.
pub(crate) fn without_paths() -> Result<[String; 2]> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?).join(".cargo")
        }
    };
    Ok([(root(), "/fastpath"), (cargo_home, "/cargo")]
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())))
}

/// All files below a directory.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// A file with that ending below a directory that has one.
pub(crate) fn file_with(extension: &str, directory: &Path) -> Result<PathBuf> {
    let mut files = files_below(directory)?.into_iter();
    let found = files.find(|path| path.extension().is_some_and(|found| found == extension));
    found.with_context(|| format!("no .{extension} in {}", directory.display()))
}

/// A value of /etc/os-release, or nothing.
pub(crate) fn os_release(key: &str) -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_default().trim_matches('"').to_owned()
}

/// The user's cache for what is downloaded or built once: kernels, bpf-linker.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?)
            .join(".cache"),
    };
    Ok(base.join("fastpath"))
}
