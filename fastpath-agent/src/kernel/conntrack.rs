//! Connections as conntrack has them, read over ctnetlink one by one so that memory stays bounded; and their deletion.

use std::{
    fmt, io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic,
    sync::mpsc,
    thread,
};

use serde::Serialize;

use super::netlink::{Dump, Families, Message, Request, Socket, attribute::find, attributes};
use crate::core::{
    flow::connection::{Entry, Status, TcpState, Tuple},
    model::Counter,
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
const CTA_TIMESTAMP: u16 = 20;
const CTA_TIMESTAMP_START: u16 = 1;
const CTA_TIMESTAMP_STOP: u16 = 2;
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
/// Room for the request for one connection.
const REQUEST_BYTES: usize = 128;

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

/// Result of a deletion.
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
        let connections = Dump::new(message_type(IPCTNL_MSG_CT_GET), Families::All, [0; 4]);
        self.socket
            .dump(connections, (), |(), message| entry(message).into_iter().for_each(&mut each))
            .map_err(|error| ConntrackError::new("reading conntrack", error))?
            .passing();
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
                        // Fails only once the receiver is gone.
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
            let requests = Request::with_capacity(tuples.len() * REQUEST_BYTES);
            let requests = tuples.iter().zip(first..).fold(requests, |requests, (tuple, sequence)| {
                about(requests, IPCTNL_MSG_CT_GET, 0, sequence, tuple, zone)
            });
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
        let Entry { id, original, zone, .. } = entry;
        let request = Request::with_capacity(REQUEST_BYTES);
        let request = about(request, IPCTNL_MSG_CT_DELETE, libc::NLM_F_ACK, 0, original, *zone)
            .attribute(CTA_ID, &id.to_ne_bytes());
        match self.socket.request(request, |_| {}) {
            Ok(()) => Ok(Deletion::Done),
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

/// `nlmsg_type` of a message of ctnetlink.
fn message_type(kind: i32) -> u16 {
    (NFNL_SUBSYS_CTNETLINK << 8 | kind) as u16
}

/// Adds a message about one connection.
fn about(request: Request, kind: i32, flags: i32, sequence: u32, tuple: &Tuple, zone: u16) -> Request {
    let family = if tuple.source.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // struct nfgenmsg: family, version, resource.
    let request = request.and(message_type(kind), flags, sequence, &[family as u8, 0, 0, 0]).nested(
        CTA_TUPLE_ORIG,
        |original| {
            original
                .nested(CTA_TUPLE_IP, |addresses| {
                    let addresses = address(addresses, tuple.source, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
                    address(addresses, tuple.destination, CTA_IP_V4_DST, CTA_IP_V6_DST)
                })
                .nested(CTA_TUPLE_PROTO, |protocol| {
                    protocol
                        .attribute(CTA_PROTO_NUM, &[tuple.protocol])
                        .attribute(CTA_PROTO_SRC_PORT, &tuple.source_port.to_be_bytes())
                        .attribute(CTA_PROTO_DST_PORT, &tuple.destination_port.to_be_bytes())
                })
        },
    );
    if zone == 0 { request } else { request.attribute(CTA_ZONE, &zone.to_be_bytes()) }
}

fn address(request: Request, address: IpAddr, v4: u16, v6: u16) -> Request {
    match address {
        IpAddr::V4(address) => request.attribute(v4, &address.octets()),
        IpAddr::V6(address) => request.attribute(v6, &address.octets()),
    }
}

/// The question for one connection.
#[cfg(any(fuzzing, test))]
pub(super) fn question(tuple: &Tuple, zone: u16) -> Request {
    about(Request::with_capacity(0), IPCTNL_MSG_CT_GET, 0, 1, tuple, zone)
}

/// The tuple that such a question has.
#[cfg(any(fuzzing, test))]
pub(super) fn original(message: &Message<'_>) -> Option<Tuple> {
    tuple(message.attributes().find(|nla| nla.kind() == CTA_TUPLE_ORIG)?.value())
}

/// The connection in a message; `None` if it isn't one of IPv4 or IPv6.
pub(super) fn entry(message: &Message<'_>) -> Option<Entry> {
    (message.kind() == message_type(IPCTNL_MSG_CT_NEW)).then(|| described(message)).flatten()
}

/// The connection that a message says is over, and when it began and ended in ns since 1970, if the kernel keeps that
/// (net.netfilter.nf_conntrack_timestamp).
pub(super) fn over(message: &Message<'_>) -> Option<(Entry, Option<[u64; 2]>)> {
    if message.kind() != message_type(IPCTNL_MSG_CT_DELETE) {
        return None;
    }
    let times = message.attributes().find(|nla| nla.kind() == CTA_TIMESTAMP).and_then(|nla| {
        let at = |kind| find(nla.value(), kind)?.fixed().map(u64::from_be_bytes);
        Some([at(CTA_TIMESTAMP_START)?, at(CTA_TIMESTAMP_STOP)?])
    });
    Some((described(message)?, times))
}

fn described(message: &Message<'_>) -> Option<Entry> {
    let (mut original, mut reply, mut counters) = (None, None, [None; 2]);
    let (mut id, mut status, mut zone, mut mark) = (0, Status::default(), 0, 0);
    let (mut tcp_state, mut helper) = (None, None);
    for nla in message.attributes() {
        match nla.kind() {
            CTA_TUPLE_ORIG => original = self::tuple(nla.value()),
            CTA_TUPLE_REPLY => reply = self::tuple(nla.value()),
            CTA_COUNTERS_ORIG => counters[0] = counter(nla.value()),
            CTA_COUNTERS_REPLY => counters[1] = counter(nla.value()),
            CTA_ID => id = u32::from_ne_bytes(nla.fixed()?),
            CTA_STATUS => status = Status(u32::from_be_bytes(nla.fixed()?)),
            CTA_ZONE => zone = u16::from_be_bytes(nla.fixed()?),
            CTA_PROTOINFO => tcp_state = self::tcp_state(nla.value()),
            CTA_HELP => helper = self::helper(nla.value()),
            CTA_MARK => mark = u32::from_be_bytes(nla.fixed()?),
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
                (CTA_TUPLE_IP, CTA_IP_V4_SRC) => source = Some(Ipv4Addr::from(inner.fixed()?).into()),
                (CTA_TUPLE_IP, CTA_IP_V4_DST) => destination = Some(Ipv4Addr::from(inner.fixed()?).into()),
                (CTA_TUPLE_IP, CTA_IP_V6_SRC) => source = Some(Ipv6Addr::from(inner.fixed::<16>()?).into()),
                (CTA_TUPLE_IP, CTA_IP_V6_DST) => {
                    destination = Some(Ipv6Addr::from(inner.fixed::<16>()?).into());
                }
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => protocol = Some(u8::from_be_bytes(inner.fixed()?)),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => source_port = u16::from_be_bytes(inner.fixed()?),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => {
                    destination_port = u16::from_be_bytes(inner.fixed()?);
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
    let tcp = find(bytes, CTA_PROTOINFO_TCP)?;
    let state = find(tcp.value(), CTA_PROTOINFO_TCP_STATE)?;
    Some(TcpState::new(u8::from_be_bytes(state.fixed()?)))
}

fn helper(bytes: &[u8]) -> Option<String> {
    Some(find(bytes, CTA_HELP_NAME)?.string())
}

fn counter(bytes: &[u8]) -> Option<Counter> {
    let mut counter = Counter::default();
    for nla in attributes(bytes) {
        match nla.kind() {
            CTA_COUNTERS_PACKETS => counter.packets = u64::from_be_bytes(nla.fixed()?),
            CTA_COUNTERS_BYTES => counter.bytes = u64::from_be_bytes(nla.fixed()?),
            _ => {}
        }
    }
    Some(counter)
}
