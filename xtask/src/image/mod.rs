//! `cargo xtask image`: an OCI image of the agent, from scratch and without a registry.

pub(crate) mod archive;
mod rootfs;
mod sbom;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde_json::Value;

use self::{
    archive::{About, Archive, Image},
    rootfs::Rootfs,
};
use crate::{
    arch::Arch,
    build,
    guest::RemoveLater,
    process,
    setup::{self, Need},
    workspace,
};

/// An image for one processor larger than this has something in it that doesn't belong there.
const LARGEST: usize = 20 << 20;

/// What `cargo xtask image` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to write the archive; target/image/fastpath-agent-VERSION.tar if nothing is named.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name of the image; the tag is the agent's version if none is given.
    #[arg(long, default_value = NAME)]
    name: String,
    /// Write the image's files below this directory instead, for a Dockerfile's last stage.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["output", "name"])]
    rootfs: Option<PathBuf>,
}

const NAME: &str = "fastpath-agent";
/// The agent's, from its Cargo.toml.
const DESCRIPTION: &str = "Moves established flows of a Linux node onto the kernel's flowtable";

pub(crate) fn run(options: &Options) -> Result<()> {
    // The files alone need no bill of materials.
    setup::ensure(if options.rootfs.is_some() { &[Need::Build] } else { &[Need::Build, Need::Image] })?;
    let agent = build::agent("release", Arch::default())?;
    let rootfs = Rootfs::of(&agent, Arch::default())?;
    for (path, source) in &rootfs.files {
        eprintln!("  {:>6.2} MB  /{path}", fs::metadata(source)?.len() as f64 / 1e6);
    }
    if let Some(directory) = &options.rootfs {
        rootfs.unpack(directory)?;
        println!("{}", directory.display());
        return Ok(());
    }
    let name = with_tag(&options.name);
    eprintln!("packing {name}");
    let archive = pack(vec![with_sbom(rootfs)?], &name)?;
    let output = options.output.clone().unwrap_or_else(|| {
        workspace::target().join("image").join(format!("fastpath-agent-{}.tar", version()))
    });
    write(&archive, &output)?;
    eprintln!(
        "  {:>6.2} MB  to be loaded with `docker load -i`, `podman load -i`, `ctr images import` or",
        archive.bytes.len() as f64 / 1e6
    );
    eprintln!("             `kind load image-archive`");
    println!("{}\n{}", output.display(), archive.digest);
    Ok(())
}

/// The same image with the agent that the tests run.
pub(crate) fn for_tests(binaries: &build::Binaries, arch: Arch) -> Result<PathBuf> {
    let image = with_sbom(Rootfs::of(&binaries["fastpath-agent"], arch)?)?;
    let output = workspace::target().join("image").join(format!("for-tests-{}.tar", arch.debian()));
    write(&pack(vec![image], &with_tag(NAME))?, &output)?;
    Ok(output)
}

/// An image for two processors, of which only this one's has an agent, to see what loads it.
pub(crate) fn for_two(agent: &Path) -> Result<PathBuf> {
    let no_program = workspace::root().join("Cargo.toml");
    let foreign = Rootfs { files: [(rootfs::AGENT.to_owned(), no_program)].into(), arch: Arch::Arm64 };
    let images = [foreign, Rootfs::of(agent, Arch::default())?];
    let images = images.map(|rootfs| Image { rootfs, sbom: Value::Null });
    let output = workspace::target().join("image/for-two.tar");
    let archive = pack(images.into(), &with_tag(NAME))?;
    write(&archive, &output)?;
    check_push(&output, &archive.digest)?;
    Ok(output)
}

/// One image of these agents for all their processors, and beside it a bill of materials for each. Returns the image's digest.
pub(crate) fn for_release(agents: &[(Arch, PathBuf)], directory: &Path) -> Result<String> {
    let images = agents.iter().map(|(arch, agent)| with_sbom(Rootfs::of(agent, *arch)?));
    let images = images.collect::<Result<Vec<_>>>()?;
    for image in &images {
        let name = format!("{NAME}-{}-{}.{}", version(), image.rootfs.arch.debian(), archive::SBOM);
        fs::write(directory.join(name), serde_json::to_vec_pretty(&image.sbom)?)?;
    }
    let whole = directory.join(format!("{NAME}-{}-image.tar", version()));
    let archive = pack(images, &with_tag(NAME))?;
    write(&archive, &whole)?;
    check(&whole, &["oci-archive"], &agents.iter().map(|(arch, _)| *arch).collect::<Vec<_>>())?;
    check_push(&whole, &archive.digest)?;
    Ok(archive.digest)
}

/// Reads the archive in these of its forms with another program, for each processor: digests and sizes are checked as it copies.
pub(crate) fn check(archive: &Path, forms: &[&str], arches: &[Arch]) -> Result<()> {
    let to = workspace::target().join("image").join(format!("copy-{}", std::process::id()));
    fs::create_dir_all(&to)?;
    let to = RemoveLater(to);
    for (form, arch) in forms.iter().flat_map(|form| arches.iter().map(move |arch| (form, arch.debian()))) {
        let from = format!("{form}:{}", archive.display());
        let skopeo = |command: &[&str]| {
            let mut skopeo = process::command("skopeo --insecure-policy --override-arch");
            process::output(skopeo.arg(arch).args(command))
        };
        let to = to.0.join(format!("{form}-{arch}"));
        skopeo(&["copy", "--quiet", &from, &format!("dir:{}", to.display())])?;
        let about: Value =
            serde_json::from_str(&skopeo(&["inspect", &from])?).context("skopeo prints JSON")?;
        if about["Architecture"] != arch {
            bail!("{form}: the image for {arch} is for {}", about["Architecture"]);
        }
        let labels: HashMap<String, String> =
            serde_json::from_value(about["Labels"].clone()).context("labels")?;
        for (name, value) in self::labels() {
            if labels.get(&name) != Some(&value) {
                bail!("{form}: the label {name} is {:?}, not {value:?}", labels.get(&name));
            }
        }
        println!("ok      image  read by skopeo as {form} for {arch}");
    }
    Ok(())
}

/// Copies the archive as it is pushed, into a directory: what is there must have the archive's digest.
fn check_push(archive: &Path, digest: &str) -> Result<()> {
    let to = RemoveLater(archive.with_extension(format!("pushed-{}", std::process::id())));
    let mut skopeo = process::command("skopeo --insecure-policy copy --quiet --all");
    skopeo.arg(format!("oci-archive:{}", archive.display())).arg(format!("oci:{}:pushed", to.0.display()));
    process::output(&mut skopeo)?;
    let index = fs::read_to_string(to.0.join("index.json"))?;
    if !index.contains(digest) {
        bail!("the copy of {} doesn't have the digest {digest}: {index}", archive.display());
    }
    Ok(())
}

fn with_sbom(rootfs: Rootfs) -> Result<Image> {
    Ok(Image { sbom: sbom::of(&rootfs, version())?, rootfs })
}

fn pack(images: Vec<Image>, name: &str) -> Result<Archive> {
    let mut labels = labels();
    // In a working copy.
    labels.extend(process::git(&["rev-parse", "HEAD"]).map(|commit| (label("revision"), commit)));
    let about = About {
        name: name.to_owned(),
        created: process::git(&["log", "-1", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", "--format=%cd"]).ok(),
        labels,
    };
    let archive = archive::build(&images, &about)?;
    let (size, most) = (archive.bytes.len(), LARGEST * images.len());
    if size > most {
        bail!("the image has {size} bytes, more than {most}");
    }
    Ok(archive)
}

/// What deploy/Dockerfile says too.
fn labels() -> HashMap<String, String> {
    HashMap::from([
        (label("title"), NAME.to_owned()),
        (label("description"), DESCRIPTION.to_owned()),
        (label("licenses"), "MIT OR Apache-2.0".to_owned()),
        (label("version"), version().to_owned()),
    ])
}

fn label(name: &str) -> String {
    format!("org.opencontainers.image.{name}")
}

/// All packages of the workspace have one version.
pub(crate) fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn with_tag(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') { name.to_owned() } else { format!("{name}:{}", version()) }
}

/// Written beside and renamed, so that no reader gets half an archive.
fn write(archive: &Archive, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let scratch = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&scratch, &archive.bytes)?;
    fs::rename(&scratch, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is no Docker in the tests: that both ways end in one image is read off the file.
    #[test]
    fn the_dockerfile_builds_the_same_image() {
        let root = workspace::root();
        let text = fs::read_to_string(root.join("deploy/Dockerfile")).unwrap();
        let last = text.split("FROM scratch\n").nth(1).expect("a last stage from scratch");
        let mut expected =
            vec!["COPY --from=build /rootfs/ /".to_owned(), format!("ENV PATH={}", archive::PATH)];
        expected.extend(labels().iter().map(|(name, value)| format!("LABEL {name}=\"{value}\"")));
        expected.push(format!("ENTRYPOINT [\"/{}\"]", rootfs::AGENT));
        expected.push("CMD [\"run\"]".to_owned());
        let mut lines: Vec<_> = last.lines().filter(|line| !line.is_empty()).collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected);
        assert!(text.contains("\nRUN cargo xtask image --rootfs /rootfs\n"));
        let agent = fs::read_to_string(root.join("fastpath-agent/Cargo.toml")).unwrap();
        assert!(agent.contains(&format!("\ndescription = \"{DESCRIPTION}\"\n")));
    }

    #[test]
    fn a_tag_is_added_where_there_is_none() {
        let tag = version();
        for (name, whole) in [
            ("agent", format!("agent:{tag}")),
            ("agent:7", "agent:7".to_owned()),
            ("registry.example:5000/agent", format!("registry.example:5000/agent:{tag}")),
        ] {
            assert_eq!(with_tag(name), whole);
        }
    }
}
