//! The file in which the export survives the agent, in its run directory. Knows where it is and how it is replaced at once, not what
//! is in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::{
        linux::fs::MetadataExt as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use crate::core::export::journal::Place;

const NAME: &str = "export.state";

/// The file, open to be appended to.
#[derive(Debug)]
pub struct ExportFile {
    path: PathBuf,
    file: Option<File>,
    appended: u64,
}

impl ExportFile {
    /// Makes the directory if it isn't there, for this user only, and reads what an agent left.
    pub fn open(run_dir: &Path) -> io::Result<(Self, Vec<u8>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
        let path = run_dir.join(NAME);
        let left = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            left => left?,
        };
        Ok((Self { path, file: None, appended: 0 }, left))
    }

    /// Replaces its content: whoever reads it has the old or the new one, whenever this process is killed.
    pub fn replace(&mut self, content: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&new)?;
        let written = file.write_all(content).and_then(|()| fs::rename(&new, &self.path));
        if let Err(error) = written {
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        (self.file, self.appended) = (Some(file), 0);
        Ok(())
    }

    /// Appends, once it was [replaced](Self::replace).
    pub fn append(&mut self, more: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(more)?;
            self.appended += more.len() as u64;
        }
        Ok(())
    }

    /// Bytes appended since it was replaced.
    pub fn appended(&self) -> u64 {
        self.appended
    }
}

/// Removes it; true if there was one.
pub fn remove(run_dir: &Path) -> io::Result<bool> {
    match fs::remove_file(run_dir.join(NAME)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// This boot and this network namespace.
pub fn place() -> io::Result<Place> {
    Ok(Place {
        boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        namespace: fs::metadata("/proc/thread-self/ns/net")?.st_ino(),
    })
}
