//! Hears of what decides over forwarded packets and nothing else announces: the other ends of veths, in other network
//! namespaces, routes that a program's look-up misreads, and IPsec policies. Decides nothing about them.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::io;

use mnl::Bus;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    misread_routes::{self, Announced},
    netlink::{Message, Socket, has_none},
    surface,
};
use crate::core::{model::IfIndex, peer::Peer};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_ROUTE` with `RTNLGRP_IPV6_ROUTE`, and `XFRMNLGRP_POLICY`, as bits.
const LINK_GROUP: u32 = 1;
const ROUTE_GROUPS: u32 = 1 << 6 | 1 << 10;
const POLICY_GROUP: u32 = 1 << 3;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Of what may be the other ends of these interfaces. Indexes are of some namespace or other, so it may be about another pair.
    OtherEnds(Vec<(IfIndex, Option<Peer>)>),
    /// Announcements of links were lost.
    Lost,
    /// Of routes that a program's look-up misreads; nothing if announcements were lost.
    Routes(Vec<Announced>),
    /// An IPsec policy, or what holds where there is none, has changed.
    IpsecPolicy,
}

/// Sockets that get announcements.
pub struct ForwardMonitor {
    /// Of all namespaces that this one has a number for: those that a veth leads to are.
    links: AsyncFd<Socket>,
    routes: AsyncFd<Socket>,
    /// Absent on a kernel without IPsec.
    policies: Option<AsyncFd<Socket>>,
}

impl ForwardMonitor {
    /// Begins to listen, which takes CAP_NET_BROADCAST. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let links = Socket::listen_on(Bus::Route, LINK_GROUP, &[])?;
        links.hear_all_namespaces()?;
        let routes = Socket::listen_on(Bus::Route, ROUTE_GROUPS, &misread_routes::such_routes_only())?;
        let policies = match Socket::listen_on(Bus::Xfrm, POLICY_GROUP, &[]) {
            Err(error) if has_none(&error) => None,
            socket => Some(registered(socket?)?),
        };
        Ok(Self { links: registered(links)?, routes: registered(routes)?, policies })
    }

    /// The next announcement. Cancelling it loses nothing.
    pub async fn next(&mut self) -> io::Result<Heard> {
        let Self { links, routes, policies } = self;
        let policy = async {
            match policies {
                Some(policies) => until(policies, |_| Some(())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ends = until(links, surface::other_end) => Ok(ends?.map_or(Heard::Lost, Heard::OtherEnds)),
            routes = until(routes, misread_routes::announced) => Ok(Heard::Routes(routes?.unwrap_or_default())),
            policy = policy => policy.map(|_| Heard::IpsecPolicy),
        }
    }
}

fn registered(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Returns with the next announcements that are wanted; with nothing where some were lost.
async fn until<T>(
    socket: &mut AsyncFd<Socket>,
    wanted: fn(&Message<'_>) -> Option<T>,
) -> io::Result<Option<Vec<T>>> {
    loop {
        let mut ready = socket.readable_mut().await?;
        match ready.try_io(|socket| receive(socket.get_mut(), wanted)) {
            Ok(Ok(Some(found))) if found.is_empty() => {}
            Ok(received) => return received,
            Err(_not_ready) => {}
        }
    }
}

/// Takes one datagram; `WouldBlock` if there is none.
fn receive<T>(socket: &mut Socket, wanted: fn(&Message<'_>) -> Option<T>) -> io::Result<Option<Vec<T>>> {
    let mut found = Vec::new();
    match socket.next_notification(|message| found.extend(wanted(message))) {
        Ok(true) => Ok(Some(found)),
        Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(None),
        Err(error) => Err(error),
    }
}
