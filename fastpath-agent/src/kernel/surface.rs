//! What is at an interface that a forwarded packet would pass by: queue discipline, filters and programs, and the other end of a
//! veth. Reads only.

use std::{collections::BTreeMap, io, path::Path};

use mnl::Bus;

use super::{
    bpf,
    ethtool::Ethtool,
    netlink::{Message, Request, Socket, attribute::find, u32_at},
};
use crate::core::{
    model::{IfIndex, Link},
    peer::{OtherEnd, Peer, Surface},
};

// include/uapi/linux/rtnetlink.h and if_link.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// Length of struct ifinfomsg, and where it has the index.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_QDISC: u16 = 6;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_TARGET_NETNSID: u16 = 46;
const IFLA_XDP_ATTACHED: u16 = 2;
/// `XDP_ATTACHED_NONE` and `XDP_ATTACHED_SKB`: the latter runs for forwarded packets too.
const HARMLESS: [u8; 2] = [0, 2];

/// Reads interfaces; `pin_path` tells the agent's own programs. One that has gone is left out.
pub fn read<'l>(links: impl Iterator<Item = &'l Link>, pin_path: &Path) -> BTreeMap<IfIndex, Surface> {
    let ethtool = Ethtool::open().ok();
    let mut found = BTreeMap::new();
    for link in links {
        // Taken from the link before all else: what comes later is announced.
        let Ok(Some(basics)) = basics(link.index) else { continue };
        let surface = Surface {
            qdisc: basics.qdisc,
            inspected: bpf::is_inspected(link.index, pin_path).ok(),
            inspected_at_egress: bpf::is_inspected_at_egress(link.index).ok(),
            checksums: ethtool.as_ref().and_then(|ethtool| ethtool.sums_up(&link.name).ok()),
            other_end: match basics.other_end {
                Some((namespace, index)) => peer(namespace, index).map_or(OtherEnd::Unread, OtherEnd::There),
                None => OtherEnd::Here,
            },
        };
        found.insert(link.index, surface);
    }
    found
}

/// What a link's own message tells.
struct Basics {
    qdisc: Option<String>,
    /// Number of the other end's namespace, and its index there.
    other_end: Option<(u32, u32)>,
}

fn basics(index: IfIndex) -> io::Result<Option<Basics>> {
    let mut found = None;
    ask(Request::new(RTM_GETLINK, libc::NLM_F_ACK, &header(index.0)), |attributes| {
        let number = |kind| find(attributes, kind).and_then(|nla| u32_at(nla.value(), 0));
        found = Some(Basics {
            qdisc: find(attributes, IFLA_QDISC).map(|nla| nla.string()),
            other_end: number(IFLA_LINK_NETNSID).zip(number(IFLA_LINK)),
        });
    })?;
    Ok(found)
}

/// An interface of another namespace.
fn peer(namespace: u32, index: u32) -> io::Result<Peer> {
    let mut found = None;
    let request = Request::new(RTM_GETLINK, libc::NLM_F_ACK, &header(index))
        .attribute(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes());
    ask(request, |attributes| found = described(attributes))?;
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The interface whose other end a message may be about, and what is said of that; nothing of one that goes.
pub(super) fn other_end(message: &Message<'_>) -> Option<(IfIndex, Option<Peer>)> {
    let attributes = message.payload().get(LINK_HEADER..)?;
    let of = find(attributes, IFLA_LINK).and_then(|nla| u32_at(nla.value(), 0))?;
    match message.kind() {
        RTM_NEWLINK => Some((IfIndex(of), described(attributes))),
        RTM_DELLINK => Some((IfIndex(of), None)),
        _ => None,
    }
}

fn described(attributes: &[u8]) -> Option<Peer> {
    let [how] = find(find(attributes, IFLA_XDP)?.value(), IFLA_XDP_ATTACHED)?.fixed()?;
    Some(Peer {
        xdp: !HARMLESS.contains(&how),
        mtu: find(attributes, IFLA_MTU).and_then(|nla| u32_at(nla.value(), 0))?,
        address: find(attributes, IFLA_ADDRESS)?.fixed()?,
    })
}

fn header(index: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[LINK_INDEX..LINK_INDEX + size_of::<u32>()].copy_from_slice(&index.to_ne_bytes());
    header
}

fn ask(request: Request, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    Socket::open_on(Bus::Route)?.request(request, |message: &Message<'_>| {
        if message.kind() == RTM_NEWLINK {
            each(message.payload().get(LINK_HEADER..).unwrap_or_default());
        }
    })?;
    Ok(())
}
