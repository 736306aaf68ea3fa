//! Waiting for threshold crossings without polling.
#![expect(unsafe_code, reason = "registering a descriptor with the event loop")]

use std::{io, path::Path};

use fastpath_common::FlowEvent;
use tokio::io::{Interest, unix::AsyncFd};

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

    /// Waits until there are events. Safe to cancel.
    pub async fn readable(&mut self) -> Result<(), BpfError> {
        // What is there stays there, and the stream stays readable: only an empty ring wakes us again.
        self.0.readable_mut().await.map(drop).map_err(|e| BpfError::io("wait for the event ring", e))
    }

    /// Takes at most `limit` events that are there. Fewer than that: the ring is empty.
    pub fn take(&mut self, limit: usize) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        // `WouldBlock` is how the event loop learns that the ring is empty.
        let _ = self.0.try_io_mut(Interest::READABLE, |ring| {
            while events.len() < limit {
                events.push(ring.next_event().ok_or(io::ErrorKind::WouldBlock)?);
            }
            Ok(())
        });
        events
    }
}
