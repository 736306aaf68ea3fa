//! Hears of XDP programs that come to interfaces of other network namespaces: packets that are forwarded to the other end of a veth
//! would pass by them. Decides nothing about them.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::io;

use mnl::Bus;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    netlink::{Message, Socket},
    surface,
};

/// `RTNLGRP_LINK`, as a bit.
const LINK_GROUP: u32 = 1;
const RTM_NEWLINK: u16 = 16;

/// A socket that gets announcements of all namespaces that this one has a number for: those that a veth leads to are.
pub struct PodMonitor(AsyncFd<Socket>);

impl PodMonitor {
    /// Begins to listen, which takes CAP_NET_BROADCAST. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::listen_on(Bus::Route, LINK_GROUP, &[])?;
        socket.hear_all_namespaces()?;
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Returns once a program may have come somewhere. Cancelling it loses nothing.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            match ready.try_io(|socket| receive(socket.get_mut())) {
                Err(_not_ready) => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => {}
            }
        }
    }
}

/// Takes one datagram; `WouldBlock` if there is none. True if it tells of a program, or was lost.
fn receive(socket: &mut Socket) -> io::Result<bool> {
    let mut found = false;
    match socket.next_notification(|message| found |= tells_of_program(message)) {
        Ok(true) => Ok(found),
        Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(error) => Err(error),
    }
}

fn tells_of_program(message: &Message<'_>) -> bool {
    message.kind() == RTM_NEWLINK && surface::has_xdp(message) == Some(true)
}
