//! Follows changes of the ruleset. One wake-up for each transaction, whatever its size: all
//! notifications but the new generation's come to a second socket, which is read on request only.
#![expect(unsafe_code, reason = "tokio cannot know that a descriptor stays open")]

use std::{io, os::fd::AsRawFd};

use tokio::io::{Interest, unix::AsyncFd};

use super::{Nft, NftError, message_type, names::Names, nfta, notice, observe::parse_generation};
use crate::{
    core::{revalidate::Notice, ruleset::observed::Generation},
    kernel::{
        RulesetMonitor,
        netlink::{Message, Socket},
    },
};

const OBJECT: &str = "the nftables ruleset";

/// What the monitor heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction was committed.
    Generation {
        /// The ruleset's generation since then.
        generation: Generation,
        /// Process that did it, in its own process namespace's numbers.
        process: Option<u32>,
        /// Name of that process's thread (`comm`), cut to 15 bytes.
        name: Option<String>,
    },
    /// Notifications were lost (`ENOBUFS`): what the ruleset looks like now is unknown.
    Overrun,
}

/// A socket that gets every new generation of this network namespace's ruleset, including those that the
/// agent makes.
pub struct Monitor {
    socket: AsyncFd<Socket>,
    details: Socket,
    /// Port of the socket whose own changes are left out.
    own: u32,
}

/// Notifications of what was changed didn't fit their socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost;

impl Monitor {
    /// Begins to listen, inside a tokio runtime with I/O enabled. [`changes`](RulesetMonitor::changes) leaves out those of `own`.
    ///
    /// A reader may see a new generation's number an instant before all of its changes: read again when told of a
    /// generation, even if its number is known.
    pub fn open(own: &Nft) -> Result<Self, NftError> {
        let failed = |error| NftError::new("listening to changes of", OBJECT, error);
        let groups = 1 << (libc::NFNLGRP_NFTABLES - 1);
        let [wanted, rest] = [true, false].map(|wanted| Socket::listen(groups, &new_generations(wanted)));
        let (socket, details) = (wanted.map_err(failed)?, rest.map_err(failed)?);
        // SAFETY: the socket owns its descriptor and keeps it open until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        Ok(Self { socket: socket.map_err(|error| failed(error.into()))?, details, own: own.port() })
    }
}

impl RulesetMonitor for Monitor {
    fn changes(&mut self, mut each: impl FnMut(&Notice<'_>)) -> Result<Result<(), Lost>, NftError> {
        let mut lost = false;
        loop {
            let own = self.own;
            let heard = self.details.next_notification(|message| {
                let names = Names::default();
                if message.port() != own
                    && let Some(notice) = notice::parse(message, &names)
                {
                    each(&notice);
                }
            });
            match heard {
                Ok(true) => {}
                Ok(false) => return Ok(if lost { Err(Lost) } else { Ok(()) }),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => lost = true,
                Err(error) => return Err(NftError::new("listening to changes of", OBJECT, error)),
            }
        }
    }

    async fn next(&mut self) -> Result<Event, NftError> {
        loop {
            let mut ready = self
                .socket
                .readable_mut()
                .await
                .map_err(|error| NftError::new("waiting for changes of", OBJECT, error))?;
            match ready.try_io(|socket| receive(socket.get_mut())) {
                Err(_not_ready) => {}
                Ok(Ok(Some(event))) => return Ok(event),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    return Err(NftError::new("listening to changes of", OBJECT, error));
                }
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> i32 {
        self.socket.get_ref().as_raw_fd()
    }
}

/// One event, `None` for a message that says nothing, `WouldBlock` if there is none.
fn receive(socket: &mut Socket) -> io::Result<Option<Event>> {
    let mut event = None;
    match socket.next_notification(|message| event = parse(message)) {
        Ok(true) => Ok(event),
        Ok(false) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
            // While it is full the kernel goes on dropping, without a further error.
            while socket.next_notification(|_| {})? {}
            Ok(Some(Event::Overrun))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn parse(message: &Message<'_>) -> Option<Event> {
    if message.kind() != message_type(libc::NFT_MSG_NEWGEN) {
        return None;
    }
    let generation = parse_generation(message)?;
    let (mut process, mut name) = (None, None);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::GEN_PROC_PID => process = nla.be32(),
            nfta::GEN_PROC_NAME => name = Some(nla.string()),
            _ => {}
        }
    }
    Some(Event::Generation { generation, process, name })
}

/// Classic BPF: lets a datagram through if its first message is a new generation, or if it isn't. The kernel sends that
/// one in a datagram of its own and packs all others of a transaction together (nf_tables_gen_notify and
/// nft_commit_notify, net/netfilter/nf_tables_api.c).
fn new_generations(wanted: bool) -> [libc::sock_filter; 4] {
    const TYPE_OFFSET: u32 = 4;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // The load is big-endian, the header isn't.
    let kind = u32::from(u16::from_be_bytes(message_type(libc::NFT_MSG_NEWGEN).to_ne_bytes()));
    let verdict = |pass| if pass { u32::MAX } else { 0 };
    [
        instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TYPE_OFFSET),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, kind),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict(wanted)),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, verdict(!wanted)),
    ]
}
