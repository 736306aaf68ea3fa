//! Moments of the clock, as rules ask for them.

use super::*;
use crate::core::policy::{
    expr::Verdict,
    lookups::Elements,
    rule::Rule,
    traits::{SetKind, Traits},
};

const INET: u8 = 1;
const TIME: Expr<'_> = Expr::Meta { key: 30, register: 1 };
const DAY: Expr<'_> = Expr::Meta { key: 31, register: 1 };
const HOUR: Expr<'_> = Expr::Meta { key: 32, register: 1 };
const SWAP: Expr<'_> = Expr::Swap { register: 1 };
const DROP: Expr<'_> = Expr::Verdict(Verdict::Drop);
const LOOKUP: Expr<'_> = Expr::Lookup { set: "__set0", register: 1, inverted: false };

fn bytes(data: &[u8]) -> Expr<'_> {
    Expr::CompareBytes { register: 1, op: 3, data }
}

fn rule(exprs: &[Expr<'_>]) -> Rule {
    Rule::new(INET, 7, [exprs, &[DROP]].concat())
}

fn when(exprs: &[Expr<'_>]) -> When {
    rule(exprs).traits.map(|traits| traits.when).unwrap_or_default()
}

fn at(moments: &[Moment]) -> When {
    When { moments: moments.iter().copied().collect(), ..When::default() }
}

#[test]
fn the_next_time_of_each() {
    const NOON: u64 = 1_700_000_000 / DAY_S * DAY_S + DAY_S / 2;
    let now = |second: u64, ns: u64| WallClock { now_ns: second * SECOND_NS + ns, minutes_west: 0 };
    let next = |moment: Moment, clock| moment.next(clock).map(|at| (at - NOON * SECOND_NS) as f64 / 1e9);
    assert_eq!(Moment::Once(7).next(now(0, 6)), Some(7));
    assert_eq!(Moment::Once(7).next(now(0, 7)), None);
    for (moment, clock, expected) in [
        (Moment::Daily(43_200), now(NOON - 1, 999_999_999), 0.),
        (Moment::Daily(43_200), now(NOON, 0), 86_400.),
        (Moment::Daily(43_200), now(NOON, 1), 86_400.),
        (Moment::Daily(43_201), now(NOON, 1), 1.),
        (Moment::Daily(43_199), now(NOON, 1), 86_399.),
        (Moment::Daily(0), now(NOON, 0), 43_200.),
        (Moment::Midnight, now(NOON, 0), 43_200.),
        (Moment::Midnight, WallClock { minutes_west: 60, ..now(NOON, 0) }, 46_800.),
        (Moment::Midnight, WallClock { minutes_west: -60, ..now(NOON, 0) }, 39_600.),
        (Moment::Midnight, WallClock { minutes_west: -780, ..now(NOON, 0) }, 82_800.),
    ] {
        assert_eq!(next(moment, clock), Some(expected), "{moment:?} {clock:?}");
    }
}

#[test]
fn what_the_clock_is_compared_with() {
    let noon = 1_699_963_200_000_000_000_u64;
    let [one, two] = [noon.to_be_bytes(), (noon + 5).to_be_bytes()];
    let once = [Moment::Once(noon), Moment::Once(noon + 5)];
    let address = Expr::Payload { base: 1, offset: 12, length: 4, register: 9 };
    let hour = 61_200_u32.to_be_bytes();
    let daily = [0, 61_200, 61_201].map(Moment::Daily);
    for (exprs, expected) in [
        (&[TIME, SWAP, bytes(&one)][..], at(&once[..1])),
        (&[TIME, SWAP, bytes(&one), bytes(&two)], at(&once)),
        (&[TIME, SWAP, Expr::Range { register: 1, from: &one, to: &two }], at(&once)),
        (&[TIME, bytes(&noon.to_ne_bytes())], at(&once[..1])),
        (&[HOUR, SWAP, bytes(&hour)], at(&daily)),
        (&[HOUR, Expr::Compare { register: 1, equal: true, value: 61_200 }], at(&daily)),
        (
            &[
                HOUR,
                SWAP,
                bytes(&hour),
                address,
                Expr::CompareBytes { register: 9, op: 0, data: &[10, 0, 0, 1] },
            ],
            at(&daily),
        ),
        (&[HOUR, SWAP, bytes(&86_399_u32.to_be_bytes())], at(&[0, 86_399].map(Moment::Daily))),
        (&[HOUR, SWAP, bytes(&90_000_u32.to_be_bytes())], at(&[Moment::Daily(0)])),
        (&[DAY, bytes(&[6])], at(&[Moment::Midnight])),
        (&[DAY, LOOKUP], at(&[Moment::Midnight])),
        (&[DAY, bytes(&[6]), HOUR, SWAP, bytes(&hour)], at(&[&daily[..], &[Moment::Midnight]].concat())),
        // Part of a key, or in something that isn't followed.
        (&[DAY, Expr::Meta { key: 32, register: 9 }, LOOKUP], When::anytime()),
        (&[HOUR, Expr::Mask { source: 1, destination: 1, mask: 1 }], When::anytime()),
        (&[HOUR], When::anytime()),
        (&[HOUR, bytes(&[1, 2])], When::anytime()),
        (&[HOUR, Expr::Lookup { set: "hours", register: 1, inverted: false }], When::anytime()),
        (&[HOUR, SWAP, bytes(&hour), Expr::Match { name: "set", info: &[] }], When::anytime()),
        (&[Expr::Ct { key: 5, register: 1 }, bytes(&hour)], When::anytime()),
        (&[address, bytes(&[10, 0, 0, 1])], When::default()),
    ] {
        let found = when(exprs);
        assert_eq!(found.anytime, expected.anytime, "{exprs:?}");
        assert!(expected.anytime || found == expected, "{exprs:?}: {found:?}");
    }
}

#[test]
fn hours_in_a_set_are_those_of_its_elements() {
    let hours = |keys: &[u32]| {
        let mut elements = Elements::new(true);
        keys.iter().for_each(|key| elements.add(&key.to_be_bytes(), None, false));
        elements
    };
    let asked = |elements: Option<&Elements>| {
        let mut rule = rule(&[HOUR, SWAP, LOOKUP]);
        rule.look_up(|name| elements.filter(|_| name == "__set0"));
        rule.traits.map(|traits| traits.when).unwrap_or_default()
    };
    let moments = [0, 28_800, 28_801, 43_200, 43_201].map(Moment::Daily);
    assert_eq!(asked(Some(&hours(&[28_800, 43_200]))), at(&moments));
    assert!(asked(None).anytime, "it couldn't be read");
    assert!(asked(Some(&hours(&(0..200).collect::<Vec<_>>()))).anytime, "too many");
    assert!(asked(Some(&hours(&(0..40).map(|n| n * 9).collect::<Vec<_>>()))).anytime, "too many");
}

#[test]
fn sets_whose_elements_run_out_are_followed_unless_packets_fill_them() {
    let of = |kind| {
        let lookup = |set| Expr::Lookup { set, register: 1, inverted: false };
        let mut traits: Traits = *rule(&[lookup("portal"), lookup("plain")]).traits.expect("traits");
        assert_eq!(
            traits.resolve(|set| if set == "portal" { kind } else { SetKind::Static }),
            kind != SetKind::Static
        );
        traits.when
    };
    assert_eq!(of(SetKind::Static), When::default());
    assert_eq!(of(SetKind::Expiring), When { sets: ["portal".into()].into(), ..When::default() });
    assert_eq!(of(SetKind::Changing), When::anytime());
}
