//! A netlink socket: sends requests and hands back the kernel's answers, message by message. Takes no decision on an error.
#![expect(unsafe_code, reason = "socket options that no safe wrapper has")]

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use mnl::Bus;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        socket::{MsgFlags, recv, setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::{Dump, Dumped, Message, Refusal, Request, attribute::u32_at, filter, messages};

/// Size of the receive buffer in user space. Also what a dump may put into one datagram: the kernel allocates
/// as much as the largest `recvmsg` so far asked for, up to 32 KiB (`netlink_dump`, net/netlink/af_netlink.c).
const RECEIVE_BYTES: usize = 64 * 1024;
/// Longest wait for an answer. The kernel answers before `sendmsg` returns, so this only ends a wait for an
/// answer that was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket to a part of the kernel, closed on exec.
pub(in crate::kernel) struct Socket {
    inner: mnl::Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for requests.
    pub(in crate::kernel) fn open() -> io::Result<Self> {
        Self::open_on(Bus::Netfilter)
    }

    /// Opens a socket for requests to another part of the kernel.
    pub(in crate::kernel) fn open_on(bus: Bus) -> io::Result<Self> {
        let socket = Self::unbound(bus)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::from(libc_timeval(ANSWER_TIMEOUT)))?;
        // Both are comfort: without them errors have no text, or carry the refused message with them.
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        socket.inner.bind(0, mnl::mnl_sys::MNL_SOCKET_AUTOPID)?;
        Ok(socket)
    }

    /// Opens a nonblocking socket that hears those notifications of `groups` (bit mask) that `filter` lets through.
    pub(in crate::kernel) fn listen(groups: u32, filter: &[libc::sock_filter]) -> io::Result<Self> {
        Self::listen_on(Bus::Netfilter, groups, filter)
    }

    /// The same for notifications of another part of the kernel; without instructions there is no filter.
    pub(in crate::kernel) fn listen_on(
        bus: Bus,
        groups: u32,
        filter: &[libc::sock_filter],
    ) -> io::Result<Self> {
        let socket = Self::unbound(bus)?;
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // Before joining, so that nothing unfiltered gets in.
        if !filter.is_empty() {
            filter::attach(&socket, filter)?;
        }
        socket.inner.bind(groups, mnl::mnl_sys::MNL_SOCKET_AUTOPID)?;
        Ok(socket)
    }

    /// Has it hear the notifications of other network namespaces too, those that this one has a number for; takes CAP_NET_BROADCAST.
    pub(in crate::kernel) fn hear_all_namespaces(&self) -> io::Result<()> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID, 1)
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
    pub(in crate::kernel) fn port(&self) -> u32 {
        self.inner.portid()
    }

    /// The first of `count` sequence numbers that nothing else uses on this socket. Never 0.
    pub(in crate::kernel) fn reserve_sequence(&mut self, count: u32) -> u32 {
        if self.sequence.checked_add(count).is_none() {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    /// Sends `bytes` as one datagram, however large.
    pub(in crate::kernel) fn send(&self, bytes: &[u8]) -> io::Result<()> {
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

    /// Sends one request, which is answered by messages and an acknowledgement (so it carries `NLM_F_ACK`), and calls `each`
    /// for every message. A refusal becomes an error with its errno.
    pub(in crate::kernel) fn request(
        &mut self,
        mut request: Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        self.exchange(&mut request, |message| {
            each(message);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Lists objects: `each` puts every message into the value that comes back.
    pub(in crate::kernel) fn dump<T>(
        &mut self,
        mut dump: Dump,
        mut into: T,
        mut each: impl FnMut(&mut T, &Message<'_>),
    ) -> io::Result<Dumped<T>> {
        let interrupted = self.exchange(&mut dump.0, |message| {
            each(&mut into, message);
            ControlFlow::Continue(())
        })?;
        Ok(Dumped::new(into, interrupted))
    }

    /// The same until `each` has had enough. The rest stays in the kernel and would be in the way of another dump, so the socket
    /// goes with it.
    pub(in crate::kernel) fn dump_until<T>(
        mut self,
        mut dump: Dump,
        mut into: T,
        mut each: impl FnMut(&mut T, &Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<Dumped<T>> {
        let interrupted = self.exchange(&mut dump.0, |message| each(&mut into, message))?;
        Ok(Dumped::new(into, interrupted))
    }

    /// Sends a request and calls `each` for the messages that answer it; true if the kernel says that something changed
    /// meanwhile.
    fn exchange(
        &mut self,
        request: &mut Request,
        mut each: impl FnMut(&Message<'_>) -> ControlFlow<()>,
    ) -> io::Result<bool> {
        let sequence = self.reserve_sequence(1);
        request.number(sequence);
        self.send(request.bytes())?;
        let mut interrupted = false;
        loop {
            let received = self.receive(MsgFlags::empty())?;
            for message in messages(received) {
                let message = message?;
                if message.sequence() != sequence {
                    continue; // an answer that an earlier request gave up waiting for
                }
                interrupted |= message.flags() & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(message.kind()) {
                    libc::NLMSG_NOOP => {}
                    libc::NLMSG_ERROR => {
                        return match Refusal::parse(&message) {
                            Some(refusal) => Err(io::Error::from_raw_os_error(refusal.errno)),
                            None => Ok(interrupted),
                        };
                    }
                    libc::NLMSG_DONE => {
                        // A dump that failed half-way says so here.
                        return match u32_at(message.payload(), 0).map(u32::cast_signed) {
                            Some(error @ ..0) => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                            _ => Ok(interrupted),
                        };
                    }
                    _ if each(&message).is_continue() => {}
                    _ => return Ok(interrupted),
                }
            }
        }
    }

    /// Sends `count` requests, numbered from `first` on, as one datagram; none of them may ask for a dump or an
    /// acknowledgement, and each must be of a kind that is answered by one message or one error. Calls `each` with the
    /// place of the request and the answer, or errno. The kernel answers before `sendmsg` returns; an answer that isn't
    /// there then didn't fit the socket's buffer, and is `ENOBUFS`.
    pub(in crate::kernel) fn request_many(
        &mut self,
        requests: &Request,
        first: u32,
        count: usize,
        mut each: impl FnMut(usize, Result<&Message<'_>, i32>),
    ) -> io::Result<()> {
        self.send(requests.bytes())?;
        let mut missing = count;
        while missing > 0 {
            let Some(received) = self.try_receive()? else {
                return Err(io::Error::from_raw_os_error(libc::ENOBUFS));
            };
            for message in messages(received) {
                let message = message?;
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
    pub(in crate::kernel) fn refusals(&mut self) -> io::Result<Vec<Refusal>> {
        let mut refusals = Vec::new();
        while let Some(received) = self.try_receive()? {
            for message in messages(received) {
                let message = message?;
                if i32::from(message.kind()) == libc::NLMSG_ERROR {
                    refusals.extend(Refusal::parse(&message));
                }
            }
        }
        Ok(refusals)
    }

    /// Calls `each` for every message of the next datagram; false if there is none. An overrun is `ENOBUFS`.
    pub(in crate::kernel) fn next_notification(
        &mut self,
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<bool> {
        let Some(received) = self.try_receive()? else { return Ok(false) };
        for message in messages(received) {
            each(&message?);
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
