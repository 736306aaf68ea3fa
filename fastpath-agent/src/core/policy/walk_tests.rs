//! What packets have met when they reach a rule.

use super::*;
use crate::core::policy::{
    chain::Base,
    expr::{Expr, Verdict},
    lookups::Elements,
    others::Others,
};

const LIMIT: Expr<'_> = Expr::Other { name: "limit" };
const DROP: Expr<'_> = Expr::Verdict(Verdict::Drop);
const OUTPUT: Expr<'_> = Expr::Meta { key: 5, register: 1 };
const PORT: Expr<'_> = Expr::Payload { base: 2, offset: 2, length: 2, register: 1 };

fn is(value: u32) -> Expr<'static> {
    Expr::Compare { register: 1, equal: true, value }
}

fn jump(to: &str) -> Expr<'_> {
    Expr::Verdict(Verdict::Jump(to))
}

/// The conditions of the only rule that wants every packet. The first chains are base chains, in a table
/// of family ip.
fn conditions(hooks: &[(u32, i32)], chains: &[(&str, &[&[Expr<'_>]])]) -> Vec<String> {
    let mut table = BTreeMap::new();
    let mut map = Elements::new(false);
    map.add(&7_u32.to_ne_bytes(), Some(Verdict::Goto("c")), false);
    map.add(&8_u32.to_ne_bytes(), Some(Verdict::Jump("d")), false);
    let mut intervals = Elements::new(true);
    intervals.add(&7_u32.to_ne_bytes(), Some(Verdict::Goto("c")), false);
    let mut default = map.clone();
    default.add(&[], Some(Verdict::Goto("c")), false);
    for (position, (name, list)) in chains.iter().enumerate() {
        let base = hooks.get(position).map(|(hook, priority)| Base {
            kind: "filter".to_owned(),
            hook: *hook,
            priority: *priority,
            accepts: true,
            devices: Vec::new(),
        });
        let mut rules: Vec<Rule> = list.iter().map(|exprs| Rule::new(2, 1, exprs.iter().copied())).collect();
        for rule in &mut rules {
            rule.look_up(|name| {
                Some(match name {
                    "intervals" => &intervals,
                    "default" => &default,
                    _ => &map,
                })
            });
        }
        table.insert((*name).to_owned(), Chain { base, rules, ..Chain::default() });
    }
    let concerns = Others([((2, "t".to_owned()), table)].into()).concerns(true, false);
    let [concern] = &concerns[..] else { panic!("{concerns:?}") };
    concern.left_out(false).iter().map(|one| one.to_string().replace("meta nfproto ipv4", "v4")).collect()
}

fn forward(chains: &[(&str, &[&[Expr<'_>]])]) -> Vec<String> {
    conditions(&[(2, 0)], chains)
}

#[test]
fn those_of_all_jumps_on_the_way() {
    let shape: &[&[Expr<'_>]] =
        &[&[PORT, Expr::CompareBytes { register: 1, op: 0, data: &[0, 9] }, LIMIT, DROP]];
    let to_d: &[Expr<'_>] = &[OUTPUT, is(7), jump("d")];
    assert_eq!(forward(&[("a", &[&[jump("d")]]), ("d", shape)]), ["v4 th dport 9"]);
    assert_eq!(forward(&[("a", &[to_d]), ("d", shape)]), ["v4 oif 7 th dport 9"]);
    let name = Expr::Meta { key: 7, register: 1 };
    let prefix = Expr::CompareBytes { register: 1, op: 0, data: b"s" };
    let goto = [name, prefix, Expr::Verdict(Verdict::Goto("c"))];
    assert_eq!(
        forward(&[("a", &[&goto]), ("c", &[to_d]), ("d", shape)]),
        ["v4 oifname \"s*\" oif 7 th dport 9"]
    );
}

#[test]
fn several_ways_are_several_conditions() {
    let shape: &[&[Expr<'_>]] = &[&[LIMIT, DROP]];
    let by = |port: u32| [OUTPUT, is(port), jump("d")];
    let two = [by(1), by(2)];
    let two = [two[0].as_slice(), &two[1]];
    assert_eq!(forward(&[("a", &two), ("d", shape)]), ["v4 oif 1", "v4 oif 2"]);
    let free = [jump("d")];
    assert_eq!(forward(&[("a", &[two[0], &free]), ("d", shape)]), ["v4"], "one without conditions");
    let many: Vec<_> = (0..20).map(by).collect();
    let many: Vec<&[Expr<'_>]> = many.iter().map(|rule| rule.as_slice()).collect();
    assert_eq!(forward(&[("a", &many), ("d", shape)]), ["v4"], "too many");
    // By way of the same chain twice.
    let on = [OUTPUT, is(3), jump("d")];
    let [to_c, from_c] = [[OUTPUT, is(1), jump("c")], on];
    assert_eq!(
        forward(&[("a", &[&to_c, two[1]]), ("c", &[&from_c]), ("d", shape)]),
        ["v4 oif 2", "v4 oif 1 oif 3"]
    );
}

#[test]
fn each_base_chain_has_its_own_ways() {
    let shape: &[&[Expr<'_>]] = &[&[LIMIT, DROP]];
    let port: &[Expr<'_>] = &[PORT, Expr::CompareBytes { register: 1, op: 0, data: &[0, 9] }, jump("d")];
    let found = conditions(
        &[(0, -300), (2, 0)],
        &[("a", &[port]), ("b", &[&[OUTPUT, is(1), jump("d")]]), ("d", shape)],
    );
    let [original, reply, forward] = &found[..] else { panic!("{found:?}") };
    assert_eq!(original, "ct direction original v4 ct original proto-dst 9");
    assert_eq!(reply, "ct direction reply v4 ct reply proto-dst 9");
    assert_eq!(forward, "v4 oif 1");
}

#[test]
fn a_verdict_map_leads_by_its_keys() {
    let shape: &[&[Expr<'_>]] = &[&[LIMIT, DROP]];
    let map = |map| [OUTPUT, Expr::VerdictMap { map, register: 1 }];
    let of = |name| forward(&[("a", &[&map(name)]), ("c", shape)]);
    assert_eq!(of("map"), ["v4 oif 7"]);
    assert_eq!(of("intervals"), ["v4"], "the element is a beginning");
    assert_eq!(of("default"), ["v4"], "all others go there, too");
    assert_eq!(forward(&[("a", &[&map("default")]), ("d", shape)]), ["v4 oif 8"]);
    let elsewhere = [OUTPUT, Expr::VerdictMap { map: "map", register: 2 }];
    assert_eq!(forward(&[("a", &[&elsewhere]), ("c", shape)]), ["v4"], "another register");
    let port = [PORT, Expr::VerdictMap { map: "map", register: 1 }];
    assert_eq!(forward(&[("a", &[&port]), ("c", shape)]), ["v4"], "a key of another length");
    let state =
        [Expr::Ct { key: 0, register: 2 }, OUTPUT, is(9), Expr::VerdictMap { map: "map", register: 1 }];
    assert_eq!(forward(&[("a", &[&state]), ("c", shape)]), ["v4 oif 9"], "compared before");
}

#[test]
fn what_gives_timeouts_counts_on_every_way() {
    let timeout: &[&[Expr<'_>]] = &[&[Expr::Object { kind: Some(7) }]];
    let found = forward(&[("a", &[&[OUTPUT, is(1), jump("d")]]), ("d", timeout)]);
    assert_eq!(found, ["v4"]);
}

#[test]
fn conditions_of_jumps_are_kept_where_they_matter() {
    let by = |port: u32, to| Rule::new(2, 1, [OUTPUT, is(port), jump(to)]);
    let chain = |rules: &[Rule]| Chain { rules: rules.to_vec(), ..Chain::default() };
    let shape = Rule::new(2, 1, [LIMIT, DROP]);
    let mut chains: BTreeMap<String, Chain> = [
        ("a", chain(&[by(1, "b"), by(2, "c"), by(3, "d")])),
        ("b", chain(&[by(4, "c")])),
        ("c", chain(&[shape])),
        ("d", chain(&[Rule::new(2, 1, [DROP])])),
    ]
    .map(|(name, chain)| (name.to_owned(), chain))
    .into();
    forget_leads(&mut chains);
    let kept = |name: &str| chains[name].rules.iter().map(|rule| rule.leads.len()).collect::<Vec<_>>();
    assert_eq!((kept("a"), kept("b")), (vec![1, 1, 0], vec![1]));
}
