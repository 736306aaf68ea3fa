//! Conditions on addresses and ports as packets have them before or behind NAT, expressed by the connection's tuples: those our
//! chain, which is between, can check.

use super::{
    conditions::{Conditions, IPV6, is_load, side_of},
    expr::{CmpOp, CtKey, Direction, Expr, MetaKey, PayloadBase, TuplePart},
};

/// Where others see a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Before NAT, as it came in.
    BeforeNat,
    /// Behind NAT, as it leaves.
    BehindNat,
}

impl Conditions {
    /// For packets of one direction. What can't be said of tuples is left out.
    pub fn by_tuple(&self, direction: Direction, seen: Seen) -> Self {
        let mut ipv6 = false;
        let mut of_tuple = false;
        let mut exprs = Vec::new();
        for group in self.0.chunk_by(|_, next| !is_load(next)) {
            match group {
                [Expr::Payload { base, offset, len, dreg }, rest @ ..] => {
                    let Some((source, full)) = end(*base, *offset, *len, ipv6) else {
                        // The protocol of IPv4.
                        if (*base, *offset, *len) == (PayloadBase::Network, 9, 1) && !ipv6 {
                            exprs.extend_from_slice(group);
                        }
                        continue;
                    };
                    let Some(rest) = widened(rest, *dreg, *len as usize, full) else { continue };
                    // As it leaves a packet has its addresses from the answers' tuple.
                    let (direction, source) = match seen {
                        Seen::BeforeNat => (direction, source),
                        Seen::BehindNat => (direction.other(), !source),
                    };
                    let part = part(source, full);
                    exprs.push(Expr::Ct { key: CtKey::Tuple(direction, part), dreg: *dreg });
                    exprs.extend(rest);
                    of_tuple = true;
                }
                _ => {
                    if let [Expr::Meta { key: MetaKey::NfProto, .. }, Expr::Cmp { data, .. }] = group {
                        ipv6 = *data == [IPV6];
                    }
                    exprs.extend_from_slice(group);
                }
            }
        }
        if of_tuple {
            let of_direction = [
                Expr::Ct { key: CtKey::Direction, dreg: 1 },
                Expr::Cmp { sreg: 1, op: CmpOp::Eq, data: vec![direction as u8] },
            ];
            exprs.splice(0..0, of_direction);
        }
        Self(exprs)
    }
}

/// Whether these bytes are the source's address or port (or the destination's), or the beginning of it, and its length.
fn end(base: PayloadBase, offset: u32, len: u32, ipv6: bool) -> Option<(bool, usize)> {
    match (base, offset, len) {
        (PayloadBase::Transport, 0, 2) => Some((true, 2)),
        (PayloadBase::Transport, 2, 2) => Some((false, 2)),
        (PayloadBase::Network, ..) => {
            let full = if ipv6 { 16 } else { 4 };
            side_of(offset, ipv6).filter(|_| len <= full).map(|source| (source, full as usize))
        }
        _ => None,
    }
}

fn part(source: bool, length: usize) -> TuplePart {
    match (length, source) {
        (2, true) => TuplePart::SourcePort,
        (2, false) => TuplePart::DestinationPort,
        (4, true) => TuplePart::SourceV4,
        (4, false) => TuplePart::DestinationV4,
        (_, true) => TuplePart::SourceV6,
        (_, false) => TuplePart::DestinationV6,
    }
}

/// What is done with `len` bytes of it, done with all `full` of them.
fn widened(rest: &[Expr], reg: u32, len: usize, full: usize) -> Option<Vec<Expr>> {
    if len == full {
        return Some(rest.to_vec());
    }
    let wide = |bytes: &[u8]| [bytes, &vec![0; full - len]].concat();
    let (mask, compared) = match rest {
        [Expr::Bitwise { mask, .. }, compared @ ..] => (wide(mask), compared),
        compared => (wide(&vec![0xff; len]), compared),
    };
    let mut exprs = vec![Expr::Bitwise { reg, mask, xor: vec![0; full] }];
    for expr in compared {
        match expr {
            Expr::Cmp { sreg, op: op @ (CmpOp::Eq | CmpOp::Neq), data } => {
                exprs.push(Expr::Cmp { sreg: *sreg, op: *op, data: wide(data) });
            }
            _ => return None,
        }
    }
    Some(exprs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(base: PayloadBase, offset: u32, len: u32) -> Expr {
        Expr::Payload { base, offset, len, dreg: 1 }
    }

    fn cmp(op: CmpOp, data: &[u8]) -> Expr {
        Expr::Cmp { sreg: 1, op, data: data.to_vec() }
    }

    #[test]
    fn tuples_have_what_packets_have_before_and_behind_nat() {
        use Direction::{Original, Reply};
        use PayloadBase::{Network, Transport};
        let mut conditions = Conditions::of_family(2);
        conditions.0.extend([load(Network, 12, 3), cmp(CmpOp::Eq, &[10, 1, 2])]);
        conditions.0.extend([load(Network, 9, 1), cmp(CmpOp::Eq, &[17])]);
        conditions.0.extend([load(Transport, 2, 2), cmp(CmpOp::Gte, &[0, 7]), cmp(CmpOp::Lte, &[0, 9])]);
        conditions.0.extend([load(Transport, 0, 4), cmp(CmpOp::Eq, &[0, 7, 0, 9])]);
        for (direction, seen, expected) in [
            (Original, Seen::BeforeNat, ["original", "original ip saddr", "original proto-dst"]),
            (Reply, Seen::BeforeNat, ["reply", "reply ip saddr", "reply proto-dst"]),
            (Original, Seen::BehindNat, ["original", "reply ip daddr", "reply proto-src"]),
            (Reply, Seen::BehindNat, ["reply", "original ip daddr", "original proto-src"]),
        ] {
            let [of, address, port] = expected;
            let found = conditions.by_tuple(direction, seen);
            assert_eq!(
                found.to_string(),
                format!(
                    "ct direction {of} meta nfproto ipv4 ct {address} 10.1.2.0/24 @nh,72,8 0x11 ct {port} 7-9"
                )
            );
            assert_eq!(Conditions::recognise(&found.0), Some(found));
        }
        let mut ipv6 = Conditions::of_family(10);
        ipv6.0.extend([load(Network, 24, 16), cmp(CmpOp::Neq, &[1; 16])]);
        let found = ipv6.by_tuple(Original, Seen::BeforeNat).to_string();
        assert_eq!(
            found,
            "ct direction original meta nfproto ipv6 ct original ip6 daddr != 101:101:101:101:101:101:101:101"
        );
    }

    #[test]
    fn what_tuples_do_not_have_is_left_out() {
        let range = [load(PayloadBase::Network, 12, 3), cmp(CmpOp::Gt, &[10, 1, 2])];
        let conditions = Conditions([Conditions::of_family(2).0, range.to_vec()].concat());
        assert_eq!(conditions.by_tuple(Direction::Reply, Seen::BeforeNat), Conditions::of_family(2));
    }
}
