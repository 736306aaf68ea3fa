//! Helps connections into the flowtable that the rule never takes, since conntrack doesn't count their packets. Decides nothing about
//! them: that is `core::flow::assist`'s.

use fastpath_common::Signal;
use tracing::debug;

use super::{Crossings, Old, SLICE};
use crate::{
    core::flow::{
        Flow,
        assist::{Next, Wanted},
        connection::{Entry, Tuple},
    },
    kernel::{bpf::FlowEyes, flow_source::FlowSource},
};

impl<S: FlowSource> Crossings<S> {
    /// Whether connections are helped. Without the agent's rule nothing would come of it.
    pub(super) fn helps(&self) -> bool {
        self.assist.is_some() && self.node.threshold.is_some()
    }

    /// Helps a connection that the rule never takes.
    pub(super) fn consider(&mut self, entry: Option<&Entry>) {
        let now = self.now_ms();
        let Some(entry) = entry.filter(|e| e.counters.is_none() && !e.status.offloaded()) else { return };
        if self.assist.is_none() {
            return;
        }
        let seen = if self.helps() { self.counted(entry).ok() } else { None };
        let Some(assist) = &mut self.assist else { return };
        let Some(seen) = seen else {
            // Later: once the rules are installed and the maps can be read.
            return assist.later(entry.original);
        };
        assist.consider(&Flow::settled(entry.clone(), seen, &self.node), &self.node, now);
    }

    /// Checks connections that were helped.
    pub(super) fn look_at_assisted(&mut self, eyes: &mut dyn FlowEyes) {
        let now = self.now_ms();
        let Some(assist) = &mut self.assist else { return };
        if self.to_look_up.is_empty() {
            self.to_look_up = assist.take_due(now);
        }
        let rest = self.to_look_up.split_off(SLICE.min(self.to_look_up.len()));
        let tuples = std::mem::replace(&mut self.to_look_up, rest);
        if tuples.is_empty() {
            return;
        }
        let Some(entries) = self.look_up(&tuples) else {
            return self.look_later(&tuples);
        };
        for (tuple, entry) in tuples.iter().zip(&entries) {
            let seen = entry.as_ref().map_or(Ok([None; 2]), |entry| self.counted(entry)).unwrap_or_default();
            let packets = seen.iter().flatten().map(|counted| counted.packets).sum();
            let next = self.assist.as_mut().map(|a| a.looked(tuple, entry.as_ref(), packets, now));
            if let (Some(Next::Arm), Some(entry)) = (next, entry) {
                arm(eyes, entry);
            }
        }
    }

    /// Those couldn't be checked.
    pub(super) fn look_later(&mut self, tuples: &[Tuple]) {
        if let Some(assist) = &mut self.assist {
            tuples.iter().for_each(|tuple| assist.later(*tuple));
        }
    }

    /// Finds connections that were helped and may not be offloaded any more.
    pub fn look_at_helped(&mut self) {
        if let Some(assist) = &mut self.assist {
            self.to_look_up.extend(assist.take_helped());
        }
    }

    /// The flowtable was emptied. Allowed flows come back by themselves, but for those that only come with our help.
    pub fn emptied(&mut self) {
        let now = self.now_ms();
        if let Some(assist) = &mut self.assist {
            assist.emptied(now);
            self.streams.emptied(now);
        }
    }

    /// The rules were installed, or made again: the set of assisted connections and the flowtable may be empty.
    pub fn offloads_again(&mut self) {
        if let Some(assist) = &mut self.assist {
            assist.tell_again();
        }
        self.emptied();
    }

    /// An earlier agent may have left connections without help that have crossed already: they signal again.
    pub fn arm_old(&mut self) {
        if self.assist.is_some() {
            self.search = self.source.crossed_before();
        }
    }

    pub(super) fn look_at_old(&mut self, eyes: &mut dyn FlowEyes) {
        let now = self.now_ms();
        let Some(assist) = &mut self.assist else { return };
        for Old { entry, directions: [original, reply] } in self.old.drain(..) {
            if original != reply {
                self.streams.consider(&entry, now);
            }
            if entry.counters.is_some() {
                continue;
            }
            if entry.status.offloaded() {
                assist.remember(entry.original);
            } else {
                arm(eyes, &entry);
            }
        }
    }

    /// There are no rules that a connection could be helped by.
    pub fn help_none(&mut self) {
        self.assist = None;
    }

    /// What the ruleset has to be told, if anything.
    pub fn assistance(&mut self) -> Option<Wanted> {
        self.assist.as_mut()?.take_wanted()
    }

    /// There was no room for these connections: they wait their turn.
    pub fn postpone(&mut self, ids: &[u32]) {
        if let (Some(assist), false) = (&mut self.assist, ids.is_empty()) {
            debug!(connections = ids.len(), "no room to help more connections now");
            assist.postpone(ids);
        }
    }
}

/// Has both directions signal their next packets.
pub(super) fn arm(eyes: &mut dyn FlowEyes, entry: &Entry) {
    for key in [entry.original, entry.reply].iter().filter_map(Tuple::flow_key) {
        if let Err(error) = eyes.mark(&key, Signal::Sent, Signal::None) {
            debug!(%error, "a connection is not assisted any more");
        }
    }
}
