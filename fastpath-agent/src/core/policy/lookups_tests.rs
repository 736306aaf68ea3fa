//! Sets of states and verdict maps, as firewalld, nft's users and Calico have them.

use super::*;
use crate::core::policy::expr::Expr;
use crate::core::policy::rule::Rule;

const STATE: Expr<'_> = Expr::Ct { key: 0, register: 1 };
const ACCEPT: Expr<'_> = Expr::Verdict(Verdict::Accept);

fn looked_up(exprs: &[Expr<'_>], elements: Option<&Elements>) -> (Outcome, Established) {
    let mut rule = Rule::new(1, 7, exprs.iter().copied());
    assert_eq!(rule.established, Established::Some, "until it is known");
    rule.look_up(|name| elements.filter(|_| name == "s"));
    (rule.outcome, rule.established)
}

fn states(states: &[u32]) -> Elements {
    let mut elements = Elements::default();
    states.iter().for_each(|state| elements.add(&state.to_ne_bytes(), None, false));
    elements
}

#[test]
fn a_set_of_states_is_a_condition_on_the_state() {
    for (inverted, set, expected) in [
        (false, states(&[2, 4]), Established::All),
        (false, states(&[1, 8]), Established::None),
        (true, states(&[2]), Established::None),
        (true, states(&[1]), Established::All),
    ] {
        let lookup = Expr::Lookup { set: "s", register: 1, inverted };
        assert_eq!(looked_up(&[STATE, lookup, ACCEPT], Some(&set)), (Outcome::Accept, expected), "{set:?}");
        let beside = [Expr::Other { name: "fib" }, STATE, lookup, ACCEPT];
        let some = if expected == Established::All { Established::Some } else { expected };
        assert_eq!(looked_up(&beside, Some(&set)).1, some, "{set:?}");
        assert_eq!(looked_up(&[STATE, lookup, ACCEPT], None).1, Established::Some, "unread");
    }
    let mut elsewhere =
        Rule::new(1, 7, [STATE, Expr::Lookup { set: "s", register: 2, inverted: false }, ACCEPT]);
    assert_eq!((elsewhere.look_up(|_| None), elsewhere.established), (None, Established::Some));
}

#[test]
fn a_map_by_state_says_one_thing() {
    let mut map = Elements::default();
    map.add(&2_u32.to_ne_bytes(), Some(Verdict::Accept), false);
    map.add(&1_u32.to_ne_bytes(), Some(Verdict::Drop), false);
    let vmap = Expr::VerdictMap { map: "s", register: 1 };
    assert_eq!(looked_up(&[STATE, vmap], Some(&map)), (Outcome::Accept, Established::All));
    assert_eq!(looked_up(&[STATE, vmap], None), (Outcome::Deny, Established::Some));
    let mut new = Elements::default();
    new.add(&8_u32.to_ne_bytes(), Some(Verdict::Jump("c")), false);
    assert_eq!(looked_up(&[STATE, vmap], Some(&new)).1, Established::None);
    new.add(&[], Some(Verdict::Drop), false);
    assert_eq!(looked_up(&[STATE, vmap], Some(&new)), (Outcome::Deny, Established::All), "all others");
}

#[test]
fn another_map_leads_to_all_chains_that_it_names() {
    let mut map = Elements::default();
    for (key, verdict) in [(b"a", Verdict::Goto("x")), (b"b", Verdict::Jump("y")), (b"c", Verdict::Goto("x"))]
    {
        map.add(key, Some(verdict), false);
    }
    let name = Expr::Meta { key: 6, register: 1 };
    let mut rule = Rule::new(1, 7, [name, Expr::VerdictMap { map: "s", register: 1 }]);
    assert_eq!(rule.look_up(|_| Some(&map)).as_deref(), Some("s"));
    assert_eq!(rule.established, Established::Some);
    assert_eq!(rule.leads_to().collect::<Vec<_>>(), ["x", "y"]);
}

/// What packets that reach the chain behind a jump meet, and what the rule's own limit asks for.
#[test]
fn a_set_of_the_rules_own_is_copied_element_by_element() {
    let saddr = Expr::Payload { base: 1, offset: 12, length: 4, register: 1 };
    let name = Expr::Meta { key: 6, register: 1 };
    let own = Expr::Lookup { set: "__set0", register: 1, inverted: false };
    let set = |intervals, keys: &[(&[u8], bool)]| {
        let mut elements = Elements::new(intervals);
        keys.iter().for_each(|(key, ends)| elements.add(key, None, *ends));
        elements
    };
    let [a, b, c, d] = [1, 2, 3, 9].map(|last| [10, 0, 0, last]);
    let plain = set(false, &[(&a, false), (&c, false)]);
    // As the kernel has them: what is before the first interval ends with it, and the last one has no end.
    let ranges = set(true, &[(&d, false), (&c, true), (&b, false), (&b, true), (&a, false), (&[0; 4], true)]);
    let many: Vec<[u8; 4]> = (0..9).map(|last| [10, 0, 0, last]).collect();
    let many = set(false, &many.iter().map(|key| (&key[..], false)).collect::<Vec<_>>());
    let both = "ip saddr 10.0.0.1 or meta nfproto ipv4 ip saddr 10.0.0.3";
    let between = "ip saddr >= 10.0.0.1 ip saddr < 10.0.0.2 or meta nfproto ipv4 ip saddr >= 10.0.0.2 ip saddr < 10.0.0.3 or \
                   meta nfproto ipv4 ip saddr >= 10.0.0.9";
    for (load, lookup, elements, expected) in [
        (saddr, own, Some(&plain), both),
        (saddr, own, Some(&ranges), between),
        (saddr, own, Some(&many), ""),
        (saddr, own, None, ""),
        (saddr, own, Some(&set(false, &[(&a, false), (&[], false)])), ""),
        (saddr, own, Some(&set(false, &[(&[1, 2], false)])), ""),
        (saddr, Expr::Lookup { set: "__set0", register: 1, inverted: true }, Some(&plain), ""),
        (saddr, Expr::Lookup { set: "named", register: 1, inverted: false }, Some(&plain), ""),
        (saddr, Expr::Lookup { set: "__set0", register: 2, inverted: false }, Some(&plain), ""),
        (name, own, Some(&set(true, &[(b"c\0", false)])), ""),
    ] {
        let expected = format!("meta nfproto ipv4 {expected}");
        let look_up = |end| {
            let mut rule = Rule::new(2, 7, [load, lookup, end]);
            rule.look_up(|_| elements);
            rule
        };
        let written =
            |list: Vec<Conditions>| list.iter().map(Conditions::to_string).collect::<Vec<_>>().join(" or ");
        let jump = look_up(Expr::Verdict(Verdict::Jump("c")));
        let led = jump.leads_to_by("c").into_iter().cloned().collect::<Vec<_>>();
        let led = if led.is_empty() { vec![Conditions::of_family(2)] } else { led };
        assert_eq!(written(led).trim(), expected.trim(), "{lookup:?} {elements:?}");
        let limit = look_up(Expr::Other { name: "limit" }).traits.expect("a limit");
        let met: Vec<_> = limit.one_of.iter().map(|one| limit.conditions.and(one)).collect();
        let met = if met.is_empty() { vec![limit.conditions.clone()] } else { met };
        assert_eq!(written(met).trim(), expected.trim(), "{lookup:?} {elements:?}");
    }
    // Behind the limit it says nothing of what the limit counts.
    let mut rule = Rule::new(2, 7, [Expr::Other { name: "limit" }, saddr, own]);
    rule.look_up(|_| Some(&plain));
    assert_eq!(rule.traits.expect("a limit").one_of, []);
}
