//! Counts on another thread how many packets this node's flows had: the maps may have many. Decides nothing about them.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
};

use fastpath_common::FlowCounters;
use tokio::sync::oneshot;
use tracing::debug;

use super::{
    bpf::{BpfError, Pinned},
    clock::monotonic_ns,
    memory,
};
use crate::core::{
    flow::{TCP_CLOSING_FLAGS, connection::Tuple},
    threshold::Lengths,
};

/// A flow without a packet for so long has ended, or is idle: what it had is its length.
const SILENT_NS: u64 = 30_000_000_000;

/// Begins to count; nothing comes if that fails, which is logged.
pub fn count(pin_path: PathBuf, addresses: BTreeSet<IpAddr>) -> oneshot::Receiver<Lengths> {
    let (answer, receiver) = oneshot::channel();
    let work = move || {
        match read(&pin_path, &addresses) {
            Ok(lengths) => drop(answer.send(lengths)),
            Err(error) => debug!(%error, "the lengths of flows can't be read"),
        }
        memory::give_back();
    };
    if let Err(error) = thread::Builder::new().name("lengths".to_owned()).spawn(work) {
        debug!(%error, "the lengths of flows can't be read");
    }
    receiver
}

/// The lengths of the flows that have ended, or are longer than any threshold. Flows that end on this node, one of whose
/// `addresses` they have, are never offloaded and don't count.
pub fn read(pin_path: &Path, addresses: &BTreeSet<IpAddr>) -> Result<Lengths, BpfError> {
    let mut lengths = Lengths::default();
    let now = monotonic_ns();
    let has_ended = |counted: &FlowCounters| {
        counted.flags & TCP_CLOSING_FLAGS != 0 || now.saturating_sub(counted.last_seen_ns) > SILENT_NS
    };
    for flow in Pinned::open(pin_path)?.flows()? {
        let (key, counted) = flow?;
        if !Lengths::is_long(counted.packets) && !has_ended(&counted) {
            continue;
        }
        let Tuple { source, destination, .. } = Tuple::from_flow_key(&key);
        if !addresses.contains(&source) && !addresses.contains(&destination) {
            lengths.add(counted.packets);
        }
    }
    Ok(lengths)
}
