//! Instructions of our rules in the kernel's messages, as data: what `expr` writes comes back as it was, and what would lose a
//! detail becomes [`Expr::Other`]. Reads bytes only. (libnftnl ends the process where an attribute isn't as it expects it.)

use super::{
    expr::{
        DYNSET_F_EXPR, DYNSET_OP_UPDATE, FIB_RESULT_OIF, FIB_ROUTE_BACK, HTON, LOOKUP_F_INV, NFT_RT_XFRM,
        VERDICT, cmp_ops, ct_key, meta_key, payload_bases,
    },
    nfta,
};
use crate::{
    core::{
        model::Counter,
        ruleset::expr::{Expr, RtKey},
    },
    kernel::netlink::{attribute::find, attributes},
};

/// The instruction in an element of a rule's list.
pub(super) fn decode(element: &[u8]) -> Expr {
    let name = find(element, nfta::EXPR_NAME).map(|name| name.string()).unwrap_or_default();
    known(&name, Data::of(element)).unwrap_or(Expr::Other { name })
}

/// Value of the instruction's counter, if it is one.
pub(super) fn counter(element: &[u8]) -> Option<Counter> {
    if find(element, nfta::EXPR_NAME)?.name() != b"counter" {
        return None;
    }
    let data = Data::of(element);
    Some(Counter { packets: data.wide(nfta::COUNTER_PACKETS)?, bytes: data.wide(nfta::COUNTER_BYTES)? })
}

/// Attributes of an instruction.
#[derive(Clone, Copy)]
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn of(element: &'a [u8]) -> Self {
        Self(find(element, nfta::EXPR_DATA).map_or(&[], |data| data.value()))
    }

    fn has(self, kind: u16) -> bool {
        find(self.0, kind).is_some()
    }

    fn number(self, kind: u16) -> Option<u32> {
        find(self.0, kind)?.be32()
    }

    fn wide(self, kind: u16) -> Option<u64> {
        find(self.0, kind)?.fixed().map(u64::from_be_bytes)
    }

    /// `None` where it is longer than a byte, `Some(None)` where it isn't there.
    fn byte(self, kind: u16) -> Option<Option<u8>> {
        match find(self.0, kind) {
            None => Some(None),
            Some(nla) => nla.fixed().map(|[byte]| Some(byte)),
        }
    }

    fn text(self, kind: u16) -> Option<String> {
        Some(str::from_utf8(find(self.0, kind)?.name()).ok()?.to_owned())
    }

    /// A register's value.
    fn bytes(self, kind: u16) -> Option<Vec<u8>> {
        Some(find(find(self.0, kind)?.value(), nfta::DATA_VALUE)?.value().to_vec())
    }

    /// What is loaded into the register of verdicts: its code, and the chain to go to.
    fn verdict(self) -> Option<(i32, Option<String>)> {
        let verdict = Self(find(find(self.0, nfta::IMMEDIATE_DATA)?.value(), nfta::DATA_VERDICT)?.value());
        Some((verdict.number(nfta::VERDICT_CODE)?.cast_signed(), verdict.text(nfta::VERDICT_CHAIN)))
    }

    /// Names of the instructions that elements get; `None` where one lacks its name.
    fn nested(self) -> Option<Vec<&'a [u8]>> {
        let one = find(self.0, nfta::DYNSET_EXPR).map(|nla| nla.value());
        let list = find(self.0, nfta::DYNSET_EXPRESSIONS).map_or(&[][..], |nla| nla.value());
        let all = one.into_iter().chain(attributes(list).map(|nla| nla.value()));
        all.map(|element| Some(find(element, nfta::EXPR_NAME)?.name())).collect()
    }

    /// `update` with the set's own timeout.
    fn is_update(self) -> bool {
        self.number(nfta::DYNSET_OP) == Some(DYNSET_OP_UPDATE)
            && !self.has(nfta::DYNSET_SREG_DATA)
            && self.wide(nfta::DYNSET_TIMEOUT).unwrap_or(0) == 0
            && self.number(nfta::DYNSET_FLAGS).unwrap_or(0) & !DYNSET_F_EXPR == 0
    }
}

fn known(name: &str, expr: Data<'_>) -> Option<Expr> {
    Some(match name {
        // A source register makes it a `ct … set`.
        "ct" if expr.has(nfta::CT_DREG) => Expr::Ct {
            key: ct_key(expr.number(nfta::CT_KEY)?, expr.byte(nfta::CT_DIRECTION)?)?,
            dreg: expr.number(nfta::CT_DREG)?,
        },
        "byteorder" if expr.number(nfta::BYTEORDER_OP) == Some(HTON) => Expr::HostToNet {
            reg: same(expr.number(nfta::BYTEORDER_SREG)?, expr.number(nfta::BYTEORDER_DREG)?)?,
            size: expr.number(nfta::BYTEORDER_SIZE)?,
            len: expr.number(nfta::BYTEORDER_LEN)?,
        },
        "cmp" => Expr::Cmp {
            sreg: expr.number(nfta::CMP_SREG)?,
            op: cmp_ops().nth(expr.number(nfta::CMP_OP)? as usize)?,
            data: expr.bytes(nfta::CMP_DATA)?,
        },
        // Operation 0 is mask and xor, the others are shifts; kernels before 5.6 don't say.
        "bitwise" if expr.number(nfta::BITWISE_OP).unwrap_or(0) == 0 => Expr::Bitwise {
            reg: same(expr.number(nfta::BITWISE_SREG)?, expr.number(nfta::BITWISE_DREG)?)?,
            mask: expr.bytes(nfta::BITWISE_MASK)?,
            xor: expr.bytes(nfta::BITWISE_XOR)?,
        },
        "meta" if expr.has(nfta::META_DREG) => {
            Expr::Meta { key: meta_key(expr.number(nfta::META_KEY)?), dreg: expr.number(nfta::META_DREG)? }
        }
        // A source register makes it write.
        "payload" if expr.has(nfta::PAYLOAD_DREG) => Expr::Payload {
            base: payload_bases().nth(expr.number(nfta::PAYLOAD_BASE)? as usize)?,
            offset: expr.number(nfta::PAYLOAD_OFFSET)?,
            len: expr.number(nfta::PAYLOAD_LEN)?,
            dreg: expr.number(nfta::PAYLOAD_DREG)?,
        },
        "fib"
            if (expr.number(nfta::FIB_FLAGS), expr.number(nfta::FIB_RESULT))
                == (Some(FIB_ROUTE_BACK), Some(FIB_RESULT_OIF)) =>
        {
            Expr::RouteBack { dreg: expr.number(nfta::FIB_DREG)? }
        }
        "rt" => Expr::Rt {
            key: match expr.number(nfta::RT_KEY)? {
                NFT_RT_XFRM => RtKey::Ipsec,
                key => RtKey::Other(key),
            },
            dreg: expr.number(nfta::RT_DREG)?,
        },
        // A destination makes it a map's.
        "lookup" if !expr.has(nfta::LOOKUP_DREG) => Expr::Lookup {
            set: expr.text(nfta::LOOKUP_SET)?,
            sreg: expr.number(nfta::LOOKUP_SREG)?,
            inverted: match expr.number(nfta::LOOKUP_FLAGS).unwrap_or(0) {
                0 => false,
                LOOKUP_F_INV => true,
                _ => return None,
            },
        },
        "dynset" if expr.is_update() => {
            let (set, sreg) = (expr.text(nfta::DYNSET_SET_NAME)?, expr.number(nfta::DYNSET_SREG_KEY)?);
            match expr.nested()?.as_slice() {
                [] => Expr::Update { set, sreg },
                [name] if *name == b"counter" => Expr::UpdateCounter { set, sreg },
                _ => return None,
            }
        }
        "immediate" if expr.number(nfta::IMMEDIATE_DREG) == Some(VERDICT) => match expr.verdict()? {
            (libc::NFT_RETURN, None) => Expr::Return,
            (libc::NFT_GOTO, Some(chain)) => Expr::Goto { chain },
            _ => return None,
        },
        "flow_offload" => Expr::FlowAdd { flowtable: expr.text(nfta::FLOW_TABLE_NAME)? },
        "counter" => Expr::Counter,
        _ => return None,
    })
}

fn same(source: u32, destination: u32) -> Option<u32> {
    (source == destination).then_some(source)
}
