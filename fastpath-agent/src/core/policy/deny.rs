//! Whether a base chain can deny a packet of an established connection, or take it from its connection, jumps followed.
//! Conditions of rules aren't evaluated: what may match is taken to match.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::core::policy::{
    chain::Chain,
    outcome::{Established, Outcome},
};

/// What a chain does to packets of established connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It may deny some.
    Denies,
    /// Accepts all of them.
    Accepts,
    /// Lets them go on, or accepts some.
    GoesOn,
}

/// Whether the base chain `name`, one of its table's `chains`, can deny such a packet. `early`: it is ahead of conntrack.
pub fn can_deny(chains: &BTreeMap<String, Chain>, name: &str, early: bool) -> bool {
    let base = chains.get(name).and_then(|chain| chain.base.as_ref());
    match fate(chains, name, early, &mut BTreeMap::new()) {
        Fate::Denies => true,
        Fate::Accepts => false,
        Fate::GoesOn => base.is_none_or(|base| !base.accepts),
    }
}

/// Each chain is walked through once. Chains that aren't there (they were made meanwhile) deny, and so would those that
/// jump in circles, which the kernel doesn't take.
fn fate<'c>(
    chains: &'c BTreeMap<String, Chain>,
    name: &'c str,
    early: bool,
    known: &mut BTreeMap<&'c str, Fate>,
) -> Fate {
    match known.entry(name) {
        Entry::Occupied(known) => return *known.get(),
        Entry::Vacant(entry) => drop(entry.insert(Fate::Denies)),
    }
    let fate = chains.get(name).map_or(Fate::Denies, |chain| walk(chains, chain, early, known));
    known.insert(name, fate);
    fate
}

fn walk<'c>(
    chains: &'c BTreeMap<String, Chain>,
    chain: &'c Chain,
    early: bool,
    known: &mut BTreeMap<&'c str, Fate>,
) -> Fate {
    for rule in chain.rules.iter().filter(|rule| rule.established != Established::None) {
        if early && rule.untracks {
            return Fate::Denies;
        }
        let all = rule.established == Established::All;
        for outcome in rule.outcome.each() {
            let (ends, fate) = match outcome {
                Outcome::Deny | Outcome::Choose(_) => return Fate::Denies,
                Outcome::Continue => continue,
                Outcome::Accept => (all, Fate::Accepts),
                Outcome::Return => (all, Fate::GoesOn),
                Outcome::Jump(to) => {
                    let fate = fate(chains, to, early, known);
                    (all && fate == Fate::Accepts, fate)
                }
                Outcome::Goto(to) => (all, fate(chains, to, early, known)),
            };
            if ends || fate == Fate::Denies {
                return fate;
            }
        }
    }
    Fate::GoesOn
}
