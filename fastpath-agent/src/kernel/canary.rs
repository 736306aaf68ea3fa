//! The canary: real flows through three scratch network namespaces (client, router, server) on this kernel, with our
//! ruleset in the router's. Shows whether offloaded packets pass the forward path by and arrive as they were sent.
//!
//! Works in namespaces of its own only, and needs no other program. The namespaces have no name and live as long as the
//! process that [`run`] was called in: whatever ends it, nothing stays behind. Decides nothing.

use std::io;

use crate::{
    core::{
        doctor::facts::CanaryFlow,
        link::table::LinkTable,
        ruleset::{
            desired::desired,
            diff::{Decision, ForeignTable, diff},
            wanted::Policy,
        },
    },
    kernel::{
        Ruleset,
        links::{LinkError, Links},
        nft::{CommitError, Nft, NftError},
    },
};

mod child;
mod flow;
mod scratch;

pub use child::run_in_child;
use flow::Protocol;
use scratch::{Family, Scratch};

/// The canary couldn't be run.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// A step of building the scratch namespaces.
    #[error("cannot {step}: {source}")]
    Build {
        /// Which.
        step: &'static str,
        /// errno.
        source: io::Error,
    },
    /// A step over rtnetlink.
    #[error("cannot {step} in a scratch namespace: {source}")]
    Netlink {
        /// Which.
        step: &'static str,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// Links can't be read.
    #[error(transparent)]
    Links(#[from] LinkError),
    /// The ruleset can't be read.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel refused the ruleset.
    #[error("the kernel refused the ruleset in a scratch namespace: {0}")]
    Ruleset(#[from] CommitError),
    /// The ruleset of a fresh namespace wasn't empty.
    #[error("a fresh namespace has a table of our name")]
    NotFresh,
}

/// Sends the flows, and calls `each` with the outcome of one after the other. Leaves the calling thread in a scratch
/// namespace: meant for a process of its own. Must be called inside a tokio runtime of one thread.
pub async fn run(policy: &Policy, mut each: impl FnMut(CanaryFlow)) -> Result<(), CanaryError> {
    let scratch = Scratch::build().await?;
    scratch.router.enter()?;
    let links: LinkTable = Links::open()?.list()?.into_iter().collect();
    let mut nft = Nft::open()?;
    let observed = nft.observe()?;
    let table = desired(policy, links.iter(), &Default::default());
    let Decision::Apply(ops) = diff(&table, &observed, ForeignTable::Refuse) else {
        return Err(CanaryError::NotFresh);
    };
    nft.commit(&ops, observed.generation)?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for family in [Family::V4, Family::V6] {
            each(flow::send(&scratch, protocol, family));
        }
    }
    Ok(())
}
