//! Asks the kernel whether it can do a thing, by a transaction that it looks at and then drops: without the
//! message that ends a batch nothing is ever committed (nfnetlink_rcv_batch, net/netfilter/nfnetlink.c), which is
//! how `nft --check` works too. All that can stay behind is a module that the kernel loaded for it.

use std::io;

use libc::NLM_F_CREATE;
use nftnl_sys as sys;

use super::{
    Nft, NftError,
    batch::{Batch, FLOWTABLE_COUNTER, NFT_MSG_NEWFLOWTABLE},
    expr,
    object::{Chain, ExprObject, Flowtable, Object, Rule, Table},
};
use crate::{
    core::{
        expr::{Expr, RtKey},
        model::IfName,
    },
    kernel::nfnetlink::Refusal,
};

/// Name of everything in the transaction; nobody ever sees it.
const NAME: &str = "fastpath-trial";

/// What is tried.
#[derive(Clone, Copy)]
pub(in crate::kernel) enum Trial {
    /// A table of the inet family.
    Table,
    /// A flowtable in it, without devices.
    Flowtable {
        /// With `NFT_FLOWTABLE_COUNTER`.
        counter: bool,
    },
    /// An instruction of this name, left incomplete: one that the kernel knows is refused as invalid, before it
    /// does anything. (A complete `ct packets` would switch on `nf_conntrack_acct` for good, and any `ct` hooks
    /// conntrack into the namespace.)
    Instruction(&'static str),
    /// `rt ipsec`, complete: whether the kernel knows the key shows only then, and it does nothing.
    RtIpsec,
}

/// What the kernel said.
pub(in crate::kernel) enum Verdict {
    /// It would do it.
    Accepted,
    /// It knows no such thing, or not here.
    Unknown {
        /// errno.
        errno: i32,
    },
    /// It refused for another reason, which says nothing about the thing itself.
    Refused {
        /// errno.
        errno: i32,
    },
}

impl Nft {
    /// Tries one thing. Nothing is changed, and nobody is notified.
    pub(in crate::kernel) fn try_out(&mut self, trial: Trial) -> Result<Verdict, NftError> {
        let first = self.socket.reserve_sequence(4);
        let mut batch = Batch::begin(first, None);
        let table = Table::new().set_str(sys::NFTNL_TABLE_NAME, NAME);
        batch.push(0, libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        match trial {
            Trial::Table => {}
            Trial::Flowtable { counter } => {
                let mut flowtable = Flowtable::new()
                    .set_str(sys::NFTNL_FLOWTABLE_TABLE, NAME)
                    .set_str(sys::NFTNL_FLOWTABLE_NAME, NAME)
                    .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, 0)
                    .set_u32(sys::NFTNL_FLOWTABLE_PRIO, 0);
                if counter {
                    flowtable = flowtable.set_u32(sys::NFTNL_FLOWTABLE_FLAGS, FLOWTABLE_COUNTER);
                }
                batch.push(1, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &flowtable);
            }
            Trial::Instruction(_) | Trial::RtIpsec => {
                let instruction = match trial {
                    Trial::Instruction(name) => ExprObject::new(name),
                    _ => expr::encode(&Expr::Rt { key: RtKey::Ipsec, dreg: 1 }),
                };
                let chain =
                    Chain::new().set_str(sys::NFTNL_CHAIN_TABLE, NAME).set_str(sys::NFTNL_CHAIN_NAME, NAME);
                batch.push(1, libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE, &chain);
                let rule = Rule::new()
                    .set_str(sys::NFTNL_RULE_TABLE, NAME)
                    .set_str(sys::NFTNL_RULE_CHAIN, NAME)
                    .push(instruction.expect("libnftnl knows the instructions of our rules"));
                batch.push(2, libc::NFT_MSG_NEWRULE, NLM_F_CREATE, &rule);
            }
        }
        let failed = |error| NftError::new("trying out", "a table", error);
        self.socket.send(batch.bytes()).map_err(failed)?;
        let refusals = self.socket.refusals().map_err(failed)?;
        // A refusal of something before the thing itself is no answer.
        let refusal =
            refusals.into_iter().filter(|refusal| refusal.sequence >= first).min_by_key(|r| r.sequence);
        Ok(verdict(trial, first, refusal))
    }
}

impl Nft {
    /// Why the kernel takes no flowtable on an interface; `None` if it does. Its hook is registered for the moment and
    /// finds an empty flowtable: no packet takes another way.
    pub(in crate::kernel) fn try_device(&mut self, name: &IfName) -> Result<Option<io::Error>, NftError> {
        let first = self.socket.reserve_sequence(4);
        let mut batch = Batch::begin(first, None);
        let table = Table::new().set_str(sys::NFTNL_TABLE_NAME, NAME);
        batch.push(0, libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, &table);
        let flowtable = Flowtable::new()
            .set_str(sys::NFTNL_FLOWTABLE_TABLE, NAME)
            .set_str(sys::NFTNL_FLOWTABLE_NAME, NAME)
            .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, 0)
            .set_u32(sys::NFTNL_FLOWTABLE_PRIO, 0)
            .set_devices(std::iter::once(name.as_str()));
        batch.push(1, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &flowtable);
        let failed = |error| NftError::new("trying out", "a flowtable", error);
        self.socket.send(batch.bytes()).map_err(failed)?;
        let refusals = self.socket.refusals().map_err(failed)?;
        let refusal = refusals.into_iter().find(|refusal| refusal.sequence == first + 2);
        Ok(refusal.map(|refusal| io::Error::from_raw_os_error(refusal.errno)))
    }
}

fn verdict(trial: Trial, first: u32, refusal: Option<Refusal>) -> Verdict {
    let Some(Refusal { sequence, errno, .. }) = refusal else { return Verdict::Accepted };
    match (trial, sequence - first, errno) {
        (Trial::Table, 1, libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Verdict::Unknown { errno },
        (Trial::Flowtable { .. }, 2, libc::ENOENT | libc::EOPNOTSUPP) => Verdict::Unknown { errno },
        (Trial::Instruction(_), 3, libc::ENOENT) | (Trial::RtIpsec, 3, libc::ENOENT | libc::EOPNOTSUPP) => {
            Verdict::Unknown { errno }
        }
        (Trial::Instruction(_), 3, libc::EINVAL | libc::EOPNOTSUPP) => Verdict::Accepted,
        _ => Verdict::Refused { errno },
    }
}
