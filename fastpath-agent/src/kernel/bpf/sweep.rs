//! Finds the flows whose signal didn't fit the ring of events, a piece of the flows map at a time. Changes nothing.

use std::{os::fd::AsFd, path::Path};

use aya::maps::MapData;
use fastpath_common::{FlowCounters, FlowKey, MAP_FLOWS, Signal};

use super::{BpfError, maps::pinned, sys};

/// Entries of the map that are read in one step: 100 KB.
const STEP: usize = 1024;

/// One walk through the flows map. Entries that stay in the map are met once.
pub struct Sweep {
    map: MapData,
    at: Option<sys::Bucket>,
    ended: bool,
    keys: Vec<FlowKey>,
    values: Vec<FlowCounters>,
}

impl Sweep {
    /// Begins one through the map pinned in `pin_path`.
    pub fn begin(pin_path: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            map: pinned(pin_path, MAP_FLOWS)?,
            at: None,
            ended: false,
            keys: vec![FlowKey::default(); STEP],
            values: vec![FlowCounters::default(); STEP],
        })
    }

    /// The directions in the next piece of the map whose signal was lost; `None` after the last piece.
    pub fn step(&mut self) -> Result<Option<Vec<FlowKey>>, BpfError> {
        while !self.ended {
            match sys::lookup_batch(self.map.fd().as_fd(), self.at, &mut self.keys, &mut self.values, 1) {
                Ok((read, next)) => {
                    (self.at, self.ended) = (next, next.is_none());
                    let entries = self.keys[..read].iter().zip(&self.values[..read]);
                    let lost = entries.filter(|(_, counters)| counters.signal == Signal::Lost as u64);
                    return Ok(Some(lost.map(|(key, _)| *key).collect()));
                }
                // A bucket with more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.keys.resize(2 * self.keys.len(), FlowKey::default());
                    self.values.resize(2 * self.values.len(), FlowCounters::default());
                }
                Err(error) => return Err(BpfError::io("sweep the flows map", error)),
            }
        }
        Ok(None)
    }
}
