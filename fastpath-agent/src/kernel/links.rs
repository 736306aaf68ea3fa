//! Links of this network namespace over rtnetlink: all of them once, then every change as the kernel announces it. Messages are
//! taken apart here, since names may be any bytes. Decides nothing about them.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use mnl::Bus;
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    LinkSource,
    netlink::{Attribute, Families, Message, Socket, attribute::find, attributes, u32_at},
    rtnetlink::list,
};
use crate::core::{
    link::table::LinkEvent,
    model::{IfIndex, IfName, Link, OperState},
};

/// `RTNLGRP_LINK`, as a bit.
const LINK_GROUP: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// Length of struct ifinfomsg, and where it has what.
const LINK_HEADER: usize = 16;
const LINK_TYPE: usize = 2;
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
/// Length of struct ifaddrmsg.
const ADDRESS_HEADER: usize = 8;
// Attributes, include/uapi/linux/if_link.h and if_addr.h.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
// `IF_OPER_UNKNOWN` and `IF_OPER_UP`, include/uapi/linux/if.h.
const OPER_UNKNOWN: u8 = 0;
const OPER_UP: u8 = 6;

/// Reading links failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No rtnetlink socket.
    #[error("cannot open an rtnetlink socket: {0}")]
    Open(#[source] io::Error),
    /// The list of links couldn't be read.
    #[error("cannot list the network interfaces: {0}")]
    Dump(#[source] io::Error),
    /// Other notifications of rtnetlink can't be received.
    #[error("cannot listen to changes of policy rules and settings: {0}")]
    Listen(#[source] io::Error),
    /// Changes of links can't be received.
    #[error("cannot listen to changes of the network interfaces: {0}")]
    Events(#[source] io::Error),
}

/// Access to the links of the namespace that it was opened in.
pub struct Links {
    requests: Socket,
    events: AsyncFd<Socket>,
    /// Whether some were lost that weren't reported yet.
    lost: bool,
    /// Heard and not yet told.
    heard: VecDeque<LinkEvent>,
}

impl Links {
    /// Opens the sockets and subscribes; from now on no change is missed without a [`LinkEvent::Overrun`].
    /// Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, LinkError> {
        let events = Socket::listen_on(Bus::Route, LINK_GROUP, &[]).map_err(LinkError::Open)?;
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) };
        let events = events.map_err(|error| LinkError::Open(error.into()))?;
        // Requests have a socket of their own: an overrun there must not look like an answer.
        let requests = Socket::open_on(Bus::Route).map_err(LinkError::Open)?;
        Ok(Self { requests, events, lost: false, heard: VecDeque::new() })
    }

    /// All links of this namespace. Where they keep changing, what is missing is announced.
    pub fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        let listed = list(&mut self.requests, RTM_GETLINK, Families::All, [0; LINK_HEADER], link);
        Ok(listed.map_err(LinkError::Dump)?.passing())
    }

    /// All addresses of this node in this namespace.
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, LinkError> {
        let listed = list(&mut self.requests, RTM_GETADDR, Families::All, [0; ADDRESS_HEADER], own_address);
        Ok(listed.map_err(LinkError::Dump)?.passing().into_iter().collect())
    }
}

impl LinkSource for Links {
    fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        self.list()
    }

    fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, LinkError> {
        self.addresses()
    }

    async fn next(&mut self) -> Result<LinkEvent, LinkError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            let mut ready = self.events.readable_mut().await.map_err(LinkError::Events)?;
            match ready.try_io(|socket| receive(socket.get_mut(), &mut self.lost, &mut self.heard)) {
                Err(_not_ready) => {}
                Ok(result) => result.map_err(LinkError::Events)?,
            }
        }
    }

    fn try_next(&mut self) -> Option<LinkEvent> {
        while self.heard.is_empty() {
            // What is wrong with the socket is told by `next`.
            receive(self.events.get_mut(), &mut self.lost, &mut self.heard).ok()?;
        }
        self.heard.pop_front()
    }
}

/// Takes one datagram; `WouldBlock` if there is none. Of an overrun is told when all that the socket holds was taken from it: until
/// then the kernel goes on dropping announcements, without a further error (`netlink_overrun`, net/netlink/af_netlink.c).
fn receive(socket: &mut Socket, lost: &mut bool, heard: &mut VecDeque<LinkEvent>) -> io::Result<()> {
    match socket.next_notification(|message| heard.extend(event(message))) {
        Ok(true) => Ok(()),
        Ok(false) if *lost => {
            *lost = false;
            heard.push_back(LinkEvent::Overrun);
            Ok(())
        }
        Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            *lost = true;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn event(message: &Message<'_>) -> Option<LinkEvent> {
    match message.kind() {
        RTM_NEWLINK => link(message).map(LinkEvent::Changed),
        RTM_DELLINK => index(message.payload()).map(LinkEvent::Gone),
        _ => None,
    }
}

/// Which link a message describes. The group also carries messages about bridge ports (AF_BRIDGE): there a deletion means
/// that a link left its bridge, not that it is gone (net/bridge/br_netlink.c).
fn index(payload: &[u8]) -> Option<IfIndex> {
    let header = payload.first_chunk::<LINK_HEADER>()?;
    let index = u32_at(header, LINK_INDEX).filter(|index| *index != 0)?;
    (i32::from(header[0]) == libc::AF_UNSPEC).then_some(IfIndex(index))
}

fn link(message: &Message<'_>) -> Option<Link> {
    if message.kind() != RTM_NEWLINK {
        return None;
    }
    let (header, list) = message.payload().split_first_chunk::<LINK_HEADER>()?;
    let index = index(header)?;
    let mut name = None;
    let mut oper_state = OperState::Unknown;
    let mut kind = None;
    let mut master = None;
    let mut lower = None;
    let mut elsewhere = false;
    let mut address = None;
    let mut mtu = 0;
    let number = |nla: &Attribute<'_>| u32_at(nla.value(), 0).filter(|number| *number != 0);
    for nla in attributes(list) {
        match nla.kind() {
            IFLA_IFNAME => name = IfName::from_bytes(nla.name()),
            IFLA_OPERSTATE => {
                oper_state = match nla.value() {
                    [OPER_UNKNOWN] => OperState::Unknown,
                    [OPER_UP] => OperState::Up,
                    _ => OperState::Down,
                };
            }
            IFLA_MTU => mtu = number(&nla).unwrap_or(0),
            IFLA_LINK => lower = number(&nla).map(IfIndex),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_ADDRESS => address = nla.fixed(),
            IFLA_MASTER => master = number(&nla).map(IfIndex),
            IFLA_LINKINFO => kind = find(nla.value(), IFLA_INFO_KIND).map(|kind| kind.string()),
            _ => {}
        }
    }
    let flags = u32_at(header, LINK_FLAGS)?;
    let has = |flag: i32| flags & flag.cast_unsigned() != 0;
    let layer = u16::from_ne_bytes([header[LINK_TYPE], header[LINK_TYPE + 1]]);
    Some(Link {
        index,
        name: name?,
        admin_up: has(libc::IFF_UP),
        oper_state,
        loopback: has(libc::IFF_LOOPBACK),
        kind,
        master,
        lower: lower.filter(|_| !elsewhere),
        address,
        mtu,
        ethernet: layer == libc::ARPHRD_ETHER,
    })
}

/// Where both are given, the other one is the peer's (include/uapi/linux/if_addr.h).
fn own_address(message: &Message<'_>) -> Option<IpAddr> {
    if message.kind() != RTM_NEWADDR {
        return None;
    }
    let list = message.payload().get(ADDRESS_HEADER..)?;
    let nla = find(list, IFA_LOCAL).or_else(|| find(list, IFA_ADDRESS))?;
    match nla.value().len() {
        4 => nla.fixed::<4>().map(|v4| Ipv4Addr::from(v4).into()),
        _ => nla.fixed::<16>().map(|v6| Ipv6Addr::from(v6).into()),
    }
}

/// Reads any message.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(message: &Message<'_>) {
    if let Some(LinkEvent::Changed(link)) = event(message) {
        assert_eq!(IfName::from_bytes(link.name.as_bytes()).as_ref(), Some(&link.name));
    }
    let _ = own_address(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::Request;

    const VETH: &[(u16, &[u8])] = &[
        (IFLA_IFNAME, b"vethabc\0"),
        (IFLA_OPERSTATE, &[OPER_UP]),
        (IFLA_MTU, &1500_u32.to_ne_bytes()),
        (IFLA_MASTER, &3_u32.to_ne_bytes()),
        (IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7]),
        // IFLA_INFO_KIND within.
        (IFLA_LINKINFO, b"\x09\0\x01\0veth\0"),
    ];

    fn message(kind: u16, family: i32, attributes: &[(u16, &[u8])]) -> Request {
        let mut header = [0; LINK_HEADER];
        header[0] = family as u8;
        header[LINK_TYPE..LINK_INDEX].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
        header[LINK_INDEX..LINK_FLAGS].copy_from_slice(&7_u32.to_ne_bytes());
        header[LINK_FLAGS..12].copy_from_slice(&libc::IFF_UP.to_ne_bytes());
        let request = Request::new(kind, 0, &header);
        attributes.iter().fold(request, |request, (kind, value)| request.attribute(*kind, value))
    }

    fn heard(kind: u16, family: i32, attributes: &[(u16, &[u8])]) -> Option<LinkEvent> {
        event(&Message::new(message(kind, family, attributes).bytes()))
    }

    fn changed(attributes: &[(u16, &[u8])]) -> Option<Link> {
        match heard(RTM_NEWLINK, libc::AF_UNSPEC, attributes)? {
            LinkEvent::Changed(link) => Some(link),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_is_read_whole() {
        let link = changed(VETH).unwrap();
        assert_eq!(link.name.as_bytes(), b"vethabc");
        assert_eq!((link.index, link.master, link.mtu), (IfIndex(7), Some(IfIndex(3)), 1500));
        assert_eq!((link.admin_up, link.oper_state, link.ethernet), (true, OperState::Up, true));
        assert_eq!((link.kind.as_deref(), link.address), (Some("veth"), Some([2, 0, 0, 0, 0, 7])));
    }

    #[test]
    fn a_name_may_be_any_bytes() {
        let link = changed(&[(IFLA_IFNAME, b"p\xff\x1b\0")]).unwrap();
        assert_eq!(link.name.as_bytes(), b"p\xff\x1b");
        assert_eq!(changed(&[(IFLA_IFNAME, b"\0")]), None);
    }

    #[test]
    fn leaving_a_bridge_is_not_going_away() {
        let gone = |family| heard(RTM_DELLINK, family, VETH);
        assert_eq!(gone(libc::AF_UNSPEC), Some(LinkEvent::Gone(IfIndex(7))));
        assert_eq!(gone(libc::AF_BRIDGE), None);
    }

    #[test]
    fn other_states_than_up_and_unknown_are_down() {
        for (state, expected) in
            [(0, OperState::Unknown), (1, OperState::Down), (5, OperState::Down), (7, OperState::Down)]
        {
            assert_eq!(
                changed(&[VETH, &[(IFLA_OPERSTATE, &[state])]].concat()).unwrap().oper_state,
                expected,
                "{state}"
            );
        }
    }

    #[test]
    fn a_peer_in_another_namespace_is_no_lower_link() {
        let lower: (u16, &[u8]) = (IFLA_LINK, &9_u32.to_ne_bytes());
        assert_eq!(changed(&[VETH, &[lower]].concat()).unwrap().lower, Some(IfIndex(9)));
        assert_eq!(changed(&[VETH, &[lower, (IFLA_LINK_NETNSID, &[0; 4])]].concat()).unwrap().lower, None);
    }
}
