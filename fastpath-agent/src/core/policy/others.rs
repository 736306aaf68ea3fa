//! Other programs' tables, chains and rules, as much of them as is kept, and what of it our ruleset respects.

use std::collections::{BTreeMap, BTreeSet};

use super::deny;
use crate::core::{
    model::TABLE,
    policy::chain::{Base, Chain, Device, SetKey, TableKey},
    revalidate::{Notice, Subject},
};

// Families and hooks, include/uapi/linux/netfilter.h.
const INET: u8 = 1;
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;
pub(super) const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
pub(super) const POSTROUTING: u32 = 4;
/// Filter chains in the forward hook that come before this count whatever their rules deny: nearly all are there, and our
/// chain is behind them anyway (`--chain-priority`, by default).
const LATE: i32 = 300;
/// `NF_IP_PRI_CONNTRACK`: from here on a packet has its connection.
const CONNTRACK: i32 = -200;
/// Hooks that forwarded packets pass and offloaded ones don't.
const PASSED: [u32; 3] = [PREROUTING, FORWARD, POSTROUTING];
const NETDEV_INGRESS: u32 = 0;
const NETDEV_EGRESS: u32 = 1;
const INET_INGRESS: u32 = 5;
/// `NF_BR_LOCAL_OUT` and `NF_BR_POST_ROUTING` (include/uapi/linux/netfilter_bridge.h).
const BRIDGE_OUTPUT: u32 = 3;
const BRIDGE_POSTROUTING: u32 = 4;

/// All tables but the agent's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others(pub BTreeMap<TableKey, BTreeMap<String, Chain>>);

impl Others {
    /// Whether the table of this family and name is the one that we own.
    pub fn is_ours(family: u8, table: &str) -> bool {
        (family, table) == (INET, TABLE)
    }

    /// Whether a notice may be about a chain at a single interface.
    pub fn may_be_at_interface(notice: &Notice<'_>) -> bool {
        match (notice.family, &notice.subject) {
            (NETDEV, _) => true,
            (INET, Subject::Chain { hook: Some(hook), .. }) => hook.number == INET_INGRESS,
            _ => false,
        }
    }

    /// Highest priority of a filter chain in the forward hook, late ones only if they can deny a packet of an established
    /// connection.
    pub fn last_forward(&self) -> Option<i32> {
        let counts = |found: &Found<'_>| found.base.priority < LATE || found.can_deny();
        self.filters(FORWARD).filter(counts).map(|found| found.base.priority).max()
    }

    /// Highest priority of a filter chain in the postrouting hook that can deny a packet of an established connection.
    pub fn denying_postrouting(&self) -> Option<i32> {
        self.filters(POSTROUTING).filter(Found::can_deny).map(|found| found.base.priority).max()
    }

    /// Whether some rule can deny a packet of an established connection in a hook that offloaded packets skip, bridges' among
    /// them.
    pub fn can_deny(&self) -> bool {
        let of_bridge = |(table, chains): (&TableKey, &BTreeMap<String, Chain>)| {
            let mut bases = chains.iter().filter_map(|(name, chain)| Some((name, chain.base.as_ref()?)));
            table.0 == BRIDGE && bases.any(|(name, base)| Found { chains, name, base }.can_deny())
        };
        PASSED.into_iter().flat_map(|hook| self.filters(hook)).any(|found| found.can_deny())
            || self.0.iter().any(of_bridge)
    }

    /// Whether the kernel translates addresses of packets of this IP family: as long as there is a chain of type nat, whatever its
    /// rules are (`nf_nat_register_fn` in net/netfilter/nf_nat_core.c).
    pub fn translates(&self, ipv6: bool) -> bool {
        let own = if ipv6 { IPV6 } else { IPV4 };
        let concerned = self.0.iter().filter(|((family, _), _)| [INET, own].contains(family));
        let mut chains = concerned.flat_map(|(_, chains)| chains.values());
        chains.any(|chain| chain.base.as_ref().is_some_and(|base| base.kind == "nat"))
    }

    /// Tables whose rules have to be read: forwarded packets pass them, and offloaded ones don't, or see another packet.
    pub fn to_read(&self) -> BTreeSet<TableKey> {
        self.0.keys().filter(|table| self.is_to_read(table)).cloned().collect()
    }

    /// Whether that is one of them.
    pub fn is_to_read(&self, table: &TableKey) -> bool {
        self.0.get(table).into_iter().flat_map(BTreeMap::values).any(|chain| Self::is_read(table.0, chain))
    }

    /// Whether the rules of a chain have to be read, and of those that they lead to.
    pub fn is_read(family: u8, chain: &Chain) -> bool {
        chain.sees_first
            || Self::counts(family, chain)
            || chain.base.as_ref().is_some_and(|base| sees_offloaded(family, base))
    }

    /// Sets whose elements run out, and on which the verdicts of rules hang.
    pub fn expiring(&self) -> impl Iterator<Item = SetKey> + '_ {
        self.0.iter().flat_map(|(table, chains)| {
            chains.values().flat_map(|chain| &chain.expiring).map(|set| (table.clone(), set.clone()))
        })
    }

    /// Whether it matters what the rules of a chain do, and of those that they lead to.
    pub fn counts(family: u8, chain: &Chain) -> bool {
        chain.base.as_ref().is_some_and(|base| PASSED.into_iter().any(|hook| is_filter(family, base, hook)))
    }

    /// Devices with a chain at ingress.
    pub fn ingress(&self) -> BTreeSet<Device> {
        let mut devices = BTreeSet::new();
        for ((family, _), chains) in &self.0 {
            for base in chains.values().filter_map(|chain| chain.base.as_ref()) {
                if matches!((*family, base.hook), (NETDEV, NETDEV_INGRESS) | (INET, INET_INGRESS)) {
                    devices.extend(base.devices.iter().cloned());
                }
            }
        }
        devices
    }

    /// Devices with a chain at egress.
    pub fn egress(&self) -> BTreeSet<Device> {
        let of_table = |((family, _), chains): (&TableKey, &BTreeMap<String, Chain>)| {
            let is_at_egress = |base: &&Base| *family == NETDEV && base.hook == NETDEV_EGRESS;
            let bases = chains.values().filter_map(|chain| chain.base.as_ref()).filter(is_at_egress);
            bases.flat_map(|base| base.devices.iter().cloned()).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of_table).collect()
    }

    /// Whether chains that offloaded packets pass behind the flowtable ask for what rules in skipped hooks can edit: they see such
    /// packets without.
    pub fn see_edits(&self) -> bool {
        self.0.iter().any(|((family, _), chains)| {
            let sees = |chain: &Chain| chain.base.as_ref().is_some_and(|base| sees_offloaded(*family, base));
            chains.values().any(sees)
                && chains.values().flat_map(|chain| &chain.rules).any(|rule| rule.asks_edits)
        })
    }

    fn filters(&self, hook: u32) -> impl Iterator<Item = Found<'_>> {
        self.0.iter().flat_map(move |(table, chains)| {
            chains.iter().filter_map(move |(name, chain)| {
                let base = chain.base.as_ref().filter(|base| is_filter(table.0, base, hook))?;
                Some(Found { chains, name, base })
            })
        })
    }
}

/// A base chain and its table.
struct Found<'o> {
    chains: &'o BTreeMap<String, Chain>,
    name: &'o str,
    base: &'o Base,
}

impl Found<'_> {
    fn can_deny(&self) -> bool {
        let early = self.base.hook == PREROUTING && self.base.priority <= CONNTRACK;
        deny::can_deny(self.chains, self.name, early)
    }
}

/// Whether offloaded packets pass a chain there, behind the flowtable.
fn sees_offloaded(family: u8, base: &Base) -> bool {
    family == BRIDGE || family == NETDEV && base.hook == NETDEV_EGRESS
}

/// Whether packets that leave pass a chain there: offloaded ones reach it without their connection.
pub(super) fn is_behind_flowtable(family: u8, base: &Base) -> bool {
    match family {
        BRIDGE => matches!(base.hook, BRIDGE_OUTPUT | BRIDGE_POSTROUTING),
        _ => sees_offloaded(family, base),
    }
}

/// Chains of type nat see a connection's first packet only, those of type route what this node sends itself.
fn is_filter(family: u8, base: &Base, hook: u32) -> bool {
    matches!(family, INET | IPV4 | IPV6)
        && base.hook == hook
        && !matches!(base.kind.as_str(), "nat" | "route")
}

#[cfg(test)]
#[path = "others_tests.rs"]
mod tests;
