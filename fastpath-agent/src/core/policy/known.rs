//! All that was read of other programs, and what our ruleset must respect. A part that couldn't be read counts as the worst
//! that could be there, never as absent.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    concern::{Concern, family_name},
    ignore::Ignore,
    moments::When,
    others::Others,
};

use crate::core::{
    model::{IfIndex, IfName},
    policy::chain::{SetKey, TableKey},
    recurring::Need,
    revalidate::{Notice, Subject},
    route_rule::{RouteRule, RouteRules},
    surroundings::{Surroundings, Translates},
};

/// Behind all filters of any program.
const UNKNOWN_PRIORITY: i32 = 1000;
/// Legacy tables with a chain in the forward hook, by the priority that it has there (include/uapi/linux/netfilter_ipv4.h).
const LEGACY_FORWARD: [(&str, i32); 3] = [("mangle", -150), ("filter", 0), ("security", 50)];
/// The same for the postrouting hook.
const LEGACY_POSTROUTING: [(&str, i32); 1] = [("mangle", -150)];

/// Legacy tables that forwarded packets of established connections pass.
const LEGACY_PASSED: [&str; 4] = ["filter", "mangle", "raw", "security"];

/// What was read; `None` for what couldn't be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Tables of nftables.
    pub tables: Option<Arc<Others>>,
    /// When elements of the sets in them run out, each in ms since any fixed point, in order; `None` if that isn't followed.
    pub expiries: BTreeMap<SetKey, Option<Vec<u64>>>,
    /// Names of tables of iptables-legacy and ip6tables-legacy; whether their rules deny isn't known.
    pub legacy: Option<BTreeSet<String>>,
    /// FIN and RST take the normal path on this kernel.
    pub ends_leave: bool,
    /// Policy rules.
    pub route_rules: Option<RouteRules>,
    /// Interfaces that hand up packets of interfaces below: those that matter, since a flowtable's hook may be there.
    pub uppers: BTreeMap<IfIndex, Upper>,
    /// Interfaces that carry PPPoE sessions.
    pub pppoe: BTreeSet<IfName>,
}

/// An interface on top of other interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its name.
    pub name: IfName,
    /// Other programs have eBPF programs or filters at its ingress; `None` if that couldn't be read.
    pub programs: Option<bool>,
}

impl Known {
    /// What follows for our ruleset.
    /// `ignored` are rules that flows may bypass.
    pub fn surroundings(&self, ignored: &[Ignore]) -> Surroundings {
        let tables = self.tables.as_deref();
        let legacy = |places: &[(&str, i32)]| match &self.legacy {
            Some(names) => places.iter().filter(|(name, _)| names.contains(*name)).map(|(_, at)| *at).max(),
            None => places.iter().map(|(_, at)| *at).max(),
        };
        let unknown = Some(UNKNOWN_PRIORITY);
        let ingress = tables.map(Others::ingress).unwrap_or_default();
        let is_inspected = |upper: &Upper| {
            upper.programs != Some(false) || ingress.iter().any(|device| device.is(upper.name.as_str()))
        };
        Surroundings {
            last_forward: tables.map_or(unknown, Others::last_forward).max(legacy(&LEGACY_FORWARD)),
            denying_postrouting: tables
                .map_or(unknown, Others::denying_postrouting)
                .max(legacy(&LEGACY_POSTROUTING)),
            sure_of_answers: tables.is_some_and(|tables| !tables.can_deny())
                && self.legacy.as_ref().is_some_and(|names| !names.iter().any(is_passed))
                && self.route_rules.as_ref().is_some_and(|rules| !rules.by_mark && !rules.by_packet),
            translates: self.translates(),
            unguessed: self.route_rules.as_ref().map_or_else(
                || [false, true].map(|ipv6| RouteRule { ipv6, ..RouteRule::default() }).to_vec(),
                |rules| rules.unguessed.clone(),
            ),
            inspected: self
                .uppers
                .iter()
                .filter(|(_, upper)| is_inspected(upper))
                .map(|(index, _)| *index)
                .collect(),
            pppoe: self.pppoe.clone(),
            rules: self.rules(ignored),
        }
    }

    /// Says that the rule's verdict may change at any time, if one of its sets isn't followed.
    fn follow(&self, rule: &mut Concern) {
        let is_its = |(family, table): &TableKey| (family_name(*family), table) == (rule.family, &rule.table);
        let mut unfollowed = self.expiries.iter().filter(|(_, expiries)| expiries.is_none());
        rule.when.anytime |=
            unfollowed.any(|((table, set), _)| is_its(table) && rule.when.sets.contains(set));
    }

    /// What the rules make necessary that change by themselves.
    pub fn need(&self, rules: &[Concern]) -> Need {
        let mut need = Need::default();
        let mut sets = BTreeSet::new();
        for (rule, cause) in rules.iter().filter_map(|rule| Some((rule, rule.changes_by()?))) {
            need.causes.insert(cause);
            need.anytime |= rule.when.anytime || rule.when == When::default();
            need.moments.extend(&rule.when.moments);
            sets.extend(rule.when.sets.iter().map(|set| (rule.family, &rule.table, set)));
        }
        let asked = self
            .expiries
            .iter()
            .filter(|(((family, table), set), _)| sets.contains(&(family_name(*family), table, set)));
        need.expiries = asked.flat_map(|(_, expiries)| expiries.iter().flatten().copied()).collect();
        need.expiries.sort_unstable();
        need
    }

    /// A legacy table stays once it was used, and may be one of either family.
    fn translates(&self) -> Translates {
        let legacy = self.legacy.as_ref().is_some_and(|names| names.contains("nat"));
        let [v4, v6] = [false, true]
            .map(|ipv6| legacy || self.tables.as_ref().is_some_and(|tables| tables.translates(ipv6)));
        Translates { v4, v6 }
    }

    fn rules(&self, ignored: &[Ignore]) -> Vec<Concern> {
        let mut rules = match &self.tables {
            Some(tables) => {
                tables.concerns(self.ends_leave, self.route_rules.as_ref().is_none_or(|rules| rules.by_mark))
            }
            None => vec![Concern::unread()],
        };
        match &self.legacy {
            Some(names) => {
                rules.extend(names.iter().filter(|name| is_passed(name)).map(|name| Concern::legacy(name)));
            }
            None => rules.push(Concern::legacy("unreadable")),
        }
        for rule in &mut rules {
            self.follow(rule);
            rule.ignored = ignored.iter().any(|ignored| ignored.is(rule));
        }
        rules
    }
}

/// Whether forwarded packets pass a legacy table of this name.
fn is_passed(name: impl AsRef<str>) -> bool {
    LEGACY_PASSED.contains(&name.as_ref())
}

/// What must be read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// All of it.
    pub all: bool,
    /// Chains, and the rules of these tables.
    pub tables: BTreeSet<TableKey>,
    /// When elements of these sets run out.
    pub sets: BTreeSet<SetKey>,
    /// Names of legacy tables.
    pub legacy: bool,
    /// Policy rules.
    pub route_rules: bool,
    /// Programs of these interfaces, where they are on top of other interfaces.
    pub programs: BTreeSet<IfIndex>,
    /// Programs of all of those.
    pub all_programs: bool,
}

impl Parts {
    /// Everything.
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes note of a change of the ruleset. `known` may be older than a reading that is under way, of `reading`.
    pub fn note(&mut self, notice: &Notice<'_>, known: Option<&Others>, reading: Option<&Self>) {
        let Notice { family, table, subject } = *notice;
        if Others::is_ours(family, table) {
            return;
        }
        let key = (family, table.to_owned());
        let chains = known.and_then(|known| known.0.get(&key));
        let is_being_read = || {
            self.tables.contains(&key)
                || reading.is_some_and(|parts| parts.all || parts.tables.contains(&key))
        };
        let may_be_read = || known.is_none_or(|known| known.is_to_read(&key)) || is_being_read();
        let counts = match subject {
            Subject::Chain { hook: Some(_), .. } | Subject::Timeout => true,
            Subject::Chain { name, .. } => {
                chains.is_some_and(|chains| chains.get(name).is_some_and(|chain| chain.base.is_some()))
                    || may_be_read()
            }
            Subject::Rule { .. } => may_be_read(),
            Subject::Table { gone: true } => chains.is_some() || may_be_read(),
            Subject::Elements { set } => {
                if chains.is_some_and(|chains| chains.values().any(|chain| chain.expiring.contains(set))) {
                    self.sets.insert((key.clone(), set.into()));
                }
                chains.is_some_and(|chains| chains.values().any(|chain| chain.maps.contains(set)))
                    || is_being_read()
            }
            Subject::Table { gone: false } | Subject::Other => false,
        };
        if counts {
            self.tables.insert(key);
        }
    }
}

#[cfg(test)]
#[path = "known_tests.rs"]
mod tests;
