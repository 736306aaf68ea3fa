//! All flows of this node, joined one by one from conntrack and from the pinned maps, in bounded memory.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher,
    path::Path,
};

use fastpath_common::{FlowCounters, FlowKey};
use nix::time::{ClockId, clock_gettime};

use super::{
    Ruleset,
    bpf::{BpfError, Pinned},
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
    })
}

/// `CLOCK_MONOTONIC` in ns, the clock of the programs.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|now| now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs())
        .unwrap_or(0)
}

/// Calls `each` for every flow: first those that conntrack knows, then what was counted and belongs to none of them.
/// Where no maps are pinned flows come without counters.
pub fn for_each(pin_path: &Path, node: &Node, mut each: impl FnMut(Flow)) -> Result<(), FlowsError> {
    let pinned = match Pinned::open(pin_path) {
        Ok(pinned) => Some(pinned),
        Err(BpfError::NotPinned { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    // Hashes do to tell which directions are accounted for: 8 bytes each, whatever the map holds. Where two keys share
    // one, a flow that is gone isn't shown.
    let hasher = RandomState::new();
    let mut known = HashSet::new();
    let mut failed = None;
    Conntrack::open()?.dump(|entry| {
        let seen = pinned.as_ref().map_or(Ok([None; 2]), |pinned| counters(pinned, &entry));
        match seen {
            Ok(seen) => {
                if pinned.is_some() {
                    known.extend(keys(&entry).into_iter().flatten().map(|key| hasher.hash_one(key)));
                }
                each(Flow::join(entry, seen, node));
            }
            Err(error) => failed = Some(error),
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let Some(pinned) = pinned else { return Ok(()) };
    for flow in pinned.flows()? {
        let (key, counters) = flow?;
        if !known.contains(&hasher.hash_one(key)) {
            each(Flow::gone(Tuple::from_flow_key(&key), counters));
        }
    }
    Ok(())
}

/// Keys of both directions; `None` where the programs don't count.
fn keys(entry: &Entry) -> [Option<FlowKey>; 2] {
    [entry.original.flow_key(), entry.reply.flow_key()]
}

fn counters(pinned: &Pinned, entry: &Entry) -> Result<[Option<FlowCounters>; 2], BpfError> {
    let [original, reply] = keys(entry).map(|key| key.map(|key| pinned.flow(&key)).transpose());
    Ok([original?.flatten(), reply?.flatten()])
}
