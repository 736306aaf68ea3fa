//! Policy rules (`ip rule`), as much of them as matters.

use std::{fmt, ops::RangeInclusive};

use crate::core::model::IfName;
use ipnet::IpNet;

/// Policy rules (`ip rule`), as much of them as matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRules {
    /// See `unguessed` of [`Surroundings`](crate::core::surroundings::Surroundings).
    pub unguessed: Vec<RouteRule>,
    /// One selects by marks.
    pub by_mark: bool,
    /// One selects by what not all packets of a direction have in common and nobody knows ahead of them: DSCP, tunnels, or something
    /// that only later kernels have.
    pub by_packet: bool,
}

/// A policy rule (`ip rule`) that selects by what the flowtable's guess of the other direction's route doesn't have:
/// input interface, protocol, ports, DSCP or tunnel. Selectors that aren't here match every packet; an inverted rule
/// has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteRule {
    /// `iif`: packets that come in here, by name, whether there is such an interface or not.
    pub input: Option<IfName>,
    /// `from`, which also says the family.
    pub from: Option<IpNet>,
    /// `to`, likewise.
    pub to: Option<IpNet>,
    /// `ipproto`.
    pub protocol: Option<u8>,
    /// `sport`, host byte order.
    pub source_ports: Option<PortRange>,
    /// `dport`, host byte order.
    pub destination_ports: Option<PortRange>,
    /// The rule is one of IPv6's.
    pub ipv6: bool,
}

/// Ports from the first to the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// As `ip rule` writes it, as far as its conditions are known.
impl fmt::Display for RouteRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}from {}", if self.ipv6 { "-6 " } else { "" }, shown(self.from))?;
        if self.to.is_some() {
            write!(f, " to {}", shown(self.to))?;
        }
        if let Some(input) = &self.input {
            write!(f, " iif {input}")?;
        }
        if let Some(protocol) = self.protocol {
            write!(f, " ipproto {protocol}")?;
        }
        for (word, ports) in [("sport", self.source_ports), ("dport", self.destination_ports)] {
            match ports {
                Some(PortRange { first, last }) if first == last => write!(f, " {word} {first}")?,
                Some(PortRange { first, last }) => write!(f, " {word} {first}-{last}")?,
                None => {}
            }
        }
        Ok(())
    }
}

impl From<RangeInclusive<u16>> for PortRange {
    fn from(range: RangeInclusive<u16>) -> Self {
        Self { first: *range.start(), last: *range.end() }
    }
}

fn shown(net: Option<IpNet>) -> String {
    net.map_or_else(|| "all".to_owned(), |net| net.to_string())
}
