//! nftables over nfnetlink: reads our table and other programs', applies plans (written with libnftnl), follows changes.
//!
//! Changes no table but the agent's, and decides nothing: the caller gives a plan.

use std::io;

use crate::{
    core::{
        model::TABLE,
        revalidate::BaseChains,
        ruleset::{
            observed::{Generation, Observed},
            plan::Op,
            sets::OwnSet,
        },
    },
    kernel::{
        Ruleset, Unread,
        netlink::{Dump, Families, Request, Socket},
    },
};

mod batch;
mod element;
mod error;
mod expr;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod instruction;
mod marker;
mod meter;
mod monitor;
mod names;
mod nfta;
mod notice;
mod object;
mod observe;
mod others;
mod traces;
pub(super) mod trial;

pub use error::{CommitError, NftError, Rejection};
pub use meter::SlowPath;
pub use monitor::{Event, Lost, Monitor};
pub use others::Which;

use batch::Batch;

/// Oldest kernel that keeps a table's user data, which holds the agent's mark of ownership. An older one drops it
/// without a word, so this is asked of its release and not of its behaviour.
const LOWEST_KERNEL: (u32, u32) = (5, 10);

/// The ruleset of the network namespace in which it was opened.
pub struct Nft {
    socket: Socket,
}

impl Nft {
    /// Opens the ruleset of the calling thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let release = nix::sys::utsname::uname()
            .map_err(|error| NftError::new("reading", "the kernel's release", error.into()))?;
        if version(&release.release().to_string_lossy()).is_some_and(|version| version < LOWEST_KERNEL) {
            return Err(NftError::Unsupported {
                feature: "user data of nftables tables",
                lowest_kernel: "5.10",
                remedy: "use a newer kernel",
            });
        }
        let socket = Socket::open().map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => no_nf_tables(),
            _ => NftError::new("opening", "a netfilter socket", error),
        })?;
        let mut nft = Self { socket };
        // Says early that there is no nf_tables. And dumps use large buffers only after a first `recvmsg` with one.
        observe::generation(&mut nft.socket)?;
        Ok(nft)
    }

    /// Port of its socket, by which its own changes are told from other programs'.
    fn port(&self) -> u32 {
        self.socket.port()
    }
}

impl Ruleset for Nft {
    fn observe(&mut self) -> Result<Observed, NftError> {
        observe::observe(&mut self.socket, Unread::Known(&[]))
    }

    fn observe_but(&mut self, unread: Unread<'_>) -> Result<Observed, NftError> {
        observe::observe(&mut self.socket, unread)
    }

    fn commit(&mut self, ops: &[Op], expected: Generation) -> Result<Generation, CommitError> {
        if ops.is_empty() {
            return Ok(expected);
        }
        let first = self.socket.reserve_sequence(Batch::sequence_numbers(ops));
        let mut batch = Batch::begin(first, Some(expected.0));
        for (index, op) in ops.iter().enumerate() {
            batch.add(index, op).map_err(|rejection| CommitError::Rejected(vec![rejection]))?;
        }
        let batch = batch.end();
        let failed = |error| NftError::new("sending", "a transaction", error);
        self.socket.send(batch.bytes()).map_err(failed)?;
        let mut rejections = Vec::new();
        for refusal in self.socket.refusals().map_err(failed)? {
            match batch.rejection(refusal) {
                Ok(rejection) => rejections.push(rejection),
                Err(whole) if whole.sequence != first => {} // a late answer to an earlier request
                Err(whole) if whole.errno == libc::ERESTART => return Err(CommitError::Stale),
                Err(whole) => {
                    let error = io::Error::from_raw_os_error(whole.errno);
                    return Err(NftError::new("committing", "a transaction", error).into());
                }
            }
        }
        if !rejections.is_empty() {
            rejections.sort_by_key(|rejection| rejection.index);
            return Err(CommitError::Rejected(rejections));
        }
        Ok(observe::generation(&mut self.socket)?)
    }

    fn base_chains(&mut self) -> Result<BaseChains, NftError> {
        self.read_base_chains()
    }
}

/// `nlmsg_type` of a message of nf_tables (enum nf_tables_msg_types).
fn message_type(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

/// A list of objects of a kind (`NFT_MSG_GET*`).
fn list(kind: i32, families: Families) -> Dump {
    // struct nfgenmsg: family, version, resource.
    Dump::new(message_type(kind), families, [0; 4])
}

/// A list of objects in our table, where the kernel filters by that.
fn list_own(kind: i32) -> Dump {
    list(kind, Families::One(libc::NFPROTO_INET as u8)).named(nfta::TABLE, TABLE)
}

/// The elements of one of our sets.
fn elements_of(set: OwnSet) -> Dump {
    list_own(libc::NFT_MSG_GETSETELEM).named(nfta::SECOND_NAME, &set.name())
}

/// A request for one object of family inet.
fn get(kind: i32) -> Request {
    Request::new(message_type(kind), libc::NLM_F_ACK, &[libc::NFPROTO_INET as u8, 0, 0, 0])
}

fn no_nf_tables() -> NftError {
    NftError::Unsupported {
        feature: "nf_tables",
        lowest_kernel: "5.10",
        remedy: "run `modprobe nf_tables` on the host, or use a kernel with CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET",
    }
}

/// Major and minor number of a kernel release such as "6.1.0-41-cloud-amd64".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases() {
        assert_eq!(version("6.1.0-41-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("4.19.325+"), Some((4, 19)));
        assert_eq!(version("unknown"), None);
    }
}
