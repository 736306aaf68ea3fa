//! Rules that leave flows out by address, port, protocol: what each says in nft's words and in the kernel's instructions.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{End, REG, STATUS_SNAT};
use crate::core::ruleset::{
    expr::{CmpOp, CtKey, Direction, Expr, MetaKey, TuplePart},
    sets::{ExcludeSet, OwnSet},
};

pub(super) fn masked(mask: &[u8]) -> Expr {
    Expr::Bitwise { reg: REG, mask: mask.to_vec(), xor: vec![0; mask.len()] }
}

/// Mask of a prefix of `length` bits in so many bytes.
fn prefix_mask(length: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|byte| {
            u8::MAX.checked_shl(8 - u32::from(length).saturating_sub(8 * byte as u32).min(8)).unwrap_or(0)
        })
        .collect()
}

pub(super) fn excluded(set: ExcludeSet, end: End) -> Vec<Expr> {
    let cmp = |op, data: &[u8]| Expr::Cmp { sreg: REG, op, data: data.to_vec() };
    let mut exprs = Vec::new();
    let protocol = match set {
        ExcludeSet::TcpPorts => Some(crate::core::flow::connection::TCP),
        ExcludeSet::UdpPorts => Some(crate::core::flow::connection::UDP),
        _ => None,
    };
    if let Some(protocol) = protocol {
        exprs.extend([Expr::Meta { key: MetaKey::L4Proto, dreg: REG }, cmp(CmpOp::Eq, &[protocol])]);
    }
    if let Some(bit) = end.nat() {
        exprs.extend([
            Expr::Ct { key: CtKey::Status, dreg: REG },
            masked(&bit.to_ne_bytes()),
            cmp(CmpOp::Neq, &[0; 4]),
        ]);
    }
    let (part, mask) = match (set, end.is_source()) {
        (ExcludeSet::V4(length), true) => (TuplePart::SourceV4, prefix_mask(length, 4)),
        (ExcludeSet::V4(length), false) => (TuplePart::DestinationV4, prefix_mask(length, 4)),
        (ExcludeSet::V6(length), true) => (TuplePart::SourceV6, prefix_mask(length, 16)),
        (ExcludeSet::V6(length), false) => (TuplePart::DestinationV6, prefix_mask(length, 16)),
        (_, true) => (TuplePart::SourcePort, Vec::new()),
        (_, false) => (TuplePart::DestinationPort, Vec::new()),
    };
    exprs.push(Expr::Ct { key: CtKey::Tuple(end.direction(), part), dreg: REG });
    if mask.iter().any(|byte| *byte != u8::MAX) {
        exprs.push(masked(&mask));
    }
    let set = OwnSet::Exclude(set).name().into_owned();
    exprs.extend([Expr::Lookup { set, sreg: REG, inverted: false }, Expr::Return]);
    exprs
}

pub(super) fn write_excluded(f: &mut fmt::Formatter<'_>, set: ExcludeSet, end: End) -> fmt::Result {
    match set {
        ExcludeSet::TcpPorts => write!(f, "meta l4proto tcp ")?,
        ExcludeSet::UdpPorts => write!(f, "meta l4proto udp ")?,
        _ => {}
    }
    match end.nat() {
        Some(STATUS_SNAT) => write!(f, "ct status snat ")?,
        Some(_) => write!(f, "ct status dnat ")?,
        None => {}
    }
    let direction = match end.direction() {
        Direction::Original => "original",
        Direction::Reply => "reply",
    };
    let side = if end.is_source() { "s" } else { "d" };
    match set {
        ExcludeSet::V4(length) => {
            write!(f, "ct {direction} ip {side}addr ")?;
            if length < 32 {
                let mask: [u8; 4] = prefix_mask(length, 4).try_into().expect("as long as asked for");
                write!(f, "& {} == ", Ipv4Addr::from(mask))?;
            }
        }
        ExcludeSet::V6(length) => {
            write!(f, "ct {direction} ip6 {side}addr ")?;
            if length < 128 {
                let mask: [u8; 16] = prefix_mask(length, 16).try_into().expect("as long as asked for");
                write!(f, "& {} == ", Ipv6Addr::from(mask))?;
            }
        }
        _ => write!(f, "ct {direction} proto-{} ", if end.is_source() { "src" } else { "dst" })?,
    }
    write!(f, "@{} return", OwnSet::Exclude(set))
}

/// A firewall mark: of the packet, or of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaskedMark {
    /// What the masked mark has to be.
    pub value: u32,
    /// Bits that count.
    pub mask: u32,
}

impl fmt::Display for MaskedMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mask {
            u32::MAX => write!(f, "{:#x}", self.value),
            mask => write!(f, "{:#x}/{mask:#x}", self.value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_prefixes() {
        assert_eq!(prefix_mask(0, 4), [0, 0, 0, 0]);
        assert_eq!(prefix_mask(9, 4), [255, 128, 0, 0]);
        assert_eq!(prefix_mask(24, 4), [255, 255, 255, 0]);
        assert_eq!(prefix_mask(32, 4), [255; 4]);
        assert_eq!(prefix_mask(128, 16), [255; 16]);
    }
}
