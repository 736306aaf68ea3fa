//! Which conditions ask for what differs between packets of one flow, as nft and iptables-nft write them.

use super::*;
use crate::core::policy::{expr::Verdict, outcome::Established, rule::Rule};

const DROP: Expr<'_> = Expr::Verdict(Verdict::Drop);

fn rule(family: u8, exprs: &[Expr<'_>]) -> Rule {
    Rule::new(family, 1, exprs.iter().copied().chain([DROP]))
}

/// By what it varies, and when it is beside the flowtable: always, before routing, with FIN and RST.
fn said(family: u8, exprs: &[Expr<'_>]) -> (String, [bool; 3]) {
    let rule = rule(family, exprs);
    let header = rule.traits.and_then(|traits| traits.header).map(|cause| cause.to_string());
    let Beside { always, prerouting, ends } = rule.beside;
    (header.unwrap_or_default(), [always, prerouting, ends])
}

fn load(base: u32, offset: u32, length: u32) -> Expr<'static> {
    Expr::Payload { base, offset, length, register: 1 }
}

fn mask(mask: &'static [u8]) -> Expr<'static> {
    const NOTHING: [u8; 8] = [0; 8];
    Expr::MaskBytes { register: 1, mask, toggled: &NOTHING[..mask.len()] }
}

fn cmp(op: u32, data: &'static [u8]) -> Expr<'static> {
    Expr::CompareBytes { register: 1, op, data }
}

const EQ: u32 = 0;
const NE: u32 = 1;
const SAME: [bool; 3] = [false; 3];
const ALWAYS: [bool; 3] = [true, false, false];
const PREROUTING: [bool; 3] = [false, true, false];
const ENDS: [bool; 3] = [false, false, true];

#[test]
fn headers() {
    let meta = |key| Expr::Meta { key, register: 1 };
    let option = |kind| Expr::Option { kind, register: 1 };
    for (family, load, compare, by) in [
        (IPV4, load(NETWORK, 12, 4), cmp(EQ, &[10, 0, 0, 1]), ""),
        (IPV4, load(NETWORK, 9, 1), cmp(EQ, &[6]), ""),
        (IPV4, load(NETWORK, 8, 1), cmp(EQ, &[64]), "header ip ttl"),
        (IPV4, load(NETWORK, 1, 1), cmp(EQ, &[8]), "header ip dscp"),
        (IPV4, load(NETWORK, 2, 2), cmp(4, &[4, 0]), "header ip length"),
        (IPV4, load(NETWORK, 4, 2), cmp(EQ, &[4, 0]), "header ip id"),
        (IPV6, load(NETWORK, 8, 16), cmp(EQ, &[1; 16]), ""),
        (IPV6, load(NETWORK, 7, 1), cmp(EQ, &[64]), "header ip6 hoplimit"),
        (IPV6, load(NETWORK, 6, 1), cmp(EQ, &[6]), ""),
        (IPV6, load(NETWORK, 4, 2), cmp(4, &[4, 0]), "header ip6 length"),
        (IPV6, load(NETWORK, 0, 4), cmp(EQ, &[0x60, 0, 0, 1]), "header ip6 dscp"),
        (1, load(NETWORK, 12, 4), cmp(EQ, &[10, 0, 0, 1]), ""),
        (1, load(NETWORK, 8, 1), cmp(EQ, &[64]), "header network header"),
        (1, load(TRANSPORT, 0, 2), cmp(EQ, &[0, 53]), ""),
        (1, load(TRANSPORT, 0, 4), cmp(EQ, &[0, 53, 0, 53]), ""),
        (1, load(TRANSPORT, 4, 2), cmp(4, &[4, 0]), "header transport header"),
        (1, load(TRANSPORT, 14, 2), cmp(EQ, &[0, 0]), "header transport header"),
        (1, load(3, 0, 4), cmp(EQ, &[0; 4]), "header payload"),
        (1, load(LINK, 6, 6), cmp(EQ, &[2; 6]), ""),
        (1, meta(0), cmp(4, &[0, 0, 4, 0]), "header meta length"),
        (1, meta(2), cmp(EQ, &[0, 0, 4, 0]), "header meta priority"),
        (1, meta(19), cmp(EQ, &[0]), ""),
        (1, option(1), cmp(EQ, &[1]), "header tcp option"),
        (1, option(0), cmp(EQ, &[1]), ""),
        (1, option(2), cmp(EQ, &[1]), ""),
    ] {
        assert_eq!(said(family, &[load, compare]), (by.to_owned(), SAME), "{family} {load:?}");
        let lookup = Expr::Lookup { set: "__set0", register: 1, inverted: false };
        assert_eq!(said(family, &[load, lookup]).0, by, "in a set: {family} {load:?}");
        let vmap = Expr::VerdictMap { map: "__map0", register: 1 };
        assert_eq!(said(family, &[load, vmap]).0, by, "in a map: {family} {load:?}");
        let converted = Expr::Other { name: "byteorder" };
        assert_eq!(said(family, &[load, converted, compare]).0, by, "{family} {load:?}");
    }
    let version = [load(NETWORK, 0, 1), mask(&[0xf0]), cmp(EQ, &[0x60])];
    assert_eq!(said(IPV6, &version), (String::new(), SAME));
    assert_eq!(
        said(IPV6, &[load(NETWORK, 0, 2), mask(&[0x0f, 0xc0]), cmp(EQ, &[2, 0])]).0,
        "header ip6 dscp"
    );
}

#[test]
fn only_what_is_compared_counts() {
    let ttl = load(NETWORK, 8, 1);
    let address = load(NETWORK, 12, 4);
    let is = cmp(EQ, &[10, 0, 0, 1]);
    assert_eq!(said(IPV4, &[ttl, address, is]).0, "", "overwritten");
    assert_eq!(said(IPV4, &[ttl, Expr::CompareBytes { register: 2, op: EQ, data: &[1] }]).0, "");
    let set = [load(NETWORK, 0, 2), mask(&[0xff, 3]), Expr::Edit { name: "payload" }];
    assert_eq!(said(IPV4, &set).0, "", "`ip dscp set`");
    let mark = [load(NETWORK, 1, 1), Expr::Edit { name: "meta mark" }];
    assert_eq!(said(IPV4, &mark).0, "header ip dscp", "`meta mark set ip dscp`");
    // What another expression has put into the register isn't known to us.
    let fib = [ttl, Expr::Other { name: "fib" }, cmp(EQ, &[0])];
    assert_eq!(said(IPV4, &fib), ("header ip ttl".to_owned(), SAME));
}

#[test]
fn times_to_live() {
    let nft = |op, value| said(IPV4, &[load(NETWORK, 8, 1), cmp(op, value)]).1;
    let xt = |mode, value| said(IPV4, &[Expr::Match { name: "ttl", info: &[mode, value] }]).1;
    for (found, expected) in [
        ([nft(EQ, &[0]), xt(0, 0)], ALWAYS),
        ([nft(EQ, &[1]), xt(0, 1)], PREROUTING),
        ([nft(EQ, &[2]), xt(0, 2)], SAME),
        ([nft(2, &[2]), xt(2, 2)], PREROUTING),
        ([nft(2, &[3]), xt(2, 3)], SAME),
        ([nft(NE, &[1]), xt(1, 1)], SAME),
        ([nft(4, &[0]), xt(3, 0)], SAME),
    ] {
        assert_eq!(found, [expected; 2]);
    }
    assert_eq!(said(IPV4, &[load(NETWORK, 8, 1), cmp(4, &[0])]).0, "", "always");
    assert_eq!(said(IPV4, &[load(NETWORK, 8, 1), cmp(4, &[1])]).0, "header ip ttl");
    assert_eq!(said(IPV6, &[Expr::Match { name: "hl", info: &[3, 1] }]).0, "header hl");
}

#[test]
fn protocols() {
    for load in [
        load(NETWORK, 9, 1),
        Expr::Meta { key: PROTOCOL, register: 1 },
        Expr::Payload { base: NETWORK, offset: 9, length: 1, register: 1 },
    ] {
        let of = |op, protocol| said(IPV4, &[load, cmp(op, protocol)]);
        assert_eq!(of(EQ, &[1]), (String::new(), ALWAYS), "ICMP");
        assert_eq!(of(EQ, &[50]), (String::new(), ALWAYS), "ESP");
        assert_eq!(of(EQ, &[17]), (String::new(), SAME), "UDP");
        assert_eq!(of(NE, &[6]), (String::new(), SAME), "not TCP");
        let fib = [load, Expr::Other { name: "fib" }, cmp(EQ, &[1])];
        assert_eq!(said(IPV4, &fib), (String::new(), SAME), "something else in the register");
    }
    for altered in [Expr::Other { name: "bitwise" }, Expr::Other { name: "byteorder" }] {
        assert_eq!(said(IPV4, &[load(NETWORK, 9, 1), altered, cmp(EQ, &[1])]), (String::new(), SAME));
    }
    let twice = [load(NETWORK, 9, 1), mask(&[7]), mask(&[3]), cmp(EQ, &[4])];
    assert_eq!(said(IPV4, &twice), (String::new(), SAME));
    let next = [load(NETWORK, 6, 1), cmp(EQ, &[58])];
    assert_eq!(said(IPV6, &next).1, ALWAYS, "ICMPv6");
}

#[test]
fn fragments() {
    let fragment = |bits, op, value| said(IPV4, &[load(NETWORK, 6, 2), mask(bits), cmp(op, value)]);
    assert_eq!(fragment(&[0x1f, 0xff], NE, &[0, 0]), (String::new(), ALWAYS), "iptables -f");
    assert_eq!(fragment(&[0x1f, 0xff], EQ, &[0, 0]), (String::new(), SAME), "iptables ! -f");
    assert_eq!(fragment(&[0x3f, 0xff], NE, &[0, 0]), (String::new(), ALWAYS));
    assert_eq!(fragment(&[0x40, 0], EQ, &[0, 0]), ("header ip frag-off".to_owned(), SAME));
}

#[test]
fn tcp_flags() {
    const ALL: u8 = FIN | SYN | RST | PSH | ACK | URG;
    // As iptables has them: mask, and which of those are set.
    for (bits, set, by, beside) in [
        (ALL, 0, "", ALWAYS),
        (ALL, ALL, "", ALWAYS),
        (ALL, FIN | PSH | URG, "", ALWAYS),
        (SYN | FIN, SYN | FIN, "", ALWAYS),
        (SYN | RST, SYN | RST, "", ALWAYS),
        (FIN | RST, FIN | RST, "", ALWAYS),
        (FIN | ACK, FIN, "", ALWAYS),
        (ACK | URG, URG, "", ALWAYS),
        (ACK | PSH, PSH, "", ALWAYS),
        (RST, RST, "header tcp flags", ENDS),
        (FIN, FIN, "header tcp flags", ENDS),
        (FIN | SYN | RST | ACK, SYN, "header tcp flags", SAME),
        (SYN, SYN, "header tcp flags", SAME),
        (PSH, PSH, "header tcp flags", SAME),
        (URG, 0, "header tcp flags", SAME),
        (FIN | SYN | RST | ACK, ACK, "header tcp flags", SAME),
        (0, 0, "", SAME),
    ] {
        let mut info = [0; 12];
        (info[9], info[10]) = (bits, set);
        let xt = said(IPV4, &[Expr::Match { name: "tcp", info: &info }]);
        assert_eq!(xt, (by.to_owned(), beside), "{bits:#x} {set:#x}");
        let (mask, value) = ([bits], [set]);
        let nft = [
            load(TRANSPORT, 13, 1),
            Expr::MaskBytes { register: 1, mask: &mask, toggled: &[0] },
            Expr::CompareBytes { register: 1, op: EQ, data: &value },
        ];
        assert_eq!(said(1, &nft), (by.to_owned(), beside), "{bits:#x} {set:#x}");
    }
    let mut syn = [0; 12];
    (syn[9], syn[10], syn[11]) = (FIN | SYN | RST | ACK, SYN, 4);
    assert_eq!(said(IPV4, &[Expr::Match { name: "tcp", info: &syn }]).0, "header tcp flags", "! --syn");
    let option = [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(said(IPV4, &[Expr::Match { name: "tcp", info: &option }]).0, "header tcp option");
    let ports = [0, 0, 0xff, 0xff, 9, 0, 9, 0, 0, 0, 0, 0];
    assert_eq!(said(IPV4, &[Expr::Match { name: "tcp", info: &ports }]), (String::new(), SAME));
    assert_eq!(said(IPV4, &[Expr::Match { name: "tcp", info: &[] }]).0, "header tcp");
}

#[test]
fn a_limit_in_front_counts_all_packets() {
    let limit = Expr::Other { name: "limit" };
    let null = [load(TRANSPORT, 13, 1), cmp(EQ, &[0])];
    assert_eq!(said(1, &[&null[..], &[limit]].concat()).1, ALWAYS);
    assert_eq!(said(1, &[&[limit], &null[..]].concat()).1, SAME);
    assert_eq!(rule(1, &null).established, Established::Some);
}

/// The rule's other conditions, whether in front or behind.
#[test]
fn what_varies_is_not_copied_and_the_rest_is() {
    let ttl = [load(NETWORK, 8, 1), cmp(2, &[9])];
    let address = [load(NETWORK, 12, 4), cmp(EQ, &[10, 0, 0, 1])];
    for exprs in [[ttl, address].concat(), [address, ttl].concat()] {
        let traits = rule(IPV4, &exprs).traits.expect("TTL");
        assert_eq!(traits.conditions.to_string(), "meta nfproto ipv4 ip saddr 10.0.0.1");
        assert!(!traits.exact);
    }
}
