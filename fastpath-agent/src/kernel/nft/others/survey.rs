//! Reads what other programs have in nftables: tables and chains by name and hook, and their flowtables. All families, iptables-nft
//! included; no rules, which may be hundreds of thousands.

use super::{decode, failed};
use crate::{
    core::{
        doctor::facts::{IngressChain, OtherFlowtable, OtherTable, Others},
        model::{IfName, TABLE},
        policy::{chain::Device, concern::family_name},
        revalidate::BaseChains,
    },
    kernel::{
        netlink::{Dump, Dumped, Families, Message, attribute::find, attributes, has_none, settle},
        nft::{Nft, NftError, batch::NFT_MSG_GETFLOWTABLE, list, names::Names, nfta, notice},
    },
};

/// How often it is read again after a change in the midst of it.
const ATTEMPTS: u32 = 16;
const NETDEV: u8 = libc::NFPROTO_NETDEV as u8;
const INET: u8 = libc::NFPROTO_INET as u8;
/// `NF_NETDEV_INGRESS` and `NF_INET_INGRESS`, by family.
const INGRESS: [(u8, u32); 2] = [(NETDEV, 0), (INET, 5)];

impl Nft {
    pub(in crate::kernel::nft) fn read_base_chains(&mut self) -> Result<BaseChains, NftError> {
        let read = || {
            let (mut chains, mut interrupted) = (BaseChains::default(), false);
            for kind in [libc::NFT_MSG_GETTABLE, libc::NFT_MSG_GETCHAIN] {
                chains = self.list_onto(chains, kind, &mut interrupted, |chains, message| {
                    if let Some(notice) = notice::parse(message, &Names::default()) {
                        chains.note(&notice);
                    }
                })?;
            }
            Ok(if interrupted { Dumped::Interrupted(chains) } else { Dumped::Complete(chains) })
        };
        match settle(ATTEMPTS, read)? {
            Dumped::Complete(chains) => Ok(chains),
            Dumped::Interrupted(_) => Err(NftError::Unsettled { attempts: ATTEMPTS }),
        }
    }

    /// What is there beside our table, for display: what keeps changing is shown as last seen.
    pub fn survey(&mut self) -> Result<Others, NftError> {
        let read = || {
            let mut interrupted = false;
            let others = Others::default();
            let others =
                self.list_onto(others, libc::NFT_MSG_GETTABLE, &mut interrupted, |others, message| {
                    others.tables.extend(not_ours(message));
                })?;
            let others =
                self.list_onto(others, libc::NFT_MSG_GETCHAIN, &mut interrupted, |others, message| {
                    let Some((table, (_, name, chain))) = not_ours(message).zip(decode::chain(message))
                    else {
                        return;
                    };
                    if let (Some(family), Some(base)) = (message.family(), chain.base)
                        && INGRESS.contains(&(family, base.hook))
                    {
                        let devices: Vec<String> = base.devices.iter().map(device).collect();
                        let chain =
                            IngressChain::new(table.family, &table.name, &name, &devices, base.priority);
                        others.ingress.push(chain);
                    }
                    others.chains.insert(name.into_owned());
                })?;
            let others =
                self.list_onto(others, NFT_MSG_GETFLOWTABLE, &mut interrupted, |others, message| {
                    others.flowtables.extend(flowtable(message));
                })?;
            Ok::<_, NftError>(if interrupted {
                Dumped::Interrupted(others)
            } else {
                Dumped::Complete(others)
            })
        };
        Ok(settle(ATTEMPTS, read)?.passing())
    }

    /// Adds all objects of a kind to `into`. A kernel without flowtables has none.
    fn list_onto<T>(
        &mut self,
        into: T,
        kind: i32,
        interrupted: &mut bool,
        mut each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, NftError> {
        let mut into = into;
        let listed = self.socket.dump(list(kind, Families::All), (), |(), message| each(&mut into, message));
        match listed {
            Ok(dumped) => dumped.noting(interrupted),
            Err(error) if has_none(&error) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(into)
    }

    /// Objects that give flows timeouts of their own: `ct timeout` of nftables with their table, and those of `nfct`.
    pub fn timeouts(&mut self) -> Result<Vec<String>, NftError> {
        let mut interrupted = false;
        let names =
            self.list_onto(Vec::new(), libc::NFT_MSG_GETOBJ, &mut interrupted, |names, message| {
                let find = |kind| message.attributes().find(|nla| nla.kind() == kind);
                if let (true, Some(table), Some(name)) =
                    (notice::is_timeout(message), find(nfta::TABLE), find(nfta::SECOND_NAME))
                {
                    names.push(format!("{} in table {}", name.string(), table.string()));
                }
            })?;
        self.nfct_timeouts(names)
    }

    /// Subsystem `NFNL_SUBSYS_CTNETLINK_TIMEOUT`, message `IPCTNL_MSG_TIMEOUT_GET`, attribute `CTA_TIMEOUT_NAME`. A kernel
    /// without it has none.
    fn nfct_timeouts(&mut self, names: Vec<String>) -> Result<Vec<String>, NftError> {
        const GET: u16 = 8 << 8 | 1;
        const NAME: u16 = 1;
        let before = names.clone();
        let listed = self.socket.dump(Dump::new(GET, Families::All, [0; 4]), names, |names, message| {
            let found = message.attributes().filter(|nla| nla.kind() == NAME);
            names.extend(found.map(|nla| format!("{} of nfct", nla.string())));
        });
        match listed {
            Err(error) if has_none(&error) || error.raw_os_error() == Some(libc::EINVAL) => Ok(before),
            Err(error) => Err(failed(error)),
            Ok(names) => Ok(names.passing()),
        }
    }
}

/// The table in, or of, an object, unless it is the one of our name.
pub(super) fn not_ours(message: &Message<'_>) -> Option<OtherTable> {
    let family = message.family()?;
    let name = message.attributes().find(|nla| nla.kind() == nfta::TABLE)?.string();
    (family != INET || name != TABLE).then(|| OtherTable { family: family_name(family), name })
}

pub(super) fn flowtable(message: &Message<'_>) -> Option<OtherFlowtable> {
    let find_in = |kind| message.attributes().find(|nla| nla.kind() == kind);
    let name = find_in(nfta::SECOND_NAME)?.string();
    let hook = find_in(nfta::FLOWTABLE_HOOK);
    let list = hook.and_then(|hook| find(hook.value(), nfta::FLOWTABLE_HOOK_DEVS));
    let devices = attributes(list.map_or(&[], |list| list.value()))
        .filter(|device| device.kind() == nfta::DEVICE_NAME)
        .filter_map(|device| IfName::from_bytes(device.name()))
        .collect();
    Some(OtherFlowtable { table: not_ours(message)?, name, devices })
}

/// As `nft` writes it.
fn device(device: &Device) -> String {
    match device {
        Device::Name(name) => name.clone(),
        Device::Prefix(prefix) => format!("{prefix}*"),
    }
}
