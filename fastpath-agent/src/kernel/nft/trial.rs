//! Asks the kernel whether it can do a thing, by a transaction that it looks at and then drops: without the
//! message that ends a batch nothing is ever committed (nfnetlink_rcv_batch, net/netfilter/nfnetlink.c), which is
//! how `nft --check` works too. All that can stay behind is a module that the kernel loaded for it.

use std::io;

use libc::NLM_F_CREATE;
use nftnl::{Chain, MsgType, ProtoFamily, Table};
use nftnl_sys as sys;

use super::{
    Nft, NftError,
    batch::{Batch, FLOWTABLE_COUNTER, NFT_MSG_NEWFLOWTABLE},
    expr,
    object::{ExprObject, Flowtable, Object, Rule, c_string},
};
use crate::core::{
    model::IfName,
    ruleset::expr::{Expr, RtKey},
};

/// Name of everything in the transaction, which is never committed.
const NAME: &str = "fastpath-trial";
/// Name of the second flowtable in it.
const NAME_WITH_COUNTER: &str = "fastpath-trial-counter";

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
    /// Tries each of these by itself. Nothing is changed, and no event is sent.
    ///
    /// All are in one transaction, since the kernel waits for all its processors (`synchronize_rcu`) when it drops one. It goes
    /// on behind a message that it refuses, and says so for each.
    pub(in crate::kernel) fn try_out(&mut self, trials: &[Trial]) -> Result<Vec<Verdict>, NftError> {
        let most = 3 + trials.len();
        let first = self.socket.reserve_sequence(u32::try_from(most).expect("a few trials"));
        let mut batch = Batch::begin(first, None);
        let table = Table::new(c_string(NAME), ProtoFamily::Inet);
        batch.push_object(0, &table, MsgType::Add);
        batch.push_object(1, &Chain::new(c_string(NAME), &table), MsgType::Add);
        for (number, trial) in trials.iter().enumerate() {
            trial.push(2 + number, &mut batch);
        }
        let failed = |error| NftError::new("trying out", "a table", error);
        self.socket.send(batch.bytes()).map_err(failed)?;
        let refusals = self.socket.refusals().map_err(failed)?;
        let errno = |sequence: u32| refusals.iter().find(|r| r.sequence == sequence).map(|r| r.errno);
        let (table, chain, mut next) = (errno(first + 1), errno(first + 2), first + 3);
        let mut verdict_on = |trial: &Trial| {
            let own = if trial.is_table() {
                table
            } else {
                next += 1;
                errno(next - 1)
            };
            // A refusal of the thing's container is no answer.
            let before = match trial {
                Trial::Table => None,
                Trial::Flowtable { .. } => table,
                Trial::Instruction(_) | Trial::RtIpsec => table.or(chain),
            };
            match before {
                Some(errno) => Verdict::Refused { errno },
                None => verdict(*trial, own),
            }
        };
        Ok(trials.iter().map(&mut verdict_on).collect())
    }
}

impl Trial {
    /// The table is tried by all of them.
    fn is_table(self) -> bool {
        matches!(self, Self::Table)
    }

    /// Adds what tries it, if that isn't there already, as message `number`.
    fn push(self, number: usize, batch: &mut Batch) {
        match self {
            Self::Table => {}
            Self::Flowtable { counter } => {
                let name = if counter { NAME_WITH_COUNTER } else { NAME };
                let mut flowtable = Flowtable::new()
                    .set_str(sys::NFTNL_FLOWTABLE_TABLE, NAME)
                    .set_str(sys::NFTNL_FLOWTABLE_NAME, name)
                    .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, 0)
                    .set_u32(sys::NFTNL_FLOWTABLE_PRIO, 0);
                if counter {
                    flowtable = flowtable.set_u32(sys::NFTNL_FLOWTABLE_FLAGS, FLOWTABLE_COUNTER);
                }
                batch.push(number, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &flowtable);
            }
            Self::Instruction(_) | Self::RtIpsec => {
                let instruction = match self {
                    Self::Instruction(name) => ExprObject::new(name),
                    _ => expr::encode(&Expr::Rt { key: RtKey::Ipsec, dreg: 1 }),
                };
                let rule = Rule::new()
                    .set_str(sys::NFTNL_RULE_TABLE, NAME)
                    .set_str(sys::NFTNL_RULE_CHAIN, NAME)
                    .push(instruction.expect("libnftnl knows the instructions of our rules"));
                batch.push(number, libc::NFT_MSG_NEWRULE, NLM_F_CREATE, &rule);
            }
        }
    }
}

impl Nft {
    /// Why the kernel takes no flowtable on an interface; `None` if it does. Its hook is registered for the moment and
    /// finds an empty flowtable: no packet takes another way.
    pub(in crate::kernel) fn try_device(&mut self, name: &IfName) -> Result<Option<io::Error>, NftError> {
        let first = self.socket.reserve_sequence(4);
        let mut batch = Batch::begin(first, None);
        batch.push_object(0, &Table::new(c_string(NAME), ProtoFamily::Inet), MsgType::Add);
        let flowtable = Flowtable::new()
            .set_str(sys::NFTNL_FLOWTABLE_TABLE, NAME)
            .set_str(sys::NFTNL_FLOWTABLE_NAME, NAME)
            .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, 0)
            .set_u32(sys::NFTNL_FLOWTABLE_PRIO, 0)
            .set_devices(std::iter::once(name));
        batch.push(1, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &flowtable);
        let failed = |error| NftError::new("trying out", "a flowtable", error);
        self.socket.send(batch.bytes()).map_err(failed)?;
        let refusals = self.socket.refusals().map_err(failed)?;
        let refusal = refusals.into_iter().find(|refusal| refusal.sequence == first + 2);
        Ok(refusal.map(|refusal| io::Error::from_raw_os_error(refusal.errno)))
    }
}

/// What `errno`, the kernel's answer to the thing itself, says about it.
fn verdict(trial: Trial, errno: Option<i32>) -> Verdict {
    let Some(errno) = errno else { return Verdict::Accepted };
    match (trial, errno) {
        (Trial::Table, libc::EAFNOSUPPORT | libc::EOPNOTSUPP)
        | (Trial::Flowtable { .. } | Trial::RtIpsec, libc::ENOENT | libc::EOPNOTSUPP)
        | (Trial::Instruction(_), libc::ENOENT) => Verdict::Unknown { errno },
        (Trial::Instruction(_), libc::EINVAL | libc::EOPNOTSUPP) => Verdict::Accepted,
        _ => Verdict::Refused { errno },
    }
}
