//! Rules that are understood only with what is in a set or a map: `ct state { … }`, and verdicts that a map says.

use std::collections::BTreeMap;

use super::{
    copy::Looked,
    expr::Verdict,
    moments::{self, Read},
};

use crate::core::{
    policy::outcome::{ESTABLISHED, Established, Lead, Outcome, outcome},
    ruleset::{
        alternatives::MOST,
        conditions::Conditions,
        expr::{CmpOp, Expr},
    },
};

/// What a rule looks up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// The connection's state, in this set; whether packets go on if it isn't there.
    pub(super) state: Option<(Box<str>, bool)>,
    /// The verdict, in this map; whether by the connection's state.
    pub(super) verdict: Option<(Box<str>, bool)>,
    /// The clock, in this set.
    pub(super) clock: Option<(Box<str>, Read)>,
    /// A set of the rule's own, which says which packets match.
    pub(super) own: Option<Looked>,
    /// Which packets match if the state is as asked.
    pub(super) established: Option<Established>,
    /// What packets that reach the map meet, and what fills the register with its key, if that can be copied.
    pub(super) lead: (Conditions, Option<Vec<Expr>>),
}

/// What is in a set or a map, as far as that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    /// What it says of established connections, if it were asked for the state.
    established: Option<Outcome>,
    /// What it says of all keys that it doesn't have.
    otherwise: Option<Outcome>,
    /// All verdicts, each once.
    pub(super) verdicts: Vec<Outcome>,
    /// The keys that lead to a chain, no more than are told apart and one.
    keys: BTreeMap<Box<str>, Vec<Box<[u8]>>>,
    /// They are beginnings and ends of intervals.
    intervals: bool,
    /// All keys, as long as they aren't more than are followed by the clock, and whether each is the end of an interval.
    pub(super) all: Option<Vec<(Box<[u8]>, bool)>>,
}

impl Lookups {
    /// False if another set is asked already.
    pub(super) fn asks_for_state(&mut self, set: &str, inverted: bool) -> bool {
        let first = self.state.is_none();
        self.state.get_or_insert_with(|| (set.into(), inverted));
        first
    }

    pub(super) fn asks_for_verdict(&mut self, map: &str, by_state: bool) {
        self.verdict = Some((map.into(), by_state));
    }

    pub(super) fn lead_by(&mut self, conditions: Conditions, key: Option<Vec<Expr>>) {
        self.lead = (conditions, key);
    }

    pub(super) fn asks_by_clock(&mut self, set: Option<(Box<str>, Read)>) {
        self.clock = set;
    }

    pub(super) fn asks_own_set(&mut self, set: Option<Looked>) {
        self.own = set;
    }

    pub(super) fn asks_a_map(&self) -> bool {
        self.verdict.is_some()
    }

    /// Nothing if nothing is looked up. Until it is known, some packets match.
    pub(super) fn boxed(mut self, established: &mut Established) -> Option<Box<Self>> {
        let any =
            self.state.is_some() || self.verdict.is_some() || self.clock.is_some() || self.own.is_some();
        if !any || *established == Established::None {
            return None;
        }
        self.established = Some(std::mem::replace(established, Established::Some));
        Some(Box::new(self))
    }

    /// Names of the sets and maps. True: it only says which flows the rule leaves out; without it they are more.
    pub fn names(&self) -> impl Iterator<Item = (&str, bool)> {
        let of_clock = self.clock.iter().map(|(name, _)| (&**name, false));
        let own = self.own.iter().map(|looked| (&*looked.set, true));
        self.state.iter().chain(&self.verdict).map(|(name, _)| (&**name, false)).chain(of_clock).chain(own)
    }

    /// The map that says where packets go, and may say something else at any time.
    pub(super) fn map(&self) -> Option<&str> {
        self.verdict.as_ref().map(|(map, _)| &**map)
    }
}

impl Elements {
    /// Of a set or map, whose elements may be beginnings and ends of `intervals`.
    pub fn new(intervals: bool) -> Self {
        Self { intervals, all: Some(Vec::new()), ..Self::default() }
    }

    /// Takes note of an element. A key of no bytes means all other keys; `ends` an interval before its key.
    pub fn add(&mut self, key: &[u8], verdict: Option<Verdict<'_>>, ends: bool) {
        let said = verdict.map_or(Outcome::Continue, outcome);
        if let Some(all) = &mut self.all {
            all.push((key.into(), ends));
        }
        self.all.take_if(|all| all.len() > moments::MOST);
        if key.is_empty() {
            self.otherwise = Some(said.clone());
        } else if *key == ESTABLISHED.to_ne_bytes() {
            self.established = Some(said.clone());
        }
        if let Outcome::Jump(chain) | Outcome::Goto(chain) = &said {
            let keys = self.keys.entry(chain.clone()).or_default();
            if keys.len() <= MOST {
                keys.push(key.into());
            }
        }
        if !self.verdicts.contains(&said) {
            self.verdicts.push(said);
        }
    }

    /// The chains that it sends packets to which reach it as `lead` says.
    pub(super) fn leads(&self, (conditions, load): &(Conditions, Option<Vec<Expr>>)) -> Box<[Lead]> {
        let mut leads = Vec::new();
        for (to, keys) in &self.keys {
            let lead = |more: Option<Conditions>| Lead {
                to: to.clone(),
                conditions: more.map_or_else(|| conditions.clone(), |more| conditions.and(&more)),
            };
            let by_key = |key: &[u8]| {
                let load = load.as_deref().filter(|_| !self.intervals)?;
                let fits = !matches!(load[0], Expr::Payload { len, .. } if len as usize != key.len());
                let compare = |reg| Expr::Cmp { sreg: reg, op: CmpOp::Eq, data: key.to_vec() };
                let group = |reg| Conditions([load, &[compare(reg)]].concat());
                register(&load[0]).filter(|_| fits && !key.is_empty()).map(group)
            };
            let by_keys: Option<Vec<Conditions>> = keys.iter().map(|key| by_key(key)).collect();
            match by_keys.filter(|keys| keys.len() <= MOST) {
                Some(keys) => leads.extend(keys.into_iter().map(|key| lead(Some(key)))),
                None => leads.push(lead(None)),
            }
        }
        leads.into()
    }

    /// What packets meet whose key is in the set: one of these. `None` if that can't be said in a few words.
    pub(super) fn one_of(&self, load: &[Expr]) -> Option<Vec<Conditions>> {
        let all = self.all.as_ref().filter(|all| !all.is_empty())?;
        let first = load.first()?;
        let register = register(first)?;
        let cmp = |op, key: &[u8]| Expr::Cmp { sreg: register, op, data: key.to_vec() };
        // Only what is in network byte order can be compared as intervals are.
        let fits = |key: &[u8]| match first {
            Expr::Payload { len, .. } => *len as usize == key.len(),
            _ => !self.intervals && !key.is_empty(),
        };
        if !all.iter().all(|(key, _)| fits(key)) {
            return None;
        }
        let mut sorted: Vec<_> = all.iter().map(|(key, ends)| (&**key, !ends)).collect();
        sorted.sort_unstable();
        let mut one_of = Vec::new();
        // An end without a beginning is that of what is before all intervals.
        for (at, (key, _)) in sorted.iter().enumerate().filter(|(_, (_, begins))| *begins) {
            let end = sorted.get(at + 1).filter(|(_, begins)| !begins);
            let compare = match end {
                _ if !self.intervals => vec![cmp(CmpOp::Eq, key)],
                Some((end, _)) => vec![cmp(CmpOp::Gte, key), cmp(CmpOp::Lt, end)],
                None => vec![cmp(CmpOp::Gte, key)],
            };
            one_of.push(Conditions([load, &compare].concat()));
        }
        Some(one_of).filter(|one_of| (1..=MOST).contains(&one_of.len()))
    }

    pub(super) fn of_established(&self) -> Option<&Outcome> {
        self.established.as_ref().or(self.otherwise.as_ref())
    }
}

/// The register that it fills.
fn register(load: &Expr) -> Option<u32> {
    match load {
        Expr::Meta { dreg, .. } | Expr::Payload { dreg, .. } | Expr::Ct { dreg, .. } => Some(*dreg),
        _ => None,
    }
}

#[cfg(test)]
#[path = "lookups_tests.rs"]
mod tests;
