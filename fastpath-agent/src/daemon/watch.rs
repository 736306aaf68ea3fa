//! Keeps the eBPF programs attached where `core::link::watch` wants them. Whatever fails here costs sight, never packets:
//! it is logged once and tried again when the link changes.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{debug, warn};

use super::host::Host;
use crate::{
    config::Config,
    core::{
        link::{
            select::Selection,
            table::{LinkChange, LinkTable},
            watch::Watched,
        },
        model::{IfIndex, Link},
    },
    kernel::bpf::FlowEyes,
};

/// Links that get programs before the agent does something else.
const AT_A_TIME: usize = 8;

/// The attached programs.
pub struct Watch {
    eyes: Box<dyn FlowEyes>,
    selection: Selection,
    /// Which links there should be programs on.
    watched: Watched,
    /// Links that have changed since that was so; `None`: it isn't known of any.
    changed: Option<BTreeSet<IfIndex>>,
    /// Links to attach to.
    lacking: BTreeSet<IfIndex>,
    attached: BTreeSet<IfIndex>,
    /// Links that have lost their programs; those that go lose them, too.
    detached: BTreeSet<IfIndex>,
    /// Links that couldn't be detached from; tried again with each look.
    stuck: BTreeSet<IfIndex>,
    /// Links that couldn't be attached to, as they were then; tried again when they change, and by the safety net.
    refused: BTreeMap<IfIndex, Link>,
    /// Why, as last reported: a repeated refusal isn't reported.
    reported: BTreeMap<IfIndex, String>,
}

impl Watch {
    /// Programs that are loaded, on no link that is known of but those of an earlier agent.
    pub fn new(eyes: Box<dyn FlowEyes>, config: &Config) -> Self {
        let attached = match eyes.attachments() {
            Ok(attachments) => attachments.into_iter().map(|a| a.index).collect(),
            Err(error) => {
                warn!(%error, "programs of an earlier agent can't be listed");
                BTreeSet::new()
            }
        };
        Self {
            eyes,
            selection: config.rules.selection.clone(),
            watched: Watched::default(),
            changed: None,
            lacking: BTreeSet::new(),
            attached,
            detached: BTreeSet::new(),
            stuck: BTreeSet::new(),
            refused: BTreeMap::new(),
            reported: BTreeMap::new(),
        }
    }

    /// Replaces the programs that an earlier agent left attached, in place, before the agent says that its
    /// programs are there.
    pub fn take_over(&mut self, links: &LinkTable) {
        let wanted = self.look_at_all(links);
        for index in std::mem::take(&mut self.attached) {
            match links.get(index) {
                Some(link) if wanted.contains(&index) => self.attach(link),
                _ => self.detach(index),
            }
        }
    }

    /// Takes note of one change of the links. A link that goes takes its programs along, even if another one has its index
    /// already.
    pub fn link_changed(&mut self, change: &LinkChange) {
        let index = match change {
            LinkChange::Appeared(index) => *index,
            LinkChange::Changed { before: link, .. } => link.index,
            LinkChange::Gone(link) => {
                self.refused.remove(&link.index);
                if self.attached.remove(&link.index) {
                    self.detach(link.index);
                }
                link.index
            }
        };
        if let Some(changed) = &mut self.changed {
            changed.insert(index);
        }
    }

    /// All links were read again. One that has gone took its programs along, even if no event said so.
    pub fn links_read(&mut self, links: &LinkTable) {
        self.changed = None;
        self.refused.clear();
        let (there, gone) = self.attached.iter().partition(|index| links.get(**index).is_some());
        self.attached = there;
        BTreeSet::into_iter(gone).for_each(|index| self.detach(index));
    }

    /// The programs.
    pub fn eyes(&mut self) -> &mut dyn FlowEyes {
        &mut *self.eyes
    }

    /// Attaches to new links, a few at a time, and detaches from those that are watched no more. Whether links are left to attach
    /// to: the kernel may wait for all its processors with each (`tcx_entry_sync`), so a thousand take seconds.
    #[must_use]
    pub fn follow(&mut self, links: &LinkTable) -> bool {
        self.refused.retain(|index, link| links.get(*index) == Some(link));
        self.reported.retain(|index, _| links.get(*index).is_some());
        self.detached.retain(|index| links.get(*index).is_some());
        let concerned = match self.changed.replace(BTreeSet::new()) {
            Some(changed) => changed.into_iter().flat_map(|index| self.look_at(index, links)).collect(),
            None => &self.look_at_all(links) | &self.attached,
        };
        for index in std::mem::take(&mut self.stuck) {
            if links.get(index).is_some() && !self.watched.is_watched(index) {
                self.detach(index);
            }
        }
        for index in concerned {
            if !self.watched.is_watched(index) {
                self.lacking.remove(&index);
                if self.attached.remove(&index) {
                    self.detach(index);
                }
            } else if !self.attached.contains(&index) && !self.refused.contains_key(&index) {
                self.lacking.insert(index);
            }
        }
        for _ in 0..AT_A_TIME {
            let Some(link) = self.lacking.pop_first().and_then(|index| links.get(index)) else { break };
            self.attach(link);
        }
        !self.lacking.is_empty()
    }

    /// Looks whether a link's programs are still there: others may have detached them. Where they aren't, they are attached
    /// again with the next [`follow`](Self::follow); then true.
    pub fn verify(&mut self, link: &Link) -> bool {
        if !self.attached.contains(&link.index) || !self.watched.is_watched(link.index) {
            return false;
        }
        match self.eyes.attachments_on(link) {
            Ok(attachments) if attachments.is_empty() => {
                self.attached.remove(&link.index);
                self.detached.insert(link.index);
                self.lacking.insert(link.index);
                true
            }
            Ok(_) => false,
            Err(error) => {
                debug!(iface = %link.name, %error, "unknown whether the programs are attached");
                false
            }
        }
    }

    /// On how many interfaces.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Whether there is an interface whose packets are seen, or none that could be.
    pub fn watches(&self) -> bool {
        !self.attached.is_empty() || self.refused.is_empty()
    }

    /// All links that there should be programs on.
    fn look_at_all(&mut self, links: &LinkTable) -> BTreeSet<IfIndex> {
        self.watched = Watched::default();
        self.lacking.clear();
        for link in links.iter() {
            self.look_at(link.index, links);
        }
        links.iter().map(|link| link.index).filter(|index| self.watched.is_watched(*index)).collect()
    }

    /// Looks at one link, and says which it concerns.
    fn look_at(&mut self, index: IfIndex, links: &LinkTable) -> BTreeSet<IfIndex> {
        let link = links.get(index);
        let managed = link.is_some_and(|link| self.selection.reject(link).is_none());
        self.watched.follow(index, link, managed)
    }

    fn attach(&mut self, link: &Link) {
        match self.eyes.attach(link) {
            Ok(attachment) => {
                debug!(iface = %link.name, ?attachment, "watching");
                if let Some(reason) = attachment.without_xdp {
                    warn!(iface = %link.name, "watched with TC instead of XDP: {reason}");
                }
                if self.detached.remove(&link.index) {
                    warn!(iface = %link.name, "another program detached the eBPF programs: attached again");
                }
                self.attached.insert(link.index);
                self.reported.remove(&link.index);
            }
            // It has gone; its event follows.
            Err(error) if error.is_about_absence() => {
                debug!(iface = %link.name, %error, "not watched");
                self.refused.insert(link.index, link.clone());
            }
            Err(error) => {
                let reason = error.to_string();
                if self.reported.insert(link.index, reason.clone()).is_none_or(|before| before != reason) {
                    warn!(iface = %link.name, "flows that arrive here are not watched: {reason}");
                }
                self.refused.insert(link.index, link.clone());
            }
        }
    }

    fn detach(&mut self, index: IfIndex) {
        if let Err(error) = self.eyes.detach(index) {
            debug!(%index, %error, "could not detach");
            self.stuck.insert(index);
        }
    }
}

impl<H: Host> super::Agent<H> {
    /// Looks whether the programs of these links are still attached, and has missing ones attached again.
    pub(super) fn verify_programs(&mut self, indices: impl IntoIterator<Item = IfIndex>) {
        let Some(watch) = &mut self.watch else { return };
        for link in indices.into_iter().filter_map(|index| self.links.get(index)) {
            self.unwatched |= watch.verify(link);
        }
    }
}
