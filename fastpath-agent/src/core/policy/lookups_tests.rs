//! Sets of states and verdict maps, as firewalld, nft's users and Calico have them.

use super::*;
use crate::core::policy::expr::Expr;

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
    states.iter().for_each(|state| elements.add(&state.to_ne_bytes(), None));
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
    map.add(&2_u32.to_ne_bytes(), Some(Verdict::Accept));
    map.add(&1_u32.to_ne_bytes(), Some(Verdict::Drop));
    let vmap = Expr::VerdictMap { map: "s", register: 1 };
    assert_eq!(looked_up(&[STATE, vmap], Some(&map)), (Outcome::Accept, Established::All));
    assert_eq!(looked_up(&[STATE, vmap], None), (Outcome::Deny, Established::Some));
    let mut new = Elements::default();
    new.add(&8_u32.to_ne_bytes(), Some(Verdict::Jump("c")));
    assert_eq!(looked_up(&[STATE, vmap], Some(&new)).1, Established::None);
    new.add(&[], Some(Verdict::Drop));
    assert_eq!(looked_up(&[STATE, vmap], Some(&new)), (Outcome::Deny, Established::All), "all others");
}

#[test]
fn another_map_leads_to_all_chains_that_it_names() {
    let mut map = Elements::default();
    for (key, verdict) in [(b"a", Verdict::Goto("x")), (b"b", Verdict::Jump("y")), (b"c", Verdict::Goto("x"))]
    {
        map.add(key, Some(verdict));
    }
    let name = Expr::Meta { key: 6, register: 1 };
    let mut rule = Rule::new(1, 7, [name, Expr::VerdictMap { map: "s", register: 1 }]);
    assert_eq!(rule.look_up(|_| Some(&map)).as_deref(), Some("s"));
    assert_eq!(rule.established, Established::Some);
    assert_eq!(rule.leads_to().collect::<Vec<_>>(), ["x", "y"]);
}
