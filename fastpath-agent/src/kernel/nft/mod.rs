//! nftables over nfnetlink, with libnftnl and libmnl.

use std::io;

/// Reading the ruleset failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The socket or a request failed.
    #[error("{operation} failed: {source}")]
    Io {
        /// What was asked of the kernel.
        operation: &'static str,
        /// errno.
        source: io::Error,
    },
}

/// A transaction was not applied.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The ruleset has changed since it was observed (`ERESTART`): observe again.
    #[error("the ruleset changed meanwhile")]
    Stale,
    /// The kernel refused some operations, and with them the whole transaction.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Rejected(Vec<Rejection>),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] NftError),
}

/// One refused operation.
#[derive(Debug, thiserror::Error)]
#[error("operation {index}: {source}{}", .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
pub struct Rejection {
    /// Position in the plan.
    pub index: usize,
    /// errno.
    pub source: io::Error,
    /// The kernel's extended acknowledgement, if it gave one.
    pub message: Option<String>,
}
