//! IPsec policies of this network namespace, as far as they apply to a flow (NETLINK_XFRM). Reads only.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use mnl::Bus;

use super::netlink::{Dump, Message, Socket, attributes, has_none, settle, u32_at};
use crate::core::flow::connection::Tuple;

// include/uapi/linux/xfrm.h
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
/// struct xfrm_userpolicy_info: selector 56, limits 64, use 32, priority, index, direction, action, flags, share; padded.
const POLICY_BYTES: usize = 168;
/// struct xfrm_userpolicy_id, what a dump is asked with.
const POLICY_ID_BYTES: usize = 64;
const DIRECTION: usize = 160;
const ACTION: usize = 161;
const XFRM_POLICY_ALLOW: u8 = 0;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;
/// How often they are read again after a change in the midst of it.
const ATTEMPTS: u32 = 4;

/// Which packets a policy is for (struct xfrm_selector).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    source: IpNet,
    destination: IpNet,
    /// Number and mask.
    source_port: (u16, u16),
    destination_port: (u16, u16),
    /// 0 for any.
    protocol: u8,
}

/// Policies that demand IPsec for (or forbid) packets with one of these tuples, in words. `tuples` are those before and
/// after NAT. Policies of xfrm interfaces are left out: what goes through such an interface may be accelerated.
pub fn policies(tuples: &[Tuple]) -> io::Result<Vec<String>> {
    read(&|selector| tuples.iter().any(|tuple| selector.matches(tuple)))
}

/// All of them, for whatever packets they are.
pub fn all_policies() -> io::Result<Vec<String>> {
    read(&|_| true)
}

fn read(wanted: &dyn Fn(&Selector) -> bool) -> io::Result<Vec<String>> {
    let mut socket = match Socket::open_on(Bus::Xfrm) {
        // A kernel without IPsec.
        Err(error) if has_none(&error) => return Ok(Vec::new()),
        socket => socket?,
    };
    // The selector names the family, and the kernel lists all (xfrm_dump_policy).
    let found = settle(ATTEMPTS, || {
        let dump = Dump::without_family(XFRM_MSG_GETPOLICY, &[0; POLICY_ID_BYTES]);
        socket.dump(dump, Vec::new(), |found, message| found.extend(policy(message, wanted)))
    });
    Ok(found?.passing())
}

pub(super) fn policy(message: &Message<'_>, wanted: &dyn Fn(&Selector) -> bool) -> Option<String> {
    let payload = message.payload();
    if message.kind() != XFRM_MSG_NEWPOLICY || payload.len() < POLICY_BYTES {
        return None;
    }
    let selector = Selector::parse(payload)?;
    // Those of sockets (3 and up) concern what this node sends itself.
    let direction = match payload[DIRECTION] {
        0 => return None,
        1 => "out",
        2 => "fwd",
        _ => return None,
    };
    let mut demands = payload[ACTION] != XFRM_POLICY_ALLOW;
    for nla in attributes(&payload[POLICY_BYTES..]) {
        match nla.kind() {
            XFRMA_TMPL => demands |= !nla.value().is_empty(),
            XFRMA_IF_ID if u32_at(nla.value(), 0) != Some(0) => return None,
            _ => {}
        }
    }
    (demands && wanted(&selector))
        .then(|| format!("{direction} {} > {}", selector.source, selector.destination))
}

impl Selector {
    /// `None` for a family that isn't IP's. A selector without addresses has prefixes of length 0 and perhaps no family.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let family = i32::from(u16::from_ne_bytes([bytes[40], bytes[41]]));
        let net = |at: usize, prefix: u8| {
            let address = match family {
                libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*bytes[at..].first_chunk::<4>()?)),
                libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*bytes[at..].first_chunk::<16>()?)),
                _ => return None,
            };
            IpNet::new(address, prefix).ok()
        };
        Some(Self {
            destination: net(0, bytes[42])?,
            source: net(16, bytes[43])?,
            destination_port: (port(32), port(34)),
            source_port: (port(36), port(38)),
            protocol: bytes[44],
        })
    }

    /// As `xfrm_selector_match` (include/net/xfrm.h) does it.
    fn matches(&self, tuple: &Tuple) -> bool {
        let port = |(port, mask): (u16, u16), of: u16| (port ^ of) & mask == 0;
        self.source.contains(&tuple.source)
            && self.destination.contains(&tuple.destination)
            && port(self.source_port, tuple.source_port)
            && port(self.destination_port, tuple.destination_port)
            && (self.protocol == 0 || self.protocol == tuple.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::netlink::Request, *};

    fn message(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut payload = vec![0; POLICY_BYTES];
        payload[0..4].copy_from_slice(&[10, 2, 0, 0]);
        payload[16..20].copy_from_slice(&[10, 1, 0, 0]);
        payload[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        (payload[42], payload[43]) = (24, 16);
        payload[DIRECTION] = 1;
        change(&mut payload);
        // One template of 64 bytes.
        payload.extend([68, 0, XFRMA_TMPL as u8, 0]);
        payload.extend([0; 64]);
        payload
    }

    fn tuple(source: &str, destination: &str) -> Tuple {
        Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 6,
            source_port: 40000,
            destination_port: 443,
        }
    }

    fn found(change: impl FnOnce(&mut [u8]), tuple: Tuple) -> Option<String> {
        let request = Request::new(XFRM_MSG_NEWPOLICY, 0, &message(change));
        policy(&Message::new(request.bytes()), &|selector| selector.matches(&tuple))
    }

    #[test]
    fn a_policy_applies_to_what_it_selects() {
        let inside = tuple("10.1.7.2", "10.2.0.2");
        assert_eq!(found(|_| {}, inside).as_deref(), Some("out 10.1.0.0/16 > 10.2.0.0/24"));
        assert_eq!(found(|_| {}, tuple("10.3.0.2", "10.2.0.2")), None);
        assert_eq!(found(|_| {}, tuple("10.1.7.2", "10.2.1.2")), None);
        assert_eq!(found(|_| {}, tuple("fd00::1", "fd00::2")), None);
        assert!(found(|p| p[44] = 6, inside).is_some());
        assert_eq!(found(|p| p[44] = 17, inside), None);
        let https = |p: &mut [u8]| p[32..36].copy_from_slice(&[0x01, 0xbb, 0xff, 0xff]);
        assert!(found(https, inside).is_some());
        assert_eq!(found(https, Tuple { destination_port: 80, ..inside }), None);
    }

    #[test]
    fn policies_of_sockets_and_of_what_comes_in_here_do_not_count() {
        for direction in [0, 3, 4] {
            assert_eq!(found(|p| p[DIRECTION] = direction, tuple("10.1.7.2", "10.2.0.2")), None);
        }
    }
}
