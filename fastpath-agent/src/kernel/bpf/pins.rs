//! Pins on the bpf file system: what is there, and taking it away.

use std::{fs, io, os::fd::AsFd, path::Path};

use fastpath_common::{MAP_CONFIG, MAP_EVENTS, MAP_FLOWS, MAP_HOT, MAP_NO_XDP, MAP_STATS};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{error::BpfError, sys};

/// Directory with the pinned TCX and XDP links, below the pin directory.
pub(super) const LINKS: &str = "links";

/// The maps by name.
pub(super) const MAPS: [&str; 6] = [MAP_FLOWS, MAP_HOT, MAP_STATS, MAP_CONFIG, MAP_EVENTS, MAP_NO_XDP];

/// Removes the maps' pins; returns the names of those that were there. The maps live on as long as programs use them.
pub(super) fn unpin_maps(pin_path: &Path) -> Result<Vec<&'static str>, BpfError> {
    let mut removed = Vec::new();
    for map in MAPS {
        let pin = pin_path.join(map);
        match fs::remove_file(&pin) {
            Ok(()) => removed.push(map),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(BpfError::io(format!("remove {}", pin.display()), e)),
        }
    }
    Ok(removed)
}

/// Neither the file nor, maybe, its directory is there.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Fails unless `path`, or the nearest directory above that exists, is on a bpf file system.
pub(super) fn require_bpffs(path: &Path) -> Result<(), BpfError> {
    if on_bpffs(path)? { Ok(()) } else { Err(BpfError::NoBpffs { path: path.to_owned() }) }
}

/// Whether `path`, or the nearest directory above that exists, is on a bpf file system.
pub fn on_bpffs(path: &Path) -> Result<bool, BpfError> {
    for directory in path.ancestors() {
        match statfs(directory) {
            Ok(fs) => return Ok(fs.filesystem_type() == BPF_FS_MAGIC),
            Err(nix::Error::ENOENT) => {}
            Err(e) => return Err(BpfError::io(format!("look at {}", directory.display()), e.into())),
        }
    }
    Ok(false)
}

/// Detaches the link that is pinned there, at once, and removes the pin; true if there was one.
pub(super) fn detach_link_at(pin: &Path) -> Result<bool, BpfError> {
    let failed = |e| BpfError::io(format!("remove {}", pin.display()), e);
    match sys::open_pin(pin) {
        // Without this it would happen some time later.
        Ok(link) => sys::link_detach(link.as_fd()).map_err(failed)?,
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(failed(e)),
    }
    fs::remove_file(pin).map(|()| true).map_err(failed)
}
