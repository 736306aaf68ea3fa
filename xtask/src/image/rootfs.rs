//! What is in the image: the agent and the shared libraries that it is linked with, and nothing else. Knows nothing of
//! containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::arch::{Arch, Root};

/// Where the agent is in the image.
pub(crate) const AGENT: &str = "usr/bin/fastpath-agent";

/// Files by their path in the image, without a leading slash, and where each is on this machine.
pub(crate) struct Rootfs {
    pub(crate) files: BTreeMap<String, PathBuf>,
    /// For which processor.
    pub(crate) arch: Arch,
}

impl Rootfs {
    /// The agent with its libraries, where its loader looks for them.
    pub(crate) fn of(agent: &Path, arch: Arch) -> Result<Self> {
        let root = Root::of(arch)?;
        let mut files = BTreeMap::from([(AGENT.to_owned(), agent.to_owned())]);
        for library in root.libraries(agent)? {
            let path = library.to_str().context("paths of libraries are plain text")?;
            files.insert(path.trim_start_matches('/').to_owned(), root.outside(path));
        }
        if files.len() == 1 {
            bail!("{} has no shared libraries; is it a program for {}?", agent.display(), arch.debian());
        }
        Ok(Self { files, arch })
    }

    /// All directories that the files need, parents first.
    pub(crate) fn directories(&self) -> BTreeSet<String> {
        let parents = self.files.keys().flat_map(|path| {
            path.match_indices('/').map(|(slash, _)| path[..slash].to_owned()).collect::<Vec<_>>()
        });
        parents.collect()
    }

    /// Writes the files below an empty or new directory.
    pub(crate) fn unpack(&self, to: &Path) -> Result<()> {
        if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is not empty; name a new directory", to.display());
        }
        for directory in self.directories() {
            fs::create_dir_all(to.join(&directory))?;
        }
        for (path, source) in &self.files {
            let target = to.join(path);
            fs::copy(source, &target)?;
            fs::set_permissions(&target, Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}
