//! Reads policy rules (`ip rule`) of both families, those that select by what the flowtable's guess of a route doesn't have.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use mnl::Bus;

use super::{
    netlink::{Attribute, Socket, attributes},
    rtnetlink::list_ip,
};
use crate::core::{
    model::IfName,
    route_rule::{PortRange, RouteRule, RouteRules},
};

const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
/// Length of struct fib_rule_hdr (include/uapi/linux/fib_rules.h); of it come first the family, both prefixes' lengths
/// and the type of service.
const RULE_HEADER: usize = 12;
const FIB_RULE_INVERT: u32 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_FWMARK: u16 = 10;
const FRA_TUN_ID: u16 = 12;
/// Also where the mark is 0.
const FRA_FWMASK: u16 = 16;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
/// The last attribute before those that only later kernels have: DSCP, flow label, masks of ports (Linux 6.13).
const LAST_KNOWN: u16 = FRA_DPORT_RANGE;
/// Masks of source and destination ports, and of DSCP (which is a selector of its own).
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;

/// Reads them.
pub fn read() -> io::Result<RouteRules> {
    let (mut by_mark, mut by_packet) = (false, false);
    let mut socket = Socket::open_on(Bus::Route)?;
    let mut rules = list_ip(&mut socket, RTM_GETRULE, [0; RULE_HEADER], |message| {
        by_mark |= selects_by_mark(message.payload());
        by_packet |= selects_by_packet(message.payload());
        parse(message.kind(), message.payload())
    })?;
    rules.sort();
    rules.dedup();
    Ok(RouteRules { unguessed: rules, by_mark, by_packet })
}

fn selects_by_mark(payload: &[u8]) -> bool {
    attributes(payload.get(RULE_HEADER..).unwrap_or_default())
        .any(|nla| matches!(nla.kind(), FRA_FWMARK | FRA_FWMASK))
}

fn selects_by_packet(payload: &[u8]) -> bool {
    // struct fib_rule_hdr
    const TOS: usize = 3;
    let masks = [FRA_SPORT_MASK, FRA_DPORT_MASK];
    let is_later = |kind| kind == FRA_TUN_ID || kind > LAST_KNOWN && !masks.contains(&kind);
    payload.get(TOS).is_some_and(|tos| *tos != 0)
        || attributes(payload.get(RULE_HEADER..).unwrap_or_default()).any(|nla| is_later(nla.kind()))
}

fn parse(kind: u16, payload: &[u8]) -> Option<RouteRule> {
    if kind != RTM_NEWRULE {
        return None;
    }
    let [family, dst_len, src_len, tos, _, _, _, _, flags @ ..] = *payload.first_chunk::<RULE_HEADER>()?;
    let inverted = u32::from_ne_bytes(flags) & FIB_RULE_INVERT != 0;
    let mut rule = RouteRule { ipv6: i32::from(family) == libc::AF_INET6, ..RouteRule::default() };
    let mut unguessed = tos != 0;
    let mut masked = [false; 2];
    for nla in attributes(payload.get(RULE_HEADER..)?) {
        match nla.kind() {
            FRA_DST => rule.to = prefix(&nla, dst_len),
            FRA_SRC => rule.from = prefix(&nla, src_len),
            FRA_IIFNAME => {
                let name = text(&nla);
                // What this node sends itself.
                if name != "lo" {
                    rule.input = IfName::new(name);
                    unguessed = true;
                }
            }
            FRA_IP_PROTO => {
                rule.protocol = nla.value().first().copied();
                unguessed = true;
            }
            FRA_SPORT_RANGE => {
                rule.source_ports = ports(&nla);
                unguessed = true;
            }
            FRA_DPORT_RANGE => {
                rule.destination_ports = ports(&nla);
                unguessed = true;
            }
            FRA_TUN_ID => unguessed = true,
            kind @ (FRA_SPORT_MASK | FRA_DPORT_MASK) => {
                // All bits is what goes with a plain number.
                masked[usize::from(kind - FRA_SPORT_MASK)] = nla.value() != [0xff; 2];
            }
            kind => unguessed |= kind > LAST_KNOWN,
        }
    }
    if masked[0] {
        rule.source_ports = None;
    }
    if masked[1] {
        rule.destination_ports = None;
    }
    if inverted {
        rule = RouteRule { ipv6: rule.ipv6, ..RouteRule::default() };
    }
    unguessed.then_some(rule)
}

/// Reads any message.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(message: &super::netlink::Message<'_>) {
    let _ = (selects_by_mark(message.payload()), selects_by_packet(message.payload()));
    drop(parse(message.kind(), message.payload()));
}

fn prefix(nla: &Attribute<'_>, length: u8) -> Option<IpNet> {
    let address = match *nla.value() {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        ref bytes => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    IpNet::new(address, length).ok()
}

/// struct fib_rule_port_range, host byte order.
fn ports(nla: &Attribute<'_>) -> Option<PortRange> {
    let [a, b, c, d] = *nla.value() else { return None };
    Some(PortRange { first: u16::from_ne_bytes([a, b]), last: u16::from_ne_bytes([c, d]) })
}

fn text<'a>(nla: &Attribute<'a>) -> &'a str {
    str::from_utf8(nla.value().split(|byte| *byte == 0).next().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(header: [u8; RULE_HEADER], attributes: &[(u16, &[u8])]) -> Option<RouteRule> {
        parse(RTM_NEWRULE, &message(header, attributes))
    }

    fn message(header: [u8; RULE_HEADER], attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut payload = header.to_vec();
        for (kind, value) in attributes {
            payload.extend((4 + value.len() as u16).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(*value);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        payload
    }

    fn header(tos: u8, flags: u32) -> [u8; RULE_HEADER] {
        let mut header = [libc::AF_INET as u8, 24, 32, tos, 102, 0, 0, 1, 0, 0, 0, 0];
        header[8..].copy_from_slice(&flags.to_ne_bytes());
        header
    }

    fn range(first: u16, last: u16) -> [u8; 4] {
        let [a, b] = first.to_ne_bytes();
        let [c, d] = last.to_ne_bytes();
        [a, b, c, d]
    }

    #[test]
    fn what_the_guess_evaluates_does_not_count() {
        const FRA_L3MDEV: u16 = 19;
        const FRA_UID_RANGE: u16 = 20;
        let to_from: [(u16, &[u8]); 2] = [(FRA_DST, &[10, 2, 0, 0]), (FRA_SRC, &[10, 1, 0, 2])];
        assert_eq!(rule(header(0, 0), &to_from), None);
        assert_eq!(rule(header(0, 0), &[(FRA_FWMARK, &[1, 0, 0, 0]), (FRA_L3MDEV, &[1])]), None);
        assert_eq!(rule(header(0, 0), &[(FRA_UID_RANGE, &[0; 8]), (FRA_IIFNAME, b"lo\0")]), None);
        assert_eq!(rule(header(0, FIB_RULE_INVERT), &to_from), None);
    }

    #[test]
    fn what_it_does_not_evaluate_is_told_with_the_rest() {
        let all = rule(
            header(0, 0),
            &[
                (FRA_DST, &[10, 2, 0, 0]),
                (FRA_SRC, &[10, 1, 0, 2]),
                (FRA_IIFNAME, b"lan0\0"),
                (FRA_IP_PROTO, &[17]),
                (FRA_SPORT_RANGE, &range(5, 5)),
                (FRA_DPORT_RANGE, &range(80, 443)),
            ],
        );
        assert_eq!(
            all,
            Some(RouteRule {
                input: IfName::new("lan0"),
                from: Some("10.1.0.2/32".parse().unwrap()),
                to: Some("10.2.0.0/24".parse().unwrap()),
                protocol: Some(17),
                source_ports: Some((5..=5).into()),
                destination_ports: Some((80..=443).into()),
                ipv6: false,
            })
        );
        let any = Some(RouteRule::default());
        assert_eq!(rule(header(0x10, 0), &[]), any, "DSCP");
        assert_eq!(rule(header(0, 0), &[(FRA_TUN_ID, &[0; 8])]), any);
        assert_eq!(rule(header(0, 0), &[(99, &[0; 4])]), any, "what we don't know");
        let by_packet = |tos, attribute| selects_by_packet(&message(header(tos, 0), &[attribute]));
        assert!(by_packet(0x10, (FRA_DST, &[10, 2, 0, 0])) && by_packet(0, (FRA_TUN_ID, &[0; 8])));
        assert!(by_packet(0, (99, &[0; 4])));
        assert!(!by_packet(0, (FRA_DPORT_MASK, &[0xff; 2])) && !by_packet(0, (FRA_IIFNAME, b"lan0\0")));
        // Other ports than these have the same bits.
        let masked = [(FRA_SPORT_RANGE, &range(5, 5)[..]), (FRA_SPORT_MASK, &[0xf, 0])];
        assert_eq!(rule(header(0, 0), &masked), any);
        let inverted = rule(header(0, FIB_RULE_INVERT), &[(FRA_IIFNAME, b"lan0\0")]);
        assert_eq!(inverted, any, "all packets but those");
    }
}
