//! Attaching to interfaces and detaching from them: at XDP if that was asked for and the interface can; else a pinned TCX
//! link where the kernel has TCX, a filter of the clsact qdisc otherwise. What an earlier agent attached is updated in
//! place, so that no packet passes uncounted or is counted twice. Never deletes a qdisc, never touches another's filter,
//! program or link.

use std::{
    collections::BTreeMap,
    io, mem,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions,
        links::{FdLink, Link as _, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
};
use fastpath_common::{
    Ask, FlowKey, NoXdp, PROGRAM_ASK, PROGRAM_ETHERNET, PROGRAM_ETHERNET_FORWARD, PROGRAM_L3, PROGRAM_MARK,
    PROGRAM_XDP, PROGRAM_XDP_IDLE, Signal, SignalChange,
};
use nix::net::if_::if_indextoname;

use super::{
    Attachment, BpfError, FlowEyes, Hook, Mechanism, ProgramLog, WithoutXdp,
    added::Added,
    error::{link_io, pin_io, program_io},
    forward::Forwarding,
    maps, sys,
    tc::our_filters,
    xdp::{self, XdpMode},
};

use crate::{
    core::{
        link::watch::{NotForXdp, not_for_xdp},
        model::{IfIndex, IfName, Link},
    },
    kernel::bpf::{
        object::{classifier, xdp_program},
        pins::{LINKS, detach_link_at, is_absent},
    },
};

/// Handle of our clsact filters: unlike the small numbers that others choose, or get from the kernel.
const HANDLE: TcHandle = TcHandle::new(0x5fa, 0x57a7);
/// Priorities to try in turn: one may be in use by another kind of filter.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=8;

/// The loaded programs. Dropping them detaches nothing from interfaces.
pub struct Programs {
    object: Ebpf,
    pin_path: PathBuf,
    hook: Hook,
    /// Whether the kernel may have TCX; false after it has refused once.
    tcx: bool,
    /// Absent where the kernel doesn't let us see flows go into the flowtable.
    added: Option<Added>,
    /// Absent unless packets are to be forwarded, and can be.
    forwarding: Option<Forwarding>,
    log: Option<ProgramLog>,
}

impl Programs {
    pub(super) fn new(
        object: Ebpf,
        pin_path: PathBuf,
        hook: Hook,
        added: Option<Added>,
        forwarding: Option<Forwarding>,
        log: Option<ProgramLog>,
    ) -> Self {
        Self { object, pin_path, hook, tcx: true, added, forwarding, log }
    }

    /// What the programs log; `None` if they log nothing, or it was taken already.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Attaches with clsact filters only, as on kernels without TCX.
    #[must_use]
    pub fn without_tcx(mut self) -> Self {
        self.tcx = false;
        self
    }

    /// The directory that the maps are pinned in.
    pub fn pin_path(&self) -> &Path {
        &self.pin_path
    }
}

impl FlowEyes for Programs {
    fn attach(&mut self, link: &Link) -> Result<Attachment, BpfError> {
        let name = current_name(link.index).map_err(|e| BpfError::attach("attach to", &link.name, e))?;
        let without_xdp = match self.hook {
            Hook::Tc => None,
            Hook::Xdp | Hook::XdpGeneric => match self.attach_xdp(link, &name)? {
                Ok(mechanism) => {
                    maps::write_no_xdp(&self.pin_path, link.index, None)?;
                    return Ok(Attachment { index: link.index, name, mechanism, without_xdp: None });
                }
                Err(reason) => Some(reason),
            },
        };
        // First: a packet may be missed in between, but none is counted twice.
        for mode in XdpMode::ALL {
            detach_link_at(&xdp::link_pin(&self.pin_path, mode, link.index))?;
        }
        let mechanism = self.attach_tc(link, &name)?;
        maps::write_no_xdp(&self.pin_path, link.index, without_xdp.map(NoXdp::from))?;
        Ok(Attachment { index: link.index, name, mechanism, without_xdp })
    }

    fn detach(&mut self, index: IfIndex) -> Result<(), BpfError> {
        for pin in link_pins(&self.pin_path, index) {
            detach_link_at(&pin)?;
        }
        maps::write_no_xdp(&self.pin_path, index, None)?;
        match current_name(index) {
            Ok(name) => detach_clsact(index, &name).map(drop),
            Err(_) => Ok(()),
        }
    }

    fn attachments(&self) -> Result<Vec<Attachment>, BpfError> {
        attachments(&self.pin_path)
    }

    fn attachments_on(&self, link: &Link) -> Result<Vec<Attachment>, BpfError> {
        attachments_on(&self.pin_path, link.index, &link.name)
    }

    fn set_threshold(&mut self, threshold: u32) -> Result<(), BpfError> {
        maps::write_threshold(&self.pin_path, threshold)
    }

    fn mark(&mut self, key: &FlowKey, from: Signal, to: Signal) -> Result<bool, BpfError> {
        let frame = maps::mark_frame(&SignalChange { key: *key, from: from as u64, to: to as u64 });
        let program = classifier(&mut self.object, PROGRAM_MARK)?;
        let run = program.test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() });
        run.map(|run| run.return_value == 1).map_err(|e| BpfError::io("mark a flow", program_io(e)))
    }

    fn went_over(&mut self, keys: &[FlowKey]) -> Result<Vec<bool>, BpfError> {
        let mut answers = Vec::with_capacity(keys.len());
        for keys in keys.chunks(Ask::KEYS) {
            let frame = maps::ask_frame(keys);
            let program = classifier(&mut self.object, PROGRAM_ASK)?;
            let run = program.test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() });
            let bits = run.map_err(|e| BpfError::io("ask about flows", program_io(e)))?.return_value;
            answers.extend((0..keys.len()).map(|place| bits >> place & 1 != 0));
        }
        Ok(answers)
    }

    fn tell_all(&mut self, all: bool) -> Result<(), BpfError> {
        self.added.as_mut().map_or(Ok(()), |added| added.tell_all(all))
    }

    fn can_forward(&self) -> bool {
        self.forwarding.is_some()
    }

    fn forward_between(&mut self, parts: &BTreeMap<IfIndex, u64>) -> Result<(), BpfError> {
        self.forwarding.as_mut().map_or(Ok(()), |forwarding| forwarding.tell(parts))
    }

    fn ask_again(&mut self, judge: bool) -> Result<(), BpfError> {
        self.forwarding.as_mut().map_or(Ok(()), |forwarding| forwarding.void(judge))
    }
}

impl Programs {
    /// Attaches at XDP, or says why the interface is one for TC.
    fn attach_xdp(&mut self, link: &Link, name: &IfName) -> Result<Result<Mechanism, WithoutXdp>, BpfError> {
        let (mode, other, mechanism) = match self.hook {
            Hook::XdpGeneric => (XdpMode::Generic, XdpMode::Native, Mechanism::XdpGeneric),
            Hook::Xdp | Hook::Tc => (XdpMode::Native, XdpMode::Generic, Mechanism::Xdp),
        };
        match not_for_xdp(link) {
            Some(NotForXdp::NoEthernet) => return Ok(Err(WithoutXdp::NoEthernet)),
            Some(NotForXdp::Stacked) => return Ok(Err(WithoutXdp::Stacked)),
            None => {}
        }
        let idle = xdp_program(&mut self.object, PROGRAM_XDP_IDLE)?.fd().map(|fd| fd.try_clone());
        let program = xdp_program(&mut self.object, PROGRAM_XDP)?.fd().map(AsFd::as_fd);
        // Not loaded: the kernel is too old for it, which was said.
        let (Ok(program), Ok(idle)) = (program, idle) else {
            return Ok(Err(WithoutXdp::Refused { errno: libc::EOPNOTSUPP }));
        };
        let idle = idle.map_err(|e| BpfError::io("attach at XDP", e))?;
        detach_link_at(&xdp::link_pin(&self.pin_path, other, link.index))?;
        let pin = xdp::link_pin(&self.pin_path, mode, link.index);
        let make_way = || {
            detach_clsact(link.index, name)?;
            detach_link_at(&link_pin(&self.pin_path, link.index)).map(drop)
        };
        match xdp::attach(program, idle.as_fd(), &pin, mode, link.index, make_way) {
            Ok(()) => Ok(Ok(mechanism)),
            Err(xdp::AttachError::Kernel(e)) => {
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                Ok(Err(WithoutXdp::Refused { errno }))
            }
            Err(xdp::AttachError::MakeWay(e)) => Err(e),
        }
    }

    fn attach_tc(&mut self, link: &Link, name: &IfName) -> Result<Mechanism, BpfError> {
        let failed = |e| BpfError::attach("attach to", name, e);
        let program = match (link.ethernet, &self.forwarding) {
            (false, _) => PROGRAM_L3,
            (true, None) => PROGRAM_ETHERNET,
            (true, Some(_)) => PROGRAM_ETHERNET_FORWARD,
        };
        let program = classifier(&mut self.object, program)?;
        let pin = link_pin(&self.pin_path, link.index);
        if self.tcx {
            match attach_tcx(program, &pin, link.index, name) {
                Ok(()) => {
                    // An agent that had to do without TCX would count everything a second time.
                    detach_clsact(link.index, name)?;
                    return Ok(Mechanism::Tcx);
                }
                Err(e) if says_unsupported(&e) => {
                    tracing::info!(error = %e, "no TCX in this kernel: attaching with clsact filters");
                    self.tcx = false;
                }
                Err(e) => return Err(failed(e)),
            }
        }
        let priority = attach_clsact(program, link.index, name).map_err(failed)?;
        detach_link_at(&pin)?;
        Ok(Mechanism::Clsact { priority })
    }
}

/// All pins that an interface's links may have.
pub(super) fn link_pins(pin_path: &Path, index: IfIndex) -> [PathBuf; 3] {
    let [native, generic] = XdpMode::ALL.map(|mode| xdp::link_pin(pin_path, mode, index));
    [native, generic, link_pin(pin_path, index)]
}

/// Where an interface's TCX link is pinned.
fn link_pin(pin_path: &Path, index: IfIndex) -> PathBuf {
    pin_path.join(LINKS).join(index.to_string())
}

/// The name that goes with an index now: it may have been renamed since the caller read it.
pub(super) fn current_name(index: IfIndex) -> io::Result<IfName> {
    // nix (0.31) takes if_indextoname's null pointer for success, and the name is empty then.
    let name = if_indextoname(index.0)?;
    IfName::from_bytes(name.to_bytes()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// What a kernel before 6.6 says to `BPF_LINK_CREATE` with `BPF_TCX_INGRESS`, or one without `CONFIG_NET_XGRESS`.
pub(super) fn says_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn attach_tcx(program: &mut SchedClassifier, pin: &Path, index: IfIndex, name: &IfName) -> io::Result<()> {
    if update_tcx(program, pin, index)? {
        return Ok(());
    }
    let id = program
        .attach_with_options(
            name.as_text(),
            TcAttachType::Ingress,
            TcAttachOptions::TcxOrder(LinkOrder::first()),
        )
        .map_err(program_io)?;
    let link = FdLink::try_from(program.take_link(id).map_err(program_io)?).map_err(link_io)?;
    // The pin holds the link; the descriptor may be closed.
    link.pin(pin).map(drop).map_err(pin_io)
}

/// Puts the program into the link that is pinned there. False, with the pin removed, if there is none, or if it isn't
/// this interface's: the interface went and its index was used again, or it is in another namespace now.
fn update_tcx(program: &mut SchedClassifier, pin: &Path, index: IfIndex) -> io::Result<bool> {
    let pinned = match PinnedLink::from_pin(pin).map_err(link_io) {
        Ok(pinned) => pinned,
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(link_io)?;
    match program.attach_to_link(link).map_err(program_io) {
        Ok(id) => {
            // Closes the descriptor; the pin holds the link.
            drop(program.take_link(id).map_err(program_io)?);
            if sys::tcx_program_ids(index.0)?.contains(&program.info().map_err(program_io)?.id()) {
                return Ok(true);
            }
        }
        // The interface that it was attached to is gone (tcx_link_update, kernel/bpf/tcx.c).
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => {}
        Err(e) => return Err(e),
    }
    detach_link_at(pin).map(|_| false).map_err(io::Error::other)
}

/// Attaches a filter, or replaces the agent's program; returns its priority.
fn attach_clsact(program: &mut SchedClassifier, index: IfIndex, name: &IfName) -> io::Result<u16> {
    let mut attached = our_filters(index)?.into_iter();
    if let Some(filter) = attached.next() {
        let link = attached_filter(name, filter.priority, filter.handle.into())?;
        let id = program.attach_to_link(link).map_err(program_io)?;
        keep(program, id)?;
        for duplicate in attached {
            attached_filter(name, duplicate.priority, duplicate.handle.into())?
                .detach()
                .map_err(program_io)?;
        }
        return Ok(filter.priority);
    }
    match tc::qdisc_add_clsact(name.as_text()) {
        Err(tc::TcError::NetlinkError(e)) if e.raw_os_error() == Some(libc::EEXIST) => {}
        result => result.map_err(|e| program_io(e.into()))?,
    }
    let mut refused = io::Error::from_raw_os_error(libc::EEXIST);
    for priority in PRIORITIES {
        let options = NlOptions { priority, handle: HANDLE, classid: None };
        let attached = program.attach_with_options(
            name.as_text(),
            TcAttachType::Ingress,
            TcAttachOptions::Netlink(options),
        );
        match attached.map_err(program_io) {
            Ok(id) => return keep(program, id).map(|()| priority),
            // The priority belongs to another kind of filter, or the handle is taken.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EEXIST)) => refused = e,
            Err(e) => return Err(e),
        }
    }
    Err(refused)
}

/// Leaves a filter attached when the program is dropped.
fn keep(program: &mut SchedClassifier, id: tc::SchedClassifierLinkId) -> io::Result<()> {
    mem::forget(program.take_link(id).map_err(program_io)?);
    Ok(())
}

fn attached_filter(name: &IfName, priority: u16, handle: TcHandle) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name.as_text(), TcAttachType::Ingress, priority, handle, None)
}

/// Deletes our filters of an interface; true if there were any.
pub(super) fn detach_clsact(index: IfIndex, name: &IfName) -> Result<bool, BpfError> {
    let failed = |e| BpfError::attach("detach from", name, e);
    let filters = our_filters(index).map_err(failed)?;
    for filter in &filters {
        let link = attached_filter(name, filter.priority, filter.handle.into()).map_err(failed)?;
        link.detach().map_err(|e| failed(program_io(e)))?;
    }
    Ok(!filters.is_empty())
}

/// Every interface of this namespace with one of the agent's programs, in order of index.
pub(super) fn attachments(pin_path: &Path) -> Result<Vec<Attachment>, BpfError> {
    let interfaces = nix::net::if_::if_nameindex().map_err(|e| BpfError::io("list interfaces", e.into()))?;
    let mut found = Vec::new();
    for interface in &interfaces {
        let Some(name) = interface.name().to_str().ok().and_then(IfName::new) else { continue };
        found.extend(attachments_on(pin_path, IfIndex(interface.index()), &name)?);
    }
    found.sort();
    Ok(found)
}

/// What is attached to one interface.
pub(super) fn attachments_on(
    pin_path: &Path,
    index: IfIndex,
    name: &IfName,
) -> Result<Vec<Attachment>, BpfError> {
    let failed = |e| BpfError::attach("look at", name, e);
    let mut mechanisms: Vec<_> = our_filters(index)
        .map_err(failed)?
        .iter()
        .map(|filter| Mechanism::Clsact { priority: filter.priority })
        .collect();
    if has_tcx(&link_pin(pin_path, index), index).map_err(failed)? {
        mechanisms.push(Mechanism::Tcx);
    }
    // All of these are TC's.
    let without_xdp =
        if mechanisms.is_empty() { None } else { maps::read_no_xdp(pin_path, index)?.map(WithoutXdp::from) };
    for (mode, mechanism) in XdpMode::ALL.into_iter().zip([Mechanism::Xdp, Mechanism::XdpGeneric]) {
        if xdp::is_attached(&xdp::link_pin(pin_path, mode, index), index).map_err(failed)? {
            mechanisms.push(mechanism);
        }
    }
    let attachment = |mechanism| Attachment { index, name: name.clone(), mechanism, without_xdp };
    Ok(mechanisms.into_iter().map(attachment).collect())
}

/// Whether the link that is pinned there is attached to this interface.
fn has_tcx(pin: &Path, index: IfIndex) -> io::Result<bool> {
    let pinned = match PinnedLink::from_pin(pin).map_err(link_io) {
        Ok(pinned) => FdLink::from(pinned),
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok(sys::tcx_program_ids(index.0)?.contains(&pinned.info().map_err(link_io)?.program_id()))
}
