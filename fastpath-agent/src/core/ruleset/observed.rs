//! What the kernel has under our table's name.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    chain::OwnChain,
    conditions::Conditions,
    expr::Expr,
    rule::Rule,
    sets::{OwnSet, SetShape},
};

use crate::core::{
    model::{Counter, FLOWTABLE, IfIndex, IfName},
    ruleset::sets::Keys,
};

/// Generation of the ruleset (`NFTA_GEN_ID`): goes up by one with every committed transaction, wraps past 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation after one more commit (the kernel skips 0).
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).unwrap_or(1))
    }

    /// Whether this one is newer than `other`; generations wrap.
    pub fn is_after(self, other: Self) -> bool {
        self != other && self.0.wrapping_sub(other.0) < u32::MAX / 2
    }
}

/// The table of our name, or that there is none, at one generation of the ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// When this was true.
    pub generation: Generation,
    /// The table, if there is one.
    pub table: Option<ObservedTable>,
}

/// A table of our name, the agent's or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTable {
    /// Who made it.
    pub owner: Owner,
    /// Any flowtables in it.
    pub flowtables: Vec<ObservedFlowtable>,
    /// Any chains in it.
    pub chains: Vec<ObservedChain>,
    /// Any sets in it; anonymous sets are left out.
    pub sets: Vec<ObservedSet>,
}

/// Which program made a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// It carries our marker in its user data (beside the comment; `nft` doesn't print it).
    #[serde(rename = "ours")]
    Agent,
    /// It doesn't.
    Foreign,
}

/// A flowtable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedFlowtable {
    /// Its name.
    pub name: String,
    /// Priority of its ingress hook.
    pub priority: i32,
    /// `NFT_FLOWTABLE_COUNTER`.
    pub counter: bool,
    /// `NFT_FLOWTABLE_HW_OFFLOAD`.
    pub hw_offload: bool,
    /// Names of its devices; `None` where the kernel couldn't tell, since they don't fit one netlink message
    /// (about 1,600 devices). Then priority and flags are unknown too, and 0 and false here.
    pub devices: Option<BTreeSet<IfName>>,
}

/// A chain with its rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedChain {
    /// Its name.
    pub name: String,
    /// Where it is hooked; `None` for a chain that is only jumped to.
    pub hook: Option<ChainHook>,
    /// Its rules in order.
    pub rules: Vec<ObservedRule>,
}

/// Place of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHook {
    /// "filter", "nat" or "route".
    pub kind: String,
    /// Number of the hook (enum nf_inet_hooks; forward is 2).
    pub hook: u32,
    /// Priority in the hook.
    pub priority: i32,
    /// Policy: accept (or drop).
    pub accept: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRule {
    /// The kernel's handle.
    pub handle: u64,
    /// It carries our marker in its user data.
    pub owner: Owner,
    /// Its instructions in order.
    pub exprs: Vec<Expr>,
    /// Value of its counter, if it has one.
    pub counter: Option<Counter>,
}

/// A set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its name.
    pub name: String,
    /// The kernel's handle.
    pub handle: u64,
    /// How it was made.
    pub shape: SetShape,
    /// Elements of [`OwnSet::Devices`]; empty for any other set.
    pub elements: BTreeSet<IfIndex>,
    /// Keys of a set with keys, in order; empty for any other set.
    pub keys: Keys,
}

impl ObservedTable {
    /// The agent's, empty.
    pub fn empty() -> Self {
        Self { owner: Owner::Agent, flowtables: Vec::new(), chains: Vec::new(), sets: Vec::new() }
    }

    /// One of our chains, by its name.
    pub fn chain(&self, chain: OwnChain) -> Option<&ObservedChain> {
        self.chains.iter().find(|observed| observed.name == chain.name())
    }

    /// Our rules in a chain, those that are recognised.
    fn rules_of(&self, chain: OwnChain) -> impl Iterator<Item = (&ObservedRule, Rule)> {
        let rules = self.chain(chain).into_iter().flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| Some((rule, Rule::recognise(&rule.exprs)?)))
    }

    /// The set of this kind, by its name.
    pub fn set(&self, set: OwnSet) -> Option<&ObservedSet> {
        self.sets.iter().find(|observed| observed.name == set.name())
    }

    /// Packets of both directions after which flows are offloaded; `None` without our rule.
    pub fn threshold(&self) -> Option<u32> {
        self.rules_of(OwnChain::Base).find_map(|(_, rule)| match rule {
            Rule::Threshold { threshold, .. } => Some(threshold),
            _ => None,
        })
    }

    /// Conditions of flows that are left out, since a rule of another program wants every packet.
    pub fn left_out(&self) -> impl Iterator<Item = Conditions> {
        let rules = self.chain(OwnChain::Offload).into_iter().flat_map(|chain| &chain.rules);
        rules.filter_map(|rule| conditions_of(&rule.exprs))
    }

    /// Whether packets of offloaded flows that are still on the forward path are metered.
    pub fn metered(&self) -> bool {
        self.set(OwnSet::SlowPath).is_some()
            && self.rules_of(OwnChain::Offload).any(|(_, rule)| rule == Rule::MeterOffloaded)
    }

    /// The counter of offloads: packets that moved their flow to the flowtable.
    pub fn offloads(&self) -> Option<Counter> {
        self.offloads_of(|_| true)
    }

    /// The same of some chains, by their names.
    pub(super) fn offloads_of(&self, which: impl Fn(&str) -> bool) -> Option<Counter> {
        let rules = self.chains.iter().filter(|chain| which(&chain.name)).flat_map(|chain| &chain.rules);
        let offloads =
            rules.filter(|rule| rule.exprs.iter().any(|expr| matches!(expr, Expr::FlowAdd { .. })));
        offloads.filter_map(|rule| rule.counter).reduce(|sum, counter| Counter {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        })
    }

    /// Packets that left no trace, since its set was full; `None` without the rules that leave them.
    pub fn untraced(&self) -> Option<u64> {
        let chains = [OwnChain::Original, OwnChain::Reply, OwnChain::Trace];
        let counters = chains.into_iter().filter_map(|chain| self.untraced_of(chain));
        counters.map(|counter| counter.packets).reduce(u64::saturating_add)
    }

    /// The same of one chain.
    pub(super) fn untraced_of(&self, chain: OwnChain) -> Option<Counter> {
        // A table that `render` printed carries no markers, nor do its rules.
        let untraced =
            |(rule, kind): &(&ObservedRule, Rule)| rule.owner == self.owner && *kind == Rule::Untraced;
        self.rules_of(chain).find(untraced)?.0.counter
    }

    /// A table that an agent or `render` made, however it was loaded: it has our chains behind the base chain and our set of interfaces, and nothing
    /// that we wouldn't make. Other programs that use the name have neither.
    pub fn is_rendering(&self) -> bool {
        let goes_on = |rule: &ObservedRule| matches!(rule.exprs.last(), Some(Expr::Goto { chain }) if *chain == OwnChain::Offload.name());
        let base = self.chain(OwnChain::Base);
        base.is_some_and(|base| !base.rules.is_empty() && base.rules.iter().all(goes_on))
            && self.chain(OwnChain::Offload).is_some()
            && self.set(OwnSet::Devices).is_some()
            && self.chains.iter().all(|chain| OwnChain::named(&chain.name).is_some())
            && self.sets.iter().all(|set| OwnSet::named(&set.name).is_some())
            && self.flowtables.iter().all(|flowtable| flowtable.name == FLOWTABLE)
    }

    /// Indices of the managed interfaces.
    pub fn managed(&self) -> Option<&BTreeSet<IfIndex>> {
        Some(&self.set(OwnSet::Devices)?.elements)
    }
}

/// Conditions of a rule that is nothing but conditions and `return`. A guard against a policy rule may look the same.
pub(super) fn conditions_of(exprs: &[Expr]) -> Option<Conditions> {
    let (Expr::Return, conditions) = exprs.split_last()? else { return None };
    Conditions::recognise(conditions)
}
