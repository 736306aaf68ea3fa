//! nftables over nfnetlink, with libnftnl and libmnl: reads our table, applies plans, hears of changes.
//!
//! Touches no table but ours, and takes no decisions: what is to be done comes as a plan.

use std::io;

use crate::{
    core::ruleset::{
        observed::{Generation, Observed},
        plan::Op,
    },
    kernel::{Ruleset, Unread, nfnetlink::Socket},
};

mod batch;
mod dump;
mod element;
mod error;
mod expr;
mod marker;
mod meter;
mod monitor;
mod notice;
mod object;
mod others;
mod others_sets;
mod search;
mod survey;
mod traces;
pub(super) mod trial;

pub use error::{CommitError, NftError, Rejection};
pub use meter::SlowPath;
pub use monitor::{Event, Lost, Monitor};
pub use others::Which;

use batch::Batch;

/// Oldest kernel that keeps a table's user data, where our mark of ownership stands. An older one drops it
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
        dump::generation(&mut nft.socket)?;
        Ok(nft)
    }

    /// Port of its socket, by which its own changes are told from others'.
    fn port(&self) -> u32 {
        self.socket.port()
    }
}

impl Ruleset for Nft {
    fn observe(&mut self) -> Result<Observed, NftError> {
        dump::observe(&mut self.socket, Unread::Known(&[]))
    }

    fn observe_but(&mut self, unread: Unread<'_>) -> Result<Observed, NftError> {
        dump::observe(&mut self.socket, unread)
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
        Ok(dump::generation(&mut self.socket)?)
    }
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
