//! Reads what others have in nftables: tables and chains by name and hook, and their flowtables. All families, iptables-nft
//! included; no rules, which may be hundreds of thousands.

use std::io;

use libc::NLM_F_DUMP;
use nftnl_sys as sys;

use super::{
    Nft, NftError,
    batch::NFT_MSG_GETFLOWTABLE,
    notice,
    object::{Chain, Flowtable, Object, Scratch, Table},
};
use crate::{
    core::{
        doctor::facts::{OtherFlowtable, OtherTable, Others},
        model::{IfName, TABLE},
        revalidate::BaseChains,
    },
    kernel::nfnetlink::{Completion, HEADER_BYTES, Message},
};

/// How often it is read again after a change in the midst of it.
const ATTEMPTS: u32 = 16;

impl Nft {
    /// The base chains of all tables of all families.
    pub fn base_chains(&mut self) -> Result<BaseChains, NftError> {
        for _ in 0..ATTEMPTS {
            let mut chains = BaseChains::default();
            let mut complete = true;
            for kind in [libc::NFT_MSG_GETTABLE, libc::NFT_MSG_GETCHAIN] {
                complete &= self.dump_all(kind, |message| {
                    if let Some(notice) = notice::parse(message) {
                        chains.note(&notice);
                    }
                })?;
            }
            if complete {
                return Ok(chains);
            }
        }
        Err(NftError::Unsettled { attempts: ATTEMPTS })
    }

    /// What stands beside our table.
    pub fn survey(&mut self) -> Result<Others, NftError> {
        let mut others = Others::default();
        for _ in 0..ATTEMPTS {
            others = Others::default();
            let mut complete = self.dump_all(libc::NFT_MSG_GETTABLE, |message| {
                let (table, _) = Table::parse(message);
                others.tables.extend(not_ours(message, table.get_str(sys::NFTNL_TABLE_NAME)));
            })?;
            complete &= self.dump_all(libc::NFT_MSG_GETCHAIN, |message| {
                let (chain, _) = Chain::parse(message);
                if not_ours(message, chain.get_str(sys::NFTNL_CHAIN_TABLE)).is_some() {
                    others.chains.extend(chain.get_str(sys::NFTNL_CHAIN_NAME));
                }
            })?;
            complete &= self.dump_all(NFT_MSG_GETFLOWTABLE, |message| {
                let (flowtable, _) = Flowtable::parse(message);
                let table = not_ours(message, flowtable.get_str(sys::NFTNL_FLOWTABLE_TABLE));
                let name = flowtable.get_str(sys::NFTNL_FLOWTABLE_NAME);
                others.flowtables.extend(table.zip(name).map(|(table, name)| OtherFlowtable {
                    table,
                    name,
                    devices: flowtable.devices().iter().filter_map(|name| IfName::new(name)).collect(),
                }));
            })?;
            if complete {
                break;
            }
        }
        Ok(others)
    }

    /// A dump of all families; false if something changed meanwhile.
    fn dump_all(&mut self, kind: i32, each: impl FnMut(&Message<'_>)) -> Result<bool, NftError> {
        let sequence = self.socket.reserve_sequence(1);
        let mut scratch = Scratch::new();
        let request = scratch.message_of(libc::NFPROTO_UNSPEC, kind, NLM_F_DUMP, sequence, &());
        match self.socket.request(request, each) {
            Ok(completion) => Ok(completion == Completion::Consistent),
            // A kernel without flowtables has none.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(true),
            Err(error) => Err(failed(error)),
        }
    }
}

fn failed(error: io::Error) -> NftError {
    NftError::new("reading", "the nftables rulesets of others", error)
}

/// The table, unless it is the one of our name.
fn not_ours(message: &Message<'_>, name: Option<String>) -> Option<OtherTable> {
    // nfgen_family of struct nfgenmsg, the first byte behind the netlink header.
    let family = i32::from(*message.bytes().get(HEADER_BYTES)?);
    let name = name?;
    (family != libc::NFPROTO_INET || name != TABLE).then(|| OtherTable { family: family_name(family), name })
}

fn family_name(family: i32) -> &'static str {
    match family {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_ARP => "arp",
        libc::NFPROTO_BRIDGE => "bridge",
        libc::NFPROTO_NETDEV => "netdev",
        _ => "unknown",
    }
}
