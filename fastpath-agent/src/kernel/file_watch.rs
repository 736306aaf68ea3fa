//! Says when a file may have another content, however it is replaced: written, renamed, or as the kubelet does it, by another link
//! beside it (inotify(7)). Doesn't read it.

use std::{io, path::Path};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;

/// Watches the file's directory.
pub struct FileWatch(Receiver);

impl FileWatch {
    /// Begins to watch. Must be called inside a tokio runtime with I/O enabled.
    pub fn open(file: &Path) -> io::Result<Self> {
        let directory = match file.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // A link is complete once it is created, a file is empty then.
        let comes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        let goes = AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE;
        inotify.add_watch(directory, comes | goes)?;
        // It is no pipe, but read like one.
        Receiver::from_owned_fd_unchecked(inotify.into()).map(Self)
    }

    /// Waits for a change in the directory. Cancelling it loses nothing.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut events = [0; 4096];
        let mut any = false;
        loop {
            self.0.readable().await?;
            loop {
                match self.0.try_read(&mut events) {
                    Ok(_) => any = true,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, time::Duration};

    use super::*;

    async fn tells(watch: &mut FileWatch) -> bool {
        tokio::time::timeout(Duration::from_millis(500), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn every_way_to_replace_a_file_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // As the kubelet lays out a volume.
        for (version, word) in [("..1", "accelerate"), ("..2", "watch")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("mode"), word).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/mode", path("mode")).unwrap();
        let mut watch = FileWatch::open(&path("mode")).unwrap();
        assert!(!tells(&mut watch).await, "nothing has happened");
        symlink("..2", path("..data_tmp")).unwrap();
        assert!(tells(&mut watch).await, "its preparation, too");
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert!(tells(&mut watch).await, "the kubelet's way");
        assert_eq!(fs::read_to_string(path("mode")).unwrap(), "watch");
        fs::remove_file(path("mode")).unwrap();
        assert!(tells(&mut watch).await, "removed");
        symlink("..data/mode", path("mode")).unwrap();
        assert!(tells(&mut watch).await, "the kubelet's last step with a new volume");
        fs::remove_file(path("mode")).unwrap();
        fs::write(path("mode"), "accelerate").unwrap();
        assert!(tells(&mut watch).await, "written");
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("mode"), "watch").unwrap();
        fs::rename(elsewhere.path().join("mode"), path("mode")).unwrap();
        assert!(tells(&mut watch).await, "moved there");
        assert!(!tells(&mut watch).await, "each once");
    }
}
