//! Which files a running agent may touch, as rules of Landlock (Documentation/userspace-api/landlock.rst). TCP is closed to it too,
//! but for the port that it listens at already, and that of a collector of flow records.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use super::Restriction;

/// What the rules are written for. Older kernels keep what they know of it.
const KNOWN: ABI = ABI::V6;

/// What may be touched.
#[derive(Clone, Debug, Default)]
pub struct Files {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    /// Empty directories may be removed from these.
    shrink: Vec<PathBuf>,
    /// The port to which TCP may connect.
    connect: Option<u16>,
}

impl Files {
    /// What the kernel tells about itself.
    pub fn of_the_kernel() -> Self {
        Self { read: vec!["/proc".into(), "/sys".into()], ..Self::default() }
    }

    /// Also this file, whatever takes its place, and what it leads to if it is a link.
    #[must_use]
    pub fn and_file(mut self, file: &Path) -> Self {
        let target = file.canonicalize().ok();
        let directories = [Some(file), target.as_deref()].into_iter().flatten().filter_map(Path::parent);
        // The directory of a name without one is the present one.
        self.read.extend(directories.map(|directory| {
            if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory.to_owned() }
        }));
        self
    }

    /// Also all in this directory, for writing.
    #[must_use]
    pub fn and_directory(mut self, directory: &Path) -> Self {
        self.write.push(directory.to_owned());
        self
    }

    /// Also the removal of this directory, once it is empty.
    #[must_use]
    pub fn and_its_end(mut self, directory: &Path) -> Self {
        self.shrink.extend(directory.parent().map(Path::to_owned));
        self
    }

    /// Also connections over TCP to this port, whatever the address: Landlock knows no more.
    #[must_use]
    pub fn and_connections_to(mut self, port: u16) -> Self {
        self.connect = Some(port);
        self
    }

    /// Whether connections over TCP are made.
    pub(super) fn connects(&self) -> bool {
        self.connect.is_some()
    }

    /// Restricts the calling thread to them. A directory that doesn't exist is left out.
    pub(super) fn restrict(&self) -> Result<Restriction, RulesetError> {
        let look = AccessFs::ReadFile | AccessFs::ReadDir;
        let change = look
            | AccessFs::WriteFile
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSock
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir;
        let beneath =
            |paths: &[PathBuf], access: BitFlags<AccessFs>| path_beneath_rules(paths.to_vec(), access);
        let port = self.connect.map(|port| Ok::<_, RulesetError>(NetPort::new(port, AccessNet::ConnectTcp)));
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            .scope(Scope::Signal)?
            .create()?
            .add_rules(beneath(&self.read, look))?
            .add_rules(beneath(&self.write, change))?
            .add_rules(beneath(&self.shrink, AccessFs::RemoveDir.into()))?
            .add_rules(port)?
            .restrict_self()?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => Restriction::Full,
            RulesetStatus::PartiallyEnforced => Restriction::Part,
            RulesetStatus::NotEnforced => Restriction::None,
        })
    }
}
