//! Conditions on a packet, as rules of ours copy them from policy rules: in nft's words and in the kernel's instructions.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::expr::{CmpOp, Expr, MetaKey, PayloadBase};
use crate::core::{
    model::IfIndex,
    surroundings::{PortRange, RouteRule},
};

/// Register that conditions use (`NFT_REG_1`).
const REG: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const FAMILIES: [u8; 2] = [2, 10];

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Family of the packet.
    Family {
        /// IPv6, else IPv4.
        ipv6: bool,
    },
    /// It leaves by this interface.
    Output(IfIndex),
    /// Its source is in this network, as the forward hook sees it.
    Source(IpNet),
    /// Its destination is.
    Destination(IpNet),
    /// Its transport protocol.
    Protocol(u8),
    /// Its source port.
    SourcePort(PortRange),
    /// Its destination port.
    DestinationPort(PortRange),
}

/// Conditions that a packet must meet together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches(pub Vec<Match>);

impl Matches {
    /// For packets whose connection's other direction the policy rule could decide: the rule's conditions turned round.
    /// In the forward hook a packet's addresses are those that a packet of the other direction has when it is routed,
    /// whatever NAT does. `index` finds interfaces by name; `None` if no packet comes in on the rule's.
    pub fn reverse_of(
        rule: &RouteRule,
        index: impl Fn(&crate::core::model::IfName) -> Option<IfIndex>,
    ) -> Option<Self> {
        let mut matches = Vec::new();
        if let Some(input) = &rule.input {
            matches.push(Match::Output(index(input)?));
        }
        matches.push(Match::Family { ipv6: rule.ipv6 });
        let narrows = |net: &IpNet| net.prefix_len() > 0;
        matches.extend(rule.to.filter(narrows).map(Match::Source));
        matches.extend(rule.from.filter(narrows).map(Match::Destination));
        matches.extend(rule.protocol.map(Match::Protocol));
        matches.extend(rule.destination_ports.map(Match::SourcePort));
        matches.extend(rule.source_ports.map(Match::DestinationPort));
        Some(Self(matches))
    }

    /// The kernel's instructions.
    pub fn exprs(&self) -> Vec<Expr> {
        self.0.iter().flat_map(Match::exprs).collect()
    }

    /// The conditions that these instructions are; `None` for any that we wouldn't write.
    pub fn recognise(mut exprs: &[Expr]) -> Option<Self> {
        let mut matches = Vec::new();
        while !exprs.is_empty() {
            let (found, length) = Match::recognise(exprs)?;
            matches.push(found);
            exprs = &exprs[length..];
        }
        Some(Self(matches))
    }
}

impl Match {
    fn exprs(&self) -> Vec<Expr> {
        let meta = |key| Expr::Meta { key, dreg: REG };
        let is = |data: &[u8]| Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: data.to_vec() };
        match self {
            Self::Family { ipv6 } => vec![meta(MetaKey::NfProto), is(&[FAMILIES[usize::from(*ipv6)]])],
            Self::Output(index) => vec![meta(MetaKey::OutIfIndex), is(&index.0.to_ne_bytes())],
            Self::Source(net) => address(net, [12, 8]),
            Self::Destination(net) => address(net, [16, 24]),
            Self::Protocol(protocol) => vec![meta(MetaKey::L4Proto), is(&[*protocol])],
            Self::SourcePort(ports) => port(*ports, 0),
            Self::DestinationPort(ports) => port(*ports, 2),
        }
    }

    /// The first condition, and how many instructions it is.
    fn recognise(exprs: &[Expr]) -> Option<(Self, usize)> {
        let data = exprs.iter().take(4).filter_map(|expr| match expr {
            Expr::Cmp { data, .. } => Some(data.as_slice()),
            _ => None,
        });
        let data: Vec<&[u8]> = data.collect();
        let first = *data.first()?;
        let found = match exprs.first()? {
            Expr::Meta { key: MetaKey::NfProto, .. } => Self::Family { ipv6: first == [FAMILIES[1]] },
            Expr::Meta { key: MetaKey::OutIfIndex, .. } => {
                Self::Output(IfIndex(u32::from_ne_bytes(first.try_into().ok()?)))
            }
            Expr::Meta { key: MetaKey::L4Proto, .. } => Self::Protocol(*first.first()?),
            Expr::Payload { base: PayloadBase::Transport, offset, .. } => {
                let number = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.try_into().ok()?));
                let last = match exprs.get(1) {
                    Some(Expr::Cmp { op: CmpOp::Gte, .. }) => data.get(1)?,
                    _ => first,
                };
                let ports = PortRange { first: number(first)?, last: number(last)? };
                if *offset == 0 { Self::SourcePort(ports) } else { Self::DestinationPort(ports) }
            }
            Expr::Payload { base: PayloadBase::Network, offset, .. } => {
                let length = match exprs.get(1) {
                    Some(Expr::Bitwise { mask, .. }) => mask.iter().map(|byte| byte.count_ones()).sum(),
                    _ => 8 * u32::try_from(first.len()).ok()?,
                };
                let mut bytes = [0; 16];
                bytes.get_mut(..first.len())?.copy_from_slice(first);
                let address = match offset {
                    12 | 16 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
                    _ => IpAddr::from(bytes),
                };
                let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
                if [12, 8].contains(offset) { Self::Source(net) } else { Self::Destination(net) }
            }
            _ => return None,
        };
        let written = found.exprs();
        exprs.starts_with(&written).then_some((found, written.len()))
    }
}

/// `offsets` are those of the address in the headers of IPv4 and IPv6. As nft has it: whole bytes are compared without a mask.
fn address(net: &IpNet, offsets: [u32; 2]) -> Vec<Expr> {
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (mask, network) = (bytes(net.netmask()), bytes(net.network()));
    let offset = offsets[usize::from(mask.len() == 16)];
    let load = |len: usize| Expr::Payload { base: PayloadBase::Network, offset, len: len as u32, dreg: REG };
    let cmp = |data: &[u8]| Expr::Cmp { sreg: REG, op: CmpOp::Eq, data: data.to_vec() };
    let whole = usize::from(net.prefix_len() / 8);
    if net.prefix_len().is_multiple_of(8) {
        return vec![load(whole), cmp(&network[..whole])];
    }
    let xor = vec![0; mask.len()];
    vec![load(mask.len()), Expr::Bitwise { reg: REG, mask, xor }, cmp(&network)]
}

fn port(ports: PortRange, offset: u32) -> Vec<Expr> {
    let cmp = |op, port: u16| Expr::Cmp { sreg: REG, op, data: port.to_be_bytes().to_vec() };
    let mut exprs = vec![Expr::Payload { base: PayloadBase::Transport, offset, len: 2, dreg: REG }];
    if ports.first == ports.last {
        exprs.push(cmp(CmpOp::Eq, ports.first));
    } else {
        exprs.extend([cmp(CmpOp::Gte, ports.first), cmp(CmpOp::Lte, ports.last)]);
    }
    exprs
}

impl fmt::Display for Matches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, condition) in self.0.iter().enumerate() {
            write!(f, "{}{condition}", if position == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |net: &IpNet| if net.addr().is_ipv4() { "ip" } else { "ip6" };
        match self {
            Self::Family { ipv6 } => write!(f, "meta nfproto {}", if *ipv6 { "ipv6" } else { "ipv4" }),
            Self::Output(index) => write!(f, "oif {index}"),
            Self::Source(net) => write!(f, "{} saddr {}", ip(net), net.trunc()),
            Self::Destination(net) => write!(f, "{} daddr {}", ip(net), net.trunc()),
            Self::Protocol(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::SourcePort(ports) => write_ports(f, "th sport", *ports),
            Self::DestinationPort(ports) => write_ports(f, "th dport", *ports),
        }
    }
}

fn write_ports(f: &mut fmt::Formatter<'_>, what: &str, PortRange { first, last }: PortRange) -> fmt::Result {
    if first == last { write!(f, "{what} {first}") } else { write!(f, "{what} {first}-{last}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::IfName;

    #[test]
    fn a_policy_rule_is_turned_round() {
        let rule = RouteRule {
            input: IfName::new("lan"),
            from: Some("10.1.0.0/16".parse().unwrap()),
            to: Some("0.0.0.0/0".parse().unwrap()),
            protocol: Some(6),
            source_ports: None,
            destination_ports: Some((443..=444).into()),
            ipv6: false,
        };
        let matches =
            Matches::reverse_of(&rule, |name| (name.as_str() == "lan").then_some(IfIndex(4))).unwrap();
        assert_eq!(
            matches.to_string(),
            "oif 4 meta nfproto ipv4 ip daddr 10.1.0.0/16 meta l4proto 6 th sport 443-444"
        );
        assert_eq!(Matches::recognise(&matches.exprs()), Some(matches));
        assert_eq!(Matches::reverse_of(&rule, |_| None), None, "nothing comes in there");
    }

    #[test]
    fn every_condition_is_recognised() {
        let ports = PortRange { first: 1, last: 2 };
        let all = Matches(vec![
            Match::Family { ipv6: true },
            Match::Output(IfIndex(9)),
            Match::Source("fd00::/8".parse().unwrap()),
            Match::Destination("fd00::1/128".parse().unwrap()),
            Match::Source("10.1.0.0/17".parse().unwrap()),
            Match::Protocol(17),
            Match::SourcePort(ports),
            Match::DestinationPort(ports),
            Match::SourcePort((9..=9).into()),
        ]);
        assert_eq!(Matches::recognise(&all.exprs()), Some(all));
        assert_eq!(Matches::recognise(&[Expr::Counter]), None);
    }
}
