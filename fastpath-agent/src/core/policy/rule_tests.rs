//! Rules as nft and iptables-nft write them, expression by expression.

use super::*;
use crate::core::policy::expr::Verdict;

const ACCEPT: Expr<'_> = Expr::Verdict(Verdict::Accept);
const DROP: Expr<'_> = Expr::Verdict(Verdict::Drop);

fn other(name: &str) -> Expr<'_> {
    Expr::Other { name }
}

fn read(exprs: &[Expr<'_>]) -> (Outcome, Established) {
    let rule = Rule::new(1, 7, exprs.iter().copied());
    (rule.outcome, rule.established)
}

/// `ct state …`, as nft writes it with one state or with several.
fn states(mask: u32) -> [Expr<'static>; 3] {
    [
        Expr::Ct { key: CT_STATE, register: 1 },
        Expr::Mask { source: 1, destination: 1, mask },
        Expr::Compare { register: 1, equal: false, value: 0 },
    ]
}

fn conntrack(flags: u16, inverted: u16, states: u16) -> Vec<u8> {
    let mut info = vec![0; 160];
    for (at, value) in [(146, flags), (148, inverted), (150, states)] {
        info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    info
}

#[test]
fn connection_state_is_evaluated() {
    for (mask, expected) in
        [(0x2, Established::All), (0x6, Established::All), (0x8, Established::None), (0x1, Established::None)]
    {
        let [ct, bits, compare] = states(mask);
        assert_eq!(
            read(&[ct, bits, compare, other("counter"), ACCEPT]),
            (Outcome::Accept, expected),
            "{mask}"
        );
        // With anything else beside it.
        let some = if expected == Established::All { Established::Some } else { expected };
        assert_eq!(read(&[ct, bits, compare, other("payload"), other("cmp"), ACCEPT]).1, some, "{mask}");
        // `ct state != …`
        let but = Expr::Compare { register: 1, equal: true, value: 0 };
        let inverse = if expected == Established::All { Established::None } else { Established::All };
        assert_eq!(read(&[ct, bits, but, DROP]).1, inverse, "{mask}");
    }
    let [ct, ..] = states(0);
    let is = |equal, value| read(&[ct, Expr::Compare { register: 1, equal, value }, DROP]).1;
    assert_eq!(
        (is(true, 2), is(true, 8), is(false, 8)),
        (Established::All, Established::None, Established::All)
    );
    // In a concatenation.
    let [interface, elsewhere] = [Expr::Meta { key: 6, register: 9 }, Expr::Option { kind: 0, register: 9 }];
    for load in [interface, elsewhere, Expr::Route { key: 0 }, other("fib")] {
        let found =
            Rule::new(1, 7, [ct, load, Expr::Lookup { set: "s", register: 1, inverted: false }, DROP]);
        assert!(found.lookups.is_none_or(|lookups| lookups.state.is_none()), "{load:?}");
    }
    // A register with something else in it.
    let elsewhere = Expr::Compare { register: 2, equal: true, value: 8 };
    assert_eq!(read(&[ct, elsewhere, DROP]).1, Established::Some);
}

#[test]
fn connection_state_of_xtables_is_evaluated() {
    let state = |flags, inverted, states| {
        let info = conntrack(flags, inverted, states);
        read(&[Expr::Match { name: "conntrack", info: &info }, ACCEPT]).1
    };
    assert_eq!(state(1, 0, 0x6), Established::All);
    assert_eq!(state(1, 0, 0x8), Established::None);
    assert_eq!(state(1, 1, 0x8), Established::All);
    assert_eq!(state(1, 1, 0x2), Established::None);
    assert_eq!(state(3, 0, 0x2), Established::Some, "with a condition on something else");
    for translated in [1 << 6, 1 << 7] {
        assert_eq!([0, 1].map(|inverted| state(1, inverted, translated)), [Established::Some; 2]);
    }
    let short = Expr::Match { name: "conntrack", info: &[1, 2, 3] };
    assert_eq!(read(&[short, ACCEPT]).1, Established::Some);
    let old = Expr::Match { name: "state", info: &8_u32.to_ne_bytes() };
    assert_eq!(read(&[old, DROP]).1, Established::None);
}

#[test]
fn verdicts_and_targets() {
    let jump = Outcome::Jump("c".into());
    for (expr, expected) in [
        (DROP, Outcome::Deny),
        (Expr::Verdict(Verdict::Queue), Outcome::Deny),
        (Expr::Verdict(Verdict::Unknown), Outcome::Deny),
        (Expr::Verdict(Verdict::Jump("c")), jump),
        (Expr::Verdict(Verdict::Goto("c")), Outcome::Goto("c".into())),
        (Expr::Verdict(Verdict::Return), Outcome::Return),
        (Expr::Verdict(Verdict::Continue), Outcome::Continue),
        (Expr::VerdictMap { map: "m", register: 1 }, Outcome::Deny),
        (other("reject"), Outcome::Deny),
        (other("queue"), Outcome::Deny),
        (other("synproxy"), Outcome::Deny),
        (other("fwd"), Outcome::Deny),
        (other("something-new"), Outcome::Deny),
        (other("log"), Outcome::Continue),
        (other("masq"), Outcome::Continue),
        (other("limit"), Outcome::Continue),
        (Expr::Target { name: "REJECT" }, Outcome::Deny),
        (Expr::Target { name: "NFQUEUE" }, Outcome::Deny),
        (Expr::Target { name: "SOMETHING" }, Outcome::Deny),
        (Expr::Target { name: "TCPMSS" }, Outcome::Continue),
        (Expr::Target { name: "MASQUERADE" }, Outcome::Continue),
        (Expr::Target { name: "ACCEPT" }, Outcome::Accept),
    ] {
        assert_eq!(read(&[expr]).0, expected, "{expr:?}");
        let rule = [Expr::Match { name: "comment", info: &[] }, other("payload"), other("cmp"), expr];
        assert_eq!(read(&rule).0, expected, "{expr:?}");
    }
    // What may let packets go on takes none of them away from later rules.
    for (name, expected) in [("NFQUEUE", Established::All), ("SET", Established::Some)] {
        assert_eq!(read(&[Expr::Target { name }]), (Outcome::Deny, expected), "{name}");
    }
    // The first verdict ends the rule.
    assert_eq!(read(&[ACCEPT, DROP]).0, Outcome::Accept);
    assert_eq!(read(&[Expr::Match { name: "comment", info: &[] }, DROP]).1, Established::All);
}
