//! Finds the flows whose signal didn't fit the ring of events, a piece of the flows map at a time. Changes nothing.

use std::path::Path;

use aya::maps::MapData;
use fastpath_common::{FlowKey, MAP_FLOWS, Signal};

use super::{batches::Batches, error::BpfError, maps::pinned};

/// One walk through the flows map.
pub struct Sweep(Batches<MapData>);

impl Sweep {
    /// Begins one through the map pinned in `pin_path`.
    pub fn begin(pin_path: &Path) -> Result<Self, BpfError> {
        Ok(Self(Batches::of(pinned(pin_path, MAP_FLOWS)?)))
    }

    /// The directions in the next piece of the map whose signal was lost; `None` after the last piece.
    pub fn step(&mut self) -> Result<Option<Vec<FlowKey>>, BpfError> {
        let Some((keys, values)) = self.0.next_batch()? else { return Ok(None) };
        let entries = keys.iter().zip(values);
        let lost = entries.filter(|(_, counters)| counters.signal == Signal::Lost as u64);
        Ok(Some(lost.map(|(key, _)| *key).collect()))
    }
}
