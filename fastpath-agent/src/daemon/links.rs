//! Links that come, change and go, and what is done when announcements were lost.

use std::mem;

use tracing::warn;

use super::{Agent, DaemonError, host::Host};
use crate::{
    core::{history::Kind, link::table::LinkEvent, pace::Trigger},
    kernel::LinkSource,
};

impl<H: Host> Agent<H> {
    /// Takes an announcement and all that wait behind it.
    pub(super) fn link_event(&mut self, first: LinkEvent) -> Result<(), DaemonError> {
        let mut next = Some(first);
        let mut lost = false;
        let mut changed = false;
        while let Some(event) = next {
            lost |= event == LinkEvent::Overrun;
            self.link_announced(&event);
            if let Some(change) = self.links.apply(event) {
                changed = true;
                self.note_link(&change);
                self.link_surroundings(&change);
                if let Some(offload) = &mut self.offload {
                    offload.reconciler.link_changed(&change);
                }
                if let Some(watch) = &mut self.watch {
                    watch.link_changed(&change);
                }
            }
            next = self.links_source.try_next();
        }
        if lost {
            self.overrun("links");
            self.distrust()?;
        }
        if changed {
            self.pace.trigger(Trigger::Links, self.now());
        }
        Ok(())
    }

    /// All that is believed of the node but for our table is observed again, and compared. What is found missing is put back.
    pub(super) fn distrust(&mut self) -> Result<(), DaemonError> {
        self.reread_links();
        self.distrust_surroundings()?;
        self.verify_programs(self.links.iter().map(|link| link.index).collect::<Vec<_>>());
        Ok(())
    }

    /// Where links can't be read, the next reconcile tries again.
    pub(super) fn reread_links(&mut self) {
        let read = self.links_source.list();
        let failed = read.as_ref().err().map(ToString::to_string);
        if self.links_unread != failed {
            failed.iter().for_each(|error| {
                warn!(error, "links can't be read; keeping the last ones and trying again")
            });
            self.links_unread = failed;
        }
        let Ok(now) = read else { return };
        let before = mem::replace(&mut self.links, now.into_iter().collect());
        self.compare_links(&before);
        if let Some(offload) = &mut self.offload {
            offload.reconciler.links_read();
        }
        if let Some(watch) = &mut self.watch {
            watch.links_read(&self.links);
        }
    }

    pub(super) fn overrun(&mut self, source: &'static str) {
        self.note(Kind::Overrun, source);
        let overruns = &mut self.overruns[usize::from(source == "ruleset")];
        *overruns += 1;
        warn!(source, overruns = *overruns, "the kernel's events came too fast: reading everything again");
        // Whatever has the next reconcile run: another trigger may be due before this one.
        if let Some(offload) = &mut self.offload {
            offload.reconciler.distrust();
        }
        self.pace.trigger(Trigger::Overrun, self.now());
    }
}
