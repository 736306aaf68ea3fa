//! Hears of what forwarded packets would pass by and nothing else announces: XDP programs that come to interfaces of other
//! network namespaces, and IPsec policies. Decides nothing about them.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::io;

use mnl::Bus;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    netlink::{Message, Socket, has_none},
    surface,
};

/// `RTNLGRP_LINK` and `XFRMNLGRP_POLICY`, as bits.
const LINK_GROUP: u32 = 1;
const POLICY_GROUP: u32 = 1 << 3;
const RTM_NEWLINK: u16 = 16;

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// An XDP program may have come somewhere.
    Program,
    /// An IPsec policy, or what holds where there is none, has changed.
    IpsecPolicy,
}

/// Sockets that get announcements.
pub struct ForwardMonitor {
    /// Of all namespaces that this one has a number for: those that a veth leads to are.
    links: AsyncFd<Socket>,
    /// Absent on a kernel without IPsec.
    policies: Option<AsyncFd<Socket>>,
}

impl ForwardMonitor {
    /// Begins to listen, which takes CAP_NET_BROADCAST. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let links = Socket::listen_on(Bus::Route, LINK_GROUP, &[])?;
        links.hear_all_namespaces()?;
        let policies = match Socket::listen_on(Bus::Xfrm, POLICY_GROUP, &[]) {
            Err(error) if has_none(&error) => None,
            socket => Some(registered(socket?)?),
        };
        Ok(Self { links: registered(links)?, policies })
    }

    /// The next announcement. Cancelling it loses nothing.
    pub async fn next(&mut self) -> io::Result<Heard> {
        let Self { links, policies } = self;
        let policy = async {
            match policies {
                Some(policies) => until(policies, |_| true).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            program = until(links, tells_of_program) => program.map(|()| Heard::Program),
            policy = policy => policy.map(|()| Heard::IpsecPolicy),
        }
    }
}

fn registered(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Returns with the first announcement that is wanted, or that was lost.
async fn until(socket: &mut AsyncFd<Socket>, wanted: fn(&Message<'_>) -> bool) -> io::Result<()> {
    loop {
        let mut ready = socket.readable_mut().await?;
        match ready.try_io(|socket| receive(socket.get_mut(), wanted)) {
            Err(_not_ready) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {}
        }
    }
}

/// Takes one datagram; `WouldBlock` if there is none. True if it has something that is wanted, or was lost.
fn receive(socket: &mut Socket, wanted: fn(&Message<'_>) -> bool) -> io::Result<bool> {
    let mut found = false;
    match socket.next_notification(|message| found |= wanted(message)) {
        Ok(true) => Ok(found),
        Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(error) => Err(error),
    }
}

fn tells_of_program(message: &Message<'_>) -> bool {
    message.kind() == RTM_NEWLINK && surface::has_xdp(message) == Some(true)
}
