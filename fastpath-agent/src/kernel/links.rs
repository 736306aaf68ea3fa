//! Links of this network namespace over rtnetlink: all of them once, then every change as the kernel announces it.
//! Decides nothing about them.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    task::{Context, Poll},
};

use futures_util::stream::Stream;
use mnl::Bus;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload, Parseable},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, State},
    },
};

use super::{
    LinkSource,
    netlink::{Families, Message, Socket},
    rtnetlink::list,
};
use crate::core::{
    link::table::LinkEvent,
    model::{IfIndex, IfName, Link, OperState},
};

/// Receive buffer for notifications, in bytes: about 2,000 of them at 2 KiB each.
const RECEIVE_BUFFER: usize = 4 << 20;
const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;

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
    /// The socket for notifications was shut down.
    #[error("the kernel's link notifications ended")]
    Ended,
}

/// Access to the links of the namespace that it was opened in.
pub struct Links {
    requests: Socket,
    messages: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin>,
    /// Where the messages come from.
    socket: OwnedFd,
    /// Whether some were lost, of which nobody has heard yet.
    lost: bool,
}

impl Links {
    /// Opens the sockets and subscribes; from now on no change is missed without a [`LinkEvent::Overrun`].
    /// Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        let (mut connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(LinkError::Open)?;
        let socket = enlarge(&mut connection).map_err(LinkError::Open)?;
        tokio::spawn(connection);
        // Requests have a socket of their own: an overrun there must not look like an answer.
        let requests = Socket::open_on(Bus::Route).map_err(LinkError::Open)?;
        let messages = futures_util::StreamExt::map(messages, |(message, _)| message);
        Ok(Self { requests, messages: Box::new(messages), socket, lost: false })
    }

    /// The next event. Of an overrun is told when all that the socket holds was taken from it: until then the kernel goes on
    /// dropping announcements, without a further error (`netlink_overrun`, net/netlink/af_netlink.c).
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<LinkEvent, LinkError>> {
        loop {
            if self.lost && is_empty(&self.socket) {
                self.lost = false;
                return Poll::Ready(Ok(LinkEvent::Overrun));
            }
            match Stream::poll_next(std::pin::Pin::new(&mut self.messages), cx) {
                Poll::Ready(Some(message)) => match event(message.payload) {
                    Some(LinkEvent::Overrun) => self.lost = true,
                    Some(event) => return Poll::Ready(Ok(event)),
                    None => {}
                },
                Poll::Ready(None) => return Poll::Ready(Err(LinkError::Ended)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// All links of this namespace. Where they keep changing, what is missing is announced.
    pub fn list(&mut self) -> Result<Vec<Link>, LinkError> {
        // struct ifinfomsg
        let listed =
            list(&mut self.requests, RTM_GETLINK, Families::All, [0; 16], |message: &Message<'_>| {
                parse(&LinkMessage::parse(message.payload()).ok()?)
            });
        Ok(listed.map_err(LinkError::Dump)?.passing())
    }

    /// All addresses of this node in this namespace.
    pub fn addresses(&mut self) -> Result<BTreeSet<IpAddr>, LinkError> {
        // struct ifaddrmsg
        let listed = list(&mut self.requests, RTM_GETADDR, Families::All, [0; 8], |message: &Message<'_>| {
            own_address(&AddressMessage::parse(message.payload()).ok()?)
        });
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
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn try_next(&mut self) -> Option<LinkEvent> {
        futures_util::FutureExt::now_or_never(self.next()).and_then(Result::ok)
    }
}

/// Where both are given, the other one is the peer's (include/uapi/linux/if_addr.h).
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    find(|a| if let AddressAttribute::Local(address) = a { Some(*address) } else { None })
        .or_else(|| find(|a| if let AddressAttribute::Address(address) = a { Some(*address) } else { None }))
}

/// Whether nothing waits in a socket.
fn is_empty(socket: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut asked, PollTimeout::ZERO).is_ok_and(|ready| ready == 0)
}

/// A larger buffer makes overruns rarer; without the capability for it the default has to do. Gives another descriptor of the socket.
fn enlarge(connection: &mut rtnetlink::proto::Connection<RouteNetlinkMessage>) -> io::Result<OwnedFd> {
    let fd = connection.socket_mut().as_raw_fd();
    // SAFETY: the descriptor belongs to `connection`, which outlives this call.
    #[expect(unsafe_code, reason = "rtnetlink lends its socket as a raw descriptor only")]
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
    }
    fd.try_clone_to_owned()
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkEvent> {
    match payload {
        NetlinkPayload::Overrun(_) => Some(LinkEvent::Overrun),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message)) => {
            parse(&message).map(LinkEvent::Changed)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message)) if describes_link(&message) => {
            Some(LinkEvent::Gone(IfIndex(message.header.index)))
        }
        _ => None,
    }
}

/// The group also carries messages about bridge ports (AF_BRIDGE): there a deletion means that a link left its
/// bridge, not that it is gone (net/bridge/br_netlink.c).
fn describes_link(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

fn parse(message: &LinkMessage) -> Option<Link> {
    if !describes_link(message) {
        return None;
    }
    let mut name = None;
    let mut oper_state = OperState::Unknown;
    let mut kind = None;
    let mut master = None;
    let mut lower = None;
    let mut elsewhere = false;
    let mut address = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = IfName::new(value),
            LinkAttribute::OperState(State::Unknown) => oper_state = OperState::Unknown,
            LinkAttribute::OperState(State::Up) => oper_state = OperState::Up,
            LinkAttribute::OperState(_) => oper_state = OperState::Down,
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Link(index) if *index != 0 => lower = Some(IfIndex(*index)),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Address(bytes) => address = bytes.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => master = Some(IfIndex(*index)),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Link {
        index: IfIndex(message.header.index),
        name: name?,
        admin_up: message.header.flags.contains(LinkFlags::Up),
        oper_state,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        kind,
        master,
        lower: lower.filter(|_| !elsewhere),
        address,
        mtu,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    fn message(family: AddressFamily) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.interface_family = family;
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![
            LinkAttribute::IfName("vethabc".to_owned()),
            LinkAttribute::OperState(State::Up),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Controller(3),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        message
    }

    #[test]
    fn a_link_is_read_whole() {
        let link = parse(&message(AddressFamily::Unspec)).unwrap();
        assert_eq!(link.name.as_str(), "vethabc");
        assert_eq!((link.index, link.master, link.mtu), (IfIndex(7), Some(IfIndex(3)), 1500));
        assert_eq!((link.admin_up, link.oper_state, link.ethernet), (true, OperState::Up, true));
        assert_eq!(link.kind.as_deref(), Some("veth"));
    }

    #[test]
    fn leaving_a_bridge_is_not_going_away() {
        let gone =
            |family| event(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message(family))));
        assert_eq!(gone(AddressFamily::Unspec), Some(LinkEvent::Gone(IfIndex(7))));
        assert_eq!(gone(AddressFamily::Bridge), None);
    }

    #[test]
    fn other_states_than_up_and_unknown_are_down() {
        for state in [State::NotPresent, State::Down, State::LowerLayerDown, State::Testing, State::Dormant] {
            let mut message = message(AddressFamily::Unspec);
            message.attributes.push(LinkAttribute::OperState(state));
            assert_eq!(parse(&message).unwrap().oper_state, OperState::Down, "{state:?}");
        }
    }
}
