//! The eBPF programs: loading, pinning, attaching, reading their maps. Decides nothing about which interfaces.
//!
//! Kernel objects owned: the maps `fastpath_*` pinned in the pin directory; in its subdirectory `links` one TCX or XDP
//! link for each interface, named by interface index; where the kernel has no TCX, a clsact filter with the program's name.
//! All of them outlive the agent: packets are counted without it, and the next one takes over.

mod added;
mod attach;
mod batches;
mod cleanup;
mod denied;
mod error;
mod event_stream;
mod forward;
mod layout;
mod load;
mod maps;
mod object;
mod others;
mod pins;
mod program_log;
mod sweep;
mod sys;
mod tc;
mod xdp;

use std::{collections::BTreeMap, fmt, io, path::PathBuf};

use fastpath_common::{FlowKey, NoXdp, Signal};
use serde::Serialize;

#[cfg(any(fuzzing, test))]
pub(super) use self::maps::{add, add_hot, plain};
pub use self::{
    attach::Programs,
    cleanup::{CleanupReport, Inspection, cleanup, inspect},
    denied::Denied,
    error::BpfError,
    event_stream::EventStream,
    load::load,
    maps::{Events, Pinned, Reading, earlier_threshold},
    others::{at_ingress, filters_by_mark, is_inspected, is_inspected_at_egress},
    program_log::{Chatter, ProgramLog},
    sweep::Sweep,
};
use crate::core::model::{IfIndex, IfName, Link};
pub use crate::kernel::bpf::pins::on_bpffs;

/// Reads any message of traffic control or of a link with programs.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz_link(message: &super::netlink::Message<'_>) {
    tc::fuzz(message.payload());
    drop(xdp::ids_in(message));
}

/// Reads any description of types.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz_types(base: &[u8], module: &[u8]) {
    let _ = layout::layout(base, module);
}

/// The programs on the interfaces of this namespace.
pub trait FlowEyes {
    /// Attaches to `link`, ahead of other programs, or takes over what an earlier agent attached there.
    fn attach(&mut self, link: &Link) -> Result<Attachment, BpfError>;

    /// Detaches from an interface; nothing happens if no program of the agent is attached, or the interface is gone.
    fn detach(&mut self, index: IfIndex) -> Result<(), BpfError>;

    /// What is attached, by this agent or an earlier one.
    fn attachments(&self) -> Result<Vec<Attachment>, BpfError>;

    /// What is attached to one link.
    fn attachments_on(&self, link: &Link) -> Result<Vec<Attachment>, BpfError>;

    /// Flows are signalled with packet number `threshold + 1` of a direction from now on; 0: never.
    fn set_threshold(&mut self, threshold: u32) -> Result<(), BpfError>;

    /// Changes what is noted of the signal of one direction of a flow, in one instant; false if that wasn't `from`, or
    /// the direction isn't in the map. From a signal to itself: notes that the flow is in the flowtable.
    fn mark(&mut self, key: &FlowKey, from: Signal, to: Signal) -> Result<bool, BpfError>;

    /// Which of these flows were seen to go into the flowtable, at some time. Many at once take little more than one.
    fn went_over(&mut self, keys: &[FlowKey]) -> Result<Vec<bool>, BpfError>;

    /// Whether crossings of flows that were seen to be offloaded are signalled too.
    fn tell_all(&mut self, all: bool) -> Result<(), BpfError>;

    /// Whether packets can be forwarded ahead of the flowtable.
    fn can_forward(&self) -> bool;

    /// Says which interfaces take part in that, as elements of [`MAP_FORWARD_DEVICES`](fastpath_common::MAP_FORWARD_DEVICES);
    /// those that aren't named take none.
    fn forward_between(&mut self, parts: &BTreeMap<IfIndex, u64>) -> Result<(), BpfError>;

    /// Something has changed: where packets go is asked again, for every flow; with `judge` after the flowtable has seen a packet.
    fn ask_again(&mut self, judge: bool) -> Result<(), BpfError>;
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
    /// Where packets are counted.
    pub hook: Hook,
    /// Whether to forward packets between pods ahead of the flowtable.
    pub forward: bool,
    /// How much the programs say about single packets.
    pub chatter: Chatter,
}

/// Where in the kernel packets are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hook {
    /// Ingress of traffic control: skbs.
    #[default]
    Tc,
    /// XDP in the driver; TC at interfaces that can't.
    Xdp,
    /// XDP after the driver; TC at interfaces that can't.
    XdpGeneric,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Attachment {
    /// Index of the interface.
    pub index: IfIndex,
    /// Its name when it was read.
    pub name: IfName,
    /// How.
    pub mechanism: Mechanism,
    /// Why it isn't XDP, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_xdp: Option<WithoutXdp>,
}

/// Why an interface is watched with TC although XDP was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum WithoutXdp {
    /// It has no Ethernet header.
    NoEthernet,
    /// It gets its packets from other interfaces.
    Stacked,
    /// The kernel or the driver refused.
    Refused {
        /// What they said.
        errno: i32,
    },
}

impl fmt::Display for WithoutXdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEthernet => write!(f, "it has no Ethernet header"),
            Self::Stacked => write!(f, "it gets its packets from other interfaces"),
            // dev_xdp_attach (net/core/dev.c).
            Self::Refused { errno: libc::EBUSY | libc::EEXIST } => {
                write!(f, "another program's XDP program is there, or on an interface above it")
            }
            Self::Refused { errno: libc::EOPNOTSUPP } => {
                write!(f, "its driver, or this kernel, doesn't support it")
            }
            Self::Refused { errno } => {
                write!(f, "its driver refused: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl From<WithoutXdp> for String {
    fn from(reason: WithoutXdp) -> Self {
        reason.to_string()
    }
}

impl From<WithoutXdp> for NoXdp {
    fn from(reason: WithoutXdp) -> Self {
        match reason {
            WithoutXdp::NoEthernet => Self { reason: Self::NO_ETHERNET, errno: 0 },
            WithoutXdp::Stacked => Self { reason: Self::STACKED, errno: 0 },
            WithoutXdp::Refused { errno } => Self { reason: Self::REFUSED, errno: errno.unsigned_abs() },
        }
    }
}

impl From<NoXdp> for WithoutXdp {
    fn from(pinned: NoXdp) -> Self {
        match pinned.reason {
            NoXdp::NO_ETHERNET => Self::NoEthernet,
            NoXdp::STACKED => Self::Stacked,
            _ => Self::Refused { errno: pinned.errno as i32 },
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case", tag = "mechanism")]
pub enum Mechanism {
    /// A pinned XDP link, native: in the driver.
    Xdp,
    /// A pinned XDP link, generic: after the driver.
    XdpGeneric,
    /// A pinned TCX link (Linux 6.6).
    Tcx,
    /// A filter of the clsact (or ingress) qdisc.
    Clsact {
        /// Priority of the filter; lower numbers come first.
        priority: u16,
    },
}
