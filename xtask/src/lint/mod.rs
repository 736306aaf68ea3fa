//! `cargo xtask lint`: format, clippy, documentation, and the repository's own rules.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

mod modules;

use modules::{Layer, Modules};

use crate::{cargo_tool, ebpf, links, process, unsafe_code::Census, workspace};

/// Lines after which a file has to become two.
const LONGEST_FILE: usize = 600;

pub(crate) fn run() -> Result<()> {
    let mut failures = Vec::new();
    let mut check = |what: &str, result: Result<()>| match result {
        Ok(()) => println!("lint: {what} ok"),
        Err(error) => {
            println!("lint: {what} FAILED: {error:#}");
            failures.push(what.to_owned());
        }
    };
    check("rules of the repository", rules());
    check("modules without circles, and layers", modules());
    check("links in the documents", links::check());
    check("format", process::run(&mut cargo("fmt --all --check")));
    let host = "--workspace --exclude fastpath-ebpf";
    let clippy = format!("clippy --quiet {host} --all-targets -- -D warnings");
    check("clippy", process::run(&mut cargo(&clippy)));
    check("clippy for eBPF", ebpf::clippy());
    let doc = format!("doc --quiet --no-deps --document-private-items {host}");
    check("documentation", process::run(cargo(&doc).env("RUSTDOCFLAGS", "-D warnings")));
    check("licences and sources", cargo_deny());
    check("the lock file", lock_file());
    if !failures.is_empty() {
        bail!("lint failed: {}", failures.join(", "));
    }
    Ok(())
}

/// Without advisories, whose list comes from the network.
fn cargo_deny() -> Result<()> {
    let mut deny = Command::new(cargo_tool::DENY.program()?);
    // Two versions of one crate are only a warning, and a long one.
    deny.args(["--log-level", "error", "check", "licenses", "bans", "sources"]);
    process::run(deny.current_dir(workspace::root()))
}

/// Cargo brings it up to date by itself, and says nothing.
fn lock_file() -> Result<()> {
    let mut metadata = cargo("metadata --locked --format-version 1 --no-deps");
    process::output(&mut metadata).context("commit Cargo.lock with the change of dependencies")?;
    if std::env::var_os("CI").is_some() {
        process::git(&["diff", "--exit-code", "--stat", "HEAD", "--", "Cargo.lock"])
            .context("Cargo.lock isn't what was committed")?;
    }
    Ok(())
}

fn cargo(words: &str) -> Command {
    let mut command = process::command(&format!("cargo {words}"));
    command.current_dir(workspace::root());
    command
}

/// The rules that no other tool knows.
fn rules() -> Result<()> {
    let root = workspace::root();
    let mut broken = Vec::new();
    let mut census = Census::default();
    for path in tracked_files()? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue }; // not text, or deleted and not yet committed
        broken.extend(rules_for(&path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            census.add(&path, &text);
        }
    }
    broken.extend(census.differences()?);
    if broken.is_empty() { Ok(()) } else { bail!("\n  {}", broken.join("\n  ")) }
}

/// What modules use, in any crate.
fn modules() -> Result<()> {
    let root = workspace::root();
    let files: Vec<_> = tracked_files()?.iter().map(|path| root.join(path)).collect();
    let mut broken = Vec::new();
    for crate_ in ["fastpath-common", "fastpath-ebpf", "fastpath-agent", "xtask", "tests"] {
        let modules = Modules::of(&root.join(crate_).join("src"), &files)?;
        broken.extend(modules.circles());
        if crate_ == "fastpath-agent" {
            broken.extend(modules.across(LAYERS));
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("\n  {}", broken.join("\n  ")) }
}

/// Everything that belongs to the repository, committed or about to be.
fn tracked_files() -> Result<Vec<PathBuf>> {
    let list = process::git(&["ls-files", "--cached", "--others", "--exclude-standard"])
        .context("the rules are for what git knows")?;
    Ok(list.lines().map(PathBuf::from).collect())
}

fn rules_for(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display().to_string();
    let mut broken = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(found) = machine_path(line) {
            broken.push(format!("{shown}:{}: path on a developer's machine: {found}", number + 1));
        }
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return broken;
    }
    if !text.starts_with("//!") {
        broken.push(format!("{shown}: must open with `//!`: its job, and what it must not do"));
    }
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        broken.push(format!("{shown}: {lines} lines; over {LONGEST_FILE} a file has to become two"));
    }
    broken
}

/// An absolute path that exists on one machine only.
fn machine_path(line: &str) -> Option<&str> {
    // Put together, so that this file keeps its own rule.
    let places = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];
    places.into_iter().find_map(|place| {
        let start = line.find(place)?;
        let before = line[..start].chars().next_back();
        // One below another directory is not it.
        (!before.is_some_and(|c| c.is_alphanumeric() || "._-$}".contains(c))).then(|| {
            line[start..].split(|c: char| c.is_whitespace() || "\"'`)".contains(c)).next().unwrap_or(place)
        })
    })
}

/// The agent's.
const LAYERS: &[Layer] = &[
    (
        "core",
        &["crate::kernel", "crate::daemon", "crate::commands", "crate::cli", "crate::config"],
        "core depends on no other layer",
    ),
    (
        "core",
        &[
            "tokio",
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "Instant::now",
            "SystemTime::now",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "nix",
            "libc",
            "aya",
            "nftnl",
            "rtnetlink",
        ],
        "core is pure: no input or output, no clock",
    ),
    ("kernel", &["crate::daemon", "crate::commands", "crate::cli"], "kernel depends on core only"),
    ("cli", &["crate::kernel", "crate::daemon", "crate::commands"], "flags depend on core only"),
    (
        "config",
        &["crate::kernel", "crate::daemon", "crate::commands"],
        "configuration depends on flags and core only",
    ),
    ("daemon", &["crate::commands"], "daemon is the loop, and knows no subcommand"),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::rules_for;

    fn broken(path: &str, text: &str) -> Vec<String> {
        rules_for(Path::new(path), text)
    }

    #[test]
    fn opening_and_length() {
        assert_eq!(broken("xtask/src/a.rs", "use std::fs;\n").len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(600));
        assert_eq!(broken("xtask/src/a.rs", &long).len(), 1);
    }

    #[test]
    fn machine_paths() {
        let text = |place: &str| format!("see {place}me/x for it\n");
        assert_eq!(broken("docs/a.md", &text(concat!("/ho", "me/"))).len(), 1);
        assert_eq!(broken("docs/a.md", &text(concat!("$X/ho", "me/"))).len(), 1 - 1);
        assert_eq!(broken("docs/a.md", &text("/usr/share/")).len(), 0);
    }
}
