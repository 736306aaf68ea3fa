//! What is there without a running agent, and removing it. Loads nothing.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fastpath_common::PacketStats;
use serde::Serialize;

use super::{
    Attachment, BpfError, Pinned,
    attach::{attachments, current_name, detach_clsact},
    xdp::XdpMode,
};

use crate::{
    core::model::IfIndex,
    kernel::bpf::pins::{LINKS, detach_link_at, is_absent, unpin_maps},
};

/// What is pinned and attached.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The directory that was searched.
    pub pin_path: PathBuf,
    /// The maps; `None` if nothing is pinned.
    pub maps: Option<MapsInspection>,
    /// Interfaces of this namespace with one of the agent's programs.
    pub attachments: Vec<Attachment>,
}

/// What the pinned maps say.
#[derive(Clone, Debug, Serialize)]
pub struct MapsInspection {
    /// Entries in the flows map: directions of flows.
    pub flows: u32,
    /// Entries that it has room for.
    pub max_flows: u32,
    /// Packets of one direction above which a flow is signalled; 0: never.
    pub threshold: u32,
    /// Packets (skbs) counted in flows.
    pub counted_packets: u64,
    /// Packets (skbs) that belong to no flow.
    pub uncounted_packets: u64,
    /// Packets (skbs) of new flows that the map had no room for, part of the former.
    pub no_room_packets: u64,
    /// Flows that were entered into the map.
    pub flows_entered: u64,
    /// Flows that were evicted, or deleted from the map.
    pub flows_left: u64,
    /// Crossings of the threshold for which the ring buffer had no room.
    pub events_lost: u64,
    /// Packets (skbs) of flows that the map had no room for.
    pub no_room: u64,
    /// Packets (skbs) that aren't what their headers say.
    pub malformed: u64,
}

/// Looks at what an agent has pinned and attached, running or not.
pub fn inspect(pin_path: &Path) -> Result<Inspection, BpfError> {
    let maps = match Pinned::open(pin_path) {
        Ok(pinned) => {
            let (flows, max_flows) = pinned.occupancy()?;
            let stats = pinned.stats()?;
            Some(MapsInspection {
                flows,
                max_flows,
                threshold: pinned.config()?.threshold,
                counted_packets: stats.counted.packets,
                uncounted_packets: uncounted(&stats),
                no_room_packets: stats.no_room.packets,
                flows_entered: stats.flows_entered,
                flows_left: stats.flows_entered.saturating_sub(flows.into()),
                events_lost: stats.events_lost,
                no_room: stats.no_room.packets,
                malformed: stats.malformed.packets,
            })
        }
        Err(BpfError::NotPinned { .. }) => None,
        Err(e) => return Err(e),
    };
    Ok(Inspection { pin_path: pin_path.to_owned(), maps, attachments: attachments(pin_path)? })
}

fn uncounted(stats: &PacketStats) -> u64 {
    [
        stats.not_ip,
        stats.malformed,
        stats.later_fragment,
        stats.other_protocol,
        stats.too_many_headers,
        stats.no_room,
    ]
    .iter()
    .map(|tally| tally.packets)
    .sum()
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CleanupReport {
    /// Interfaces that a program was detached from, by name; by index where the interface is gone.
    pub detached: Vec<String>,
    /// Pinned maps that were removed.
    pub unpinned: Vec<String>,
}

/// Detaches our programs from every interface of this namespace and removes our pins; links pinned in the pin
/// directory are removed wherever their interface is. Leaves everything else as it is, the clsact qdiscs too:
/// another program may use them.
pub fn cleanup(pin_path: &Path) -> Result<CleanupReport, BpfError> {
    let mut report = CleanupReport::default();
    for attachment in attachments(pin_path)? {
        if detach_clsact(attachment.index, &attachment.name)? {
            report.detached.push(attachment.name.to_string());
        }
    }
    let links = pin_path.join(LINKS);
    for (index, pin) in pinned_links(&links)? {
        if detach_link_at(&pin)? {
            report.detached.push(current_name(index).map_or_else(|_| index.to_string(), |n| n.to_string()));
        }
    }
    report.detached.sort();
    report.detached.dedup();
    report.unpinned = unpin_maps(pin_path)?.into_iter().map(str::to_owned).collect();
    remove_if_empty(&links)?;
    remove_if_empty(pin_path)?;
    Ok(report)
}

/// The pinned links and the interfaces' indices that they are for.
fn pinned_links(links: &Path) -> Result<Vec<(IfIndex, PathBuf)>, BpfError> {
    let failed = |e| BpfError::io(format!("read {}", links.display()), e);
    let entries = match fs::read_dir(links) {
        Ok(entries) => entries,
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let index = name.to_str().and_then(|name| {
            // The longer prefix begins with the shorter one.
            let [native, generic] = XdpMode::ALL.map(XdpMode::pin_prefix);
            [generic, native, ""].iter().find_map(|prefix| name.strip_prefix(prefix))?.parse().ok()
        });
        found.extend(index.map(|index| (IfIndex(index), links.join(&name))));
    }
    found.sort();
    Ok(found)
}

/// Whatever forbids it, an empty directory may stay: a service's own view of the file system has it mounted, for one.
fn remove_if_empty(directory: &Path) -> Result<(), BpfError> {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    match fs::remove_dir(directory) {
        Err(e) if matches!(e.kind(), PermissionDenied | ReadOnlyFilesystem | ResourceBusy) => {
            tracing::debug!(directory = %directory.display(), error = %e, "an empty directory stays");
            Ok(())
        }
        Err(e) if !is_absent(&e) && e.kind() != io::ErrorKind::DirectoryNotEmpty => {
            Err(BpfError::io(format!("remove {}", directory.display()), e))
        }
        _ => Ok(()),
    }
}
