//! The netlink socket to netfilter: sends requests and hands back the kernel's answers, message by message.
//!
//! Knows nothing of nftables or conntrack, and takes no decision on an error.
#![expect(unsafe_code, reason = "socket options that no safe wrapper has")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use mnl::{Bus, NlMessages};
use netlink_packet_core::NLA_TYPE_MASK;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::socket_filter;

/// Size of the receive buffer in user space. Also what a dump may put into one datagram: the kernel allocates
/// as much as the largest `recvmsg` so far asked for, up to 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
const RECEIVE_BYTES: usize = 64 * 1024;
/// Longest wait for an answer. The kernel answers before `sendmsg` returns, so this only ends a wait for an
/// answer that was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Header of a netlink message (`struct nlmsghdr`).
pub(super) const HEADER_BYTES: usize = 16;
/// Header of a netfilter message (`struct nfgenmsg`) behind [`HEADER_BYTES`].
pub(super) const FAMILY_HEADER_BYTES: usize = 4;

/// A netlink message as received, whole.
pub(super) struct Message<'a> {
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// A message that is whole and aligned.
    #[cfg(test)]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        assert_eq!(u32_at(bytes, 0).map(|length| length as usize), Some(bytes.len()));
        Self { bytes }
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// `nlmsg_type`.
    pub(super) fn kind(&self) -> u16 {
        self.u16_at(4)
    }

    /// `nlmsg_flags`.
    pub(super) fn flags(&self) -> u16 {
        self.u16_at(6)
    }

    /// `nlmsg_seq`.
    pub(super) fn sequence(&self) -> u32 {
        u32_at(self.bytes, 8).expect("a message is at least its header")
    }

    /// `nlmsg_pid`: the port of the socket whose request this answers or announces.
    pub(super) fn port(&self) -> u32 {
        u32_at(self.bytes, 12).expect("a message is at least its header")
    }

    /// Everything behind the netlink header.
    pub(super) fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Attributes of a netfilter message.
    pub(super) fn attributes(&self) -> impl Iterator<Item = Attribute<'a>> + use<'a> {
        attributes(self.payload().get(FAMILY_HEADER_BYTES..).unwrap_or_default())
    }

    /// The whole message; its address is aligned for `struct nlmsghdr`, its length is `nlmsg_len`.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// An attribute (`struct nlattr`, include/uapi/linux/netlink.h).
#[derive(Clone, Copy)]
pub(super) struct Attribute<'a> {
    kind: u16,
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// What it is, without the bits that say how its value is coded.
    pub(super) fn kind(&self) -> u16 {
        self.kind
    }

    /// Its value, without padding.
    pub(super) fn value(&self) -> &'a [u8] {
        self.value
    }
}

/// Well-formed attributes up to the first malformed one. Reading a large conntrack is for a good part this, which is
/// why it isn't the general one of netlink-packet-core.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind: u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, value })
    })
}

/// The u32 in host byte order at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// One message that the kernel refused (`NLMSG_ERROR`).
pub(super) struct Refusal {
    /// Sequence number of the refused message.
    pub(super) sequence: u32,
    /// errno, positive.
    pub(super) errno: i32,
    /// Text of the extended acknowledgement.
    pub(super) message: Option<String>,
    /// Where in the refused message the kernel saw the fault, in bytes from its header.
    pub(super) offset: Option<usize>,
}

impl Refusal {
    /// Reads an `NLMSG_ERROR`; `None` if it is an acknowledgement.
    fn parse(message: &Message<'_>) -> Option<Self> {
        // enum nlmsgerr_attrs, include/uapi/linux/netlink.h
        const MSG: u16 = 1;
        const OFFS: u16 = 2;
        let payload = message.payload();
        let errno = u32_at(payload, 0)?.cast_signed().wrapping_neg();
        if errno == 0 {
            return None;
        }
        let mut refusal = Self { sequence: message.sequence(), errno, message: None, offset: None };
        if message.flags() & libc::NLM_F_ACK_TLVS as u16 != 0 {
            // struct nlmsgerr: errno, header of the refused message, and (unless capped) the rest of it.
            let refused = match message.flags() & libc::NLM_F_CAPPED as u16 {
                0 => u32_at(payload, 4)? as usize,
                _ => HEADER_BYTES,
            };
            for nla in attributes(payload.get(4 + refused.next_multiple_of(4)..).unwrap_or_default()) {
                match nla.kind() {
                    MSG => {
                        let text = nla.value().split(|b| *b == 0).next().unwrap_or_default();
                        refusal.message = Some(String::from_utf8_lossy(text).into_owned());
                    }
                    OFFS => refusal.offset = u32_at(nla.value(), 0).map(|offset| offset as usize),
                    _ => {}
                }
            }
        }
        Some(refusal)
    }
}

/// How a dump ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Completion {
    /// All of it belongs together.
    Consistent,
    /// Something changed while it ran (`NLM_F_DUMP_INTR`).
    Interrupted,
}

/// A socket to nfnetlink, closed on exec.
pub(super) struct Socket {
    inner: mnl::Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for requests.
    pub(super) fn open() -> io::Result<Self> {
        Self::open_on(Bus::Netfilter)
    }

    /// Opens a socket for requests to another part of the kernel.
    pub(super) fn open_on(bus: Bus) -> io::Result<Self> {
        let socket = Self::unbound(bus)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::from(libc_timeval(ANSWER_TIMEOUT)))?;
        // Both are comfort: without them errors have no text, or carry the refused message with them.
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        socket.inner.bind(0, mnl::mnl_sys::MNL_SOCKET_AUTOPID)?;
        Ok(socket)
    }

    /// Opens a nonblocking socket that hears those notifications of `groups` (bit mask) that `filter` lets through.
    pub(super) fn listen(groups: u32, filter: &[libc::sock_filter]) -> io::Result<Self> {
        Self::listen_on(Bus::Netfilter, groups, filter)
    }

    /// The same for notifications of another part of the kernel; without instructions there is no filter.
    pub(super) fn listen_on(bus: Bus, groups: u32, filter: &[libc::sock_filter]) -> io::Result<Self> {
        let socket = Self::unbound(bus)?;
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // Before joining, so that nothing unfiltered gets in.
        if !filter.is_empty() {
            socket_filter::attach(&socket, filter)?;
        }
        socket.inner.bind(groups, mnl::mnl_sys::MNL_SOCKET_AUTOPID)?;
        Ok(socket)
    }

    fn unbound(bus: Bus) -> io::Result<Self> {
        const KERNEL_BUFFER_BYTES: i32 = 4 << 20;
        let inner = mnl::Socket::open(bus)?;
        let socket =
            Self { inner, buffer: vec![0; RECEIVE_BYTES + align_of::<libc::nlmsghdr>()], sequence: 0 };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        socket.set_limit(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, KERNEL_BUFFER_BYTES)?;
        socket.set_limit(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, KERNEL_BUFFER_BYTES)?;
        Ok(socket)
    }

    /// Sets a limit of a buffer (it allocates nothing). The forced one goes beyond net.core.rmem_max (or wmem_max) and needs
    /// CAP_NET_ADMIN in the first user namespace; without it as much as is allowed.
    fn set_limit(&self, forced: i32, plain: i32, bytes: i32) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, forced, bytes)
            .or_else(|_| self.set_option(libc::SOL_SOCKET, plain, bytes))
    }

    fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: the option value is an int on our stack, whose size is passed.
        let result = unsafe {
            libc::setsockopt(
                self.inner.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Its port, which no other socket of the network namespace has.
    pub(super) fn port(&self) -> u32 {
        self.inner.portid()
    }

    /// The first of `count` sequence numbers that nobody else uses on this socket. Never 0.
    pub(super) fn reserve_sequence(&mut self, count: u32) -> u32 {
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    /// Sends `bytes` as one datagram, however large.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut result = self.inner.send(bytes);
        if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE)) {
            let limit = i32::try_from(bytes.len()).map_err(io::Error::other)?;
            self.set_limit(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, limit)?;
            result = self.inner.send(bytes);
        }
        match result? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::Error::other("netlink message sent in part")),
        }
    }

    /// Sends one request (which asks for a dump or an acknowledgement) and calls `each` for every message of the
    /// answer. An `NLMSG_ERROR` becomes an error with its errno.
    pub(super) fn request(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<Completion> {
        self.request_while(request, |message| {
            each(message);
            true
        })
    }

    /// The same, as long as `each` says so. If it says no, the rest of a dump stays in the kernel: no other can be asked for then.
    pub(super) fn request_while(
        &mut self,
        request: &[u8],
        mut each: impl FnMut(&Message<'_>) -> bool,
    ) -> io::Result<Completion> {
        let sequence = u32_at(request, 8).ok_or_else(|| io::Error::other("request without header"))?;
        self.send(request)?;
        let mut completion = Completion::Consistent;
        loop {
            let received = self.receive(MsgFlags::empty())?;
            for message in NlMessages::new(received) {
                let message = Message { bytes: message? };
                if message.sequence() != sequence {
                    continue; // an answer that an earlier request gave up waiting for
                }
                if message.flags() & libc::NLM_F_DUMP_INTR as u16 != 0 {
                    completion = Completion::Interrupted;
                }
                match i32::from(message.kind()) {
                    libc::NLMSG_NOOP => {}
                    libc::NLMSG_ERROR => {
                        return match Refusal::parse(&message) {
                            Some(refusal) => Err(io::Error::from_raw_os_error(refusal.errno)),
                            None => Ok(completion),
                        };
                    }
                    libc::NLMSG_DONE => {
                        // A dump that failed half-way says so here.
                        return match u32_at(message.payload(), 0).map(u32::cast_signed) {
                            Some(error @ ..0) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                            _ => Ok(completion),
                        };
                    }
                    _ if each(&message) => {}
                    _ => return Ok(completion),
                }
            }
        }
    }

    /// Sends `count` requests, numbered from `first` on, as one datagram; none of them may ask for a dump or an
    /// acknowledgement, and each must be of a kind that is answered by one message or one error. Calls `each` with the
    /// place of the request and the answer, or errno. The kernel answers before `sendmsg` returns; an answer that isn't
    /// there then didn't fit the socket's buffer, and is `ENOBUFS`.
    pub(super) fn request_many(
        &mut self,
        requests: &[u8],
        first: u32,
        count: usize,
        mut each: impl FnMut(usize, Result<&Message<'_>, i32>),
    ) -> io::Result<()> {
        self.send(requests)?;
        let mut missing = count;
        while missing > 0 {
            let Some(received) = self.try_receive()? else {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            };
            for message in NlMessages::new(received) {
                let message = Message { bytes: message? };
                let place = message.sequence().wrapping_sub(first) as usize;
                if place >= count {
                    continue; // an answer that an earlier request gave up waiting for
                }
                missing = missing.saturating_sub(1);
                match i32::from(message.kind()) {
                    libc::NLMSG_ERROR => match Refusal::parse(&message) {
                        Some(refusal) => each(place, Err(refusal.errno)),
                        None => each(place, Err(0)),
                    },
                    _ => each(place, Ok(&message)),
                }
            }
        }
        Ok(())
    }

    /// Takes all refusals that wait on the socket, without blocking. After `send` of a batch these are all there
    /// will be: the kernel has done the work and queued its answers before `sendmsg` returns.
    pub(super) fn refusals(&mut self) -> io::Result<Vec<Refusal>> {
        let mut refusals = Vec::new();
        while let Some(received) = self.try_receive()? {
            for message in NlMessages::new(received) {
                let message = Message { bytes: message? };
                if i32::from(message.kind()) == libc::NLMSG_ERROR {
                    refusals.extend(Refusal::parse(&message));
                }
            }
        }
        Ok(refusals)
    }

    /// Calls `each` for every message of the next datagram; false if there is none. An overrun is `ENOBUFS`.
    pub(super) fn next_notification(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let Some(received) = self.try_receive()? else { return Ok(false) };
        for message in NlMessages::new(received) {
            each(&Message { bytes: message? });
        }
        Ok(true)
    }

    fn try_receive(&mut self) -> io::Result<Option<&[u8]>> {
        match self.receive(MsgFlags::MSG_DONTWAIT) {
            Ok(received) => Ok(Some(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> io::Result<&[u8]> {
        let aligned = self.buffer.as_ptr().align_offset(align_of::<libc::nlmsghdr>());
        let buffer = &mut self.buffer[aligned..];
        let received = loop {
            // MSG_TRUNC: the datagram's own length, even where it didn't fit.
            match recv(self.inner.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
                Err(nix::errno::Errno::EINTR) => {}
                result => break result?,
            }
        };
        buffer.get(..received).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))
    }
}

fn libc_timeval(duration: Duration) -> libc::timeval {
    libc::timeval { tv_sec: duration.as_secs().cast_signed(), tv_usec: 0 }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.inner.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open as long as `self.inner` lives, which the borrow outlasts not.
        unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) }
    }
}
