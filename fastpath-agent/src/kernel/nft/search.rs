//! Looks through all rules of all tables for what concerns us: `notrack`, and who else adds to a flowtable. A node may have
//! a hundred thousand rules, so this is for who asks, not for every reconcile; nothing is kept but what was looked for.

use libc::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_core::{Emitable, NetlinkHeader};

use super::{Nft, NftError};
use crate::kernel::nfnetlink::{FAMILY_HEADER_BYTES, HEADER_BYTES, Message, attributes, u32_at};

/// Numbers of attributes (include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h).
mod nfta {
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const FLOW_TABLE_NAME: u16 = 1;
    pub(super) const TARGET_NAME: u16 = 1;
    pub(super) const TARGET_INFO: u16 = 3;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const HOOK_HOOKNUM: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
}

/// `XT_CT_NOTRACK` (include/uapi/linux/netfilter/xt_CT.h), in the first two bytes of struct xt_ct_target_info.
const XT_CT_NOTRACK: u16 = 1;

/// Rules of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Chains with a rule that says `notrack` (or iptables' `-j CT --notrack`): family, table, chain.
    pub notrack: Vec<String>,
    /// Flowtables that a rule adds to: family and table, name of the flowtable.
    pub flow_add: Vec<(String, String)>,
}

impl Nft {
    /// Looks through all rules, ours included.
    pub fn search_rules(&mut self) -> Result<Found, NftError> {
        let mut found = Found::default();
        self.dump_all_families(libc::NFT_MSG_GETRULE, |message| rule(message, &mut found))?;
        Ok(found)
    }

    /// Lowest priority of a chain in the forward hook, for each family and table that has one.
    pub fn forward_priorities(&mut self) -> Result<Vec<(String, i32)>, NftError> {
        let mut found: Vec<(String, i32)> = Vec::new();
        self.dump_all_families(libc::NFT_MSG_GETCHAIN, |message| {
            let Some((table, priority)) = forward_chain(message) else { return };
            match found.iter_mut().find(|(known, _)| *known == table) {
                Some((_, lowest)) => *lowest = priority.min(*lowest),
                None => found.push((table, priority)),
            }
        })?;
        Ok(found)
    }

    fn dump_all_families(&mut self, kind: i32, each: impl FnMut(&Message<'_>)) -> Result<(), NftError> {
        // Behind the header a struct nfgenmsg of zeros: NFPROTO_UNSPEC, all families.
        let mut request = [0; HEADER_BYTES + FAMILY_HEADER_BYTES];
        let mut header = NetlinkHeader::default();
        header.length = request.len() as u32;
        header.message_type = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        header.flags = (NLM_F_REQUEST | NLM_F_DUMP) as u16;
        header.sequence_number = self.socket.reserve_sequence(1);
        header.emit(&mut request[..HEADER_BYTES]);
        self.socket
            .request(&request, each)
            .map_err(|error| NftError::new("looking through", "the rules of all tables", error))?;
        Ok(())
    }
}

fn rule(message: &Message<'_>, found: &mut Found) {
    let (mut table, mut chain) = (String::new(), String::new());
    for nla in message.attributes() {
        match nla.kind() {
            nfta::RULE_TABLE => table = text(nla.value()),
            nfta::RULE_CHAIN => chain = text(nla.value()),
            nfta::RULE_EXPRESSIONS => {
                for instruction in attributes(nla.value()) {
                    look_at(instruction.value(), &qualified(message, &table), &chain, found);
                }
            }
            _ => {}
        }
    }
}

fn look_at(instruction: &[u8], table: &str, chain: &str, found: &mut Found) {
    let (mut name, mut data) = (String::new(), Vec::new());
    for nla in attributes(instruction) {
        match nla.kind() {
            nfta::EXPR_NAME => name = text(nla.value()),
            nfta::EXPR_DATA => data = nla.value().to_vec(),
            _ => {}
        }
    }
    let of = |kind| attributes(&data).find(|nla| nla.kind() == kind).map(|nla| nla.value().to_vec());
    let notrack = match name.as_str() {
        "notrack" => true,
        "target" if of(nfta::TARGET_NAME).is_some_and(|name| text(&name) == "CT") => of(nfta::TARGET_INFO)
            .and_then(|info| Some(u16::from_ne_bytes(*info.first_chunk::<2>()?)))
            .is_some_and(|flags| flags & XT_CT_NOTRACK != 0),
        "flow_offload" => {
            let flowtable = of(nfta::FLOW_TABLE_NAME).map(|name| (table.to_owned(), text(&name)));
            found.flow_add.extend(flowtable.filter(|added| !found.flow_add.contains(added)));
            false
        }
        _ => false,
    };
    let place = format!("table {table}, chain {chain}");
    if notrack && !found.notrack.contains(&place) {
        found.notrack.push(place);
    }
}

fn forward_chain(message: &Message<'_>) -> Option<(String, i32)> {
    let (mut table, mut hook, mut priority) = (None, None, None);
    for nla in message.attributes() {
        match nla.kind() {
            nfta::CHAIN_TABLE => table = Some(text(nla.value())),
            nfta::CHAIN_HOOK => {
                for nla in attributes(nla.value()) {
                    let value = u32_at(nla.value(), 0).map(u32::from_be);
                    match nla.kind() {
                        nfta::HOOK_HOOKNUM => hook = value,
                        nfta::HOOK_PRIORITY => priority = value.map(u32::cast_signed),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (hook? == libc::NF_INET_FORWARD as u32).then_some((qualified(message, &table?), priority?))
}

/// Family and name of a table, as nft writes them.
fn qualified(message: &Message<'_>, table: &str) -> String {
    // nfgen_family of struct nfgenmsg.
    let family = message.payload().first().map_or(0, |family| i32::from(*family));
    let family = match family {
        libc::NFPROTO_INET => "inet",
        libc::NFPROTO_IPV4 => "ip",
        libc::NFPROTO_IPV6 => "ip6",
        libc::NFPROTO_ARP => "arp",
        libc::NFPROTO_BRIDGE => "bridge",
        libc::NFPROTO_NETDEV => "netdev",
        _ => "unknown",
    };
    format!("{family} {table}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}
