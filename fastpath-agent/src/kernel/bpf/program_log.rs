//! What the programs say about single packets, when the object that logs is loaded. Passes it on to the agent's log.
#![expect(unsafe_code, reason = "registering a descriptor with the event loop")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Level, Log, Metadata, Record};
use tokio::io::unix::AsyncFd;
use tracing::{debug, trace};

use super::BpfError;

/// What the programs may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chatter {
    /// Nothing, at no cost: the object that is loaded has no such code.
    #[default]
    Silent,
    /// Events of flows: entered, crossed, no room.
    Flows,
    /// Also every packet that belongs to no flow.
    Packets,
}

impl Chatter {
    /// The value of `AYA_LOG_LEVEL`.
    pub(super) fn level(self) -> u8 {
        match self {
            Self::Silent => 0,
            Self::Flows => aya_log::Level::Debug as u8,
            Self::Packets => aya_log::Level::Trace as u8,
        }
    }
}

/// The programs' side of the log, to be awaited.
pub struct ProgramLog(Ring);

struct Ring(EbpfLogger<ToTracing>);

impl ProgramLog {
    /// Takes it out of an object whose programs are loaded already.
    pub(super) fn new(object: &mut Ebpf) -> Result<Self, BpfError> {
        let logger = EbpfLogger::init_with_logger(object, ToTracing);
        logger.map(|logger| Self(Ring(logger))).map_err(|e| BpfError::BadObject(e.to_string()))
    }

    /// What was said and not read yet, to the log.
    pub fn flush(&mut self) {
        self.0.0.flush();
    }

    /// The same whenever something is logged, for good. Must be called inside a tokio runtime with I/O enabled.
    pub async fn follow(self) {
        // SAFETY: the ring owns its descriptor, doesn't close it before it is dropped, and always returns the same.
        let Ok(mut ring) = (unsafe { AsyncFd::register(self.0) }) else { return };
        while let Ok(mut ready) = ring.readable_mut().await {
            ready.get_inner_mut().0.flush();
            ready.clear_ready();
        }
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The agent logs with `tracing`, aya with `log`.
struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        match record.level() {
            Level::Trace => trace!(said_by = "program", "{}", record.args()),
            _ => debug!(said_by = "program", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
