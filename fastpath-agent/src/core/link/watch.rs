//! On which links packets are counted, so that each one is counted once.
//!
//! A packet is seen on each link of a stack (port and bridge, trunk and VLAN), but only the lowest one sees every packet: the
//! flowtable's hook there takes those of offloaded flows away. So the lowest managed link counts. A tunnel isn't a link
//! above in this sense, since it unpacks other packets.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::model::{IfIndex, Link};

/// Kinds of links that hand up the very packets of the link below.
const STACKED: [&str; 5] = ["vlan", "macvlan", "macvtap", "ipvlan", "ipvtap"];

/// Of the links in `managed`, those to count packets on: all that have no managed link below them, at any depth.
/// `links` are all links of the namespace.
pub fn watched<'a>(
    links: impl IntoIterator<Item = &'a Link>,
    managed: &BTreeSet<IfIndex>,
) -> BTreeSet<IfIndex> {
    let below = lower_links(links);
    managed.iter().copied().filter(|&link| !covered(link, &below, managed)).collect()
}

/// The links whose packets a link hands up, one step down; nothing for a link that has none below it.
pub fn lower_links<'a>(links: impl IntoIterator<Item = &'a Link>) -> BTreeMap<IfIndex, BTreeSet<IfIndex>> {
    let mut below: BTreeMap<IfIndex, BTreeSet<IfIndex>> = BTreeMap::new();
    for (upper, lower) in links.into_iter().flat_map(steps) {
        below.entry(upper).or_default().insert(lower);
    }
    below
}

/// Pairs of links, the first of which hands up packets of the second, as far as `link` says.
fn steps(link: &Link) -> impl Iterator<Item = (IfIndex, IfIndex)> + use<> {
    let is_stacked = link.kind.as_deref().is_some_and(|kind| STACKED.contains(&kind));
    let to_master = link.master.map(|master| (master, link.index));
    to_master.into_iter().chain(link.lower.filter(|_| is_stacked).map(|lower| (link.index, lower)))
}

/// The links to count packets on, kept up to date one link after the other: what [`watched`] says of all, worked out of the
/// links that a change concerns.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    managed: BTreeSet<IfIndex>,
    below: BTreeMap<IfIndex, BTreeSet<IfIndex>>,
    above: BTreeMap<IfIndex, BTreeSet<IfIndex>>,
    /// What each link says of those around it.
    steps: BTreeMap<IfIndex, Vec<(IfIndex, IfIndex)>>,
}

impl Watched {
    /// A link is now like this, or gone. Returns the links that may be watched now, or may not be any more.
    pub fn follow(&mut self, index: IfIndex, link: Option<&Link>, managed: bool) -> BTreeSet<IfIndex> {
        let mut concerned = self.upwards(index);
        for (upper, lower) in self.steps.remove(&index).into_iter().flatten() {
            // The other one may say so, too.
            let other = self.steps.get(if upper == index { &lower } else { &upper });
            if !other.is_some_and(|steps| steps.contains(&(upper, lower))) {
                remove(&mut self.below, upper, lower);
                remove(&mut self.above, lower, upper);
            }
        }
        let steps: Vec<_> = link.into_iter().flat_map(steps).collect();
        for (upper, lower) in &steps {
            self.below.entry(*upper).or_default().insert(*lower);
            self.above.entry(*lower).or_default().insert(*upper);
        }
        if !steps.is_empty() {
            self.steps.insert(index, steps);
        }
        if managed {
            self.managed.insert(index);
        } else {
            self.managed.remove(&index);
        }
        concerned.extend(self.upwards(index));
        concerned
    }

    /// Whether packets should be counted there.
    pub fn is_watched(&self, index: IfIndex) -> bool {
        self.managed.contains(&index) && !covered(index, &self.below, &self.managed)
    }

    /// A link and all above it.
    fn upwards(&self, index: IfIndex) -> BTreeSet<IfIndex> {
        let mut found = BTreeSet::from([index]);
        let mut next = vec![index];
        while let Some(link) = next.pop() {
            let above = self.above.get(&link).into_iter().flatten();
            next.extend(above.filter(|upper| found.insert(**upper)));
        }
        found
    }
}

fn remove(steps: &mut BTreeMap<IfIndex, BTreeSet<IfIndex>>, from: IfIndex, to: IfIndex) {
    if let Some(others) = steps.get_mut(&from) {
        others.remove(&to);
        if others.is_empty() {
            steps.remove(&from);
        }
    }
}

/// Whether a managed link is below `link`.
fn covered(link: IfIndex, below: &BTreeMap<IfIndex, BTreeSet<IfIndex>>, managed: &BTreeSet<IfIndex>) -> bool {
    let mut seen = BTreeSet::from([link]);
    let mut next = vec![link];
    while let Some(link) = next.pop() {
        for &lower in below.get(&link).into_iter().flatten() {
            if !seen.insert(lower) {
                continue;
            }
            if managed.contains(&lower) {
                return true;
            }
            next.push(lower);
        }
    }
    false
}

/// Kinds of links that hand up the packets of their ports.
const OVER_PORTS: [&str; 4] = ["bridge", "bond", "team", "vrf"];

/// Why packets of a link are no business of XDP's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForXdp {
    /// Frames without an Ethernet header.
    NoEthernet,
    /// It receives no frames itself. (A bond would attach the program to its ports, which may be excluded.)
    Stacked,
}

/// Whether XDP makes no sense on a link; `None` if it may.
pub fn not_for_xdp(link: &Link) -> Option<NotForXdp> {
    let kind = link.kind.as_deref().unwrap_or_default();
    if !link.ethernet {
        Some(NotForXdp::NoEthernet)
    } else if STACKED.contains(&kind) || OVER_PORTS.contains(&kind) {
        Some(NotForXdp::Stacked)
    } else {
        None
    }
}

/// Interfaces that hand up packets of other interfaces. Those of kind ppp may.
pub fn uppers(links: &super::table::LinkTable) -> BTreeMap<IfIndex, crate::core::model::IfName> {
    let mut indices: BTreeSet<IfIndex> = lower_links(links.iter()).into_keys().collect();
    indices.extend(links.iter().filter(|link| link.kind.as_deref() == Some("ppp")).map(|link| link.index));
    indices.into_iter().filter_map(|index| Some((index, links.get(index)?.name.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::model::test_link;

    fn link(index: u32, kind: &str) -> Link {
        Link { index: IfIndex(index), kind: Some(kind.to_owned()), ..test_link("x") }
    }

    fn on(lower: u32, link: Link) -> Link {
        Link { lower: Some(IfIndex(lower)), ..link }
    }

    fn port_of(master: u32, link: Link) -> Link {
        Link { master: Some(IfIndex(master)), ..link }
    }

    fn indices(list: &[u32]) -> BTreeSet<IfIndex> {
        list.iter().copied().map(IfIndex).collect()
    }

    #[test]
    fn the_lowest_managed_link_counts() {
        let stack = [
            port_of(2, link(1, "veth")),
            port_of(3, link(2, "bond")),
            link(3, "bridge"),
            on(3, link(4, "vlan")),
            on(4, link(5, "macvlan")),
        ];
        for (managed, expected) in [
            (vec![1, 2, 3, 4, 5], vec![1]),
            (vec![2, 3, 4, 5], vec![2]),
            (vec![1, 5], vec![1]),
            (vec![4, 5], vec![4]),
            (vec![5], vec![5]),
        ] {
            assert_eq!(watched(&stack, &indices(&managed)), indices(&expected), "{managed:?}");
        }
    }

    #[test]
    fn tunnels_and_veth_pairs_carry_packets_of_their_own() {
        let links = [
            link(1, "veth"),
            on(1, link(2, "vxlan")),
            on(1, link(3, "ipip")),
            on(5, link(4, "veth")),
            on(4, link(5, "veth")),
        ];
        let all = indices(&[1, 2, 3, 4, 5]);
        assert_eq!(watched(&links, &all), all);
    }

    #[test]
    fn every_port_counts_and_links_without_a_lower_one_too() {
        let links = [
            port_of(9, link(1, "veth")),
            port_of(9, link(2, "veth")),
            link(9, "bridge"),
            link(3, "wireguard"),
        ];
        assert_eq!(watched(&links, &indices(&[1, 2, 3, 9])), indices(&[1, 2, 3]));
    }

    #[test]
    fn xdp_is_for_links_that_receive_frames() {
        for (kind, ethernet, expected) in [
            ("veth", true, None),
            ("vxlan", true, None),
            ("bond", true, Some(NotForXdp::Stacked)),
            ("vlan", true, Some(NotForXdp::Stacked)),
            ("wireguard", false, Some(NotForXdp::NoEthernet)),
        ] {
            assert_eq!(not_for_xdp(&Link { ethernet, ..link(1, kind) }), expected, "{kind}");
        }
        assert_eq!(not_for_xdp(&test_link("eth0")), None);
    }

    #[test]
    fn a_circle_ends() {
        let links = [on(2, link(1, "macvlan")), on(1, link(2, "macvlan"))];
        assert_eq!(watched(&links, &indices(&[1])), indices(&[1]));
    }

    proptest! {
        #[test]
        fn following_is_as_good_as_looking_at_all(
            changes in prop::collection::vec(
                (1u32..8, prop::option::of((0usize..4, prop::option::of(1u32..8), prop::option::of(1u32..8), any::<bool>()))),
                1..40,
            ),
        ) {
            let mut links = BTreeMap::new();
            let mut managed = BTreeSet::new();
            let (mut followed, mut found) = (Watched::default(), BTreeSet::new());
            for (index, state) in changes {
                links.remove(&index);
                managed.remove(&IfIndex(index));
                if let Some((kind, master, lower, manages)) = state {
                    let is = Link {
                        master: master.map(IfIndex),
                        lower: lower.map(IfIndex),
                        ..link(index, ["veth", "vlan", "bridge", "macvlan"][kind])
                    };
                    links.insert(index, is);
                    managed.extend(manages.then_some(IfIndex(index)));
                }
                for concerned in followed.follow(IfIndex(index), links.get(&index), managed.contains(&IfIndex(index))) {
                    if followed.is_watched(concerned) {
                        found.insert(concerned);
                    } else {
                        found.remove(&concerned);
                    }
                }
                prop_assert_eq!(&found, &watched(links.values(), &managed));
            }
        }
    }
}
