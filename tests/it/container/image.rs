//! Reads the image's archive as a runtime does: by digests, from the index to the files. Every digest and size is checked.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Where the guest has it.
pub(super) const ARCHIVE: &str = "/usr/share/fastpath/image.tar";

/// An archive in memory.
pub(super) struct Image {
    files: BTreeMap<String, Vec<u8>>,
    /// The image's configuration: `config.Entrypoint`, `config.Env` ….
    pub(super) config: Value,
    /// What runtimes call it once it is loaded.
    pub(super) name: String,
    manifest: Value,
    /// Whether digests are looked at: it takes seconds in the emulator.
    checked: bool,
}

impl Image {
    /// Reads it, and checks every digest.
    pub(super) fn checked(archive: &Path) -> Self {
        Self::read(archive, true)
    }

    /// Reads it as one that was checked before.
    pub(super) fn known(archive: &Path) -> Self {
        Self::read(archive, false)
    }

    fn read(archive: &Path, checked: bool) -> Self {
        let archive = fs::File::open(archive).unwrap_or_else(|e| panic!("{}: {e}", archive.display()));
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().expect("a tar archive") {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("its content");
            files.insert(path, content);
        }
        let mut image =
            Self { files, config: Value::Null, name: String::new(), manifest: Value::Null, checked };
        let layout: Value = image.json("oci-layout");
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        let index = image.json("index.json");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1), "{index}");
        let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
        image.name = name.as_str().expect("a name").to_owned();
        image.manifest = image.blob_json(&index["manifests"][0]);
        image.config = image.blob_json(&image.manifest["config"]);
        image
    }

    fn json(&self, path: &str) -> Value {
        let content = self.files.get(path).unwrap_or_else(|| panic!("no {path} in the archive"));
        serde_json::from_slice(content).expect("JSON")
    }

    /// What a descriptor points to.
    fn blob(&self, descriptor: &Value) -> &[u8] {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let name = digest.strip_prefix("sha256:").expect("a SHA-256");
        let content = &self.files[&format!("blobs/sha256/{name}")];
        assert!(!self.checked || hex(content) == name, "the content isn't what its digest says");
        assert_eq!(descriptor["size"], content.len(), "{descriptor}");
        content
    }

    fn blob_json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(self.blob(descriptor)).expect("JSON")
    }

    /// Writes the image's files below a directory, and lists them.
    pub(super) fn unpack(&self, rootfs: &Path) -> Vec<PathBuf> {
        let layers = self.manifest["layers"].as_array().expect("layers");
        let diff_ids = self.config["rootfs"]["diff_ids"].as_array().expect("diff_ids");
        assert_eq!(layers.len(), diff_ids.len());
        let mut files = Vec::new();
        fs::create_dir_all(rootfs).expect("a directory");
        for (layer, diff_id) in layers.iter().zip(diff_ids) {
            let mut tar = Vec::new();
            GzDecoder::new(self.blob(layer)).read_to_end(&mut tar).expect("gzip");
            assert!(!self.checked || *diff_id == format!("sha256:{}", hex(&tar)), "{diff_id}");
            let mut archive = tar::Archive::new(tar.as_slice());
            for entry in archive.entries().expect("a layer") {
                let mut entry = entry.expect("an entry");
                let header = entry.header();
                assert_eq!(
                    (header.uid().ok(), header.gid().ok(), header.mtime().ok()),
                    (Some(0), Some(0), Some(0))
                );
                let path = entry.path().expect("a path").into_owned();
                let is_file = entry.header().entry_type().is_file();
                assert!(entry.unpack_in(rootfs).expect("unpack"), "{} is not below the root", path.display());
                files.extend(is_file.then_some(path));
            }
        }
        files
    }

    /// Names of the components in the bill of materials.
    pub(super) fn components(&self) -> Vec<String> {
        let sbom = self.json("sbom.cdx.json");
        assert_eq!(sbom["bomFormat"], "CycloneDX");
        let components = sbom["components"].as_array().expect("components").iter();
        components.map(|component| component["name"].as_str().expect("a name").to_owned()).collect()
    }
}

fn hex(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
