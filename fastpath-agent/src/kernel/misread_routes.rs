//! Finds routes that a program's look-up (`bpf_fib_lookup`) answers for otherwise than the kernel routes a packet: IPv4 routes with an
//! MTU of their own, of which it knows locked ones only (`ip_mtu_from_fib_result`, net/ipv4/route.c), and routes with several next
//! hops, since a packet's hash may choose. Reads only.

use std::{collections::BTreeSet, io};

use mnl::Bus;

use super::{
    netlink::{Families, Message, Socket, attribute::find, filter::statement, u32_at},
    rtnetlink::list,
};
use crate::core::model::IfIndex;

// include/uapi/linux/rtnetlink.h
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
/// Length of struct rtmsg, and where it has the flags.
const ROUTE_HEADER: usize = 12;
const ROUTE_FLAGS: usize = 8;
/// Flag of what was learnt for a single destination.
const RTM_F_CLONED: u32 = 0x200;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTAX_LOCK: u16 = 1;
const RTAX_MTU: u16 = 2;
/// Length of struct rtnexthop, and where it has the interface.
const HOP_HEADER: usize = 8;
const HOP_INDEX: usize = 4;

/// An announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announced {
    /// Such a route leads to these interfaces.
    Came(Vec<IfIndex>),
    /// One that led to these is no more.
    Went(Vec<IfIndex>),
}

/// The interfaces that such routes lead to.
pub fn read() -> io::Result<BTreeSet<IfIndex>> {
    let mut socket = Socket::open_on(Bus::Route)?;
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let families = Families::One(family as u8);
        // Where it keeps changing, what has come meanwhile is announced.
        found.extend(list(&mut socket, RTM_GETROUTE, families, [0; ROUTE_HEADER], outputs)?.passing());
    }
    Ok(found)
}

/// What an announcement says; nothing of another kind of route.
pub(super) fn announced(message: &Message<'_>) -> Option<Announced> {
    let to = outputs(message);
    match message.kind() {
        _ if to.is_empty() => None,
        RTM_NEWROUTE => Some(Announced::Came(to)),
        RTM_DELROUTE => Some(Announced::Went(to)),
        _ => None,
    }
}

/// Where the route of a message leads, if it is such a one.
fn outputs(message: &Message<'_>) -> Vec<IfIndex> {
    let payload = message.payload();
    let Some(all) = payload.get(ROUTE_HEADER..) else { return Vec::new() };
    if u32_at(payload, ROUTE_FLAGS).is_none_or(|flags| flags & RTM_F_CLONED != 0) {
        return Vec::new();
    }
    let is_ipv4 = payload.first().is_some_and(|family| i32::from(*family) == libc::AF_INET);
    let hops = find(all, RTA_MULTIPATH).map(|nla| hops(nla.value())).unwrap_or_default();
    let has_mtu = is_ipv4 && find(all, RTA_METRICS).is_some_and(|nla| has_open_mtu(nla.value()));
    if hops.len() < 2 && !has_mtu {
        return Vec::new();
    }
    let single = find(all, RTA_OIF).and_then(|nla| u32_at(nla.value(), 0)).map(IfIndex);
    hops.into_iter().chain(single).collect()
}

/// The interfaces of `RTA_MULTIPATH`: structs rtnexthop with attributes, padded to four bytes.
fn hops(mut rest: &[u8]) -> Vec<IfIndex> {
    let mut found = Vec::new();
    while let (Some(length), Some(index)) = (rest.first_chunk(), u32_at(rest, HOP_INDEX)) {
        found.push(IfIndex(index));
        let length = usize::from(u16::from_ne_bytes(*length)).max(HOP_HEADER);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Whether metrics have an MTU that isn't locked.
fn has_open_mtu(metrics: &[u8]) -> bool {
    let metric = |kind| find(metrics, kind).and_then(|nla| u32_at(nla.value(), 0)).unwrap_or(0);
    metric(RTAX_MTU) != 0 && metric(RTAX_LOCK) & 1 << RTAX_MTU == 0
}

/// Classic BPF: only routes with metrics or several next hops get in. A router may have hundreds of thousands of others.
pub(super) fn such_routes_only() -> [libc::sock_filter; 10] {
    /// Behind struct nlmsghdr and struct rtmsg.
    const ATTRIBUTES: u32 = 16 + ROUTE_HEADER as u32;
    // The attribute of the kind in X, from A on; 0 if there is none.
    let find = (libc::SKF_AD_OFF + libc::SKF_AD_NLATTR).cast_unsigned();
    let kind = |kind: u16| statement(libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM, u32::from(kind));
    let load = |how, k| statement(libc::BPF_LD | libc::BPF_W | how, k);
    let is_none =
        |jt, jf| libc::sock_filter { jt, jf, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0) };
    [
        load(libc::BPF_IMM, ATTRIBUTES),
        kind(RTA_METRICS),
        load(libc::BPF_ABS, find),
        is_none(0, 4),
        load(libc::BPF_IMM, ATTRIBUTES),
        kind(RTA_MULTIPATH),
        load(libc::BPF_ABS, find),
        is_none(1, 0),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{Request, messages};

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn said(kind: u16, family: i32, flags: u32, parts: &[(u16, Vec<u8>)]) -> Option<Announced> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family as u8;
        header[ROUTE_FLAGS..].copy_from_slice(&flags.to_ne_bytes());
        let request = Request::new(kind, 0, &header);
        let request = parts.iter().fold(request, |request, (kind, value)| request.attribute(*kind, value));
        announced(&messages(request.bytes()).next()?.ok()?)
    }

    #[test]
    fn routes_that_are_misread() {
        let (v4, v6) = (libc::AF_INET, libc::AF_INET6);
        let mtu = |locked: u32| {
            let lock = nla(RTAX_LOCK, &locked.to_ne_bytes());
            (RTA_METRICS, [nla(RTAX_MTU, &600_u32.to_ne_bytes()), lock].concat())
        };
        let out = (RTA_OIF, 7_u32.to_ne_bytes().to_vec());
        let hop = |index: u32| [&[12, 0, 0, 0][..], &index.to_ne_bytes(), &[0; 4]].concat();
        let hops =
            |hops: &[u32]| (RTA_MULTIPATH, hops.iter().flat_map(|index| hop(*index)).collect::<Vec<_>>());
        let came = |to: &[u32]| Some(Announced::Came(to.iter().map(|index| IfIndex(*index)).collect()));
        let of = |family, parts: &[_]| said(RTM_NEWROUTE, family, 0, parts);
        assert_eq!(of(v4, &[mtu(0), out.clone()]), came(&[7]));
        assert_eq!(of(v4, &[mtu(1 << RTAX_MTU), out.clone()]), None, "locked");
        assert_eq!(of(v6, &[mtu(0), out.clone()]), None, "the look-up knows it");
        assert_eq!(of(v4, std::slice::from_ref(&out)), None);
        assert_eq!(said(RTM_NEWROUTE, v4, RTM_F_CLONED, &[mtu(0), out.clone()]), None, "learnt");
        assert_eq!(of(v6, &[hops(&[3, 4])]), came(&[3, 4]));
        assert_eq!(of(v4, &[hops(&[3])]), None);
        let went = Announced::Went(vec![IfIndex(7)]);
        assert_eq!(said(RTM_DELROUTE, v4, 0, &[mtu(0), out]), Some(went));
        assert_eq!(of(v4, &[(RTA_MULTIPATH, vec![0; 9])]), None, "cut off");
    }
}
