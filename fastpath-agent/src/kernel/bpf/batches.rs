//! A walk through the flows map, many entries to a system call. Entries that stay in the map are met once.

use std::{borrow::Borrow, os::fd::AsFd};

use aya::maps::MapData;
use fastpath_common::{FlowCounters, FlowKey};

use super::{error::BpfError, sys};

/// Entries of one batch: 100 KB.
const ENTRIES: usize = 1024;

/// Keys, and the value of each.
type Entries<'b> = (&'b [FlowKey], &'b [FlowCounters]);

/// One walk.
pub(super) struct Batches<M> {
    map: M,
    keys: Vec<FlowKey>,
    values: Vec<FlowCounters>,
    at: Option<sys::Bucket>,
    ended: bool,
}

impl<M: Borrow<MapData>> Batches<M> {
    /// Begins one. `map` must be the flows map.
    pub(super) fn of(map: M) -> Self {
        Self {
            map,
            keys: vec![FlowKey::default(); ENTRIES],
            values: vec![FlowCounters::default(); ENTRIES],
            at: None,
            ended: false,
        }
    }

    /// The next entries, at least one; `None` after the last, and after an error.
    pub(super) fn next_batch(&mut self) -> Result<Option<Entries<'_>>, BpfError> {
        while !self.ended {
            let map = self.map.borrow().fd().as_fd();
            match sys::lookup_batch(map, self.at, &mut self.keys, &mut self.values, 1) {
                Ok((read, next)) => {
                    (self.at, self.ended) = (next, next.is_none());
                    if read > 0 {
                        return Ok(Some((&self.keys[..read], &self.values[..read])));
                    }
                }
                // A bucket with more entries than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.keys.resize(2 * self.keys.len(), FlowKey::default());
                    self.values.resize(2 * self.values.len(), FlowCounters::default());
                }
                Err(error) => {
                    self.ended = true;
                    return Err(BpfError::io("read the flows map", error));
                }
            }
        }
        Ok(None)
    }

    /// One of the entries that were read last.
    pub(super) fn entry(&self, at: usize) -> (FlowKey, FlowCounters) {
        (self.keys[at], self.values[at])
    }
}
