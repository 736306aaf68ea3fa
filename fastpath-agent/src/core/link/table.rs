//! The links of this namespace as they are announced, one change after the other.

use std::collections::{BTreeMap, BTreeSet};

use crate::core::{
    link::kind::is_bridged,
    model::{IfIndex, Link},
};

/// A change of the links, as the kernel announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A link is new or has changed; this is how it is now.
    Changed(Link),
    /// A link is gone from this namespace: deleted or moved.
    Gone(IfIndex),
    /// Announcements were lost (ENOBUFS): everything has to be read again.
    Overrun,
}

/// What an announcement changed in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// A link is there that wasn't.
    Appeared(IfIndex),
    /// A link is another than before in something that we look at.
    Changed {
        /// How it was.
        before: Link,
        /// It has another name now.
        renamed: bool,
    },
    /// A link isn't there any more.
    Gone(Link),
}

/// All links of this namespace by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkTable(BTreeMap<IfIndex, Link>);

impl LinkTable {
    /// Applies one announcement; `None` if it says nothing new (an overrun says nothing at all).
    pub fn apply(&mut self, event: LinkEvent) -> Option<LinkChange> {
        match event {
            LinkEvent::Changed(link) => {
                let index = link.index;
                match self.0.get_mut(&index) {
                    Some(known) if *known == link => None,
                    Some(known) => {
                        let renamed = known.name != link.name;
                        Some(LinkChange::Changed { before: std::mem::replace(known, link), renamed })
                    }
                    None => {
                        self.0.insert(index, link);
                        Some(LinkChange::Appeared(index))
                    }
                }
            }
            LinkEvent::Gone(index) => self.0.remove(&index).map(LinkChange::Gone),
            LinkEvent::Overrun => None,
        }
    }

    /// The links in order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.0.values()
    }

    /// `managed` with the ports of the bridges among them, which replace their ports in the flowtable.
    pub fn with_ports(&self, managed: &BTreeSet<IfIndex>) -> BTreeSet<IfIndex> {
        let managed_link = |index| self.get(index).filter(|_| managed.contains(&index));
        let ports = self.iter().filter(|link| is_bridged(link, managed_link)).map(|link| link.index);
        managed.iter().copied().chain(ports).collect()
    }

    /// One link.
    pub fn get(&self, index: IfIndex) -> Option<&Link> {
        self.0.get(&index)
    }
}

impl FromIterator<Link> for LinkTable {
    fn from_iter<I: IntoIterator<Item = Link>>(links: I) -> Self {
        Self(links.into_iter().map(|link| (link.index, link)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::test_link;

    #[test]
    fn only_what_is_new_is_a_change() {
        let eth0 = test_link("eth0");
        let mut table = LinkTable::default();
        assert_eq!(table.apply(LinkEvent::Changed(eth0.clone())), Some(LinkChange::Appeared(eth0.index)));
        assert_eq!(table.apply(LinkEvent::Changed(eth0.clone())), None);
        let jumbo = Link { mtu: 9000, ..eth0.clone() };
        assert_eq!(
            table.apply(LinkEvent::Changed(jumbo.clone())),
            Some(LinkChange::Changed { before: eth0.clone(), renamed: false })
        );
        assert_eq!(table.apply(LinkEvent::Gone(eth0.index)), Some(LinkChange::Gone(jumbo)));
        assert_eq!(table.apply(LinkEvent::Gone(eth0.index)), None);
    }

    #[test]
    fn ports_count_with_their_bridge() {
        let link = |index, kind: &str, master| Link {
            index: IfIndex(index),
            kind: Some(kind.to_owned()),
            master: Some(IfIndex(master)),
            ..test_link("x")
        };
        let table: LinkTable =
            [link(1, "veth", 8), link(2, "veth", 9), link(8, "bridge", 0), link(9, "bond", 0)]
                .into_iter()
                .collect();
        let indices = |list: &[u32]| list.iter().copied().map(IfIndex).collect::<BTreeSet<_>>();
        assert_eq!(table.with_ports(&indices(&[8, 9])), indices(&[1, 8, 9]));
        assert_eq!(table.with_ports(&indices(&[2])), indices(&[2]));
    }
}
