//! Which interfaces take part in forwarding ahead of the flowtable (`--forward=peer`), and why others don't: a packet that is
//! forwarded passes neither what is at ingress behind the agent's program, nor what is at egress of the interface it leaves by.

use std::{collections::BTreeSet, fmt};

use strum::IntoStaticStr;

use super::{
    model::{IfIndex, Link},
    policy::{chain::Device, known::Known},
};

/// The queue discipline that queues nothing.
const NO_QUEUE: &str = "noqueue";

/// What was read of an interface; `None` for what couldn't be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    /// Its root queue discipline.
    pub qdisc: Option<String>,
    /// Another program's filter or eBPF program is at ingress.
    pub inspected: Option<bool>,
    /// A filter or an eBPF program is at egress.
    pub inspected_at_egress: Option<bool>,
    /// Checksums may be left to it (`tx-checksumming` of ethtool).
    pub checksums: Option<bool>,
    /// The other end, if it is a veth.
    pub other_end: OtherEnd,
}

/// Where the other end of a veth is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OtherEnd {
    /// In this network namespace, or there is none.
    #[default]
    Here,
    /// In another one.
    There(Peer),
    /// In another one, and couldn't be read.
    Unread,
}

/// The other end of a veth, in another network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// An XDP program is in its driver.
    pub xdp: bool,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its Ethernet address.
    pub address: [u8; 6],
}

/// Chains of other programs at single interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chains {
    /// At ingress.
    pub ingress: BTreeSet<Device>,
    /// At egress.
    pub egress: BTreeSet<Device>,
}

/// Why an interface takes no part. Its name, as JSON has it, is the variant's in kebab case.
#[derive(Clone, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum NoPart {
    /// No Ethernet header.
    NoEthernet,
    /// Of a bridge, a bond, a VRF.
    Port,
    /// Filters, programs or chains at ingress.
    Ingress,
    /// No veth, so there is no other end.
    NoVeth,
    /// A veth within this namespace.
    SameNamespace,
    /// Packets would be queued.
    Qdisc {
        /// How.
        name: String,
    },
    /// Filters, programs or chains at egress.
    Egress,
    /// Checksums can't be left to it.
    Checksums,
    /// An XDP program in the pod.
    PeerXdp,
    /// The pod takes smaller packets only.
    PeerMtu,
    /// Routes that a program's look-up misreads lead to it.
    Routes,
    /// It couldn't be read.
    Unknown {
        /// What.
        what: &'static str,
    },
}

impl NoPart {
    /// Whether it could take part, were it not for something that was put there; what it is by kind is no news.
    pub fn can_be_helped(&self) -> bool {
        !matches!(self, Self::NoEthernet | Self::Port | Self::NoVeth | Self::SameNamespace)
    }
}

impl fmt::Display for NoPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEthernet => f.write_str("it has no Ethernet header"),
            Self::Port => f.write_str("it is a port of a bridge, bond or VRF"),
            Self::Ingress => {
                f.write_str("another program's filter, eBPF program or netdev chain is at its ingress")
            }
            Self::NoVeth => f.write_str("it is no veth"),
            Self::SameNamespace => f.write_str("its other end is in this network namespace, or unknown"),
            Self::Qdisc { name } => write!(f, "its queue discipline is {name}"),
            Self::Egress => {
                f.write_str("another program's filter, eBPF program or netdev chain is at its egress")
            }
            Self::Checksums => f.write_str("it leaves no checksums to its other end (ethtool -K … tx off)"),
            Self::PeerXdp => f.write_str("an XDP program is at its other end"),
            Self::PeerMtu => f.write_str("its other end has a smaller MTU"),
            Self::Routes => f.write_str("a route to it has an MTU of its own, or several next hops"),
            Self::Unknown { what } => write!(f, "unknown: {what} can't be read"),
        }
    }
}

/// Why nothing is forwarded at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoForwarding {
    /// A policy rule selects by marks, which the programs' look-up of a route doesn't have.
    RoutedByMark,
    /// Policy rules or other tables couldn't be read.
    Unknown,
}

impl fmt::Display for NoForwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RoutedByMark => "a policy rule selects by marks (ip rule … fwmark)",
            Self::Unknown => "policy rules or other programs' tables can't be read",
        })
    }
}

/// Whether anything may be forwarded, and the chains at interfaces if so.
pub fn chains(known: &Known) -> Result<Chains, NoForwarding> {
    let (Some(rules), Some(tables)) = (&known.route_rules, &known.tables) else {
        return Err(NoForwarding::Unknown);
    };
    if rules.by_mark {
        return Err(NoForwarding::RoutedByMark);
    }
    Ok(Chains { ingress: tables.ingress(), egress: tables.egress() })
}

/// Whether packets that come in by `link` may be forwarded.
pub fn from(link: &Link, surface: &Surface, chains: &Chains) -> Result<(), NoPart> {
    if !link.ethernet {
        return Err(NoPart::NoEthernet);
    }
    if link.master.is_some() {
        return Err(NoPart::Port);
    }
    let inspected = surface.inspected.ok_or(NoPart::Unknown { what: "what is at ingress" })?;
    if inspected || is_at(&chains.ingress, link) {
        return Err(NoPart::Ingress);
    }
    Ok(())
}

/// Whether packets may be forwarded to the other end of `link`, and for which Ethernet address. `misread`: interfaces to which routes
/// lead that a program's look-up misreads; `None` if they couldn't be read.
pub fn to(
    link: &Link,
    surface: &Surface,
    chains: &Chains,
    misread: Option<&BTreeSet<IfIndex>>,
) -> Result<[u8; 6], NoPart> {
    if link.kind.as_deref() != Some("veth") {
        return Err(NoPart::NoVeth);
    }
    if link.master.is_some() {
        return Err(NoPart::Port);
    }
    let peer = match &surface.other_end {
        OtherEnd::There(peer) => peer,
        OtherEnd::Here => return Err(NoPart::SameNamespace),
        OtherEnd::Unread => return Err(NoPart::Unknown { what: "its other end" }),
    };
    match surface.qdisc.as_deref() {
        Some(NO_QUEUE) => {}
        Some(other) => return Err(NoPart::Qdisc { name: other.to_owned() }),
        None => return Err(NoPart::Unknown { what: "the queue discipline" }),
    }
    let inspected = surface.inspected_at_egress.ok_or(NoPart::Unknown { what: "what is at egress" })?;
    if inspected || is_at(&chains.egress, link) {
        return Err(NoPart::Egress);
    }
    if !surface.checksums.ok_or(NoPart::Unknown { what: "its features" })? {
        return Err(NoPart::Checksums);
    }
    if peer.xdp {
        return Err(NoPart::PeerXdp);
    }
    // A veth drops what is too large for its other end.
    if peer.mtu < link.mtu {
        return Err(NoPart::PeerMtu);
    }
    if misread.ok_or(NoPart::Unknown { what: "routes" })?.contains(&link.index) {
        return Err(NoPart::Routes);
    }
    Ok(peer.address)
}

fn is_at(devices: &BTreeSet<Device>, link: &Link) -> bool {
    devices.iter().any(|device| device.is(link.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::test_link;

    const ROUTES: Option<&BTreeSet<IfIndex>> = Some(&BTreeSet::new());

    const PEER: Peer = Peer { xdp: false, mtu: 1500, address: [2, 0, 0, 0, 0, 1] };

    fn pod() -> (Link, Surface) {
        let link = Link { kind: Some("veth".to_owned()), ..test_link("veth1") };
        let surface = Surface {
            qdisc: Some(NO_QUEUE.to_owned()),
            inspected: Some(false),
            inspected_at_egress: Some(false),
            checksums: Some(true),
            other_end: OtherEnd::There(PEER),
        };
        (link, surface)
    }

    #[test]
    fn a_pod_takes_part_unless_something_would_be_passed_by() {
        let none = Chains::default();
        let (link, surface) = pod();
        assert_eq!(
            (from(&link, &surface, &none), to(&link, &surface, &none, ROUTES)),
            (Ok(()), Ok(PEER.address))
        );
        let cases = [
            (Surface { qdisc: Some("fq_codel".to_owned()), ..surface.clone() }, "qdisc"),
            (Surface { qdisc: None, ..surface.clone() }, "unknown"),
            (Surface { inspected_at_egress: Some(true), ..surface.clone() }, "egress"),
            (Surface { inspected_at_egress: None, ..surface.clone() }, "unknown"),
            (Surface { checksums: Some(false), ..surface.clone() }, "checksums"),
            (Surface { other_end: OtherEnd::Here, ..surface.clone() }, "same-namespace"),
            (Surface { other_end: OtherEnd::Unread, ..surface.clone() }, "unknown"),
            (
                Surface { other_end: OtherEnd::There(Peer { xdp: true, ..PEER }), ..surface.clone() },
                "peer-xdp",
            ),
            (
                Surface { other_end: OtherEnd::There(Peer { mtu: 1499, ..PEER }), ..surface.clone() },
                "peer-mtu",
            ),
        ];
        for (surface, expected) in cases {
            let reason: &str = to(&link, &surface, &none, ROUTES).unwrap_err().into();
            assert_eq!(reason, expected);
            assert_eq!(from(&link, &surface, &none), Ok(()), "{expected}");
        }
        let inspected = Surface { inspected: Some(true), ..surface.clone() };
        assert_eq!(from(&link, &inspected, &none), Err(NoPart::Ingress));
        assert_eq!(to(&link, &inspected, &none, ROUTES), Ok(PEER.address));
        let misread = [link.index].into();
        assert_eq!(to(&link, &surface, &none, Some(&misread)), Err(NoPart::Routes));
        assert_eq!(to(&link, &surface, &none, None), Err(NoPart::Unknown { what: "routes" }));
    }

    #[test]
    fn what_a_link_is_counts_too() {
        let none = Chains::default();
        let (link, surface) = pod();
        let port = Link { master: Some(IfIndex(2)), ..link.clone() };
        assert_eq!(from(&port, &surface, &none), Err(NoPart::Port));
        assert_eq!(to(&port, &surface, &none, ROUTES), Err(NoPart::Port));
        let card = Link { kind: None, ..link.clone() };
        assert_eq!(from(&card, &surface, &none), Ok(()));
        assert_eq!(to(&card, &surface, &none, ROUTES), Err(NoPart::NoVeth));
        let tunnel = Link { ethernet: false, ..link };
        assert_eq!(from(&tunnel, &surface, &none), Err(NoPart::NoEthernet));
    }
}
