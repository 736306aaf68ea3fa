//! Whether a packet meets copied conditions, as far as that can be told of a flow that is known by its connection.

use std::net::IpAddr;

use super::{
    conditions::{Conditions, IIFNAME, OIFNAME},
    expr::{CmpOp, CtKey, Direction, Expr, MetaKey, PayloadBase, TuplePart},
};
use crate::core::{
    flow::connection::{Entry, Tuple},
    model::{IfIndex, IfName},
};

/// Bytes of a name in a register (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

/// What is known of the packets of one direction, as the forward hook sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Behind the NAT of destinations, before that of sources.
    pub tuple: Tuple,
    /// Where it comes in, if that is known.
    pub input: Option<(IfIndex, IfName)>,
    /// Where it leaves, if that is known.
    pub output: Option<(IfIndex, IfName)>,
    /// Its direction.
    pub direction: Direction,
    /// The connection's tuples, that of the original direction first.
    pub tuples: [Tuple; 2],
    /// The connection's mark.
    pub mark: u32,
}

impl Packet {
    /// Those of a connection, original direction first, without interfaces.
    pub fn of(entry: &Entry) -> [Self; 2] {
        let Entry { original, reply, mark, .. } = entry;
        let forwarded = entry.forwarded();
        Direction::ALL.map(|direction| Self {
            tuple: forwarded[direction as usize],
            input: None,
            output: None,
            direction,
            tuples: [*original, *reply],
            mark: *mark,
        })
    }

    /// `None` where something is asked that isn't known, and what is known fits.
    pub fn meets(&self, conditions: &Conditions) -> Option<bool> {
        let mut known = true;
        for group in conditions.groups() {
            match self.meets_group(group) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => known = false,
            }
        }
        known.then_some(true)
    }

    fn meets_group(&self, group: &[Expr]) -> Option<bool> {
        let (load, rest) = group.split_first()?;
        let mut value = self.loaded(load)?;
        for expr in rest {
            match expr {
                Expr::Bitwise { mask, xor, .. } => {
                    for (byte, (mask, xor)) in value.iter_mut().zip(mask.iter().zip(xor)) {
                        *byte = *byte & mask ^ xor;
                    }
                }
                Expr::Cmp { op, data, .. } => {
                    // As the kernel compares: so many bytes as there are, the first one first.
                    let ordering = value.get(..data.len())?.cmp(data);
                    let fits = match op {
                        CmpOp::Eq => ordering.is_eq(),
                        CmpOp::Neq => ordering.is_ne(),
                        CmpOp::Lt => ordering.is_lt(),
                        CmpOp::Lte => ordering.is_le(),
                        CmpOp::Gt => ordering.is_gt(),
                        CmpOp::Gte => ordering.is_ge(),
                    };
                    if !fits {
                        return Some(false);
                    }
                }
                _ => return None,
            }
        }
        Some(true)
    }

    /// What the register has then.
    fn loaded(&self, load: &Expr) -> Option<Vec<u8>> {
        let index =
            |interface: &Option<(IfIndex, IfName)>| Some(interface.as_ref()?.0.0.to_ne_bytes().to_vec());
        let name = |interface: &Option<(IfIndex, IfName)>| {
            let mut bytes = interface.as_ref()?.1.as_str().as_bytes().to_vec();
            bytes.resize(NAME_BYTES, 0);
            Some(bytes)
        };
        let Tuple { source, destination, protocol, source_port, destination_port } = self.tuple;
        Some(match load {
            Expr::Meta { key, .. } => match *key {
                MetaKey::InIfIndex => index(&self.input)?,
                MetaKey::OutIfIndex => index(&self.output)?,
                IIFNAME => name(&self.input)?,
                OIFNAME => name(&self.output)?,
                MetaKey::NfProto => vec![if source.is_ipv6() { 10 } else { 2 }],
                MetaKey::L4Proto => vec![protocol],
                _ => return None,
            },
            Expr::Ct { key: CtKey::Mark, .. } => self.mark.to_ne_bytes().to_vec(),
            Expr::Ct { key: CtKey::Direction, .. } => vec![self.direction as u8],
            Expr::Ct { key: CtKey::Tuple(direction, part), .. } => {
                part_of(&self.tuples[*direction as usize], *part)?
            }
            Expr::Payload { base, offset, len, .. } => {
                let header = match base {
                    PayloadBase::Network => network_header(protocol, source, destination),
                    PayloadBase::Transport => {
                        [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat()
                    }
                    PayloadBase::Link => return None,
                };
                let (first, len) = (*offset as usize, *len as usize);
                header.get(first..first.checked_add(len)?)?.to_vec()
            }
            _ => return None,
        })
    }
}

/// `None` where the tuple has no such part.
fn part_of(tuple: &Tuple, part: TuplePart) -> Option<Vec<u8>> {
    Some(match (part, tuple.source, tuple.destination) {
        (TuplePart::SourceV4, IpAddr::V4(address), _)
        | (TuplePart::DestinationV4, _, IpAddr::V4(address)) => address.octets().to_vec(),
        (TuplePart::SourceV6, IpAddr::V6(address), _)
        | (TuplePart::DestinationV6, _, IpAddr::V6(address)) => address.octets().to_vec(),
        (TuplePart::SourcePort, ..) => tuple.source_port.to_be_bytes().to_vec(),
        (TuplePart::DestinationPort, ..) => tuple.destination_port.to_be_bytes().to_vec(),
        _ => return None,
    })
}

/// Only what copied conditions ask of it: protocol (of IPv4) and addresses.
fn network_header(protocol: u8, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0; 12];
            header[9] = protocol;
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0; 8];
            header.extend(source.octets());
            header.extend(destination.octets());
            header
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{
        policy::{
            expr::{Expr as Other, Verdict},
            rule::Rule,
        },
        ruleset::by_tuple::Seen,
    };

    fn packet(source: &str, destination: &str) -> Packet {
        let tuple = Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: 17,
            source_port: 999,
            destination_port: 53,
        };
        Packet {
            tuple,
            direction: Direction::Original,
            tuples: [tuple, tuple.reversed()],
            input: IfName::new("c0").map(|name| (IfIndex(4), name)),
            output: None,
            mark: 7,
        }
    }

    /// Conditions as they are copied from a rule that ends in a limit.
    fn copied(family: u8, exprs: &[Other<'_>]) -> Conditions {
        let limit = [Other::Other { name: "limit" }, Other::Verdict(Verdict::Drop)];
        let rule = Rule::new(family, 1, exprs.iter().chain(&limit).copied());
        rule.traits.expect("a limit").conditions
    }

    #[test]
    fn a_packet_meets_conditions_or_does_not_or_that_is_not_known() {
        let [v4, v6] = [packet("10.1.0.2", "10.2.0.2"), packet("fd00:1::2", "fd00:2::2")];
        let is = |value: u32| Other::Compare { register: 1, equal: true, value };
        let not = |value: u32| Other::Compare { register: 1, equal: false, value };
        let address = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let saddr = Other::Payload { base: 1, offset: 12, length: 4, register: 1 };
        let dport = Other::Payload { base: 2, offset: 2, length: 2, register: 1 };
        let bytes = |data| Other::CompareBytes { register: 1, op: 0, data };
        let meta = |key| Other::Meta { key, register: 1 };
        let mark = Other::Ct { key: 3, register: 1 };
        let label = Other::Ct { key: 13, register: 1 };
        let mask = |mask| Other::Mask { source: 1, destination: 1, mask };
        for (exprs, expected) in [
            (vec![], Some(true)),
            (vec![saddr, is(address([10, 1, 0, 2]))], Some(true)),
            (vec![saddr, is(address([10, 1, 0, 3]))], Some(false)),
            (vec![saddr, not(address([10, 1, 0, 3]))], Some(true)),
            (vec![saddr, mask(address([255, 255, 0, 0])), is(address([10, 1, 0, 0]))], Some(true)),
            (vec![dport, bytes(&[0, 53])], Some(true)),
            (vec![dport, bytes(&[0, 54])], Some(false)),
            (vec![meta(4), is(4)], Some(true)),
            (vec![meta(6), bytes(b"c0\0")], Some(true)),
            (vec![meta(6), bytes(b"c")], Some(true)),
            (vec![meta(6), bytes(b"c1\0")], Some(false)),
            (vec![meta(5), is(4)], None),
            (vec![meta(5), is(4), dport, bytes(&[0, 54])], Some(false)),
            (vec![mark, is(7)], Some(true)),
            (vec![mark, mask(8), is(8)], Some(false)),
            (vec![label, bytes(&[0; 16])], None),
        ] {
            let conditions = copied(2, &exprs);
            assert_eq!(v4.meets(&conditions), expected, "{conditions}");
            let before_nat = conditions.by_tuple(Direction::Original, Seen::BeforeNat);
            assert_eq!(v4.meets(&before_nat), expected, "{before_nat}");
            assert_eq!(v6.meets(&conditions), Some(false), "{conditions}");
        }
        let conditions =
            copied(10, &[Other::Payload { base: 1, offset: 8, length: 2, register: 1 }, bytes(&[0xfd, 0])]);
        assert_eq!((v6.meets(&conditions), v4.meets(&conditions)), (Some(true), Some(false)));
    }
}

#[cfg(test)]
mod recognised {
    use super::*;
    use crate::core::{
        policy::{expr::Expr as Other, rule::Rule as Foreign},
        ruleset::{observed::conditions_of, rule::Rule},
    };

    /// `ip saddr 10.1.0.2 udp dport 7001` in a table of family inet, as it comes back from our table.
    #[test]
    fn conditions_of_our_table_are_those_that_were_copied() {
        let bytes = |data| Other::CompareBytes { register: 1, op: 0, data };
        let exprs = [
            Other::Meta { key: 15, register: 1 },
            bytes(&[2]),
            Other::Payload { base: 1, offset: 12, length: 4, register: 1 },
            Other::Compare { register: 1, equal: true, value: u32::from_ne_bytes([10, 1, 0, 2]) },
            Other::Meta { key: 16, register: 1 },
            bytes(&[17]),
            Other::Payload { base: 2, offset: 2, length: 2, register: 1 },
            bytes(&[27, 89]),
            Other::Other { name: "limit" },
        ];
        let conditions = Foreign::new(1, 7, exprs).traits.expect("a limit").conditions;
        let rule = Rule::EveryPacket { conditions: conditions.clone() };
        assert_eq!(conditions_of(&rule.exprs()).as_ref(), Some(&conditions));
        let tuple = Tuple {
            source: "10.1.0.2".parse().unwrap(),
            destination: "10.2.0.2".parse().unwrap(),
            protocol: 17,
            source_port: 45930,
            destination_port: 7001,
        };
        let packet = Packet {
            tuple,
            input: None,
            output: None,
            direction: Direction::Original,
            tuples: [tuple, tuple.reversed()],
            mark: 0,
        };
        assert_eq!(packet.meets(&conditions), Some(true), "{conditions}");
    }
}
