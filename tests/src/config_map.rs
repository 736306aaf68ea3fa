//! The volume of a ConfigMap with one key, laid out and exchanged as the kubelet does it (its AtomicWriter): the key is a link to
//! `..data/KEY`, and `..data` a link to a directory with a name of its own that another one takes the place of.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Such a volume.
pub struct ConfigMapVolume {
    directory: PathBuf,
    key: &'static str,
    versions: u32,
}

impl ConfigMapVolume {
    /// Fills a directory, which has to be there.
    pub fn new(directory: &Path, key: &'static str, value: &str) -> Self {
        let mut volume = Self { directory: directory.to_owned(), key, versions: 0 };
        volume.set(value);
        symlink(Path::new("..data").join(key), volume.file()).expect("a link");
        volume
    }

    /// What the pod reads.
    pub fn file(&self) -> PathBuf {
        self.directory.join(self.key)
    }

    /// Gives the key another value.
    pub fn set(&mut self, value: &str) {
        let path = |name: &str| self.directory.join(name);
        let before = fs::read_link(path("..data")).ok();
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        fs::create_dir(path(&version)).expect("a directory");
        fs::write(path(&version).join(self.key), value).expect("a file");
        symlink(&version, path("..data_tmp")).expect("a link");
        fs::rename(path("..data_tmp"), path("..data")).expect("exchanged");
        if let Some(before) = before {
            fs::remove_dir_all(self.directory.join(before)).expect("the old version is removed");
        }
    }
}
