//! What other programs have on this node that decides where our rules may be and which packets may offload their flow.
//! Read by `kernel`, respected by `ruleset::desired`. No I/O.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    model::{IfIndex, IfName},
    policy::concern::Concern,
};
use crate::core::route_rule::RouteRule;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Highest priority of another program's filter chain in the forward hook (families inet, ip and ip6, legacy tables
    /// included); our chain comes after it. From 300 on only chains that can deny count.
    pub last_forward: Option<i32>,
    /// Highest priority of another program's filter chain in the postrouting hook that can deny a packet of an established
    /// connection. While there is one, only packets that have passed it are evidence of their direction.
    pub denying_postrouting: Option<i32>,
    /// Policy rules that the kernel doesn't evaluate when it guesses the other direction's route.
    pub unguessed: Vec<RouteRule>,
    /// Interfaces where others look at packets that come in: filters, programs or netdev chains at ingress.
    pub inspected: BTreeSet<IfIndex>,
    /// Interfaces that carry PPPoE sessions; the kernel doesn't say which of them carries which ppp interface.
    pub pppoe: BTreeSet<IfName>,
    /// An answer that wasn't seen yet would be accepted, and would take the way that routing has for it: no other program's rule
    /// can deny a packet of an established connection in a hook that offloaded packets skip, and no policy rule selects by
    /// marks, which such an answer may get. False where that isn't known.
    pub sure_of_answers: bool,
    /// Packets of established connections are translated, where the connection says so.
    pub translates: Translates,
    /// Rules that offloaded packets don't pass and that ask more than headers and connection.
    pub rules: Vec<Concern>,
}

impl Surroundings {
    /// Whether flows that were offloaded before have to be revalidated. Not for other rules alone: they are announced, and our
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
