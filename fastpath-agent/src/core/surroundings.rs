//! What others have on this node that decides where our rules may stand and which packets may offload their flow.
//! Read by `kernel`, heeded by `ruleset::desired`. No I/O.

use std::{collections::BTreeSet, fmt, net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;

use super::{
    model::{IfIndex, IfName},
    policy::concern::Concern,
};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Highest priority of a filter chain of others in the forward hook (families inet, ip and ip6, legacy tables
    /// included); our chain comes after it. From 300 on only chains that can deny count.
    pub last_forward: Option<i32>,
    /// Highest priority of a filter chain of others in the postrouting hook that can deny a packet of an established
    /// connection. While there is one, only packets that have passed it are evidence of their direction.
    pub denying_postrouting: Option<i32>,
    /// Policy rules that the kernel doesn't evaluate when it guesses the other direction's route.
    pub unguessed: Vec<RouteRule>,
    /// Interfaces where others look at packets that come in: filters, programs or netdev chains at ingress.
    pub inspected: BTreeSet<IfIndex>,
    /// Interfaces that carry PPPoE sessions; which of them carries which ppp interface, nobody says.
    pub pppoe: BTreeSet<IfName>,
    /// An answer that nobody has seen would be accepted, and would take the way that routing has for it: no rule of others
    /// can deny a packet of an established connection in a hook that offloaded packets skip, and no policy rule selects by
    /// marks, which such an answer may get. False where that isn't known.
    pub sure_of_answers: bool,
    /// Packets of established connections are translated, where the connection says so.
    pub translates: Translates,
    /// Rules that offloaded packets don't pass and that ask more than headers and connection.
    pub rules: Vec<Concern>,
}

impl Surroundings {
    /// Whether flows that were offloaded before have to be judged anew. Not for other rules alone: they are announced, and our
    /// guards against them come with an emptied flowtable.
    pub fn judges_as(&self, other: &Self) -> bool {
        let Self {
            last_forward,
            denying_postrouting,
            unguessed,
            inspected,
            pppoe,
            sure_of_answers: _,
            translates: _,
            rules: _,
        } = self;
        (last_forward, denying_postrouting) == (&other.last_forward, &other.denying_postrouting)
            && (unguessed, inspected, pppoe) == (&other.unguessed, &other.inspected, &other.pppoe)
    }
}

/// By IP family, whether this network namespace translates addresses. False where that isn't known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translates {
    /// Of IPv4.
    pub v4: bool,
    /// Of IPv6.
    pub v6: bool,
}

impl Translates {
    /// Whether those of packets to this address are.
    pub fn packets_to(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Policy rules (`ip rule`), as much of them as matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRules {
    /// See [`Surroundings::unguessed`].
    pub unguessed: Vec<RouteRule>,
    /// One selects by marks.
    pub by_mark: bool,
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

fn shown(net: Option<IpNet>) -> String {
    net.map_or_else(|| "all".to_owned(), |net| net.to_string())
}

/// Ports from the first to the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

impl From<RangeInclusive<u16>> for PortRange {
    fn from(range: RangeInclusive<u16>) -> Self {
        Self { first: *range.start(), last: *range.end() }
    }
}
