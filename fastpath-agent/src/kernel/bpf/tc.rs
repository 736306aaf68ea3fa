//! Finds our filters among those of a device's ingress hook (rtnetlink, RTM_GETTFILTER). Changes nothing.

use std::io;

use fastpath_common::{PROGRAM_ETHERNET, PROGRAM_ETHERNET_FORWARD, PROGRAM_L3};
use mnl::Bus;
use rtnetlink::packet_route::tc::TcHandle;

use crate::{
    core::model::IfIndex,
    kernel::netlink::{Dump, Families, Message, Socket, attribute::find, settle, u32_at},
};

const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Length of struct tcmsg: family, three bytes of padding, then index, handle, parent and info, each 32 bits.
const TC_HEADER: usize = 20;
const TC_INDEX: usize = 4;
const TC_HANDLE: usize = 8;
const TC_PARENT: usize = 12;
const TC_INFO: usize = 16;
/// How often they are read again after a change in the midst of it.
const ATTEMPTS: u32 = 8;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_U32_MARK: u16 = 10;
/// The root qdisc of a device, for a dump (`tc_dump_tfilter`, net/sched/cls_api.c).
const ROOT: u32 = 0;

/// One of our filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OurFilter {
    /// Lower numbers come first.
    pub(super) priority: u16,
    /// Unique within the priority.
    pub(super) handle: u32,
}

/// Any filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Lower numbers come first.
    pub(super) priority: u16,
    /// "bpf", "flower", "u32" …
    pub(super) kind: String,
    /// Of a bpf filter the program's name, as given when it was attached.
    pub(super) program: Option<String>,
}

/// Our filters at ingress of a device: bpf filters with a program's name. None if the device is gone.
pub(super) fn our_filters(index: IfIndex) -> io::Result<Vec<OurFilter>> {
    dump(index, clsact(TcHandle::MIN_INGRESS), parse)
}

/// All filters at ingress of a device, in the kernel's order. None if the device is gone.
pub(super) fn all_filters(index: IfIndex) -> io::Result<Vec<Filter>> {
    dump(index, clsact(TcHandle::MIN_INGRESS), parse_any)
}

/// Whether a device has filters at egress: at its root qdisc or at clsact.
pub(super) fn filters_at_egress(index: IfIndex) -> io::Result<bool> {
    Ok(!dump(index, ROOT, parse_any)?.is_empty()
        || !dump(index, clsact(TcHandle::MIN_EGRESS), parse_any)?.is_empty())
}

/// Kinds of filters at egress of a device that ask for packets' marks: at its root qdisc and at clsact. None if the device is gone.
pub(super) fn filters_by_mark(index: IfIndex) -> io::Result<Vec<String>> {
    let mut found = dump(index, ROOT, parse_by_mark)?;
    found.extend(dump(index, clsact(TcHandle::MIN_EGRESS), parse_by_mark)?);
    Ok(found)
}

fn clsact(minor: u16) -> u32 {
    u32::from(TcHandle::CLSACT.major) << 16 | u32::from(minor)
}

fn dump<T>(index: IfIndex, parent: u32, parse: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let mut header = [0; TC_HEADER];
    header[TC_INDEX..TC_HANDLE].copy_from_slice(&index.0.to_ne_bytes());
    header[TC_PARENT..TC_INFO].copy_from_slice(&parent.to_ne_bytes());
    let mut socket = Socket::open_on(Bus::Route)?;
    let listed = settle(ATTEMPTS, || {
        let filters = Dump::new(RTM_GETTFILTER, Families::All, header);
        socket.dump(filters, Vec::new(), |found, message: &Message<'_>| {
            if message.kind() == RTM_NEWTFILTER {
                found.extend(parse(message.payload()));
            }
        })
    });
    match listed {
        // A device that is gone, or has no such hook, has no filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)) => {
            Ok(Vec::new())
        }
        // They follow each other in lists, of which none is left out for another's change.
        listed => Ok(listed?.passing()),
    }
}

/// The filter if it is the agent's. Attributes are walked by hand: other programs' filters may be of unknown kinds.
fn parse(payload: &[u8]) -> Option<OurFilter> {
    let options = find(payload.get(TC_HEADER..)?, TCA_OPTIONS)?;
    let name = find(options.value(), TCA_BPF_NAME)?;
    let is_ours = [PROGRAM_ETHERNET, PROGRAM_ETHERNET_FORWARD, PROGRAM_L3]
        .iter()
        .any(|known| name.name() == known.as_bytes());
    is_ours
        .then(|| OurFilter { priority: priority(payload), handle: u32_at(payload, TC_HANDLE).unwrap_or(0) })
}

/// A filter as such; the kernel also lists the chains that filters hang on, without options.
fn parse_any(payload: &[u8]) -> Option<Filter> {
    let attributes = payload.get(TC_HEADER..)?;
    let options = find(attributes, TCA_OPTIONS)?;
    Some(Filter {
        priority: priority(payload),
        kind: find(attributes, TCA_KIND)?.string(),
        program: find(options.value(), TCA_BPF_NAME).map(|name| name.string()),
    })
}

/// A filter's kind if it asks for marks: `fw`, and `u32` with one.
fn parse_by_mark(payload: &[u8]) -> Option<String> {
    let attributes = payload.get(TC_HEADER..)?;
    let kind = find(attributes, TCA_KIND)?.string();
    let by_mark = match kind.as_str() {
        "fw" => true,
        "u32" => find(find(attributes, TCA_OPTIONS)?.value(), TCA_U32_MARK).is_some(),
        _ => false,
    };
    by_mark.then_some(kind)
}

/// Reads any message.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(payload: &[u8]) {
    drop((parse(payload), parse_any(payload), parse_by_mark(payload)));
}

fn priority(payload: &[u8]) -> u16 {
    (u32_at(payload, TC_INFO).unwrap_or(0) >> 16) as u16
}
