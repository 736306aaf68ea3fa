//! Finds the cause of a transaction that the kernel refused, and what is left out because of it.

use std::io;

use tracing::{debug, warn};

use super::Reconciler;
use crate::{
    core::{
        link::table::LinkTable,
        model::{FLOWTABLE, IfName},
        ruleset::plan::Op,
    },
    kernel::{Ruleset, nft::Rejection},
};

impl<R: Ruleset> Reconciler<R> {
    /// Finds the cause of a refused transaction, and remembers devices that were refused.
    pub(super) fn blame(
        &mut self,
        ops: &[Op],
        rejections: &[Rejection],
        split: bool,
        links: &LinkTable,
    ) -> Blame {
        let mut blame = Blame::Agent;
        let no_room = |rejection: &Rejection| {
            rejection.source.raw_os_error() == Some(libc::ENFILE)
                && matches!(ops.get(rejection.index), Some(Op::AddAssisted { .. }))
        };
        if rejections.iter().all(no_room) {
            return Blame::NoRoom;
        }
        let about_devices = |rejection: &Rejection| {
            ops.get(rejection.index).is_some_and(|op| match op {
                Op::AddDevices(_) => true,
                // A device that is gone already leaves the flowtable by itself; a table that was recreated has other
                // handles. The next reading shows.
                Op::RemoveDevices(_) | Op::RemoveIndices(_) | Op::DeleteRule { .. } => {
                    rejection.source.raw_os_error() == Some(libc::ENOENT)
                }
                _ => false,
            })
        };
        // Where the flowtable itself was refused, the devices' refusals only follow from that.
        if !rejections.iter().all(about_devices) {
            return Blame::Agent;
        }
        if self.policy.hw_offload && self.fall_back_to_software(ops, rejections) {
            return Blame::Device;
        }
        for rejection in rejections {
            match (ops.get(rejection.index), &rejection.device) {
                (Some(Op::AddDevices(_)), Some(name)) => {
                    self.refuse(name, &rejection.source, links);
                    blame = Blame::Device;
                }
                (Some(Op::AddDevices(names)), None) if names.len() == 1 => {
                    self.refuse(&names[0], &rejection.source, links);
                    blame = Blame::Device;
                }
                (Some(Op::AddDevices(_)), None) if !split => return Blame::SomeDevice,
                (Some(Op::AddDevices(_)), None) => {}
                _ => blame = Blame::Device,
            }
        }
        blame
    }

    fn refuse(&mut self, name: &IfName, error: &io::Error, links: &LinkTable) {
        let Some(index) = links.iter().find(|l| l.name == *name).map(|l| l.index) else { return };
        if error.raw_os_error() == Some(libc::ENOENT) {
            // It went away or was renamed; the event follows.
            debug!(iface = %name, "this interface has just gone");
        } else if self.reported.insert(index, error.to_string()) != Some(error.to_string()) {
            warn!(
                iface = %name, errno = error.raw_os_error(),
                "the kernel refused this interface in {FLOWTABLE} ({error}): its flows take the normal path; trying again \
                 when it changes"
            );
        }
        self.refused.insert(index, error.to_string());
        self.changed = None;
    }

    /// Goes back to software if that is what the kernel's refusals were about; says so once.
    fn fall_back_to_software(&mut self, ops: &[Op], rejections: &[Rejection]) -> bool {
        let cannot = rejections.iter().find(|r| r.source.raw_os_error() == Some(libc::EOPNOTSUPP));
        let Some(cannot) = cannot else { return false };
        let names = match ops.get(cannot.index) {
            Some(Op::AddDevices(names)) => names.as_slice(),
            _ => &[],
        };
        let iface = cannot.device.as_ref().or(names.first()).map(ToString::to_string);
        warn!(
            iface,
            "no hardware offload: not every managed interface supports it, and a flowtable is either hardware or software; \
             flows are offloaded in software (--exclude-interfaces leaves interfaces out, --hw-offload=off silences this)"
        );
        self.policy.hw_offload = false;
        self.changed = None;
        true
    }
}

/// The cause.
pub(super) enum Blame {
    /// A device that is left out from now on, or something that a new reading clears up.
    Device,
    /// One of several devices in a message: each has to be sent alone to tell which.
    SomeDevice,
    /// The set of connections that are helped is full.
    NoRoom,
    /// The plan itself, or the kernel's resources.
    Agent,
}

/// The same operations, with each new device in a message of its own so that the kernel names the culprits.
pub(super) fn one_device_a_message(ops: Vec<Op>) -> Vec<Op> {
    ops.into_iter()
        .flat_map(|op| match op {
            Op::AddDevices(names) => names.into_iter().map(|name| Op::AddDevices(vec![name])).collect(),
            other => vec![other],
        })
        .collect()
}
