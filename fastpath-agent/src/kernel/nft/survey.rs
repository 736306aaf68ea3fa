//! Reads what others have in nftables: tables and chains by name and hook, and their flowtables. All families, iptables-nft
//! included; no rules, which may be hundreds of thousands.

use std::io;

use libc::NLM_F_DUMP;
use netlink_packet_core::{Emitable, NetlinkHeader};
use nftnl_sys as sys;

use super::{
    Nft, NftError,
    batch::NFT_MSG_GETFLOWTABLE,
    notice::{self, is_timeout},
    object::{Chain, Flowtable, Object, Scratch, Table},
};
use crate::{
    core::{
        doctor::facts::{IngressChain, OtherFlowtable, OtherTable, Others},
        model::TABLE,
        revalidate::BaseChains,
    },
    kernel::nfnetlink::{Attribute, Completion, FAMILY_HEADER_BYTES, HEADER_BYTES, Message},
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
                let (table, name) =
                    (chain.get_str(sys::NFTNL_CHAIN_TABLE), chain.get_str(sys::NFTNL_CHAIN_NAME));
                let Some((table, name)) = not_ours(message, table).zip(name) else { return };
                others.ingress.extend(ingress(&chain, &table, &name));
                others.chains.insert(name);
            })?;
            complete &= self.dump_all(NFT_MSG_GETFLOWTABLE, |message| {
                let (flowtable, _) = Flowtable::parse(message);
                let table = not_ours(message, flowtable.get_str(sys::NFTNL_FLOWTABLE_TABLE));
                let name = flowtable.get_str(sys::NFTNL_FLOWTABLE_NAME);
                others.flowtables.extend(table.zip(name).map(|(table, name)| OtherFlowtable {
                    table,
                    name,
                    devices: flowtable.devices(),
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

/// `NF_NETDEV_INGRESS` and `NF_INET_INGRESS`, by family.
fn ingress(chain: &Chain, table: &OtherTable, name: &str) -> Option<IngressChain> {
    let hook = chain.get_u32(sys::NFTNL_CHAIN_HOOKNUM)?;
    if !matches!((table.family, hook), ("netdev", 0) | ("inet", 5)) {
        return None;
    }
    let devices: Vec<String> = chain.get_str(sys::NFTNL_CHAIN_DEV).into_iter().collect();
    let priority = chain.get_u32(sys::NFTNL_CHAIN_PRIO)?.cast_signed();
    Some(IngressChain::new(table.family, &table.name, name, &devices, priority))
}

impl Nft {
    /// Objects that give flows timeouts of their own: `ct timeout` of nftables with their table, and those of `nfct`.
    pub fn timeouts(&mut self) -> Result<Vec<String>, NftError> {
        // NFTA_OBJ_TABLE and _NAME (enum nft_object_attributes).
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        let mut names = Vec::new();
        let text = |nla: &Attribute<'_>| {
            String::from_utf8_lossy(nla.value().strip_suffix(&[0]).unwrap_or_default()).into_owned()
        };
        self.dump_all(libc::NFT_MSG_GETOBJ, |message| {
            let find = |kind| message.attributes().find(|nla| nla.kind() == kind);
            if let (true, Some(table), Some(name)) = (is_timeout(message), find(TABLE), find(NAME)) {
                names.push(format!("{} in table {}", text(&name), text(&table)));
            }
        })?;
        self.nfct_timeouts(|name| names.push(format!("{name} of nfct")))?;
        Ok(names)
    }

    /// Subsystem `NFNL_SUBSYS_CTNETLINK_TIMEOUT`, message `IPCTNL_MSG_TIMEOUT_GET`, attribute `CTA_TIMEOUT_NAME`. A kernel
    /// without it has none.
    fn nfct_timeouts(&mut self, mut each: impl FnMut(String)) -> Result<(), NftError> {
        const GET: u16 = 8 << 8 | 1;
        const NAME: u16 = 1;
        let mut request = [0; HEADER_BYTES + FAMILY_HEADER_BYTES];
        let mut header = NetlinkHeader::default();
        header.length = request.len() as u32;
        header.message_type = GET;
        header.flags = (libc::NLM_F_REQUEST | NLM_F_DUMP) as u16;
        header.sequence_number = self.socket.reserve_sequence(1);
        header.emit(&mut request[..HEADER_BYTES]);
        let result = self.socket.request(&request, |message| {
            for nla in message.attributes().filter(|nla| nla.kind() == NAME) {
                each(
                    String::from_utf8_lossy(nla.value().strip_suffix(&[0]).unwrap_or_default()).into_owned(),
                );
            }
        });
        match result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(()),
            Err(error) => Err(failed(error)),
            Ok(_) => Ok(()),
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
