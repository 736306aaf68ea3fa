//! Connections that end, as conntrack announces them with their last counts. While nothing listens the kernel announces nothing, and
//! it never announces the end of a connection that began while nothing listened (net.netfilter.nf_conntrack_events=2).
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::io;

use tokio::io::{Interest, unix::AsyncFd};

use super::{conntrack::over, netlink::Socket};
use crate::core::flow::connection::Entry;

/// `NFNLGRP_CONNTRACK_DESTROY` as a bit (include/uapi/linux/netfilter/nfnetlink.h).
const DESTROY: u32 = 1 << 2;
/// Announcements at a time, so that others get their turn.
const AT_A_TIME: usize = 256;

/// A connection that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// As it was at its end.
    pub entry: Entry,
    /// When it began and ended, if the kernel keeps that, in ns since 1970, UTC.
    pub times_ns: Option<[u64; 2]>,
}

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Connections that ended.
    pub ends: Vec<End>,
    /// Whether some are missing, since they came too fast (`ENOBUFS`).
    pub lost: bool,
}

/// A socket that gets the announcements.
pub struct Ends(AsyncFd<Socket>);

impl Ends {
    /// Begins to listen, in the network namespace of the calling thread. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::listen(DESTROY, &[])?;
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits for the next ones. Cancelling it loses nothing.
    pub async fn next(&mut self) -> io::Result<Heard> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            match ready.try_io(|socket| receive(socket.get_mut())) {
                Err(_not_ready) => {}
                Ok(heard) => return heard,
            }
        }
    }

    /// Those that are there already.
    pub fn heard(&mut self) -> io::Result<Option<Heard>> {
        match receive(self.0.get_mut()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            heard => heard.map(Some),
        }
    }
}

/// `WouldBlock` if there is nothing.
fn receive(socket: &mut Socket) -> io::Result<Heard> {
    let mut heard = Heard::default();
    for _ in 0..AT_A_TIME {
        match socket.next_notification(|message| {
            heard.ends.extend(over(message).map(|(entry, times_ns)| End { entry, times_ns }));
        }) {
            Ok(true) => {}
            Ok(false) if heard == Heard::default() => return Err(io::ErrorKind::WouldBlock.into()),
            Ok(false) => break,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard.lost = true,
            Err(error) => return Err(error),
        }
    }
    Ok(heard)
}
