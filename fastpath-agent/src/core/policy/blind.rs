//! Chains that offloaded packets pass behind the flowtable and that ask for the connection. Such packets come there without one, and
//! `ct state` calls them invalid (`nft_ct_get_eval`, net/netfilter/nft_ct.c): a chain that drops invalid packets would drop them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    concern::{Class, Concern, family_name},
    moments::When,
    others::{Others, is_behind_flowtable},
    rule::Rule,
    traits::{CONNECTION, Cause},
    walk::{View, Way},
};

use crate::core::policy::{chain::Chain, outcome::Outcome};

impl Others {
    /// For each such chain that can drop packets, the first rule that asks: no flow can be offloaded.
    pub(super) fn blind_chains(&self) -> impl Iterator<Item = Concern> {
        self.0.iter().flat_map(|((family, table), chains)| {
            let behind = move |chain: &Chain| {
                chain.base.as_ref().is_some_and(|base| is_behind_flowtable(*family, base))
            };
            let bases = chains.iter().filter(move |(_, chain)| behind(chain));
            bases.filter_map(move |(name, _)| {
                let (chain, rule) = asking(chains, name)?;
                let view = View { as_ours: true, ..View::default() };
                Some(Concern {
                    family: family_name(*family),
                    table: table.clone(),
                    chain: chain.to_owned(),
                    handle: rule.handle,
                    comment: None,
                    class: Class::EveryPacket,
                    cause: Cause { word: CONNECTION, detail: "".into() },
                    when: When::default(),
                    ways: vec![Way { view, ..Way::default() }],
                    ignored: false,
                })
            })
        })
    }
}

/// The first rule that asks for the connection, in this base chain or one that it leads to, if one of them may drop packets.
/// What rules say of the connection's state doesn't matter: it isn't what they see.
fn asking<'c>(chains: &'c BTreeMap<String, Chain>, base: &'c str) -> Option<(&'c str, &'c Rule)> {
    let mut reached = BTreeSet::from([base]);
    let mut to_do = vec![base];
    let mut asks = None;
    let mut drops = chains.get(base)?.base.as_ref().is_some_and(|base| !base.accepts);
    while let Some(name) = to_do.pop() {
        for rule in chains.get(name).into_iter().flat_map(|chain| &chain.rules) {
            if rule.asks_connection && asks.is_none() {
                asks = Some((name, rule));
            }
            for outcome in rule.outcome.each() {
                match outcome {
                    Outcome::Deny | Outcome::Choose(_) => drops = true,
                    Outcome::Jump(to) | Outcome::Goto(to) if reached.insert(to) => to_do.push(to),
                    _ => {}
                }
            }
        }
    }
    asks.filter(|_| drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::{
        chain::Base,
        expr::{Expr, Verdict},
    };

    const NETDEV: u8 = 5;
    const BRIDGE: u8 = 7;

    fn others(family: u8, hook: u32, accepts: bool, rules: &[&[Expr<'_>]]) -> Others {
        let base = Base { kind: "filter".to_owned(), hook, priority: 0, accepts, devices: Vec::new() };
        let rules = (1..).zip(rules).map(|(handle, exprs)| Rule::new(family, handle, exprs.iter().copied()));
        let chain = Chain { base: Some(base), rules: rules.collect(), ..Chain::default() };
        let mut others = Others::default();
        others.0.entry((family, "edge".to_owned())).or_default().insert("out".to_owned(), chain);
        others
    }

    const INVALID: [Expr<'_>; 3] = [
        Expr::Ct { key: 0, register: 1 },
        Expr::Mask { source: 1, destination: 1, mask: 1 },
        Expr::Compare { register: 1, equal: false, value: 0 },
    ];

    #[test]
    fn chains_behind_the_flowtable_that_drop_by_the_connection_leave_all_flows_out() {
        let dropped = [&INVALID[..], &[Expr::Verdict(Verdict::Drop)]].concat();
        let counted = [&INVALID[..], &[Expr::Other { name: "counter" }]].concat();
        let by_header = [Expr::Verdict(Verdict::Drop)];
        for (family, hook, accepts, rules, blind) in [
            (BRIDGE, 4, true, &[&dropped[..]][..], true),
            (BRIDGE, 3, true, &[&dropped], true),
            (NETDEV, 1, true, &[&dropped], true),
            (NETDEV, 1, false, &[&counted], true),
            (NETDEV, 1, true, &[&counted, &by_header], true),
            (NETDEV, 1, true, &[&counted], false),
            (NETDEV, 1, true, &[&by_header], false),
            (NETDEV, 0, true, &[&dropped], false),
            (BRIDGE, 1, true, &[&dropped], false),
        ] {
            let concerns = others(family, hook, accepts, rules).concerns(true, false);
            let found = concerns.iter().filter(|concern| concern.leaves_everything_out()).count();
            assert_eq!(found, usize::from(blind), "{family} {hook} {accepts} {rules:?}: {concerns:?}");
        }
    }
}
