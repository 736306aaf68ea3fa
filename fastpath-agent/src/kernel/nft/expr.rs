//! [`Expr`] made into libnftnl's expressions. What `encode` makes and the kernel gives back, `instruction::decode` turns into the
//! same [`Expr`].
//!
//! Registers are numbered as the kernel gives them back: 1 to 4 (`NFT_REG_1`…) where a value begins at 16 bytes.

use nftnl_sys::{
    NFTNL_EXPR_BITWISE_DREG as BITWISE_DREG, NFTNL_EXPR_BITWISE_LEN as BITWISE_LEN,
    NFTNL_EXPR_BITWISE_MASK as BITWISE_MASK, NFTNL_EXPR_BITWISE_SREG as BITWISE_SREG,
    NFTNL_EXPR_BITWISE_XOR as BITWISE_XOR, NFTNL_EXPR_BYTEORDER_DREG as BYTEORDER_DREG,
    NFTNL_EXPR_BYTEORDER_LEN as BYTEORDER_LEN, NFTNL_EXPR_BYTEORDER_OP as BYTEORDER_OP,
    NFTNL_EXPR_BYTEORDER_SIZE as BYTEORDER_SIZE, NFTNL_EXPR_BYTEORDER_SREG as BYTEORDER_SREG,
    NFTNL_EXPR_CMP_DATA as CMP_DATA, NFTNL_EXPR_CMP_OP as CMP_OP, NFTNL_EXPR_CMP_SREG as CMP_SREG,
    NFTNL_EXPR_CT_DIR as CT_DIR, NFTNL_EXPR_CT_DREG as CT_DREG, NFTNL_EXPR_CT_KEY as CT_KEY,
    NFTNL_EXPR_CTR_BYTES as CTR_BYTES, NFTNL_EXPR_CTR_PACKETS as CTR_PACKETS,
    NFTNL_EXPR_DYNSET_EXPR as DYNSET_EXPR, NFTNL_EXPR_DYNSET_OP as DYNSET_OP,
    NFTNL_EXPR_DYNSET_SET_NAME as DYNSET_SET_NAME, NFTNL_EXPR_DYNSET_SREG_KEY as DYNSET_SREG_KEY,
    NFTNL_EXPR_FIB_DREG as FIB_DREG, NFTNL_EXPR_FIB_FLAGS as FIB_FLAGS, NFTNL_EXPR_FIB_RESULT as FIB_RESULT,
    NFTNL_EXPR_FLOW_TABLE_NAME as FLOW_TABLE_NAME, NFTNL_EXPR_IMM_CHAIN as IMM_CHAIN,
    NFTNL_EXPR_IMM_DREG as IMM_DREG, NFTNL_EXPR_IMM_VERDICT as IMM_VERDICT,
    NFTNL_EXPR_LOOKUP_FLAGS as LOOKUP_FLAGS, NFTNL_EXPR_LOOKUP_SET as LOOKUP_SET,
    NFTNL_EXPR_LOOKUP_SREG as LOOKUP_SREG, NFTNL_EXPR_META_DREG as META_DREG,
    NFTNL_EXPR_META_KEY as META_KEY, NFTNL_EXPR_PAYLOAD_BASE as PAYLOAD_BASE,
    NFTNL_EXPR_PAYLOAD_DREG as PAYLOAD_DREG, NFTNL_EXPR_PAYLOAD_LEN as PAYLOAD_LEN,
    NFTNL_EXPR_PAYLOAD_OFFSET as PAYLOAD_OFFSET, NFTNL_EXPR_RT_DREG as RT_DREG, NFTNL_EXPR_RT_KEY as RT_KEY,
};

use super::object::{ExprObject, MAX_DATA_BYTES};
use crate::core::ruleset::expr::{CmpOp, CtKey, Direction, Expr, MetaKey, PayloadBase, RtKey, TuplePart};

/// `NFT_CT_ID` (enum nft_ct_keys), younger than libc's list.
const NFT_CT_ID: u32 = 23;
/// `NFT_RT_XFRM` (enum nft_rt_keys).
pub(super) const NFT_RT_XFRM: u32 = 4;
/// `NFT_BYTEORDER_HTON` (enum nft_byteorder_ops).
pub(super) const HTON: u32 = 1;
/// `NFT_DYNSET_OP_UPDATE` (enum nft_dynset_ops).
pub(super) const DYNSET_OP_UPDATE: u32 = 1;
/// `NFT_DYNSET_F_EXPR` (enum nft_dynset_flags): instructions come in a list, also if there is one. The kernel sets it
/// where there are several.
pub(super) const DYNSET_F_EXPR: u32 = 2;
/// `NFTA_FIB_F_SADDR`, `_MARK`, `_IIF` and `_PRESENT` (enum nft_fib_flags).
pub(super) const FIB_ROUTE_BACK: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 5;
/// `NFT_FIB_RESULT_OIF` (enum nft_fib_result).
pub(super) const FIB_RESULT_OIF: u32 = 1;
/// `NFT_META_SDIF` (enum nft_meta_keys), younger than libc's list.
const NFT_META_SDIF: u32 = 33;
/// `NFT_LOOKUP_F_INV` (enum nft_lookup_flags).
pub(super) const LOOKUP_F_INV: u32 = 1;
/// `NFT_REG_VERDICT`.
pub(super) const VERDICT: u32 = 0;

/// The instruction for libnftnl; `None` for what it cannot write: [`Expr::Other`] and over-long data.
pub(super) fn encode(expr: &Expr) -> Option<ExprObject> {
    Some(match expr {
        Expr::Ct { key, dreg } => {
            let ct = ExprObject::new("ct")?.set_u32(CT_DREG, *dreg);
            let (number, direction) = ct_number(*key);
            let ct = ct.set_u32(CT_KEY, number);
            match direction {
                Some(direction) => ct.set(CT_DIR, &[direction]),
                None => ct,
            }
        }
        Expr::HostToNet { reg, size, len } => ExprObject::new("byteorder")?
            .set_u32(BYTEORDER_SREG, *reg)
            .set_u32(BYTEORDER_DREG, *reg)
            .set_u32(BYTEORDER_OP, HTON)
            .set_u32(BYTEORDER_LEN, *len)
            .set_u32(BYTEORDER_SIZE, *size),
        Expr::Cmp { sreg, op, data } if data.len() <= MAX_DATA_BYTES => ExprObject::new("cmp")?
            .set_u32(CMP_SREG, *sreg)
            .set_u32(CMP_OP, cmp_ops().position(|candidate| candidate == *op)? as u32)
            .set(CMP_DATA, data),
        Expr::Bitwise { reg, mask, xor } if mask.len() <= MAX_DATA_BYTES && xor.len() == mask.len() => {
            ExprObject::new("bitwise")?
                .set_u32(BITWISE_SREG, *reg)
                .set_u32(BITWISE_DREG, *reg)
                .set_u32(BITWISE_LEN, mask.len() as u32)
                .set(BITWISE_MASK, mask)
                .set(BITWISE_XOR, xor)
        }
        Expr::Meta { key, dreg } => {
            ExprObject::new("meta")?.set_u32(META_KEY, meta_number(*key)).set_u32(META_DREG, *dreg)
        }
        Expr::Rt { key, dreg } => ExprObject::new("rt")?
            .set_u32(
                RT_KEY,
                match key {
                    RtKey::Ipsec => NFT_RT_XFRM,
                    RtKey::Other(key) => *key,
                },
            )
            .set_u32(RT_DREG, *dreg),
        Expr::Lookup { set, sreg, inverted } => {
            let lookup = ExprObject::new("lookup")?.set_str(LOOKUP_SET, set).set_u32(LOOKUP_SREG, *sreg);
            if *inverted { lookup.set_u32(LOOKUP_FLAGS, LOOKUP_F_INV) } else { lookup }
        }
        Expr::UpdateCounter { set, sreg } => ExprObject::new("dynset")?
            .set_str(DYNSET_SET_NAME, set)
            .set_u32(DYNSET_SREG_KEY, *sreg)
            .set_u32(DYNSET_OP, DYNSET_OP_UPDATE)
            .nest(DYNSET_EXPR, ExprObject::new("counter")?),
        Expr::Update { set, sreg } => ExprObject::new("dynset")?
            .set_str(DYNSET_SET_NAME, set)
            .set_u32(DYNSET_SREG_KEY, *sreg)
            .set_u32(DYNSET_OP, DYNSET_OP_UPDATE),
        Expr::Payload { base, offset, len, dreg } => ExprObject::new("payload")?
            .set_u32(PAYLOAD_BASE, payload_bases().position(|candidate| candidate == *base)? as u32)
            .set_u32(PAYLOAD_OFFSET, *offset)
            .set_u32(PAYLOAD_LEN, *len)
            .set_u32(PAYLOAD_DREG, *dreg),
        Expr::RouteBack { dreg } => ExprObject::new("fib")?
            .set_u32(FIB_FLAGS, FIB_ROUTE_BACK)
            .set_u32(FIB_RESULT, FIB_RESULT_OIF)
            .set_u32(FIB_DREG, *dreg),
        Expr::Return => verdict(libc::NFT_RETURN)?,
        Expr::Goto { chain } => verdict(libc::NFT_GOTO)?.set_str(IMM_CHAIN, chain),
        Expr::FlowAdd { flowtable } => ExprObject::new("flow_offload")?.set_str(FLOW_TABLE_NAME, flowtable),
        Expr::Counter => ExprObject::new("counter")?,
        Expr::CounterFrom(value) => ExprObject::new("counter")?
            .set(CTR_PACKETS, &value.packets.to_ne_bytes())
            .set(CTR_BYTES, &value.bytes.to_ne_bytes()),
        Expr::Cmp { .. } | Expr::Bitwise { .. } | Expr::Other { .. } => return None,
    })
}

/// Number of the key (enum nft_ct_keys), and of the direction if it has one.
fn ct_number(key: CtKey) -> (u32, Option<u8>) {
    match key {
        CtKey::State => (libc::NFT_CT_STATE as u32, None),
        CtKey::Status => (libc::NFT_CT_STATUS as u32, None),
        CtKey::Mark => (libc::NFT_CT_MARK as u32, None),
        CtKey::Direction => (libc::NFT_CT_DIRECTION as u32, None),
        CtKey::Packets => (libc::NFT_CT_PKTS as u32, None),
        CtKey::Id => (NFT_CT_ID, None),
        CtKey::Tuple(direction, part) => (tuple_part_number(part), Some(direction_number(direction))),
        CtKey::Other(key) => (key, None),
    }
}

fn tuple_part_number(part: TuplePart) -> u32 {
    match part {
        TuplePart::SourcePort => libc::NFT_CT_PROTO_SRC as u32,
        TuplePart::DestinationPort => libc::NFT_CT_PROTO_DST as u32,
        TuplePart::SourceV4 => 19,
        TuplePart::DestinationV4 => 20,
        TuplePart::SourceV6 => 21,
        TuplePart::DestinationV6 => 22,
    }
}

fn direction_number(direction: Direction) -> u8 {
    match direction {
        Direction::Original => 0,
        Direction::Reply => 1,
    }
}

/// The key of this number, of a direction where there is one.
pub(super) fn ct_key(number: u32, direction: Option<u8>) -> Option<CtKey> {
    let parts = [
        TuplePart::SourceV4,
        TuplePart::DestinationV4,
        TuplePart::SourceV6,
        TuplePart::DestinationV6,
        TuplePart::SourcePort,
        TuplePart::DestinationPort,
    ];
    if let Some(direction) = direction {
        let directions = [Direction::Original, Direction::Reply];
        let direction = directions.into_iter().find(|d| direction_number(*d) == direction)?;
        let part = parts.into_iter().find(|part| tuple_part_number(*part) == number)?;
        return Some(CtKey::Tuple(direction, part));
    }
    let known = [CtKey::State, CtKey::Status, CtKey::Mark, CtKey::Direction, CtKey::Packets, CtKey::Id];
    Some(known.into_iter().find(|key| ct_number(*key).0 == number).unwrap_or(CtKey::Other(number)))
}

/// Number of the key (enum nft_meta_keys).
fn meta_number(key: MetaKey) -> u32 {
    let number = match key {
        MetaKey::InIfIndex => libc::NFT_META_IIF,
        MetaKey::OutIfIndex => libc::NFT_META_OIF,
        MetaKey::Mark => libc::NFT_META_MARK,
        MetaKey::L4Proto => libc::NFT_META_L4PROTO,
        MetaKey::NfProto => libc::NFT_META_NFPROTO,
        MetaKey::InIfType => libc::NFT_META_IIFTYPE,
        MetaKey::SlaveIfIndex => return NFT_META_SDIF,
        MetaKey::Other(key) => return key,
    };
    number.cast_unsigned()
}

pub(super) fn meta_key(number: u32) -> MetaKey {
    let known = [
        MetaKey::InIfIndex,
        MetaKey::OutIfIndex,
        MetaKey::Mark,
        MetaKey::L4Proto,
        MetaKey::NfProto,
        MetaKey::InIfType,
        MetaKey::SlaveIfIndex,
    ];
    known.into_iter().find(|key| meta_number(*key) == number).unwrap_or(MetaKey::Other(number))
}

/// In the order of enum nft_payload_bases.
pub(super) fn payload_bases() -> impl Iterator<Item = PayloadBase> {
    [PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport].into_iter()
}

fn verdict(code: i32) -> Option<ExprObject> {
    Some(ExprObject::new("immediate")?.set_u32(IMM_DREG, VERDICT).set_u32(IMM_VERDICT, code.cast_unsigned()))
}

/// In the order of enum nft_cmp_ops.
pub(super) fn cmp_ops() -> impl Iterator<Item = CmpOp> {
    [CmpOp::Eq, CmpOp::Neq, CmpOp::Lt, CmpOp::Lte, CmpOp::Gt, CmpOp::Gte].into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::ruleset::{
            chain::OwnChain,
            observed::Owner,
            rule::{self, Input, Traced},
        },
        kernel::{
            netlink::{Message, attributes},
            nft::{
                instruction, marker, nfta,
                object::{Object, Rule, Scratch},
            },
        },
    };
    use nftnl_sys::{
        NFTNL_EXPR_BITWISE_OP as BITWISE_OP, NFTNL_EXPR_DYNSET_TIMEOUT as DYNSET_TIMEOUT, NFTNL_RULE_USERDATA,
    };

    /// Through a message of libnftnl and back.
    fn round_trip(exprs: &[Expr]) -> Vec<Expr> {
        let rule = exprs.iter().fold(Rule::new().set(NFTNL_RULE_USERDATA, &marker::rule()), |rule, expr| {
            rule.push(encode(expr).expect("the agent's instruction"))
        });
        decoded(&rule)
    }

    /// As it goes to the kernel, and comes back.
    fn decoded(rule: &Rule) -> Vec<Expr> {
        let mut scratch = Scratch::new();
        let message = Message::new(scratch.message(libc::NFT_MSG_NEWRULE, 0, 1, rule));
        if let Some(userdata) = message.attributes().find(|nla| nla.kind() == nfta::RULE_USERDATA) {
            assert_eq!(marker::owner(userdata.value()), Owner::Agent);
        }
        let list =
            message.attributes().find(|nla| nla.kind() == nfta::RULE_EXPRESSIONS).expect("instructions");
        attributes(list.value()).map(|nla| instruction::decode(nla.value())).collect()
    }

    fn seen(traced: Traced) -> rule::Rule {
        rule::Rule::Seen { direction: Direction::Original, input: Input::Link, traced }
    }

    #[test]
    fn our_rules_come_back_as_they_were() {
        for rule in [
            rule::Rule::Assist { to: OwnChain::Offload },
            rule::Rule::Threshold { threshold: 20, to: OwnChain::Offload },
            rule::Rule::Bridged,
            rule::Rule::MeterOffloaded,
            rule::Rule::ByDirection(Direction::Original),
            seen(Traced::Forward),
            seen(Traced::Postrouting),
            rule::Rule::TraceOf(Direction::Reply),
            rule::Rule::Untraced,
            rule::Rule::Trace { direction: Direction::Reply, input: Input::VrfLink },
            rule::Rule::OnlyEstablished,
            rule::Rule::SpareIpsec,
            rule::Rule::OnlyManagedInput,
        ] {
            assert_eq!(round_trip(&rule.exprs()), rule.exprs(), "{rule}");
        }
    }

    #[test]
    fn every_instruction_comes_back_as_it_was() {
        let tuple = |direction| move |part| CtKey::Tuple(direction, part);
        let addresses =
            [TuplePart::SourceV4, TuplePart::DestinationV4, TuplePart::SourceV6, TuplePart::DestinationV6];
        let ports = [TuplePart::SourcePort, TuplePart::DestinationPort];
        let mut keys = vec![
            CtKey::State,
            CtKey::Packets,
            CtKey::Id,
            CtKey::Status,
            CtKey::Mark,
            CtKey::Direction,
            CtKey::Other(5),
        ];
        keys.extend(addresses.map(tuple(Direction::Original)));
        keys.extend(ports.map(tuple(Direction::Reply)));
        let mut exprs: Vec<Expr> = keys.into_iter().map(|key| Expr::Ct { key, dreg: 2 }).collect();
        let keys =
            [MetaKey::InIfIndex, MetaKey::OutIfIndex, MetaKey::Mark, MetaKey::L4Proto, MetaKey::Other(2)];
        exprs.extend(keys.map(|key| Expr::Meta { key, dreg: 3 }));
        exprs.extend([RtKey::Ipsec, RtKey::Other(0)].map(|key| Expr::Rt { key, dreg: 1 }));
        exprs.extend(cmp_ops().map(|op| Expr::Cmp { sreg: 1, op, data: vec![1, 2, 3, 4] }));
        exprs.extend([
            Expr::Cmp { sreg: 1, op: CmpOp::Eq, data: vec![7; MAX_DATA_BYTES] },
            Expr::HostToNet { reg: 4, size: 2, len: 6 },
            Expr::Bitwise { reg: 1, mask: vec![0xff; 8], xor: vec![1, 0, 0, 0, 0, 0, 0, 9] },
            Expr::Lookup { set: "a-set".to_owned(), sreg: 1, inverted: false },
            Expr::Lookup { set: "a-set".to_owned(), sreg: 2, inverted: true },
            Expr::UpdateCounter { set: "a-set".to_owned(), sreg: 1 },
            Expr::FlowAdd { flowtable: "a-flowtable".to_owned() },
            Expr::Counter,
            Expr::Return,
            Expr::Goto { chain: "a-chain".to_owned() },
        ]);
        assert_eq!(round_trip(&exprs), exprs);
    }

    #[test]
    fn what_cannot_be_written_is_not() {
        for expr in [
            Expr::Other { name: "log".to_owned() },
            Expr::Cmp { sreg: 1, op: CmpOp::Eq, data: vec![0; MAX_DATA_BYTES + 1] },
            Expr::Bitwise { reg: 1, mask: vec![0; 4], xor: vec![0; 8] },
        ] {
            assert!(encode(&expr).is_none(), "{expr:?}");
        }
    }

    #[test]
    fn a_detail_that_expr_cannot_hold_makes_another_instruction_of_it() {
        let other = |object: ExprObject| {
            matches!(decoded(&Rule::new().push(object)).as_slice(), [Expr::Other { .. }])
        };
        let new = |expr: Expr| encode(&expr).expect("the agent's instruction");
        assert!(other(new(Expr::Ct { key: CtKey::Packets, dreg: 1 }).set(CT_DIR, &[0])));
        let lookup = Expr::Lookup { set: "s".to_owned(), sreg: 1, inverted: false };
        assert!(other(new(lookup).set_u32(LOOKUP_FLAGS, 2)));
        let update = || new(Expr::UpdateCounter { set: "s".to_owned(), sreg: 1 });
        assert!(other(update().set_u32(DYNSET_OP, 0)));
        assert!(other(update().set(DYNSET_TIMEOUT, &5000_u64.to_ne_bytes())));
        assert!(other(update().nest(DYNSET_EXPR, ExprObject::new("counter").expect("an instruction"))));
        assert!(other(update().nest(DYNSET_EXPR, ExprObject::new("quota").expect("an instruction"))));
        assert!(other(new(Expr::Return).set_u32(IMM_VERDICT, libc::NF_DROP as u32)));
        assert!(other(
            new(Expr::Goto { chain: "c".to_owned() }).set_u32(IMM_VERDICT, (-3_i32).cast_unsigned())
        ));
        assert!(other(new(Expr::HostToNet { reg: 1, size: 4, len: 4 }).set_u32(BYTEORDER_DREG, 2)));
        assert!(other(new(Expr::HostToNet { reg: 1, size: 4, len: 4 }).set_u32(BYTEORDER_OP, 0)));
        assert!(other(new(Expr::Bitwise { reg: 1, mask: vec![1], xor: vec![0] }).set_u32(BITWISE_OP, 1)));
    }
}
