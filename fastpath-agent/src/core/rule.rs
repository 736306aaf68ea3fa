//! The rules of our chain: what each says in nft's words and in the kernel's instructions.

use std::fmt;

use super::{
    expr::{CmpOp, CtKey, Expr, MetaKey, RtKey},
    model::{DEVICE_SET, FLOWTABLE},
};

/// Register that our rules use (`NFT_REG_1`).
const REG: u32 = 1;
/// Bit of `ct state established` (`NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`).
const CT_STATE_ESTABLISHED: u32 = 1 << 1;

/// A rule of our chain. Printed as `nft` writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Offloads an established flow between managed interfaces once it has had more than `threshold` packets.
    ///
    /// The comparison of packets comes first since most packets of short flows end there. It counts both directions.
    /// The counter stands last: `flow add` ends the rule where the flow can't be offloaded, so it counts offloads.
    Offload {
        /// Packets of both directions.
        threshold: u32,
        /// Leaves flows to an IPsec policy on the normal path, where the policy is enforced; the flowtable doesn't ask
        /// it. Only kernels built with IPsec (`CONFIG_XFRM`) know the question, and only they need it.
        spare_ipsec: bool,
    },
}

impl Rule {
    /// The kernel's instructions.
    pub fn exprs(&self) -> Vec<Expr> {
        let Self::Offload { threshold, spare_ipsec } = self;
        let mut exprs = vec![
            Expr::Ct { key: CtKey::Packets, dreg: REG },
            // Greater-than compares bytes in order, so the value has to be big-endian first.
            Expr::HostToNet { reg: REG, size: 8, len: 8 },
            Expr::Cmp { sreg: REG, op: CmpOp::Gt, data: u64::from(*threshold).to_be_bytes().to_vec() },
            Expr::Ct { key: CtKey::State, dreg: REG },
            Expr::Bitwise { reg: REG, mask: CT_STATE_ESTABLISHED.to_ne_bytes().to_vec(), xor: vec![0; 4] },
            Expr::Cmp { sreg: REG, op: CmpOp::Neq, data: vec![0; 4] },
        ];
        if *spare_ipsec {
            exprs.extend([
                Expr::Rt { key: RtKey::Ipsec, dreg: REG },
                Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: vec![0] },
            ]);
        }
        exprs.extend([
            Expr::Meta { key: MetaKey::InIfIndex, dreg: REG },
            Expr::Lookup { set: DEVICE_SET.to_owned(), sreg: REG },
            Expr::Meta { key: MetaKey::OutIfIndex, dreg: REG },
            Expr::Lookup { set: DEVICE_SET.to_owned(), sreg: REG },
            Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() },
            Expr::Counter,
        ]);
        exprs
    }

    /// The rule that these instructions are; `None` for any that we wouldn't write.
    pub fn recognise(exprs: &[Expr]) -> Option<Self> {
        let [Expr::Ct { key: CtKey::Packets, .. }, Expr::HostToNet { .. }, Expr::Cmp { data, .. }, ..] =
            exprs
        else {
            return None;
        };
        let packets = u64::from_be_bytes(data.as_slice().try_into().ok()?);
        let threshold = u32::try_from(packets).ok()?;
        [true, false]
            .map(|spare_ipsec| Self::Offload { threshold, spare_ipsec })
            .into_iter()
            .find(|rule| rule.exprs() == exprs)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Offload { threshold, spare_ipsec } = self;
        let ipsec = if *spare_ipsec { "rt ipsec missing " } else { "" };
        write!(
            f,
            "ct packets > {threshold} ct state established {ipsec}iif @{DEVICE_SET} oif @{DEVICE_SET} flow add @{FLOWTABLE} counter"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_recognised_by_its_instructions() {
        for threshold in [1, 6, 20, u32::MAX] {
            for spare_ipsec in [true, false] {
                let rule = Rule::Offload { threshold, spare_ipsec };
                assert_eq!(Rule::recognise(&rule.exprs()), Some(rule));
            }
        }
        assert_eq!(Rule::recognise(&[Expr::Counter]), None);
        let mut changed = Rule::Offload { threshold: 20, spare_ipsec: true }.exprs();
        changed.pop();
        assert_eq!(Rule::recognise(&changed), None);
    }
}
