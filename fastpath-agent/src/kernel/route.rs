//! Asks the kernel which way a packet would take (rtnetlink, RTM_GETROUTE). Changes nothing.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::{
    Error, Handle,
    packet_route::{
        AddressFamily,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
    },
};

use super::links::LinkError;
use crate::core::{
    flow::connection::{TCP, Tuple, UDP},
    link::table::LinkTable,
    model::IfIndex,
    why::Route,
};

/// Routing of the network namespace in which it was opened.
pub struct Routes(Handle);

impl Routes {
    /// Opens a socket. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// The interface by which this node would send to `address` itself.
    pub async fn towards(&self, address: IpAddr) -> Option<IfIndex> {
        let reply = self.get(request(address)).await.ok()??;
        reply.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(IfIndex(*index)),
            _ => None,
        })
    }

    /// Next hops among `addresses` that don't answer, and the interface that each is looked for on (`NUD_INCOMPLETE`,
    /// `NUD_FAILED`).
    pub async fn dead_neighbours(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, IfIndex)> {
        let messages: Vec<NeighbourMessage> =
            self.0.neighbours().get().execute().try_collect().await.unwrap_or_default();
        messages.iter().filter_map(dead).filter(|(address, _)| addresses.contains(address)).collect()
    }

    /// Which way a packet takes that comes in on `input`. `tuple` is the packet's as it is routed (`Entry::forwarded`).
    pub async fn of(&self, tuple: &Tuple, input: IfIndex, links: &LinkTable) -> Route {
        let mut message = request(tuple.destination);
        message.header.source_prefix_length = prefix(tuple.source);
        message
            .attributes
            .extend([RouteAttribute::Source(tuple.source.into()), RouteAttribute::Iif(input.0)]);
        if matches!(tuple.protocol, TCP | UDP) {
            message.attributes.extend([
                RouteAttribute::IpProto(tuple.protocol),
                RouteAttribute::Sport(tuple.source_port),
                RouteAttribute::Dport(tuple.destination_port),
            ]);
        }
        match self.get(message).await {
            Ok(Some(reply)) => route(&reply, links),
            Ok(None) => Route::NotAsked,
            Err(Error::NetlinkError(error)) => Route::Nowhere(-error.raw_code()),
            Err(_) => Route::NotAsked,
        }
    }

    async fn get(&self, message: RouteMessage) -> Result<Option<RouteMessage>, Error> {
        self.0.route().get(message).execute().try_next().await
    }
}

/// Reads any reply.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(payload: &[u8]) {
    use rtnetlink::packet_core::Parseable;

    if let Ok(reply) = RouteMessage::parse(payload) {
        let _ = route(&reply, &LinkTable::default());
    }
    let _ = NeighbourMessage::parse(payload).as_ref().map(dead);
}

/// The next hop that doesn't answer, and the interface that it is looked for on.
fn dead(message: &NeighbourMessage) -> Option<(IpAddr, IfIndex)> {
    if !matches!(message.header.state, NeighbourState::Incomplete | NeighbourState::Failed) {
        return None;
    }
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    Some((address, IfIndex(message.header.ifindex)))
}

fn request(destination: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family =
        if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = prefix(destination);
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    message
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn route(reply: &RouteMessage, links: &LinkTable) -> Route {
    match reply.header.kind {
        // What is for all is for this node too.
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => {
            return Route::Local;
        }
        RouteType::BlackHole => return Route::Nowhere(libc::EINVAL),
        RouteType::Unreachable => return Route::Nowhere(libc::EHOSTUNREACH),
        RouteType::Prohibit => return Route::Nowhere(libc::EACCES),
        _ => {}
    }
    let (mut output, mut gateway, mut mtu) = (None, None, None);
    for attribute in &reply.attributes {
        match attribute {
            RouteAttribute::Oif(index) => output = Some(IfIndex(*index)),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Gateway(RouteAddress::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let Some(output) = output else { return Route::NotAsked };
    let of_link = links.get(output).map_or(u32::MAX, |link| link.mtu);
    Route::Forward { output, gateway, mtu: mtu.unwrap_or(of_link).min(of_link) }
}
