//! All flows of this node, joined one by one from conntrack and from the pinned maps, in bounded memory.

use std::{collections::hash_map::RandomState, hash::BuildHasher, path::Path};

use fastpath_common::{FlowCounters, FlowKey};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_getres, clock_gettime},
};

use super::{
    Ruleset,
    bpf::{BpfError, Pinned, Reading},
    conntrack::{Conntrack, ConntrackError},
    links::{LinkError, Links},
    nft::{Nft, NftError},
};
use crate::core::{
    connection::{Entry, Tuple},
    flow::{Flow, Node},
};

/// Flows can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FlowsError {
    /// The connections.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    /// The counters.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The interfaces.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// The rule.
    #[error(transparent)]
    Nft(#[from] NftError),
}

/// Reads what flows are judged by.
pub async fn node() -> Result<Node, FlowsError> {
    let links = Links::open()?;
    let names = links.list().await?.into_iter().map(|link| (link.index, link.name)).collect();
    let addresses = links.addresses().await?;
    let table = Nft::open()?.observe()?.table;
    Ok(Node {
        threshold: table.as_ref().and_then(|t| t.threshold()),
        managed: table.as_ref().and_then(|t| t.managed()).cloned().unwrap_or_default(),
        names,
        addresses,
        now_ns: monotonic_ns(),
        tick_ns: clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, in_ns),
    })
}

/// `CLOCK_MONOTONIC` in ns, the clock of the programs.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, in_ns)
}

fn in_ns(time: TimeSpec) -> u64 {
    time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
}

/// Calls `each` for every flow: first those that conntrack knows, then what was counted and belongs to none of them.
/// Where no maps are pinned flows come without counters.
pub fn for_each(pin_path: &Path, node: &Node, mut each: impl FnMut(Flow)) -> Result<(), FlowsError> {
    let pinned = match Pinned::open(pin_path) {
        Ok(pinned) => Some(pinned),
        Err(BpfError::NotPinned { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let reading = pinned.as_ref().map(Pinned::reading).transpose()?;
    let mut known = Known::default();
    let mut failed = None;
    Conntrack::open()?.dump(|entry| {
        if failed.is_some() {
            return;
        }
        match reading.as_ref().map_or(Ok([None; 2]), |reading| counters(reading, &entry, &mut known)) {
            Ok(seen) => each(Flow::join(entry, seen, node)),
            Err(error) => failed = Some(error),
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let Some(reading) = reading else { return Ok(()) };
    known.sort();
    for flow in reading.into_flows() {
        let (key, counters) = flow?;
        if !known.contains(&key) {
            each(Flow::gone(Tuple::from_flow_key(&key), counters));
        }
    }
    Ok(())
}

/// What was counted of both directions; remembers them.
fn counters(
    reading: &Reading<'_>,
    entry: &Entry,
    known: &mut Known,
) -> Result<[Option<FlowCounters>; 2], BpfError> {
    let mut seen = [None; 2];
    for (tuple, seen) in [entry.original, entry.reply].iter().zip(&mut seen) {
        if let Some(key) = tuple.flow_key() {
            known.add(&key);
            *seen = reading.flow(&key)?;
        }
    }
    Ok(seen)
}

/// Directions that belong to a connection, 8 bytes each: hashes do. Where two keys share one, a flow that is gone isn't
/// shown.
#[derive(Default)]
struct Known {
    hashes: Vec<u64>,
    hasher: RandomState,
}

impl Known {
    fn add(&mut self, key: &FlowKey) {
        self.hashes.push(self.hasher.hash_one(key));
    }

    /// After the last was added.
    fn sort(&mut self) {
        self.hashes.sort_unstable();
    }

    fn contains(&self, key: &FlowKey) -> bool {
        self.hashes.binary_search(&self.hasher.hash_one(key)).is_ok()
    }
}
