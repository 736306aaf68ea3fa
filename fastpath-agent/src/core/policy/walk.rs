//! Which rules of a table packets of established connections reach, from base chain to base chain with all jumps followed, and on
//! which ways: the conditions of the jumps that lead there.

use std::collections::{BTreeMap, BTreeSet};

use super::{rule::Rule, varying::Beside};

use crate::core::{
    policy::{
        chain::Chain,
        outcome::{Established, Outcome},
    },
    ruleset::{alternatives::Alternatives, conditions::Conditions},
};

/// Where packets pass a rule, compared with our chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Before they are routed.
    pub prerouting: bool,
    /// With the addresses that our chain sees.
    pub as_ours: bool,
    /// With those before NAT.
    pub before_nat: bool,
    /// With those behind it.
    pub behind_nat: bool,
}

impl View {
    const ANYWHERE: Self = Self { prerouting: true, as_ours: true, before_nat: true, behind_nat: true };
}

/// One way to a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Where the base chain is that it begins with.
    pub view: View,
    /// What packets on it meet, as far as that can be copied.
    pub conditions: Conditions,
}

impl Way {
    /// The way on, for packets that meet these as well.
    pub(super) fn and(&self, conditions: &Conditions) -> Self {
        Self { view: self.view, conditions: self.conditions.and(conditions) }
    }
}

/// Where rules lead is only asked of those on the way to a rule that wants every packet: the leads of the rest are forgotten.
pub fn forget_leads(chains: &mut BTreeMap<String, Chain>) {
    let wanted = on_the_way(chains);
    for rule in chains.values_mut().flat_map(|chain| &mut chain.rules) {
        if !rule.leads.iter().any(|lead| wanted.contains(&*lead.to)) {
            rule.leads = Box::default();
        }
    }
}

/// The chains whose rules lead to, or towards, a rule that wants every packet.
pub fn leading(chains: &BTreeMap<String, Chain>) -> BTreeSet<String> {
    let wanted = on_the_way(chains);
    let leads = |chain: &Chain| chain.rules.iter().flat_map(Rule::leads_to).any(|to| wanted.contains(to));
    chains
        .iter()
        .filter(|(_, chain)| !wanted.is_empty() && leads(chain))
        .map(|(name, _)| name.clone())
        .collect()
}

/// The chains that have such a rule, and those that lead to them.
fn on_the_way(chains: &BTreeMap<String, Chain>) -> BTreeSet<String> {
    let matters = |rule: &Rule| rule.traits.as_ref().is_some_and(|traits| traits.may_want_packets());
    let has_some = chains.iter().filter(|(_, chain)| chain.rules.iter().any(matters));
    let mut to_do: Vec<&str> = has_some.map(|(name, _)| name.as_str()).collect();
    let mut wanted = BTreeSet::new();
    if to_do.is_empty() {
        return wanted;
    }
    let mut led_from: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, chain) in chains {
        for to in chain.rules.iter().flat_map(Rule::leads_to) {
            led_from.entry(to).or_default().insert(name);
        }
    }
    while let Some(chain) = to_do.pop() {
        let from = led_from.get(chain).into_iter().flatten();
        to_do.extend(from.copied().filter(|name| !wanted.contains(*name)));
        wanted.insert(chain.to_owned());
    }
    wanted
}

/// Goes through a table.
pub(super) struct Walk<'c> {
    chains: &'c BTreeMap<String, Chain>,
    /// Chains that packets see which rules have edited.
    edits_seen: bool,
    /// FIN and RST take the normal path.
    ends_leave: bool,
    /// Packets aren't routed yet.
    prerouting: bool,
    /// Whether all packets of established connections that reach the chain are accepted, or denied, in it.
    fates: BTreeMap<&'c str, bool>,
    /// Chains that packets reach from the base chain, each behind those that it leads to.
    done: Vec<&'c str>,
    /// Rules that lead from a chain to others: the rule's position, and where it leads.
    jumps: BTreeMap<&'c str, Vec<(usize, &'c str)>>,
    /// Rules with traits that packets reach from the base chain: by chain, their positions.
    reached: BTreeMap<&'c str, Vec<usize>>,
    /// What was found: by chain and position, on which ways.
    found: BTreeMap<(&'c str, usize), Vec<Way>>,
}

impl<'c> Walk<'c> {
    /// Through the chains of one table.
    pub(super) fn through(chains: &'c BTreeMap<String, Chain>, edits_seen: bool, ends_leave: bool) -> Self {
        Self {
            chains,
            edits_seen,
            ends_leave,
            prerouting: false,
            fates: BTreeMap::new(),
            done: Vec::new(),
            jumps: BTreeMap::new(),
            reached: BTreeMap::new(),
            found: BTreeMap::new(),
        }
    }

    /// Begins at a base chain. Each may reach the same chains another way.
    pub(super) fn from(&mut self, base: &'c str, view: View) {
        self.fates.clear();
        self.done.clear();
        self.jumps.clear();
        self.reached.clear();
        self.prerouting = view.prerouting;
        self.chain(base);
        let mut ways = self.ways(base);
        for (chain, positions) in std::mem::take(&mut self.reached) {
            let ways = ways.remove(chain).unwrap_or_else(Alternatives::everything);
            for position in positions {
                let found = self.found.entry((chain, position)).or_default();
                let others = ways.iter().map(|conditions| Way { view, conditions: conditions.clone() });
                found.extend(others);
            }
        }
    }

    /// Rules that packets reach, in order of chains and positions, with the ways to each.
    pub(super) fn found(mut self) -> BTreeMap<(&'c str, usize), Vec<Way>> {
        self.timeouts();
        self.found
    }

    /// Rules that give connections timeouts do so with the first packet, so that others than those which later packets reach
    /// count, too, and other ways.
    fn timeouts(&mut self) {
        for (name, chain) in self.chains {
            for (position, rule) in chain.rules.iter().enumerate() {
                if rule.traits.as_ref().is_some_and(|traits| traits.gives_timeout()) {
                    let found = self.found.entry((name, position)).or_default();
                    for way in &mut *found {
                        way.conditions = Conditions::default();
                    }
                    found.dedup();
                    if found.is_empty() {
                        found.push(Way { view: View::ANYWHERE, conditions: Conditions::default() });
                    }
                }
            }
        }
    }

    /// What packets have met when they reach each chain whose rules' conditions matter.
    fn ways(&self, base: &'c str) -> BTreeMap<&'c str, Alternatives> {
        let matters = |rule: &Rule| {
            rule.traits
                .as_ref()
                .is_some_and(|traits| traits.wants_packets() || self.edits_seen && traits.may_want_packets())
        };
        let mut wanted = BTreeSet::new();
        for &chain in &self.done {
            let rules = &self.chains[chain].rules;
            let has_some =
                || self.reached.get(chain).is_some_and(|found| found.iter().any(|at| matters(&rules[*at])));
            let leads_to_some =
                || self.jumps.get(chain).is_some_and(|to| to.iter().any(|(_, to)| wanted.contains(to)));
            if leads_to_some() || has_some() {
                wanted.insert(chain);
            }
        }
        let mut ways: BTreeMap<&str, Alternatives> = BTreeMap::new();
        ways.insert(base, Alternatives::everything());
        for &chain in self.done.iter().rev() {
            let (Some(here), Some(jumps)) = (ways.get(chain).cloned(), self.jumps.get(chain)) else {
                continue;
            };
            for &(position, to) in jumps.iter().filter(|(_, to)| wanted.contains(to)) {
                let there = ways.entry(to).or_default();
                let rule = &self.chains[chain].rules[position];
                for met in here.iter() {
                    let leads = rule.leads_to_by(to);
                    if leads.is_empty() {
                        there.add(met.clone());
                    }
                    for conditions in leads {
                        there.add(met.and(conditions));
                    }
                }
            }
        }
        ways
    }

    /// Goes through a chain; true if no such packet gets to its end.
    fn chain(&mut self, name: &'c str) -> bool {
        if let Some(known) = self.fates.get(name) {
            return *known;
        }
        self.fates.insert(name, false);
        let Some(chain) = self.chains.get(name) else { return false };
        let ends = self.rules(name, chain);
        self.fates.insert(name, ends);
        self.done.push(name);
        ends
    }

    fn rules(&mut self, name: &'c str, chain: &'c Chain) -> bool {
        for (position, rule) in chain.rules.iter().enumerate() {
            let Beside { always, prerouting, ends } = rule.beside;
            let beside = always || prerouting && self.prerouting || ends && self.ends_leave;
            if rule.established == Established::None || beside {
                continue;
            }
            if rule.traits.is_some() {
                self.reached.entry(name).or_default().push(position);
            }
            let all = rule.established == Established::All;
            for outcome in rule.outcome.each() {
                if let Outcome::Jump(to) | Outcome::Goto(to) = outcome {
                    self.jumps.entry(name).or_default().push((position, to));
                }
                let ends = match outcome {
                    Outcome::Continue | Outcome::Choose(_) => continue,
                    Outcome::Accept | Outcome::Deny => true,
                    Outcome::Return if all => return false,
                    Outcome::Return => continue,
                    Outcome::Jump(to) => self.chain(to),
                    Outcome::Goto(to) => {
                        let ends = self.chain(to);
                        if all {
                            return ends;
                        }
                        continue;
                    }
                };
                if all && ends {
                    return true;
                }
            }
        }
        false
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
