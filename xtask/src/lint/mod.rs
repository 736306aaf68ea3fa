//! `cargo xtask lint`: format, clippy, documentation, and the repository's own rules.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

mod modules;

use crate::{cargo_tool, ebpf, links, process, unsafe_code::Census, workspace};

/// Put together, so that this file keeps its own rule.
const UNSAFE: &str = concat!("un", "safe");

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
    check("modules without circles", circles());
    check("links in the documents", links::check());
    check("format", process::run(&mut cargo(&["fmt", "--all", "--check"])));
    let host = ["--workspace", "--exclude", "fastpath-ebpf"];
    let clippy = [&["clippy", "--quiet"], &host[..], &["--all-targets", "--", "-D", "warnings"]].concat();
    check("clippy", process::run(&mut cargo(&clippy)));
    check("clippy for eBPF", ebpf::clippy());
    let doc = [&["doc", "--quiet", "--no-deps", "--document-private-items"], &host[..]].concat();
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
    let mut command = Command::new(cargo_tool::DENY.program()?);
    // Two versions of one crate are only a warning, and a long one.
    process::run(
        command
            .args(["--log-level", "error", "check", "licenses", "bans", "sources"])
            .current_dir(workspace::root()),
    )
}

/// Cargo brings it up to date by itself, and says nothing.
fn lock_file() -> Result<()> {
    let mut metadata = cargo(&["metadata", "--locked", "--format-version", "1", "--no-deps"]);
    process::output(&mut metadata).context("commit Cargo.lock with the change of dependencies")?;
    if std::env::var_os("CI").is_some() {
        let mut git = Command::new("git");
        git.args(["diff", "--exit-code", "--stat", "HEAD", "--", "Cargo.lock"])
            .current_dir(workspace::root());
        process::output(&mut git).context("Cargo.lock isn't what was committed")?;
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(workspace::root());
    command
}

/// The rules that no other tool knows.
fn rules() -> Result<()> {
    let root = workspace::root();
    let mut broken = Vec::new();
    let mut census = Census::default();
    for path in tracked_files(&root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue }; // not text, or deleted and not yet committed
        broken.extend(rules_for(&path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            let without = census.add(&path, &text).into_iter();
            broken.extend(
                without.map(|line| format!("{}:{line}: no `// SAFETY:` with a reason above", path.display())),
            );
        }
    }
    let stated = root.join("xtask").join(format!("{UNSAFE}.txt"));
    let stated = fs::read_to_string(&stated).with_context(|| format!("cannot read {}", stated.display()))?;
    broken.extend(census.differences(&stated)?);
    if broken.is_empty() { Ok(()) } else { bail!("\n  {}", broken.join("\n  ")) }
}

/// Modules that use each other, in any crate.
fn circles() -> Result<()> {
    let root = workspace::root();
    let files: Vec<_> = tracked_files(&root)?.iter().map(|path| root.join(path)).collect();
    let mut found = Vec::new();
    for crate_ in ["fastpath-common", "fastpath-ebpf", "fastpath-agent", "xtask", "tests"] {
        found.extend(modules::Modules::of(&root.join(crate_).join("src"), &files)?.circles());
    }
    if found.is_empty() { Ok(()) } else { bail!("\n  {}", found.join("\n  ")) }
}

/// Everything that belongs to the repository, committed or about to be.
fn tracked_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let list = process::output(&mut git).context("the rules are for what git knows")?;
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
    let mut group = UseGroup::default();
    for (number, line) in text.lines().enumerate() {
        let code = code(line);
        if has_word(code, UNSAFE) && !may_be_unsafe(&shown) {
            broken.push(format!("{shown}:{}: `{UNSAFE}` belongs to fastpath-agent/src/kernel", number + 1));
        }
        if let Some(reason) = layering(&shown, &group.expand(code)) {
            broken.push(format!("{shown}:{}: {reason}", number + 1));
        }
    }
    broken
}

/// Follows `use crate::{…}` and `use std::{…}` over their lines.
#[derive(Default)]
struct UseGroup {
    /// `crate::` or `std::` while within its braces.
    prefix: &'static str,
    depth: usize,
}

impl UseGroup {
    /// The line of code, with the prefix in front of each name directly within the braces.
    fn expand(&mut self, code: &str) -> String {
        let mut expanded = String::with_capacity(code.len());
        let mut name_follows = self.depth == 1;
        for c in code.chars() {
            if self.depth == 0 {
                let prefix = ["crate::", "std::"].into_iter().find(|prefix| expanded.ends_with(prefix));
                if c == '{'
                    && code.contains("use ")
                    && let Some(prefix) = prefix
                {
                    (self.prefix, self.depth, name_follows) = (prefix, 1, true);
                }
                expanded.push(c);
                continue;
            }
            match c {
                '{' => self.depth += 1,
                '}' => self.depth -= 1,
                ',' if self.depth == 1 => name_follows = true,
                c if name_follows && !c.is_whitespace() => {
                    expanded.push_str(self.prefix);
                    name_follows = false;
                }
                _ => {}
            }
            expanded.push(c);
        }
        expanded
    }
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

/// The line without its comment. A `//` in a string ends it too, which hides code behind it from the rules: rare.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

/// Elsewhere the compiler asks for a stated reason, and clippy for a comment at each place.
fn may_be_unsafe(path: &str) -> bool {
    ["fastpath-agent/src/kernel/", "fastpath-ebpf/", "fastpath-common/", "tests/it/", "tests/src/kernel.rs"]
        .iter()
        .any(|place| path.starts_with(place))
}

/// The agent's layers: what files below a path may not mention, and why.
const LAYERS: &[(&str, &[&str], &str)] = &[
    (
        "fastpath-agent/src/core/",
        &["crate::kernel", "crate::daemon", "crate::commands", "crate::cli", "crate::config"],
        "core depends on no other layer",
    ),
    (
        "fastpath-agent/src/core/",
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
            "nix::",
            "libc::",
            "aya::",
            "nftnl",
            "rtnetlink",
        ],
        "core is pure: no input or output, no clock",
    ),
    (
        "fastpath-agent/src/kernel/",
        &["crate::daemon", "crate::commands", "crate::cli"],
        "kernel depends on core only",
    ),
    (
        "fastpath-agent/src/cli/",
        &["crate::kernel", "crate::daemon", "crate::commands"],
        "flags depend on core only",
    ),
    (
        "fastpath-agent/src/config/",
        &["crate::kernel", "crate::daemon", "crate::commands"],
        "configuration depends on flags and core only",
    ),
    ("fastpath-agent/src/daemon/", &["crate::commands"], "daemon is the loop, and knows no subcommand"),
];

fn layering(path: &str, code: &str) -> Option<String> {
    if path.ends_with("_tests.rs") {
        return None; // tests of a pure layer may drive it through another layer's fake
    }
    // `core.rs` is as much of the layer as `core/…`.
    let module = path.strip_suffix(".rs").unwrap_or(path);
    LAYERS.iter().find_map(|(layer, forbidden, reason)| {
        if !path.starts_with(layer) && module != layer.trim_end_matches('/') {
            return None;
        }
        let found = forbidden.iter().find(|name| mentions(code, name))?;
        Some(format!("`{found}` here, but {reason}"))
    })
}

/// Whether the code names that path, also at the start of a longer one.
fn mentions(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        let word = |c: char| c.is_alphanumeric() || c == '_';
        !before.is_some_and(word) && (name.ends_with(':') || !after.is_some_and(word))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::rules_for;

    fn broken(path: &str, text: &str) -> Vec<String> {
        rules_for(Path::new(path), text)
    }

    #[test]
    fn layers() {
        let core = "fastpath-agent/src/core/plan.rs";
        assert_eq!(
            broken(core, "//! x\nuse crate::core::model;\nuse std::net::IpAddr;\n"),
            Vec::<String>::new()
        );
        for line in [
            "use crate::kernel::nft;",
            "use crate::daemon::{self};",
            "let now = std::time::Instant::now();",
            "use std::fs;",
            "tokio::spawn(x);",
            "use crate::{core::plan, kernel::nft};",
            "use crate::{\n    core::{model, plan},\n    kernel::nft,\n};",
            "use std::{\n    fs,\n    net::IpAddr,\n};",
        ] {
            assert_eq!(broken(core, &format!("//! x\n{line}\n")).len(), 1, "{line}");
        }
        assert_eq!(broken(core, "//! x\nuse crate::{\n    core::{daemon, kernel},\n};\n").len(), 0);
        assert_eq!(broken("fastpath-agent/src/kernel/nft.rs", "//! x\nuse crate::core::plan;\n").len(), 0);
        assert_eq!(
            broken("fastpath-agent/src/kernel/nft.rs", "//! x\nuse crate::commands::text;\n").len(),
            1
        );
        assert_eq!(broken("fastpath-agent/src/daemon/mod.rs", "//! x\nuse crate::commands::why;\n").len(), 1);
        assert_eq!(broken("fastpath-agent/src/daemon/mod.rs", "//! x\nuse crate::kernel::links;\n").len(), 0);
        // A comment may say anything.
        assert_eq!(broken(core, "//! x\n// unlike crate::kernel\n").len(), 0);
    }

    #[test]
    fn opening_length_and_unsafe() {
        assert_eq!(broken("xtask/src/a.rs", "use std::fs;\n").len(), 1);
        let long = format!("//! x\n{}", "\n".repeat(600));
        assert_eq!(broken("xtask/src/a.rs", &long).len(), 1);
        let code = concat!("//! x\n", "un", "safe { f() }\n");
        assert_eq!(broken("xtask/src/a.rs", code).len(), 1);
        assert_eq!(broken("fastpath-agent/src/kernel/a.rs", code).len(), 0);
    }

    #[test]
    fn machine_paths() {
        let text = |place: &str| format!("see {place}me/x for it\n");
        assert_eq!(broken("docs/a.md", &text(concat!("/ho", "me/"))).len(), 1);
        assert_eq!(broken("docs/a.md", &text(concat!("$X/ho", "me/"))).len(), 1 - 1);
        assert_eq!(broken("docs/a.md", &text("/usr/share/")).len(), 0);
    }
}
