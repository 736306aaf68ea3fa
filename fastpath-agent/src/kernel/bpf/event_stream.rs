//! Waiting for threshold crossings without polling.
#![expect(unsafe_code, reason = "registering a descriptor with the event loop")]

use std::path::Path;

use fastpath_common::FlowEvent;
use tokio::io::unix::AsyncFd;

use super::{BpfError, Events};

/// The ring of threshold crossings, awaited.
pub struct EventStream(AsyncFd<Events>);

impl EventStream {
    /// Opens the ring in `pin_path`. Must be called inside a tokio runtime with I/O enabled.
    pub fn open(pin_path: &Path) -> Result<Self, BpfError> {
        let events = Events::open(pin_path)?;
        // SAFETY: the ring owns its descriptor, doesn't close it before it is dropped, and always returns the same.
        let events = unsafe { AsyncFd::register(events) };
        events.map(Self).map_err(|e| BpfError::io("wait for the event ring", e.into()))
    }

    /// Waits until there are events and takes at most `limit` of them. Safe to cancel: nothing is lost.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<FlowEvent>, BpfError> {
        let mut ready =
            self.0.readable_mut().await.map_err(|e| BpfError::io("wait for the event ring", e))?;
        let mut events = Vec::new();
        while events.len() < limit
            && let Some(event) = ready.get_inner_mut().next_event()
        {
            events.push(event);
        }
        // Only an empty ring wakes us again.
        if events.len() < limit {
            ready.clear_ready();
        }
        Ok(events)
    }
}
