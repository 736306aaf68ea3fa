//! Attaching at XDP: a pinned link, made only where no XDP program is, and taken over by updating it. Native or generic
//! as asked for, never one for the other. Decides nothing about which interfaces.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::links::{FdLink, PinnedLink};
use mnl::Bus;

use super::{BpfError, error::link_io, sys};

use crate::{
    core::model::IfIndex,
    kernel::{
        bpf::pins::{LINKS, detach_link_at, is_absent},
        netlink::{Message, Request, Socket, attribute::find, attributes, u32_at},
    },
};

/// `XDP_FLAGS_*` of include/uapi/linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

// include/uapi/linux/rtnetlink.h and if_link.h
const RTM_GETLINK: u16 = 18;
/// Length of struct ifinfomsg, and where it has the index.
const LINK_HEADER: usize = 16;
const LINK_INDEX: usize = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;

/// Where in the kernel an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XdpMode {
    /// In the driver.
    Native,
    /// After the driver has made an skb.
    Generic,
}

impl XdpMode {
    pub(super) const ALL: [Self; 2] = [Self::Native, Self::Generic];

    fn flags(self) -> u32 {
        match self {
            Self::Native => XDP_FLAGS_DRV_MODE,
            Self::Generic => XDP_FLAGS_SKB_MODE,
        }
    }

    /// What comes before the index in the name of a pin. (The kernel doesn't tell a link's mode.)
    pub(super) fn pin_prefix(self) -> &'static str {
        match self {
            Self::Native => "xdp-",
            Self::Generic => "xdp-generic-",
        }
    }
}

/// Why a program isn't at an interface.
pub(super) enum AttachError {
    /// The kernel, or the driver, refused.
    Kernel(io::Error),
    /// What was in the way couldn't be removed.
    MakeWay(BpfError),
}

impl From<io::Error> for AttachError {
    fn from(error: io::Error) -> Self {
        Self::Kernel(error)
    }
}

/// Where an interface's XDP link is pinned.
pub(super) fn link_pin(pin_path: &Path, mode: XdpMode, index: IfIndex) -> PathBuf {
    pin_path.join(LINKS).join(format!("{}{index}", mode.pin_prefix()))
}

/// Attaches `program` to an interface. An earlier link is updated in place; a new one begins with `idle`, and calls
/// `make_way` before it counts, so that no other program of the agent counts the same packets.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    idle: BorrowedFd<'_>,
    pin: &Path,
    mode: XdpMode,
    index: IfIndex,
    make_way: impl FnOnce() -> Result<(), BpfError>,
) -> Result<(), AttachError> {
    let link = if is_attached(pin, index)? {
        sys::open_pin(pin)?
    } else {
        detach_link_at(pin).map_err(AttachError::MakeWay)?;
        let link = sys::link_create_xdp(idle, index.0, mode.flags())?;
        sys::pin(link.as_fd(), pin)?;
        link
    };
    make_way().map_err(AttachError::MakeWay)?;
    Ok(sys::link_update(link.as_fd(), program)?)
}

/// Whether the link that is pinned there is at this interface: its index may have been used again since, or it is in
/// another namespace now.
pub(super) fn is_attached(pin: &Path, index: IfIndex) -> io::Result<bool> {
    let link = match PinnedLink::from_pin(pin).map_err(link_io) {
        Ok(pinned) => FdLink::from(pinned),
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok(program_ids(index)?.contains(&link.info().map_err(link_io)?.program_id()))
}

/// Ids of the XDP programs at an interface: none, one, or one for each mode.
pub(super) fn program_ids(index: IfIndex) -> io::Result<Vec<u32>> {
    let mut header = [0; LINK_HEADER];
    header[LINK_INDEX..LINK_INDEX + size_of::<u32>()].copy_from_slice(&index.0.to_ne_bytes());
    let mut ids = Vec::new();
    let request = Request::new(RTM_GETLINK, libc::NLM_F_ACK, &header);
    Socket::open_on(Bus::Route)?.request(request, |message| ids.extend(ids_in(message)))?;
    Ok(ids)
}

pub(super) fn ids_in(message: &Message<'_>) -> Vec<u32> {
    let about = message.payload().get(LINK_HEADER..).and_then(|link| find(link, IFLA_XDP));
    let Some(about) = about else { return Vec::new() };
    attributes(about.value())
        .filter(|nla| matches!(nla.kind(), IFLA_XDP_PROG_ID | IFLA_XDP_DRV_PROG_ID | IFLA_XDP_SKB_PROG_ID))
        .filter_map(|nla| u32_at(nla.value(), 0))
        .collect()
}
