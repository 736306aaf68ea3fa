//! What the kernel's notifications (and its list of chains) say was changed: only names and hooks are read, in place.

use super::{names::Names, nfta};
use crate::{
    core::revalidate::{Hook, Notice, Subject},
    kernel::netlink::{Attribute, Message, attributes},
};

/// The object in a message; `None` if there is none.
pub(super) fn parse<'a>(message: &Message<'a>, names: &'a Names) -> Option<Notice<'a>> {
    let text = |nla: &Attribute<'a>| names.of(nla);
    let kind = i32::from(message.kind());
    if kind >> 8 != libc::NFNL_SUBSYS_NFTABLES {
        return None;
    }
    let mut table = None;
    let (mut chain, mut second, mut chain_type, mut hook) = (None, None, "", None);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::TABLE => table = Some(text(&nla)),
            nfta::SECOND_NAME => second = Some(nla),
            nfta::CHAIN_NAME => chain = Some(nla),
            nfta::CHAIN_HOOK => hook = Some(nla),
            nfta::CHAIN_TYPE => chain_type = text(&nla),
            _ => {}
        }
    }
    let subject = match kind & 0xff {
        libc::NFT_MSG_NEWTABLE => Subject::Table { gone: false },
        libc::NFT_MSG_DELTABLE => Subject::Table { gone: true },
        libc::NFT_MSG_NEWCHAIN => {
            let hook = hook.and_then(|nla| self::hook(chain_type, &nla));
            Subject::Chain { name: text(&chain?), hook, gone: false }
        }
        libc::NFT_MSG_DELCHAIN => Subject::Chain { name: text(&chain?), hook: None, gone: true },
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => Subject::Rule { chain: text(&second?) },
        libc::NFT_MSG_NEWSETELEM | libc::NFT_MSG_DELSETELEM => Subject::Elements { set: text(&second?) },
        libc::NFT_MSG_NEWGEN => return None,
        libc::NFT_MSG_NEWOBJ if is_timeout(message) => Subject::Timeout,
        // Sets, other objects, flowtables, and what later kernels may have.
        _ => Subject::Other,
    };
    Some(Notice { family: *message.payload().first()?, table: table?, subject })
}

fn hook<'a>(kind: &'a str, nla: &Attribute<'a>) -> Option<Hook<'a>> {
    let (mut number, mut priority) = (None, 0);
    for nla in attributes(nla.value()) {
        match nla.kind() {
            nfta::HOOK_HOOKNUM => number = nla.be32(),
            nfta::HOOK_PRIORITY => priority = nla.be32()?.cast_signed(),
            _ => {}
        }
    }
    Some(Hook { kind, number: number?, priority })
}

/// Whether an object is a timeout for connections.
pub(super) fn is_timeout(object: &Message<'_>) -> bool {
    let of_type = |nla: Attribute<'_>| {
        nla.kind() == nfta::OBJECT_TYPE && *nla.value() == nfta::CT_TIMEOUT.to_be_bytes()
    };
    object.attributes().any(of_type)
}
