//! The place where a running agent publishes what happens to flows: a Unix socket in a directory of its own. Knows where
//! it is and who owns it, not what is said there.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Name of the socket in the run directory.
const SOCKET: &str = "events.sock";

/// The socket can't be made, or no agent listens.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A running agent has it.
    #[error("another agent already publishes at {}; give each agent its own directory with --run-dir", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// No agent publishes there.
    #[error("no agent publishes at {}; is one running, with eBPF, a threshold and this --run-dir?", path.display())]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// errno.
        source: io::Error,
    },
}

/// A socket that listens. Removed when dropped, and its directory with it if nothing else is in there.
#[derive(Debug)]
pub struct EventSocket {
    /// The listening socket, not blocking.
    pub listener: UnixListener,
    path: PathBuf,
}

impl EventSocket {
    /// Makes the directory, for this user only, and the socket. One that a dead agent left behind is replaced.
    pub fn open(run_dir: &Path) -> Result<Self, SocketError> {
        let path = run_dir.join(SOCKET);
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .map_err(|source| failed("create", run_dir, source))?;
        if remove_dead(&path)? == Socket::Alive {
            return Err(SocketError::Taken { path });
        }
        let listener = UnixListener::bind(&path).map_err(|source| failed("listen at", &path, source))?;
        let socket = Self { listener, path };
        // The directory may have been there before, open to all users.
        fs::set_permissions(&socket.path, fs::Permissions::from_mode(0o600))
            .and_then(|()| socket.listener.set_nonblocking(true))
            .map_err(|source| failed("set up", &socket.path, source))?;
        Ok(socket)
    }
}

impl Drop for EventSocket {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.path);
        if let Err(error) = removed.and_then(|()| remove_directory(&self.path)) {
            tracing::debug!(%error, path = %self.path.display(), "the socket stays behind");
        }
    }
}

/// Connects to the agent that publishes below `run_dir`.
pub fn connect(run_dir: &Path) -> Result<UnixStream, SocketError> {
    let path = run_dir.join(SOCKET);
    UnixStream::connect(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
            SocketError::NoAgent { path }
        }
        _ => failed("connect to", &path, source),
    })
}

/// Removes what a dead agent left below `run_dir`; true if there was something. A running agent's socket stays.
pub fn cleanup(run_dir: &Path) -> Result<bool, SocketError> {
    let path = run_dir.join(SOCKET);
    let removed = remove_dead(&path)? == Socket::Dead;
    remove_directory(&path).map_err(|source| failed("remove", run_dir, source))?;
    Ok(removed)
}

#[derive(PartialEq, Eq)]
enum Socket {
    Absent,
    /// No agent listened; it is removed now.
    Dead,
    Alive,
}

fn remove_dead(path: &Path) -> Result<Socket, SocketError> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(Socket::Alive),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Socket::Absent),
            // Also for what isn't a socket: that isn't the agent's to remove.
            io::ErrorKind::ConnectionRefused if is_socket(path) => {
                fs::remove_file(path).map_err(|source| failed("remove", path, source))?;
                Ok(Socket::Dead)
            }
            _ => Err(failed("look at", path, error)),
        },
    }
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Removes the socket's directory unless it holds something else.
fn remove_directory(socket: &Path) -> io::Result<()> {
    match socket.parent().map(fs::remove_dir) {
        Some(Err(error))
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, source: io::Error) -> SocketError {
    SocketError::Io { operation, path: path.to_owned(), source }
}
