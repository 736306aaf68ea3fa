//! Finds on another thread which connections crossed the threshold before anybody followed them: conntrack may have many, and the
//! loop is never away for long. Decides nothing about them.

use std::{path::PathBuf, thread};

use fastpath_common::Signal;
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    core::flow::connection::{Entry, Tuple},
    kernel::{bpf::Pinned, conntrack::Conntrack, memory},
};

/// Connections that are handed over at once, and how often before the thread waits.
const CHUNK: usize = 128;
const CHUNKS_AHEAD: usize = 2;

/// One that was found.
pub(super) struct Found {
    pub(super) entry: Entry,
    /// Whether the original and the reply direction have signalled.
    pub(super) crossed: [bool; 2],
}

/// A search that is under way. It ends soon after this is dropped.
pub(super) struct Search(mpsc::Receiver<Vec<Found>>);

impl Search {
    /// Begins one. `None` if there is no thread to be had, which is said.
    pub(super) fn begin(pin_path: PathBuf) -> Option<Self> {
        let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let search = move || {
            if let Err(error) = search(&pin_path, &chunks) {
                debug!(%error, "connections that crossed before the start aren't assisted");
            }
            memory::give_back();
            memory::drop_code();
        };
        let spawned = thread::Builder::new().name("old connections".to_owned()).spawn(search);
        spawned
            .inspect_err(|error| debug!(%error, "connections that crossed before aren't assisted"))
            .ok()?;
        Some(Self(receiver))
    }

    /// Waits for the next ones; `None` when there are no more. Safe to cancel.
    pub(super) async fn next(&mut self) -> Option<Vec<Found>> {
        self.0.recv().await
    }
}

fn search(
    pin_path: &std::path::Path,
    chunks: &mpsc::Sender<Vec<Found>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let pinned = Pinned::open(pin_path)?;
    let reading = pinned.reading()?;
    let threshold = u64::from(pinned.config()?.threshold);
    // A direction is also taken for signalled when its flow went into the flowtable before it crossed.
    let crossed = |tuple: &Tuple| {
        let counted = tuple.flow_key().and_then(|key| reading.flow(&key).ok().flatten());
        counted.is_some_and(|c| c.signal == Signal::Sent as u64 && c.packets > threshold)
    };
    let (mut chunk, mut connections) = (Vec::with_capacity(CHUNK), 0_u64);
    Conntrack::open()?.dump(|entry| {
        if chunks.is_closed() {
            return;
        }
        connections += 1;
        let crossed = [&entry.original, &entry.reply].map(crossed);
        if crossed != [false; 2] || entry.counters.is_none() && entry.status.offloaded() {
            chunk.push(Found { entry, crossed });
        }
        if chunk.len() == CHUNK {
            // Fails once nobody listens any more.
            let _ = chunks.blocking_send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
        }
    })?;
    let _ = chunks.blocking_send(chunk);
    debug!(connections, "connections that crossed before were looked for");
    Ok(())
}
