//! The eBPF programs: loading, pinning, attaching, reading their maps. Decides nothing about which interfaces.
//!
//! Kernel objects owned: the maps `fastpath_*` pinned in the pin directory; in its subdirectory `links` one TCX link
//! for each interface, named by interface index; where the kernel has no TCX, a clsact filter with the program's name.
//! All of them outlive the agent: packets are counted without it, and the next one takes over.

mod attach;
mod cleanup;
mod error;
mod event_stream;
mod load;
mod maps;
mod others;
mod sys;
mod tc;

use std::path::PathBuf;

use serde::Serialize;

pub use self::{
    attach::Programs,
    cleanup::{CleanupReport, Inspection, cleanup, inspect},
    error::BpfError,
    event_stream::EventStream,
    load::{load, on_bpffs},
    maps::{Events, Pinned},
    others::at_ingress,
};
use crate::core::model::{IfIndex, IfName, Link};

/// The programs on the interfaces of this namespace.
pub trait FlowEyes {
    /// Attaches to `link`, ahead of other programs, or takes over what an earlier agent attached there.
    fn attach(&mut self, link: &Link) -> Result<Attachment, BpfError>;

    /// Detaches from an interface; nothing happens if nothing of ours is attached, or the interface is gone.
    fn detach(&mut self, index: IfIndex) -> Result<(), BpfError>;

    /// What is attached, by this agent or an earlier one.
    fn attachments(&self) -> Result<Vec<Attachment>, BpfError>;

    /// Flows are signalled with packet number `threshold + 1` of a direction from now on; 0: never.
    fn set_threshold(&mut self, threshold: u32) -> Result<(), BpfError>;
}

/// How to load the programs.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Where maps and links are pinned: a directory on a bpf file system, made if it doesn't exist.
    pub pin_path: PathBuf,
    /// Entries of the flows map, one for each direction of a flow.
    pub max_flows: u32,
    /// See [`FlowEyes::set_threshold`].
    pub threshold: u32,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Attachment {
    /// Index of the interface.
    pub index: IfIndex,
    /// Its name when it was looked at.
    pub name: IfName,
    /// How.
    pub mechanism: Mechanism,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "mechanism")]
pub enum Mechanism {
    /// A pinned TCX link (Linux 6.6).
    Tcx,
    /// A filter of the clsact (or ingress) qdisc.
    Clsact {
        /// Priority of the filter; lower numbers come first.
        priority: u16,
    },
}
