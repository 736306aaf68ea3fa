//! What the programs and conntrack say of flows that cross the threshold.

use std::{
    future::Future,
    path::{Path, PathBuf},
};

use fastpath_common::{FlowCounters, FlowEvent, FlowKey};
use tokio::sync::mpsc;

use super::{
    bpf::{BpfError, EventStream, Pinned, Sweep},
    clock::monotonic_ns,
    conntrack::{Conntrack, ConntrackError},
    old_connections,
};
use crate::{
    core::flow::connection::{Entry, Tuple},
    kernel::old_connections::{Crossed, SourceError},
};

/// Says which flows cross the threshold, and their state.
pub trait FlowSource {
    /// Waits until flows have signalled. Cancelling it loses nothing.
    fn signalled(&mut self) -> impl Future<Output = Result<(), BpfError>>;

    /// Takes at most `limit` signals. Fewer than that: there are no more.
    fn take(&mut self, limit: usize) -> Vec<FlowEvent>;

    /// Signals that there was no room for so far.
    fn lost(&self) -> Result<u64, BpfError>;

    /// Begins to look for flows whose signal was lost.
    fn begin_sweep(&mut self) -> Result<(), BpfError>;

    /// The next of them; `None` after the last ones.
    fn sweep(&mut self) -> Result<Option<Vec<FlowKey>>, BpfError>;

    /// Counters of one direction of a flow.
    fn counted(&self, key: &FlowKey) -> Result<Option<FlowCounters>, BpfError>;

    /// Whether a direction's flow was seen to go into the flowtable, at some time.
    fn has_gone_over(&self, key: &FlowKey) -> Result<bool, BpfError>;

    /// Connections that were seen to so far.
    fn went_over(&self) -> Result<u64, BpfError>;

    /// The connections that have these tuples in one of their directions, in zone 0.
    fn connections(&mut self, tuples: &[Tuple]) -> Result<Vec<Option<Entry>>, ConntrackError>;

    /// Looks for connections that crossed before, as long as the receiver is kept. `None` if that can't be done (which is logged).
    fn crossed_before(&self) -> Option<mpsc::Receiver<Vec<Crossed>>>;

    /// The time by the clock of packets, in ns.
    fn now_ns(&self) -> u64;
}

/// The pinned maps, and conntrack of the network namespace in which it was opened.
pub struct Flows {
    events: EventStream,
    pinned: Pinned,
    conntrack: Conntrack,
    pin_path: PathBuf,
    sweep: Option<Sweep>,
}

impl Flows {
    /// Opens them. Must be called inside a tokio runtime with I/O enabled.
    pub fn open(pin_path: &Path) -> Result<Self, SourceError> {
        Ok(Self {
            events: EventStream::open(pin_path)?,
            pinned: Pinned::open(pin_path)?,
            conntrack: Conntrack::open()?,
            pin_path: pin_path.to_owned(),
            sweep: None,
        })
    }
}

impl FlowSource for Flows {
    async fn signalled(&mut self) -> Result<(), BpfError> {
        self.events.readable().await
    }

    fn take(&mut self, limit: usize) -> Vec<FlowEvent> {
        self.events.take(limit)
    }

    fn lost(&self) -> Result<u64, BpfError> {
        self.pinned.events_lost()
    }

    fn begin_sweep(&mut self) -> Result<(), BpfError> {
        self.sweep = Some(Sweep::begin(&self.pin_path)?);
        Ok(())
    }

    fn sweep(&mut self) -> Result<Option<Vec<FlowKey>>, BpfError> {
        let lost = self.sweep.as_mut().map(Sweep::step).transpose().map(Option::flatten);
        if !matches!(lost, Ok(Some(_))) {
            self.sweep = None;
        }
        lost
    }

    fn counted(&self, key: &FlowKey) -> Result<Option<FlowCounters>, BpfError> {
        self.pinned.flow(key)
    }

    fn has_gone_over(&self, key: &FlowKey) -> Result<bool, BpfError> {
        self.pinned.has_gone_over(key)
    }

    fn went_over(&self) -> Result<u64, BpfError> {
        self.pinned.went_over()
    }

    fn connections(&mut self, tuples: &[Tuple]) -> Result<Vec<Option<Entry>>, ConntrackError> {
        self.conntrack.get_all(tuples, 0)
    }

    fn crossed_before(&self) -> Option<mpsc::Receiver<Vec<Crossed>>> {
        old_connections::search(self.pin_path.clone())
    }

    fn now_ns(&self) -> u64 {
        monotonic_ns()
    }
}
