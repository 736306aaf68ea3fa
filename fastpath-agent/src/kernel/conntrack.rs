//! Connections as conntrack has them, read over ctnetlink one by one so that memory stays bounded; and their deletion.

use std::{
    fmt, io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic,
    sync::mpsc,
    thread,
};

use libc::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{Emitable, NLA_F_NESTED, NetlinkHeader};
use serde::Serialize;

use super::nfnetlink::{Attribute, FAMILY_HEADER_BYTES, HEADER_BYTES, Message, Socket, attributes};
use crate::core::{
    flow::connection::{Entry, Status, TcpState, Tuple},
    ruleset::observed::Counter,
};

// enum ctattr_type and its kind, include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_HELP: u16 = 5;
const CTA_MARK: u16 = 8;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_HELP_NAME: u16 = 1;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const IPCTNL_MSG_CT_NEW: i32 = 0;
const IPCTNL_MSG_CT_GET: i32 = 1;
const IPCTNL_MSG_CT_DELETE: i32 = 2;
const NFNL_SUBSYS_CTNETLINK: i32 = 1;

/// Connections that are asked for in one message. The answers of all must fit the socket's buffer: about 1 KiB each
/// as the kernel counts, of at least 208 KiB.
const LOOKUPS: usize = 128;
/// Connections that are handed from thread to thread at once, 60 KB of them, and how often before the first waits.
const CHUNK: usize = 256;
const CHUNKS_AHEAD: usize = 2;
/// `struct nlattr`.
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// Conntrack could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// The kernel doesn't hand conntrack out.
    #[error(
        "this kernel has no ctnetlink: run `modprobe nf_conntrack_netlink` on the host, or use a kernel with CONFIG_NF_CT_NETLINK"
    )]
    Unsupported,
    /// The process isn't allowed to.
    #[error("{operation} is not permitted: needs CAP_NET_ADMIN: run as root or add the capability")]
    Permission {
        /// What was asked of the kernel.
        operation: &'static str,
    },
    /// The socket or a request failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was asked of the kernel.
        operation: &'static str,
        /// errno.
        source: io::Error,
    },
}

impl ConntrackError {
    fn new(operation: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::Permission { operation },
            // nfnetlink knows no such subsystem (nfnetlink_rcv_msg), or there is no nfnetlink.
            Some(libc::EINVAL | libc::EPROTONOSUPPORT) => Self::Unsupported,
            _ => Self::Io { operation, source },
        }
    }
}

/// What became of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is deleted.
    Done,
    /// It was gone already.
    Gone,
    /// It is in a flowtable and stays.
    Offloaded,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All connections.
    pub entries: u64,
    /// Those with packets in both directions.
    pub seen_reply: u64,
    /// Those in a flowtable.
    pub offloaded: u64,
    /// Those handed to hardware.
    pub hw_offloaded: u64,
    /// Those without packet counters, which `ct packets` never matches.
    pub without_counters: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} connections, {} in a flowtable", self.entries, self.offloaded)?;
        if self.hw_offloaded > 0 {
            write!(f, " ({} in hardware)", self.hw_offloaded)?;
        }
        if self.without_counters > 0 {
            write!(f, ", {} not counted", self.without_counters)?;
        }
        Ok(())
    }
}

/// Counts the connections of the calling thread's network namespace.
pub fn summary() -> Result<Summary, ConntrackError> {
    Conntrack::open()?.summary()
}

/// Conntrack of the network namespace in which it was opened.
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Opens conntrack of the calling thread's network namespace.
    pub fn open() -> Result<Self, ConntrackError> {
        let socket =
            Socket::open().map_err(|error| ConntrackError::new("opening a netfilter socket", error))?;
        Ok(Self { socket })
    }

    /// Calls `each` for every connection. Connections that come or go meanwhile may be seen, or not, or twice.
    pub fn dump(&mut self, mut each: impl FnMut(Entry)) -> Result<(), ConntrackError> {
        let mut request = Vec::new();
        let length = HEADER_BYTES + FAMILY_HEADER_BYTES;
        push_header(
            &mut request,
            IPCTNL_MSG_CT_GET,
            length,
            NLM_F_DUMP,
            self.socket.reserve_sequence(1),
            libc::AF_UNSPEC as u8,
        );
        self.socket
            .request(&request, |message| entry(message).into_iter().for_each(&mut each))
            .map_err(|error| ConntrackError::new("reading conntrack", error))?;
        Ok(())
    }

    /// The same for the calling thread's network namespace, while another thread fetches the next connections, which is
    /// a quarter of the work of listing flows.
    pub fn dump_ahead(each: impl FnMut(Entry)) -> Result<(), ConntrackError> {
        thread::scope(|scope| {
            let (filled, chunks) = mpsc::sync_channel(CHUNKS_AHEAD);
            let dump = scope.spawn(move || {
                let mut chunk = Vec::with_capacity(CHUNK);
                Self::open()?.dump(|entry| {
                    chunk.push(entry);
                    if chunk.len() == CHUNK {
                        // Fails only once nobody listens any more.
                        let _ = filled.send(mem::replace(&mut chunk, Vec::with_capacity(CHUNK)));
                    }
                })?;
                let _ = filled.send(chunk);
                Ok(())
            });
            chunks.into_iter().flatten().for_each(each);
            dump.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// The connection that has `tuple` in its original or its reply direction, in `zone`.
    pub fn get(&mut self, tuple: &Tuple, zone: u16) -> Result<Option<Entry>, ConntrackError> {
        Ok(self.get_all(std::slice::from_ref(tuple), zone)?.pop().flatten())
    }

    /// The same for each of `tuples`, in their order. Many are asked for in one message, which takes a quarter of the
    /// time.
    pub fn get_all(&mut self, tuples: &[Tuple], zone: u16) -> Result<Vec<Option<Entry>>, ConntrackError> {
        const OPERATION: &str = "reading a connection";
        let mut found = Vec::with_capacity(tuples.len());
        for tuples in tuples.chunks(LOOKUPS) {
            let begin = found.len();
            found.resize(begin + tuples.len(), None);
            let first = self.socket.reserve_sequence(tuples.len() as u32);
            let mut requests = Vec::with_capacity(tuples.len() * 128);
            for (tuple, sequence) in tuples.iter().zip(first..) {
                push_request(&mut requests, tuple, zone, sequence);
            }
            let mut failed = None;
            let answers =
                self.socket.request_many(&requests, first, tuples.len(), |place, answer| match answer {
                    Ok(message) => found[begin + place] = entry(message),
                    Err(libc::ENOENT) => {}
                    Err(errno) => failed = Some(io::Error::from_raw_os_error(errno)),
                });
            answers.and(failed.map_or(Ok(()), Err)).map_err(|error| ConntrackError::new(OPERATION, error))?;
        }
        Ok(found)
    }

    /// Deletes a connection, unless it is gone or another one has its tuple now.
    ///
    /// A connection in a flowtable isn't deleted; the kernel frees it a moment after it has left (EBUSY until then,
    /// ctnetlink_del_conntrack).
    pub fn delete(&mut self, entry: &Entry) -> Result<Deletion, ConntrackError> {
        let sequence = self.socket.reserve_sequence(1);
        let mut request = Vec::new();
        let id = (CTA_ID, entry.id.to_ne_bytes());
        let Entry { original, zone, .. } = entry;
        push_about(&mut request, IPCTNL_MSG_CT_DELETE, NLM_F_ACK, original, *zone, sequence, &[id]);
        match self.socket.request(&request, |_| {}) {
            Ok(_) => Ok(Deletion::Done),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(Deletion::Gone),
                Some(libc::EBUSY) => Ok(Deletion::Offloaded),
                _ => Err(ConntrackError::new("deleting a connection", error)),
            },
        }
    }

    /// Counts all connections.
    pub fn summary(&mut self) -> Result<Summary, ConntrackError> {
        let mut summary = Summary::default();
        self.dump(|entry| {
            summary.entries += 1;
            summary.seen_reply += u64::from(entry.status.seen_reply());
            summary.offloaded += u64::from(entry.status.offloaded());
            summary.hw_offloaded += u64::from(entry.status.hw_offloaded());
            summary.without_counters += u64::from(entry.counters.is_none());
        })?;
        Ok(summary)
    }
}

/// Appends `nlmsghdr` and `nfgenmsg` of a request of `length` bytes.
fn push_header(out: &mut Vec<u8>, kind: i32, length: usize, flags: i32, sequence: u32, family: u8) {
    let mut header = NetlinkHeader::default();
    header.length = length as u32;
    header.message_type = (NFNL_SUBSYS_CTNETLINK << 8 | kind) as u16;
    header.flags = (NLM_F_REQUEST | flags) as u16;
    header.sequence_number = sequence;
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    header.emit(&mut out[start..]);
    out.extend([family, 0, 0, 0]);
}

/// Appends the request for one connection, which is answered by a message or an error.
fn push_request(out: &mut Vec<u8>, tuple: &Tuple, zone: u16, sequence: u32) {
    push_about(out, IPCTNL_MSG_CT_GET, 0, tuple, zone, sequence, &[]);
}

/// Appends a message about one connection, which ends with `more` attributes.
fn push_about(
    out: &mut Vec<u8>,
    kind: i32,
    flags: i32,
    tuple: &Tuple,
    zone: u16,
    sequence: u32,
    more: &[(u16, [u8; 4])],
) {
    let start = out.len();
    let family = if tuple.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    push_header(out, kind, 0, flags, sequence, family as u8);
    nest(out, CTA_TUPLE_ORIG, |out| {
        nest(out, CTA_TUPLE_IP, |out| {
            for (address, v4, v6) in [
                (tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC),
                (tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST),
            ] {
                match address {
                    IpAddr::V4(address) => push(out, v4, &address.octets()),
                    IpAddr::V6(address) => push(out, v6, &address.octets()),
                }
            }
        });
        nest(out, CTA_TUPLE_PROTO, |out| {
            push(out, CTA_PROTO_NUM, &[tuple.protocol]);
            push(out, CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes());
            push(out, CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes());
        });
    });
    if zone != 0 {
        push(out, CTA_ZONE, &zone.to_be_bytes());
    }
    more.iter().for_each(|(kind, value)| push(out, *kind, value));
    let length = (out.len() - start) as u32;
    out[start..start + size_of::<u32>()].copy_from_slice(&length.to_ne_bytes());
}

/// Appends an attribute, padded to four bytes (`struct nlattr`, include/uapi/linux/netlink.h).
fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(((ATTRIBUTE_HEADER_BYTES + value.len()) as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute with the attributes that `inside` appends.
fn nest(out: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    push(out, kind | NLA_F_NESTED, &[]);
    inside(out);
    let length = (out.len() - start) as u16;
    out[start..start + size_of::<u16>()].copy_from_slice(&length.to_ne_bytes());
}

/// The connection in a message; `None` if it isn't one of IPv4 or IPv6.
fn entry(message: &Message<'_>) -> Option<Entry> {
    if i32::from(message.kind()) != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW {
        return None;
    }
    let (mut original, mut reply, mut counters) = (None, None, [None; 2]);
    let (mut id, mut status, mut zone, mut mark) = (0, Status::default(), 0, 0);
    let (mut tcp_state, mut helper) = (None, None);
    for nla in message.attributes() {
        match nla.kind() {
            CTA_TUPLE_ORIG => original = self::tuple(nla.value()),
            CTA_TUPLE_REPLY => reply = self::tuple(nla.value()),
            CTA_COUNTERS_ORIG => counters[0] = counter(nla.value()),
            CTA_COUNTERS_REPLY => counters[1] = counter(nla.value()),
            CTA_ID => id = u32::from_ne_bytes(fixed(&nla)?),
            CTA_STATUS => status = Status(u32::from_be_bytes(fixed(&nla)?)),
            CTA_ZONE => zone = u16::from_be_bytes(fixed(&nla)?),
            CTA_PROTOINFO => tcp_state = self::tcp_state(nla.value()),
            CTA_HELP => helper = self::helper(nla.value()),
            CTA_MARK => mark = u32::from_be_bytes(fixed(&nla)?),
            _ => {}
        }
    }
    let counters = counters[0].zip(counters[1]).map(|(original, reply)| [original, reply]);
    Some(Entry { id, original: original?, reply: reply?, status, tcp_state, helper, zone, mark, counters })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut source_port, mut destination_port) = (None, 0, 0);
    for outer in attributes(bytes) {
        for inner in attributes(outer.value()) {
            match (outer.kind(), inner.kind()) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => source = Some(Ipv4Addr::from(fixed(&inner)?).into()),
                (CTA_TUPLE_IP, CTA_IP_V4_DST) => destination = Some(Ipv4Addr::from(fixed(&inner)?).into()),
                (CTA_TUPLE_IP, CTA_IP_V6_SRC) => source = Some(Ipv6Addr::from(fixed::<16>(&inner)?).into()),
                (CTA_TUPLE_IP, CTA_IP_V6_DST) => {
                    destination = Some(Ipv6Addr::from(fixed::<16>(&inner)?).into());
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = Some(u8::from_be_bytes(fixed(&inner)?)),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => source_port = u16::from_be_bytes(fixed(&inner)?),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => {
                    destination_port = u16::from_be_bytes(fixed(&inner)?);
                }
                _ => {}
            }
        }
    }
    Some(Tuple {
        source: source?,
        destination: destination?,
        protocol: protocol?,
        source_port,
        destination_port,
    })
}

fn tcp_state(bytes: &[u8]) -> Option<TcpState> {
    let tcp = attributes(bytes).find(|nla| nla.kind() == CTA_PROTOINFO_TCP)?;
    let state = attributes(tcp.value()).find(|nla| nla.kind() == CTA_PROTOINFO_TCP_STATE)?;
    Some(TcpState::new(u8::from_be_bytes(fixed(&state)?)))
}

fn helper(bytes: &[u8]) -> Option<String> {
    let name = attributes(bytes).find(|nla| nla.kind() == CTA_HELP_NAME)?;
    let name = name.value().split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(name).into_owned())
}

fn counter(bytes: &[u8]) -> Option<Counter> {
    let mut counter = Counter::default();
    for nla in attributes(bytes) {
        match nla.kind() {
            CTA_COUNTERS_PACKETS => counter.packets = u64::from_be_bytes(fixed(&nla)?),
            CTA_COUNTERS_BYTES => counter.bytes = u64::from_be_bytes(fixed(&nla)?),
            _ => {}
        }
    }
    Some(counter)
}

fn fixed<const N: usize>(nla: &Attribute<'_>) -> Option<[u8; N]> {
    nla.value().try_into().ok()
}
