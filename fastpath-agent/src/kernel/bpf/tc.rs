//! Finds our filters among those of a device's ingress hook (rtnetlink, RTM_GETTFILTER). Changes nothing.

use std::io;

use fastpath_common::{PROGRAM_ETHERNET, PROGRAM_L3};
use rtnetlink::{
    packet_core::{
        NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{TcHandle, TcHeader, TcMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use crate::core::model::IfIndex;

const NLMSG_ALIGN: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWTFILTER: u16 = 44;
/// Length of struct tcmsg.
const TC_HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;

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
    /// Of a bpf filter the program's name, as whoever attached it gave it.
    pub(super) program: Option<String>,
}

/// Our filters at ingress of a device: bpf filters with a program's name. None if the device is gone.
pub(super) fn our_filters(index: IfIndex) -> io::Result<Vec<OurFilter>> {
    dump(index, parse)
}

/// All filters at ingress of a device, in the kernel's order. None if the device is gone.
pub(super) fn all_filters(index: IfIndex) -> io::Result<Vec<Filter>> {
    dump(index, parse_any)
}

fn dump<T>(index: IfIndex, parse: fn(&[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&dump_request(index), 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message =
                NetlinkBuffer::new_checked(rest).map_err(|e| io::Error::other(format!("rtnetlink: {e}")))?;
            let payload = message.payload();
            match message.message_type() {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return errno(payload).map(|()| found),
                RTM_NEWTFILTER => found.extend(parse(payload)),
                _ => {}
            }
            let length = (message.length() as usize).next_multiple_of(NLMSG_ALIGN);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn dump_request(index: IfIndex) -> Vec<u8> {
    let parent = TcHandle { major: TcHandle::CLSACT.major, minor: TcHandle::MIN_INGRESS };
    let header = TcHeader { index: index.0 as i32, parent, ..TcHeader::default() };
    let mut message = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::from(RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(
            header,
            Vec::new(),
        ))),
    );
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The errno of an NLMSG_ERROR; a device that is gone, or has no such hook, has no filters.
fn errno(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk::<4>().map_or(0, |bytes| -i32::from_ne_bytes(*bytes));
    match code {
        0 | libc::ENODEV | libc::EINVAL | libc::ENOENT => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// The filter if it is ours. Attributes are walked by hand: others' filters may be of kinds nobody here knows.
fn parse(payload: &[u8]) -> Option<OurFilter> {
    let header = TcHeader::parse(payload).ok()?;
    let attributes = payload.get(TC_HEADER..)?;
    let options = attribute(attributes, TCA_OPTIONS)?;
    let name = attribute(&options, TCA_BPF_NAME)?;
    let ours =
        [PROGRAM_ETHERNET, PROGRAM_L3].iter().any(|ours| name.strip_suffix(&[0]) == Some(ours.as_bytes()));
    ours.then(|| OurFilter {
        priority: (header.info >> 16) as u16,
        handle: u32::from(header.handle.major) << 16 | u32::from(header.handle.minor),
    })
}

/// A filter as such; the kernel also lists the chains that filters hang on, without options.
fn parse_any(payload: &[u8]) -> Option<Filter> {
    let header = TcHeader::parse(payload).ok()?;
    let attributes = payload.get(TC_HEADER..)?;
    let options = attribute(attributes, TCA_OPTIONS)?;
    let text =
        |bytes: Vec<u8>| String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(&bytes)).into_owned();
    Some(Filter {
        priority: (header.info >> 16) as u16,
        kind: attribute(attributes, TCA_KIND).map(text)?,
        program: attribute(&options, TCA_BPF_NAME).map(text),
    })
}

fn attribute(attributes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(attributes).map_while(Result::ok).find(|a| a.kind() == kind).map(|a| a.value().to_vec())
}
