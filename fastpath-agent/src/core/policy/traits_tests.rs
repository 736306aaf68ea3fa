//! What expressions, matches and targets ask, one by one.

use super::*;
use crate::core::policy::{expr::Verdict, outcome::Outcome, rule::Rule};

const IPV4: u8 = 2;
const INET: u8 = 1;

fn traits(family: u8, exprs: &[Expr<'_>]) -> Option<Traits> {
    Rule::new(family, 7, exprs.iter().copied()).traits.map(|traits| *traits)
}

#[test]
fn what_every_expression_asks() {
    let other = |name| Expr::Other { name };
    let xt = |name| Expr::Match { name, info: &[] };
    for (expr, every_packet, changing) in [
        (other("limit"), Some("limit"), None),
        (other("quota"), Some("quota"), None),
        (other("queue"), Some("queue"), None),
        (other("connlimit"), Some("ct-count"), None),
        (other("numgen"), Some("random"), None),
        (other("dup"), Some("copy"), None),
        (Expr::Verdict(Verdict::Queue), Some("queue"), None),
        (Expr::Ct { key: 14, register: 1 }, Some("ct-packets"), None),
        (Expr::Ct { key: 15, register: 1 }, Some("ct-bytes"), None),
        (Expr::Ct { key: 2, register: 1 }, None, None),
        (Expr::Ct { key: 3, register: 1 }, None, Some("ct-mark")),
        (xt("connlabel"), None, Some("ct-mark")),
        (Expr::Meta { key: 24, register: 1 }, Some("random"), None),
        (Expr::Meta { key: 32, register: 1 }, None, Some("time")),
        (Expr::Meta { key: 99, register: 1 }, None, Some("unknown")),
        (Expr::Fill { set: "s", meters: Some("limit") }, Some("limit"), None),
        (Expr::Fill { set: "s", meters: None }, None, None),
        (Expr::Object { kind: Some(1) }, None, None),
        (Expr::Object { kind: Some(4) }, Some("limit"), None),
        (Expr::Object { kind: None }, Some("meter"), None),
        (Expr::Route { key: 0 }, None, Some("realm")),
        (Expr::Route { key: 4 }, None, None),
        (other("something-new"), None, Some("unknown")),
        (xt("hashlimit"), Some("limit"), None),
        (xt("statistic"), Some("random"), None),
        (xt("string"), Some("content"), None),
        (xt("connbytes"), Some("ct-bytes"), None),
        (xt("set"), None, Some("ipset")),
        (xt("recent"), None, Some("recent")),
        (Expr::Match { name: "recent", info: &[0, 0, 0, 0, 20, 0, 0, 0] }, Some("limit"), None),
        (Expr::Match { name: "set", info: &[1; 48] }, Some("quota"), None),
        (Expr::Match { name: "set", info: &[1; 4] }, None, Some("ipset")),
        (xt("nfacct"), Some("quota"), None),
        (xt("rateest"), Some("limit"), None),
        (Expr::Edit { name: ADDRESS }, Some("header"), None),
        (xt("time"), None, Some("time")),
        (xt("something"), None, Some("unknown")),
        (xt("multiport"), None, None),
        (Expr::Target { name: "NFQUEUE" }, Some("queue"), None),
        (Expr::Target { name: "DROP" }, None, None),
        (other("fib"), None, None),
    ] {
        let found = traits(INET, &[expr, Expr::Verdict(Verdict::Drop)]).unwrap_or_default();
        let words = [found.every_packet, found.changing].map(|cause| cause.map(|cause| cause.word));
        assert_eq!(words, [every_packet, changing], "{expr:?}");
        let known = |word: &Option<&str>, list: &[&str]| word.is_none_or(|word| list.contains(&word));
        assert!(known(&words[0], &EVERY_PACKET) && known(&words[1], &CHANGING), "{words:?}");
    }
}

#[test]
fn a_meter_says_more_than_a_header() {
    let ttl = Expr::Payload { base: 1, offset: 8, length: 1, register: 1 };
    let is = Expr::CompareBytes { register: 1, op: 0, data: &[64] };
    let lookup = Expr::Lookup { set: "meters", register: 1, inverted: false };
    let saddr = Expr::Payload { base: 1, offset: 12, length: 4, register: 1 };
    let rule = || traits(IPV4, &[ttl, is, saddr, lookup, Expr::Verdict(Verdict::Drop)]).unwrap();
    let mut meters = rule();
    assert!(meters.resolve(|_| SetKind::Meters));
    assert_eq!(meters.every_packet.unwrap().to_string(), "meter meters");
    let mut other = rule();
    assert!(other.resolve(|_| SetKind::Static), "the TTL remains");
    assert!(EVERY_PACKET.contains(&other.header.unwrap().word));
}

#[test]
fn sets_are_what_the_kernel_says_of_them() {
    let drop = Expr::Verdict(Verdict::Drop);
    let rule = || traits(IPV4, &[Expr::Lookup { set: "ban", register: 1, inverted: false }, drop]).unwrap();
    assert!(!rule().resolve(|_| SetKind::Static));
    let mut changing = rule();
    assert!(changing.resolve(|set| if set == "ban" { SetKind::Changing } else { SetKind::Static }));
    assert_eq!(changing.changing.unwrap().to_string(), "set ban");
    let mut meters = rule();
    assert!(meters.resolve(|_| SetKind::Meters));
    assert_eq!(meters.every_packet.unwrap().to_string(), "meter ban");
    assert_eq!(
        traits(IPV4, &[Expr::Lookup { set: "__set0", register: 1, inverted: false }, drop]),
        None,
        "anonymous"
    );
}

#[test]
fn conditions_in_front_are_copied_where_they_say_the_same_of_all_packets() {
    let th = Expr::Payload { base: 2, offset: 2, length: 2, register: 1 };
    let saddr = Expr::Payload { base: 1, offset: 12, length: 4, register: 1 };
    let ttl = Expr::Payload { base: 1, offset: 8, length: 1, register: 1 };
    let is = |value: u32| Expr::Compare { register: 1, equal: true, value };
    let bytes = |data| Expr::CompareBytes { register: 1, op: 0, data };
    let limit = Expr::Other { name: "limit" };
    let name = Expr::Meta { key: 6, register: 1 };
    let address = u32::from_ne_bytes([10, 1, 0, 2]);
    let text = |family, exprs: &[Expr<'_>]| traits(family, exprs).unwrap().conditions.to_string();
    assert_eq!(text(IPV4, &[limit]), "meta nfproto ipv4");
    assert_eq!(text(INET, &[limit]), "");
    assert_eq!(text(IPV4, &[saddr, is(address), limit]), "meta nfproto ipv4 ip saddr 10.1.0.2");
    assert_eq!(text(INET, &[saddr, is(address), limit]), "", "of which family isn't known");
    assert_eq!(text(IPV4, &[limit, saddr, is(address)]), "meta nfproto ipv4", "behind it");
    assert_eq!(text(IPV4, &[ttl, bytes(&[5]), limit]), "meta nfproto ipv4", "varies");
    assert_eq!(
        text(INET, &[th, bytes(&[1, 187]), name, bytes(b"c0\0"), limit]),
        "th dport 443 iifname \"c0\""
    );
    assert_eq!(
        text(INET, &[th, Expr::Lookup { set: "__set0", register: 1, inverted: false }, limit]),
        "",
        "sets stay where they are"
    );
    let info = [0, 0, 0xff, 0xff, 9, 0, 9, 0, 0, 0];
    assert_eq!(text(INET, &[Expr::Match { name: "udp", info: &info }, limit]), "th dport 9");
    let rule = Rule::new(INET, 7, [Expr::Ct { key: 2, register: 1 }, is(5), Expr::Verdict(Verdict::Drop)]);
    assert_eq!((rule.outcome, rule.traits), (Outcome::Deny, None));
}
