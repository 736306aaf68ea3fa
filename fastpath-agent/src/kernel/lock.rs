//! One agent for each network namespace: a lock in the shape of an abstract UNIX socket, whose names belong to the namespace.
//! It goes with the process that holds it, however that ends.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// Name of the socket.
const NAME: &[u8] = b"fastpath-agent";

/// The lock, for as long as it isn't dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "it is held by being open")] UnixListener);

/// There is no lock to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another agent runs in this network namespace{}: stop it first; each namespace can have one", process(*.holder))]
    Held {
        /// Its process; unknown where it belongs to another process namespace.
        holder: Option<i32>,
    },
    /// The socket can't be opened.
    #[error("cannot tell whether another agent runs here: {0}")]
    Io(#[source] io::Error),
}

fn process(holder: Option<i32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace.
    pub fn take() -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(NAME).map_err(LockError::Io)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Err(LockError::Held { holder: holder(&address) })
            }
            Err(error) => Err(LockError::Io(error)),
        }
    }
}

/// The process that listens there; it need not answer.
fn holder(address: &SocketAddr) -> Option<i32> {
    let stream = UnixStream::connect_addr(address).ok()?;
    let credentials = getsockopt(&stream, PeerCredentials).ok()?;
    Some(credentials.pid()).filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let first = Lock::take().unwrap();
        let second = Lock::take().unwrap_err();
        let pid = std::process::id().to_string();
        assert!(second.to_string().contains(&format!("(process {pid})")), "{second}");
        drop(first);
        drop(Lock::take().unwrap());
    }
}
