//! Passes events of flows to all readers. Never waits for a reader: one that is too slow misses
//! records, and is told how many.

use std::{io, path::Path, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::broadcast::{
        self,
        error::{RecvError, TryRecvError},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tracing::{debug, warn};

use crate::{
    core::flow::record::Event,
    kernel::event_socket::{EventSocket, SocketError},
};

/// Records that are kept for slow readers, each once for all of them: some 5 MB at most, and nothing without readers.
const BACKLOG: usize = 8192;
/// Readers at a time.
const MOST_READERS: usize = 16;
/// Bytes that are written to a reader at a time, about.
const WRITE: usize = 64 * 1024;
/// Wait after a connection that couldn't be accepted (no descriptors left).
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// The socket, and all readers.
pub struct Readers {
    records: broadcast::Sender<Bytes>,
    /// Whether there are readers.
    any: watch::Receiver<bool>,
    task: JoinHandle<()>,
    /// Removed last.
    _socket: EventSocket,
}

impl Readers {
    /// Opens the socket below `run_dir`. Must be called inside a tokio runtime.
    pub fn open(run_dir: &Path) -> Result<Self, SocketError> {
        let socket = EventSocket::open(run_dir)?;
        let failed = |source| SocketError::Io { operation: "listen in", path: run_dir.to_owned(), source };
        let listener = socket.listener.try_clone().and_then(UnixListener::from_std).map_err(failed)?;
        let (records, _) = broadcast::channel(BACKLOG);
        let (told, any) = watch::channel(false);
        let task = tokio::spawn(accept(listener, records.clone(), told));
        Ok(Self { records, any, task, _socket: socket })
    }

    /// Waits until the first reader comes or the last one goes. Safe to cancel.
    pub async fn changed(readers: &mut Option<Self>) {
        let Some(Self { any, .. }) = readers else { return std::future::pending().await };
        if any.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether there are readers.
    pub fn any(&self) -> bool {
        self.records.receiver_count() > 0
    }

    /// Passes `event` to all readers.
    pub fn publish(&self, event: &Event) {
        // Without readers it is dropped.
        let _ = self.records.send(line(event));
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

async fn accept(listener: UnixListener, records: broadcast::Sender<Bytes>, told: watch::Sender<bool>) {
    // Readers go with this task.
    let mut readers = JoinSet::new();
    loop {
        told.send_if_modified(|any| std::mem::replace(any, !readers.is_empty()) == readers.is_empty());
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = readers.join_next() => continue,
        };
        match accepted {
            Ok(_) if records.receiver_count() >= MOST_READERS => {
                warn!(readers = MOST_READERS, "too many readers follow the flows: another one refused");
            }
            Ok((stream, _)) => {
                readers.spawn(serve(stream, records.subscribe()));
            }
            Err(error) => {
                warn!(%error, "no new reader can follow the flows for now");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, records: broadcast::Receiver<Bytes>) {
    let (mut reader, writer) = stream.into_split();
    let mut said = [0];
    tokio::select! {
        // Readers say nothing: this is the end of one.
        _ = reader.read(&mut said) => {}
        ended = copy(records, writer) => if let Err(error) = ended {
            debug!(%error, "a reader is gone");
        }
    }
}

/// Writes records until the agent ends.
async fn copy(
    mut records: broadcast::Receiver<Bytes>,
    mut writer: tokio::net::unix::OwnedWriteHalf,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let mut next = match records.recv().await {
            Ok(record) => Ok(record),
            Err(RecvError::Lagged(missed)) => Err(TryRecvError::Lagged(missed)),
            Err(RecvError::Closed) => return Ok(()),
        };
        // What else is there goes with it.
        loop {
            match next {
                Ok(record) => buffer.extend_from_slice(&record),
                Err(TryRecvError::Lagged(records)) => buffer.extend(line(&Event::Lost { records })),
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
            if buffer.len() >= WRITE {
                break;
            }
            next = records.try_recv();
        }
        writer.write_all(&buffer).await?;
        buffer.clear();
    }
}
