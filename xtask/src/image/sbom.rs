//! The software bill of materials of the image, CycloneDX 1.5 as JSON: the crates that the agent and its eBPF programs are built
//! from, as cargo-cyclonedx lists them, and the distribution's packages that its libraries come from. The same source gives the same
//! bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use fs_err as fs;
use serde_json::{Value, json};

use super::rootfs::{AGENT, Rootfs};
use crate::{arch::Root, cargo_tool::CYCLONEDX, process, workspace};

/// How the document calls the image.
const IMAGE: &str = "image";

/// Makes the document for an image of that version.
pub(crate) fn of(rootfs: &Rootfs, version: &str) -> Result<Value> {
    let agent = crates("fastpath-agent", &rootfs.arch.triple())?;
    let programs = crates("fastpath-ebpf", "bpfel-unknown-none")?;
    Ok(joined(vec![agent, programs], libraries(rootfs)?, version))
}

/// One document of several: each component once, and what depends on what.
fn joined(documents: Vec<Value>, libraries: Components, version: &str) -> Value {
    let mut components = libraries;
    let mut needs: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    needs.insert(IMAGE.to_owned(), components.keys().cloned().collect());
    for mut document in documents {
        let mut program = document["metadata"]["component"].take();
        // The parts of our own package aren't components of the image.
        program.as_object_mut().and_then(|program| program.remove("components"));
        needs.entry(IMAGE.to_owned()).or_default().insert(text(&program["bom-ref"]));
        let crates = document["components"].as_array_mut().map(std::mem::take).unwrap_or_default();
        for component in crates.into_iter().chain([program]) {
            components.insert(text(&component["bom-ref"]), component);
        }
        for dependency in document["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["dependsOn"].as_array().into_iter().flatten().map(text);
            needs.entry(text(&dependency["ref"])).or_default().extend(on);
        }
    }
    let needs = needs.into_iter().map(|(of, on)| json!({ "ref": of, "dependsOn": on }));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": IMAGE,
                "name": "fastpath-agent",
                "version": version,
                "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            },
        },
        "dependencies": needs.collect::<Vec<_>>(),
        "components": components.into_values().collect::<Vec<_>>(),
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Components by what the document calls them.
type Components = BTreeMap<String, Value>;

/// What cargo-cyclonedx says of a package, without this machine's directories.
fn crates(package: &str, target: &str) -> Result<Value> {
    let root = workspace::root();
    // It writes a file for each member of the workspace beside its manifest, and nowhere else.
    let name = format!("sbom-{}", std::process::id());
    let mut command = Command::new(CYCLONEDX.program()?);
    command.args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--no-build-deps", "--quiet"]);
    command.args(["--target", target, "--override-filename", &name]).current_dir(&root);
    // Without a random serial number.
    process::output(command.env("SOURCE_DATE_EPOCH", "0"))?;
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let manifest: toml::Value = toml::from_str(&manifest).context("Cargo.toml")?;
    let mut document = None;
    for member in manifest["workspace"]["members"].as_array().context("the workspace has members")? {
        let member = member.as_str().context("members are paths")?;
        let file = root.join(member).join(format!("{name}.json"));
        let text = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        if member == package {
            document = Some(text);
        }
    }
    let text = document.with_context(|| format!("the workspace has no {package}"))?;
    without_directories(&text, package)
}

/// The document with the workspace as `/fastpath`, as in programs.
fn without_directories(document: &str, package: &str) -> Result<Value> {
    let parsed: Value = serde_json::from_str(document).context("cargo-cyclonedx writes JSON")?;
    let own = self::text(&parsed["metadata"]["component"]["bom-ref"]);
    let (workspace, _) =
        own.rsplit_once(&format!("/{package}#")).context("a package is called by its path")?;
    Ok(serde_json::from_str(&document.replace(workspace, "path+file:///fastpath"))?)
}

/// The distribution's packages that files of the image come from.
fn libraries(rootfs: &Rootfs) -> Result<Components> {
    let [distribution, release] = ["ID", "VERSION_ID"].map(workspace::os_release);
    let root = Root::of(rootfs.arch)?;
    let mut components = Components::new();
    for (path, source) in &rootfs.files {
        if path == AGENT {
            continue;
        }
        let package = owner(&root, source)?;
        let mut query = root.dpkg_query();
        let format = "--showformat=${Version}|${Architecture}|${source:Package}|${source:Version}";
        let text = process::output(query.args(["--show", format, &package]))?;
        let fields: Vec<_> = text.split('|').collect();
        let &[version, architecture, source_name, source_version] = fields.as_slice() else {
            anyhow::bail!("dpkg-query says {text:?} of {package}");
        };
        let name = package.split(':').next().unwrap_or(&package);
        let file = json!({ "name": "fastpath:file", "value": format!("/{path}") });
        let called = format!("deb {name}");
        let component = components.entry(called.clone()).or_insert_with(|| {
            json!({
                "type": "library",
                "bom-ref": called,
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
fn owner(root: &Root, file: &Path) -> Result<String> {
    let shown = root.inside(file)?.to_string_lossy().into_owned();
    let mut names = vec![file.to_string_lossy().into_owned(), shown.clone()];
    names.extend(shown.strip_prefix("/usr").map(str::to_owned));
    for name in &names {
        let mut search = root.dpkg_query();
        if let Ok(found) = process::output(search.args(["--search", name]))
            && let Some(package) = owner_in(&found)
        {
            return Ok(package.to_owned());
        }
    }
    anyhow::bail!("no package has {}; the bill of materials must name where it comes from", file.display())
}

/// The package in what `dpkg-query --search` prints. Debian 13 has diverted files of the C library, and says so first.
fn owner_in(found: &str) -> Option<&str> {
    let mut lines = found.lines().filter(|line| !line.starts_with("diversion by "));
    Some(lines.find_map(|line| line.split_once(": "))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diversion_is_no_package() {
        let diverted = "diversion by libc6 from: /lib64/ld-linux-x86-64.so.2\n\
                        diversion by libc6 to: /lib64/ld-linux-x86-64.so.2.usr-is-merged\n";
        assert_eq!(owner_in(diverted), None);
        let owned = "libc6:amd64: /usr/lib64/ld-linux-x86-64.so.2\n";
        assert_eq!(owner_in(owned), Some("libc6:amd64"));
        assert_eq!(owner_in(&format!("{diverted}{owned}")), Some("libc6:amd64"));
    }

    #[test]
    fn documents_are_joined_without_directories_and_without_repetition() {
        let document = |package: &str| {
            let own = format!("path+file:///a%20b/{package}#0.1.0");
            let common = "path+file:///a%20b/fastpath-common#0.1.0";
            let document = json!({
                "serialNumber": "random",
                "metadata": { "timestamp": "now", "component": { "bom-ref": own, "name": package, "components": [] } },
                "components": [{ "bom-ref": common, "name": "fastpath-common" }],
                "dependencies": [{ "ref": own, "dependsOn": [common] }, { "ref": common }],
            });
            without_directories(&document.to_string(), package).unwrap()
        };
        let libraries = Components::from([("deb libc6".to_owned(), json!({ "name": "libc6" }))]);
        let joined = joined(vec![document("fastpath-agent"), document("fastpath-ebpf")], libraries, "1");
        let names: Vec<_> =
            joined["components"].as_array().unwrap().iter().map(|c| text(&c["name"])).collect();
        assert_eq!(names, ["libc6", "fastpath-agent", "fastpath-common", "fastpath-ebpf"]);
        let needs = joined["dependencies"].as_array().unwrap();
        let own =
            ["fastpath-agent", "fastpath-ebpf"].map(|name| format!("path+file:///fastpath/{name}#0.1.0"));
        assert_eq!(needs[0]["dependsOn"], json!(["deb libc6", own[0], own[1]]));
        assert_eq!(needs.len(), 4);
        for gone in ["a%20b", "random", "now"] {
            assert!(!joined.to_string().contains(gone), "{joined}");
        }
    }
}
