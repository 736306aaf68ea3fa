//! The rules of our chains: what each says in nft's words and in the kernel's instructions.

use std::fmt;

use super::{
    expr::{CmpOp, CtKey, Expr, MetaKey, RtKey},
    model::{FLOWTABLE, OFFLOAD_CHAIN},
    sets::OwnSet,
};

/// Register that our rules use (`NFT_REG_1`).
const REG: u32 = 1;
/// Value of `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`); a packet has one state.
const CT_STATE_ESTABLISHED: u32 = 1 << 1;

/// A rule of our chains. Printed as `nft` writes it.
///
/// The first two stand in the base chain, so that packets of short flows end at one comparison; all others in the
/// chain behind it, in the order in which they are listed here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Takes up connections that the agent has listed. Only those that are older than the first rule with `ct packets`
    /// have no packet counters: any other flow ends at the comparison with 0, also one that got the conntrack id of a
    /// listed one.
    Assist,
    /// Takes up flows that have had more than `threshold` packets, both directions counted.
    Threshold {
        /// Packets of both directions.
        threshold: u32,
    },
    /// One-way and half-open flows stay on the normal path.
    OnlyEstablished,
    /// Flows to an IPsec policy stay on the normal path, where the policy is enforced; the flowtable doesn't ask it.
    /// Only kernels built with IPsec (`CONFIG_XFRM`) know the question, and only they need it.
    SpareIpsec,
    /// Packets that come in elsewhere than on a managed interface stay on the normal path.
    OnlyManagedInput,
    /// So do those that leave elsewhere.
    OnlyManagedOutput,
    /// Offloads the flow. `flow add` ends the rule where the flow can't be offloaded or is already, so the counter
    /// counts offloads, and what comes after sees the other packets only.
    Offload,
    /// Counts packets that are here all the same, flow by flow.
    Meter,
}

impl Rule {
    /// The kernel's instructions.
    pub fn exprs(&self) -> Vec<Expr> {
        let packets = Expr::Ct { key: CtKey::Packets, dreg: REG };
        let id = Expr::Ct { key: CtKey::Id, dreg: REG };
        let cmp = |op, data: &[u8]| Expr::Cmp { sreg: REG, op, data: data.to_vec() };
        let goto = Expr::Goto { chain: OFFLOAD_CHAIN.to_owned() };
        let lookup = |set: OwnSet, inverted| Expr::Lookup { set: set.name().to_owned(), sreg: REG, inverted };
        match self {
            Self::Assist => {
                vec![packets, cmp(CmpOp::Eq, &[0; 8]), id, lookup(OwnSet::Assist, false), goto]
            }
            Self::Threshold { threshold } => vec![
                packets,
                // Greater-than compares bytes in order, so the value has to be big-endian first.
                Expr::HostToNet { reg: REG, size: 8, len: 8 },
                cmp(CmpOp::Gt, &u64::from(*threshold).to_be_bytes()),
                goto,
            ],
            Self::OnlyEstablished => vec![
                Expr::Ct { key: CtKey::State, dreg: REG },
                cmp(CmpOp::Neq, &CT_STATE_ESTABLISHED.to_ne_bytes()),
                Expr::Return,
            ],
            Self::SpareIpsec => {
                vec![Expr::Rt { key: RtKey::Ipsec, dreg: REG }, cmp(CmpOp::Eq, &[1]), Expr::Return]
            }
            Self::OnlyManagedInput => vec![
                Expr::Meta { key: MetaKey::InIfIndex, dreg: REG },
                lookup(OwnSet::Devices, true),
                Expr::Return,
            ],
            Self::OnlyManagedOutput => vec![
                Expr::Meta { key: MetaKey::OutIfIndex, dreg: REG },
                lookup(OwnSet::Devices, true),
                Expr::Return,
            ],
            Self::Offload => {
                vec![Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() }, Expr::Counter, Expr::Return]
            }
            Self::Meter => {
                vec![id, Expr::UpdateCounter { set: OwnSet::SlowPath.name().to_owned(), sreg: REG }]
            }
        }
    }

    /// The rule that these instructions are; `None` for any that we wouldn't write.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let threshold = match exprs {
            [_, Expr::HostToNet { .. }, Expr::Cmp { data, .. }, ..] => {
                let packets = u64::from_be_bytes(data.as_slice().try_into().ok()?);
                Some(Self::Threshold { threshold: u32::try_from(packets).ok()? })
            }
            _ => None,
        };
        [
            Self::Assist,
            Self::OnlyEstablished,
            Self::SpareIpsec,
            Self::OnlyManagedInput,
            Self::OnlyManagedOutput,
            Self::Offload,
            Self::Meter,
        ]
        .into_iter()
        .chain(threshold)
        .find(|rule| rule.exprs() == exprs)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (devices, slow_path) = (OwnSet::Devices, OwnSet::SlowPath);
        match self {
            Self::Assist => write!(f, "ct packets 0 ct id @{} goto {OFFLOAD_CHAIN}", OwnSet::Assist),
            Self::Threshold { threshold } => write!(f, "ct packets > {threshold} goto {OFFLOAD_CHAIN}"),
            Self::OnlyEstablished => write!(f, "ct state != established return"),
            Self::SpareIpsec => write!(f, "rt ipsec exists return"),
            Self::OnlyManagedInput => write!(f, "iif != @{devices} return"),
            Self::OnlyManagedOutput => write!(f, "oif != @{devices} return"),
            Self::Offload => write!(f, "flow add @{FLOWTABLE} counter return"),
            Self::Meter => write!(f, "update @{slow_path} {{ ct id counter }}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_recognised_by_its_instructions() {
        let rules = [
            Rule::Assist,
            Rule::Threshold { threshold: 1 },
            Rule::Threshold { threshold: u32::MAX },
            Rule::OnlyEstablished,
            Rule::SpareIpsec,
            Rule::OnlyManagedInput,
            Rule::OnlyManagedOutput,
            Rule::Offload,
            Rule::Meter,
        ];
        for rule in rules {
            assert_eq!(Rule::recognise(&rule.exprs()), Some(rule.clone()));
            let mut changed = rule.exprs();
            changed.pop();
            assert_eq!(Rule::recognise(&changed), None, "{rule}");
        }
        assert_eq!(Rule::recognise(&[Expr::Counter]), None);
    }
}
