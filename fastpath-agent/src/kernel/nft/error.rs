//! What can go wrong with nftables, one line each with the remedy.

use std::io;

use crate::core::model::IfName;

/// A request to nftables failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// This kernel can't do it.
    #[error("this kernel has no {feature} (needs Linux {lowest_kernel} or later): {remedy}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// First kernel that has it.
        lowest_kernel: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The process isn't allowed to.
    #[error("{operation} {object} is not permitted without {capability}: run as root or add the capability")]
    Permission {
        /// What was asked of the kernel.
        operation: &'static str,
        /// What it was about.
        object: &'static str,
        /// The missing capability.
        capability: &'static str,
    },
    /// The ruleset changed during every attempt to read it.
    #[error(
        "the nftables ruleset changed during each of {attempts} attempts to read it: another program keeps rewriting it (see `nft monitor`)"
    )]
    Unsettled {
        /// How often it was read.
        attempts: u32,
    },
    /// The socket or a request failed.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was asked of the kernel.
        operation: &'static str,
        /// What it was about.
        object: &'static str,
        /// errno.
        source: io::Error,
    },
}

impl NftError {
    /// Trying again later won't help.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Unsupported { .. } | Self::Permission { .. })
    }

    /// Sorts an errno of the kernel into a variant.
    pub(super) fn new(operation: &'static str, object: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::Permission { operation, object, capability: "CAP_NET_ADMIN" },
            _ => Self::Io { operation, object, source },
        }
    }
}

/// A transaction was not applied, not even in part.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The ruleset has changed since it was observed (`ERESTART`): observe again.
    #[error("the ruleset changed meanwhile")]
    Stale,
    /// The kernel refused some operations, and with them the whole transaction. In the order of the plan, and
    /// complete: the kernel goes on to look at the rest of a transaction that it won't commit, so what depends on
    /// a refused operation is refused too.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rejected(Vec<Rejection>),
    /// The socket failed, or the transaction as a whole.
    #[error(transparent)]
    Io(#[from] NftError),
}

/// One refused operation.
#[derive(Debug, thiserror::Error)]
#[error(
    "operation {index}{}: {source}{}",
    .device.as_ref().map(|d| format!(" (device {d})")).unwrap_or_default(),
    .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default()
)]
pub struct Rejection {
    /// Position in the plan.
    pub index: usize,
    /// errno.
    pub source: io::Error,
    /// The kernel's extended acknowledgement, if it gave one.
    pub message: Option<String>,
    /// The device that the kernel objected to, if it said which (Linux 6.12 does for devices that don't
    /// exist, Linux 6.1 doesn't).
    pub device: Option<IfName>,
}
