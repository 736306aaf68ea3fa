//! An OCI image layout in one tar archive, which docker, podman and containerd load. The same files give the same bytes: sorted
//! names, no times, no owners, JSON with sorted keys. Reads the files that it is given, and nothing else.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write,
};

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use fs_err as fs;
use oci_spec::image::{
    ConfigBuilder, Descriptor, DescriptorBuilder, HistoryBuilder, ImageConfigurationBuilder, ImageIndex,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder,
    Sha256Digest,
};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::rootfs::{AGENT, Rootfs};
use crate::arch::Arch;

/// The SBOM's place in the archive.
pub(crate) const SBOM: &str = "sbom.cdx.json";

/// `PATH` in the image, so that `kubectl exec … fastpath-agent` finds it.
pub(crate) const PATH: &str = "/usr/bin";

/// What the image says of itself.
pub(crate) struct About {
    /// Name and tag, as in `fastpath-agent:0.1.0`.
    pub(crate) name: String,
    /// When its source was committed (RFC 3339), where that is known.
    pub(crate) created: Option<String>,
    /// `org.opencontainers.image.…` and their values.
    pub(crate) labels: HashMap<String, String>,
}

/// The image for one processor.
pub(crate) struct Image {
    pub(crate) rootfs: Rootfs,
    /// A CycloneDX document.
    pub(crate) sbom: Value,
}

/// A finished archive.
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// Of the image's manifest, or of the index over those of several processors, as registries and runtimes know the image: `sha256:…`.
    pub(crate) digest: String,
}

/// Makes the archive: of one image, or of an index over images for several processors. The latter has no place in docker's older form.
pub(crate) fn build(images: &[Image], about: &About) -> Result<Archive> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut docker = None;
    let mut files = BTreeMap::new();
    for image in images {
        let added = add(&mut blobs, &image.rootfs, about)?;
        let mut sbom = SBOM.to_owned();
        if images.len() > 1 {
            sbom = format!("{}.{SBOM}", image.rootfs.arch.debian());
        } else {
            docker = Some(added.docker);
        }
        files.insert(sbom, canonical(&image.sbom)?);
        manifests.push(added.manifest);
    }
    let mut named = match manifests.as_slice() {
        [one] => one.clone(),
        _ => blobs.add(MediaType::ImageIndex, canonical(&index(manifests)?)?)?,
    };
    let digest = named.digest().to_string();
    // What containerd and podman call the image, and what `oci-archive:FILE:TAG` selects it by.
    let tag = about.name.split_once(':').map_or("latest", |(_, tag)| tag);
    named.set_annotations(Some(HashMap::from([
        ("io.containerd.image.name".to_owned(), full_name(&about.name)),
        ("org.opencontainers.image.ref.name".to_owned(), tag.to_owned()),
    ])));
    files.extend(blobs.files);
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
    files.insert("oci-layout".to_owned(), canonical(&layout)?);
    files.insert("index.json".to_owned(), canonical(&index(vec![named])?)?);
    if let Some(docker) = docker {
        files.insert("manifest.json".to_owned(), canonical(&docker)?);
    }
    let mut tar = tar::Builder::new(Vec::new());
    for directory in ["blobs/", "blobs/sha256/"] {
        append(&mut tar, directory, 0o755, None)?;
    }
    for (path, content) in &files {
        append(&mut tar, path, 0o644, Some(content))?;
    }
    Ok(Archive { bytes: tar.into_inner()?, digest })
}

fn index(manifests: Vec<Descriptor>) -> Result<ImageIndex> {
    let index = ImageIndexBuilder::default().schema_version(2u32).media_type(MediaType::ImageIndex);
    Ok(index.manifests(manifests).build()?)
}

/// An image that is in the archive.
struct Added {
    manifest: Descriptor,
    /// The same for docker before 25, which reads no image layout.
    docker: Value,
}

/// Adds the image for one processor.
fn add(blobs: &mut Blobs, rootfs: &Rootfs, about: &About) -> Result<Added> {
    let arch = match rootfs.arch {
        Arch::Amd64 => oci_spec::image::Arch::Amd64,
        Arch::Arm64 => oci_spec::image::Arch::ARM64,
    };
    let layer = layer(rootfs)?;
    let diff_id = format!("sha256:{}", hex(&layer));
    let mut packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    packed.write_all(&layer)?;
    let layer = blobs.add(MediaType::ImageLayerGzip, packed.finish()?)?;

    let config = ConfigBuilder::default()
        .entrypoint(vec![format!("/{AGENT}")])
        .cmd(vec!["run".to_owned()])
        .env(vec![format!("PATH={PATH}")])
        .labels(about.labels.clone())
        .build()?;
    let mut history = HistoryBuilder::default().created_by("cargo xtask image");
    let mut image = ImageConfigurationBuilder::default()
        .architecture(arch.clone())
        .os(Os::Linux)
        .config(config)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(vec![diff_id]).build()?);
    if let Some(created) = &about.created {
        history = history.created(created);
        image = image.created(created);
    }
    let image = image.history(vec![history.build()?]).build()?;
    let config = blobs.add(MediaType::ImageConfig, canonical(&image)?)?;

    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(config.clone())
        .layers(vec![layer.clone()])
        .annotations(about.labels.clone())
        .build()?;
    let mut manifest = blobs.add(MediaType::ImageManifest, canonical(&manifest)?)?;
    manifest.set_platform(Some(PlatformBuilder::default().architecture(arch).os(Os::Linux).build()?));
    let docker =
        json!([{ "Config": blob_path(&config), "RepoTags": [about.name], "Layers": [blob_path(&layer)] }]);
    Ok(Added { manifest, docker })
}

/// The one layer, not compressed.
fn layer(rootfs: &Rootfs) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for directory in rootfs.directories() {
        append(&mut tar, &format!("{directory}/"), 0o755, None)?;
    }
    for (path, source) in &rootfs.files {
        let content = fs::read(source)?;
        append(&mut tar, path, 0o755, Some(&content))?;
    }
    Ok(tar.into_inner()?)
}

/// One entry of root's, without a time; a directory if it has no content.
pub(crate) fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    content: Option<&[u8]>,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    let kind = if content.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory };
    header.set_entry_type(kind);
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let content = content.unwrap_or_default();
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content)?;
    Ok(())
}

/// Contents under their digests.
#[derive(Default)]
struct Blobs {
    files: BTreeMap<String, Vec<u8>>,
}

impl Blobs {
    fn add(&mut self, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest: Sha256Digest = hex(&content).parse()?;
        let blob = DescriptorBuilder::default()
            .media_type(kind)
            .size(content.len() as u64)
            .digest(digest)
            .build()?;
        self.files.insert(blob_path(&blob), content);
        Ok(blob)
    }
}

fn blob_path(blob: &Descriptor) -> String {
    format!("blobs/sha256/{}", blob.digest().digest())
}

pub(crate) fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name with what docker and Kubernetes put in front of a short one.
fn full_name(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

/// JSON with its keys sorted, as `Value` has them: the specification's types have hash maps, whose order is another in every run.
fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(&serde_json::to_value(value)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let labels = ["title", "version", "licenses", "description"]
            .map(|name| (format!("org.opencontainers.image.{name}"), name.to_owned()));
        About {
            name: "fastpath-agent:1".to_owned(),
            created: Some("2026-01-02T03:04:05Z".to_owned()),
            labels: HashMap::from(labels),
        }
    }

    fn image(source: &std::path::Path, arch: Arch) -> Image {
        let files = BTreeMap::from([(AGENT.to_owned(), source.to_owned())]);
        Image { rootfs: Rootfs { files, arch }, sbom: json!({ "b": 1, "a": 2 }) }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("agent");
        fs::write(&source, "agent").unwrap();
        let images = Arch::ALL.map(|arch| image(&source, arch));
        let build = || super::build(&images, &about()).unwrap();
        let first = build();
        // Another time and mode of the file, as after another build.
        fs::remove_file(&source).unwrap();
        fs::write(&source, "agent").unwrap();
        let mut permissions = fs::metadata(&source).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&source, permissions).unwrap();
        for _ in 0..5 {
            let again = build();
            assert_eq!(again.digest, first.digest);
            assert!(again.bytes == first.bytes);
        }
        fs::remove_file(&source).unwrap();
        fs::write(&source, "another agent").unwrap();
        assert_ne!(build().digest, first.digest);
    }

    #[test]
    fn names_as_kubernetes_understands_them() {
        for (name, full) in [
            ("fastpath-agent:1", "docker.io/library/fastpath-agent:1"),
            ("me/fastpath-agent:1", "docker.io/me/fastpath-agent:1"),
            ("registry.example/fastpath-agent:1", "registry.example/fastpath-agent:1"),
            ("localhost/fastpath-agent:1", "localhost/fastpath-agent:1"),
            ("localhost:5000/fastpath-agent:1", "localhost:5000/fastpath-agent:1"),
        ] {
            assert_eq!(full_name(name), full);
        }
    }
}
