//! What the kernel should have: configuration and links in, table out.

use std::collections::BTreeMap;

use super::{
    expr::{CmpOp, CtKey, Expr, MetaKey},
    model::{DEVICE_SET, FLOWTABLE, IfIndex, IfName, Link},
    select::{Selection, Unmanaged},
};

/// Register that our rules use (`NFT_REG_1`).
const REG: u32 = 1;
/// Bit of `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`).
const CT_STATE_ESTABLISHED: u32 = 1 << 1;

/// The part of the configuration that decides what the table looks like.
#[derive(Clone, Debug)]
pub struct Policy {
    /// A flow is offloaded with the packet after this many, both directions counted; 0 offloads nothing.
    pub threshold: u32,
    /// Priority of the chain in the forward hook.
    pub chain_priority: i32,
    /// Priority of the flowtable in the ingress hook.
    pub flowtable_priority: i32,
    /// The flowtable counts (`NFT_FLOWTABLE_COUNTER`), so that conntrack's counters go on.
    pub counter: bool,
    /// The flowtable asks the devices to do it in hardware.
    pub hw_offload: bool,
    /// Which interfaces.
    pub selection: Selection,
}

/// The table as it should be; `None` if there should be none.
pub type Desired = Option<DesiredTable>;

/// What should stand in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTable {
    /// Priority of the flowtable.
    pub flowtable_priority: i32,
    /// See [`Policy::counter`].
    pub counter: bool,
    /// See [`Policy::hw_offload`].
    pub hw_offload: bool,
    /// Priority of the chain.
    pub chain_priority: i32,
    /// Devices of the flowtable; the indices are the elements of the set.
    pub devices: BTreeMap<IfIndex, IfName>,
    /// Our rules in order.
    pub rules: Vec<Vec<Expr>>,
}

/// Computes the table for `links`. `refused` are interfaces whose hook the kernel refused.
pub fn desired<'a>(
    policy: &Policy,
    links: impl IntoIterator<Item = &'a Link>,
    refused: &BTreeMap<IfIndex, String>,
) -> Desired {
    if policy.threshold == 0 {
        return None;
    }
    let devices = links
        .into_iter()
        .filter(|link| reject(policy, link, refused).is_none())
        .map(|link| (link.index, link.name.clone()))
        .collect();
    Some(DesiredTable {
        flowtable_priority: policy.flowtable_priority,
        counter: policy.counter,
        hw_offload: policy.hw_offload,
        chain_priority: policy.chain_priority,
        devices,
        rules: vec![offload_rule(policy.threshold)],
    })
}

/// Why `link` isn't in the flowtable; `None` if it should be.
pub fn reject(policy: &Policy, link: &Link, refused: &BTreeMap<IfIndex, String>) -> Option<Unmanaged> {
    policy
        .selection
        .reject(link)
        .or_else(|| refused.get(&link.index).map(|error| Unmanaged::Refused { error: error.clone() }))
}

/// `ct packets > N ct state established iif @set oif @set flow add @flowtable counter`.
///
/// The comparison of packets comes first since most packets of short flows end there. It counts both directions.
/// The counter stands last: `flow add` stops the rule when the flow can't be offloaded, so it counts offloads.
pub fn offload_rule(threshold: u32) -> Vec<Expr> {
    let packets = u64::from(threshold);
    vec![
        Expr::Ct { key: CtKey::Packets, dreg: REG },
        // Greater-than compares bytes in order, so the value has to be big-endian first.
        Expr::HostToNet { reg: REG, size: 8, len: 8 },
        Expr::Cmp { sreg: REG, op: CmpOp::Gt, data: packets.to_be_bytes().to_vec() },
        Expr::Ct { key: CtKey::State, dreg: REG },
        Expr::Bitwise { reg: REG, mask: CT_STATE_ESTABLISHED.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { sreg: REG, op: CmpOp::Neq, data: vec![0; 4] },
        Expr::Meta { key: MetaKey::InIfIndex, dreg: REG },
        Expr::Lookup { set: DEVICE_SET.to_owned(), sreg: REG },
        Expr::Meta { key: MetaKey::OutIfIndex, dreg: REG },
        Expr::Lookup { set: DEVICE_SET.to_owned(), sreg: REG },
        Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() },
        Expr::Counter,
    ]
}

/// The threshold that a rule made by [`offload_rule`] holds; `None` for any other rule.
pub fn threshold_of(exprs: &[Expr]) -> Option<u32> {
    let [Expr::Ct { key: CtKey::Packets, .. }, Expr::HostToNet { .. }, Expr::Cmp { data, .. }, ..] = exprs
    else {
        return None;
    };
    let packets = u64::from_be_bytes(data.as_slice().try_into().ok()?);
    let threshold = u32::try_from(packets).ok()?;
    (offload_rule(threshold) == exprs).then_some(threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_tells_its_threshold() {
        for n in [1, 6, 20, u32::MAX] {
            assert_eq!(threshold_of(&offload_rule(n)), Some(n));
        }
        assert_eq!(threshold_of(&[Expr::Counter]), None);
        let mut changed = offload_rule(20);
        changed.pop();
        assert_eq!(threshold_of(&changed), None);
    }
}
