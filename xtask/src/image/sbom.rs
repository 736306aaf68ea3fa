//! The software bill of materials of the image: the crates that the agent and its eBPF programs are built from, as cargo resolves
//! them, and the distribution's packages that its libraries come from. CycloneDX 1.5 as JSON.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rootfs::{AGENT, Rootfs};
use crate::{process, workspace};

/// Makes the document for an image of that version.
pub(crate) fn of(rootfs: &Rootfs, version: &str) -> Result<Value> {
    let mut components = crates()?;
    components.extend(libraries(rootfs)?);
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "name": "fastpath-agent",
                "version": version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            },
        },
        "components": components.into_values().collect::<Vec<_>>(),
    }))
}

/// Components by a key that orders them.
type Components = BTreeMap<String, Value>;

/// What is linked into the agent, and into the programs that it carries.
fn crates() -> Result<Components> {
    let checksums = checksums()?;
    let mut components = Components::new();
    for (package, target) in
        [("fastpath-agent", "x86_64-unknown-linux-gnu"), ("fastpath-ebpf", "bpfel-unknown-none")]
    {
        let mut tree = Command::new("cargo");
        tree.args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none"]);
        tree.args(["--package", package, "--target", target, "--format", "{p}|{l}"]);
        for line in process::output(tree.current_dir(workspace::root()))?.lines() {
            // "clap v4.6.9|MIT OR Apache-2.0", with a path or "(*)" behind the version at times.
            let (name, licence) = line.split_once('|').context("cargo tree prints what it was asked for")?;
            let mut words = name.split_whitespace();
            let (Some(name), Some(version)) = (words.next(), words.next()) else { continue };
            let version = version.trim_start_matches('v');
            // "MIT/Apache-2.0" is an old way to write it.
            let licence = licence.trim_end_matches(" (*)").split('/').map(str::trim).collect::<Vec<_>>();
            let licence = licence.join(" OR ");
            let mut component = json!({
                "type": "library",
                "name": name,
                "version": version,
                "licenses": [{ "expression": licence }],
            });
            if let Some(checksum) = checksums.get(&(name.to_owned(), version.to_owned())) {
                component["purl"] = format!("pkg:cargo/{name}@{version}").into();
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            components.insert(format!("cargo {name} {version}"), component);
        }
    }
    Ok(components)
}

/// The registry's checksums, by name and version; our own crates have none.
fn checksums() -> Result<BTreeMap<(String, String), String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        checksum: Option<String>,
    }
    let text = fs::read_to_string(workspace::root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let lock: Lock = toml::from_str(&text).context("Cargo.lock")?;
    let known = |package: Package| Some(((package.name, package.version), package.checksum?));
    Ok(lock.package.into_iter().filter_map(known).collect())
}

/// The distribution's packages that files of the image come from.
fn libraries(rootfs: &Rootfs) -> Result<Components> {
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| {
        let line = os.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let (distribution, release) = (value("ID"), value("VERSION_ID"));
    let mut components = Components::new();
    for (path, source) in &rootfs.files {
        if path == AGENT {
            continue;
        }
        let package = owner(source)?;
        let mut query = Command::new("dpkg-query");
        query.args([
            "--show",
            "--showformat",
            "${Version}|${Architecture}|${source:Package}|${source:Version}",
        ]);
        let text = process::output(query.arg(&package))?;
        let fields: Vec<_> = text.split('|').collect();
        let &[version, architecture, source_name, source_version] = fields.as_slice() else {
            anyhow::bail!("dpkg-query says {text:?} of {package}");
        };
        let name = package.split(':').next().unwrap_or(&package);
        let file = json!({ "name": "fastpath:file", "value": format!("/{path}") });
        let component = components.entry(format!("deb {name}")).or_insert_with(|| {
            json!({
                "type": "library",
                "name": name,
                "version": version,
                "purl": format!(
                    "pkg:deb/{distribution}/{name}@{}?arch={architecture}&distro={distribution}-{release}&upstream={source_name}%40{}",
                    escaped(version),
                    escaped(source_version),
                ),
                "properties": [],
            })
        });
        component["properties"].as_array_mut().context("made above")?.push(file);
    }
    Ok(components)
}

/// In a package URL `+`, `:` and `~` of a version stay as they are but for the first, which has another meaning there.
fn escaped(version: &str) -> String {
    version.replace('+', "%2B").replace(':', "%3A")
}

/// The package that a file belongs to, by whichever of its names dpkg knows it: /lib may be a link to /usr/lib.
fn owner(file: &Path) -> Result<String> {
    let real = file.canonicalize().with_context(|| format!("cannot read {}", file.display()))?;
    let shown = real.to_string_lossy().into_owned();
    let mut names = vec![file.to_string_lossy().into_owned(), shown.clone()];
    names.extend(shown.strip_prefix("/usr").map(str::to_owned));
    for name in &names {
        let mut search = Command::new("dpkg-query");
        if let Ok(found) = process::output(search.args(["--search", name]))
            && let Some((package, _)) = found.lines().find_map(|line| line.split_once(": "))
        {
            return Ok(package.to_owned());
        }
    }
    anyhow::bail!("no package has {}; the bill of materials must name where it comes from", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_crates_are_listed_with_licences_and_checksums() {
        let crates = crates().unwrap();
        let of = |name: &str| {
            let found = crates.iter().find(|(key, _)| key.starts_with(&format!("cargo {name} ")));
            found.unwrap_or_else(|| panic!("no {name}")).1
        };
        for name in
            ["fastpath-agent", "fastpath-common", "fastpath-ebpf", "tokio", "aya", "nftnl-sys", "aya-ebpf"]
        {
            assert!(
                of(name)["licenses"][0]["expression"].as_str().is_some_and(|licence| !licence.is_empty())
            );
        }
        assert_eq!(of("tokio")["hashes"][0]["content"].as_str().unwrap().len(), 64);
        // Neither our test crates nor macros end up in the program.
        assert!(!crates.keys().any(|key| key.contains("proptest") || key.contains("clap_derive")));
    }
}
