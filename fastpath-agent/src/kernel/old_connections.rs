//! Finds on another thread which connections crossed the threshold before anything followed them: conntrack may have many, and the
//! loop is never away for long. Decides nothing about them.

use std::{
    path::{Path, PathBuf},
    thread,
};

use fastpath_common::Signal;
use tokio::sync::mpsc;
use tracing::debug;

use super::{bpf::Pinned, conntrack::Conntrack, memory};
use crate::{
    core::flow::connection::{Entry, Tuple},
    kernel::{bpf::BpfError, conntrack::ConntrackError},
};

/// Connections that are handed over at once, and how often before the thread waits.
const CHUNK: usize = 128;
const CHUNKS_AHEAD: usize = 2;

/// A connection that has crossed the threshold.
#[derive(Clone, Debug)]
pub struct Crossed {
    /// As it is.
    pub entry: Entry,
    /// Whether the original and the reply direction have signalled.
    pub directions: [bool; 2],
}

/// Flows can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The maps can't be read.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// Conntrack can't be asked.
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
}

/// Begins a search, which ends soon after the receiver is dropped. `None` if no thread can be started, which is logged.
pub(super) fn search(pin_path: PathBuf) -> Option<mpsc::Receiver<Vec<Crossed>>> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let search = move || {
        if let Err(error) = hand_over(&pin_path, &chunks) {
            debug!(%error, "connections that crossed before the start aren't assisted");
        }
        memory::give_back();
    };
    let spawned = thread::Builder::new().name("old connections".to_owned()).spawn(search);
    spawned.inspect_err(|error| debug!(%error, "connections that crossed before aren't assisted")).ok()?;
    Some(receiver)
}

fn hand_over(pin_path: &Path, chunks: &mpsc::Sender<Vec<Crossed>>) -> Result<(), SourceError> {
    let pinned = Pinned::open(pin_path)?;
    let reading = pinned.reading()?;
    let threshold = u64::from(pinned.config()?.threshold);
    // A direction also counts as signalled when its flow was offloaded before it crossed.
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
        let directions = [&entry.original, &entry.reply].map(crossed);
        if directions != [false; 2] || entry.counters.is_none() && entry.status.offloaded() {
            chunk.push(Crossed { entry, directions });
        }
        if chunk.len() == CHUNK {
            // Fails once the receiver is gone.
            let _ = chunks.blocking_send(std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
        }
    })?;
    let _ = chunks.blocking_send(chunk);
    debug!(connections, "searched for connections that crossed before");
    Ok(())
}
