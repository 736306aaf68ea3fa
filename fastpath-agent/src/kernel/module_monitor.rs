//! Events of loaded kernel modules (NETLINK_KOBJECT_UEVENT): modules bring tables that the kernel doesn't announce.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::netlink::filter::{attach, statement};

/// The kernel's own events, not those that udev hands on.
const KERNEL_EVENTS: u32 = 1;

/// A socket that gets them.
pub struct ModuleMonitor(AsyncFd<OwnedFd>);

impl ModuleMonitor {
    /// Begins to listen. Must be called inside a tokio runtime with I/O enabled.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        // Devices come and go with every pod. An event begins with action and place: "add@/module/ip_tables".
        let place = u32::from_be_bytes(*b"/mod");
        attach(
            &socket,
            &[
                statement(BPF_LD | BPF_W | BPF_ABS, 4),
                libc::sock_filter { code: (BPF_JMP | BPF_JEQ | BPF_K) as u16, jt: 1, jf: 0, k: place },
                statement(BPF_RET | BPF_K, 0),
                statement(BPF_RET | BPF_K, u32::MAX),
            ],
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits until one is loaded, or events were lost. Safe to cancel.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            let received = ready.try_io(|socket| {
                let mut event = [0; 16];
                Ok(recv(socket.get_ref().as_raw_fd(), &mut event, MsgFlags::empty())?)
            });
            match received {
                Err(_not_ready) => {}
                Ok(Err(error)) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                Ok(_) => return Ok(()),
            }
        }
    }
}
