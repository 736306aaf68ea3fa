//! Reads the table of our name, at one generation of the ruleset.

use std::{collections::BTreeSet, io};

use super::{
    NftError,
    batch::{FLOWTABLE_COUNTER, FLOWTABLE_HW_OFFLOAD, NFT_MSG_GETFLOWTABLE},
    element, elements_of as elements, get, instruction, list_own, marker, nfta,
};
use crate::{
    core::{
        model::{FLOWTABLE, IfIndex, IfName, TABLE},
        ruleset::{
            observed::{
                ChainHook, Generation, Observed, ObservedChain, ObservedFlowtable, ObservedRule, ObservedSet,
                ObservedTable,
            },
            sets::{Key, OwnSet, SetShape},
        },
    },
    kernel::{
        Unread,
        netlink::{Attribute, Dump, Message, Socket, attribute::find, attributes},
    },
};

/// How often the ruleset may change under us before we give up.
const ATTEMPTS: u32 = 16;

/// Reads all of our table, again when the ruleset changed meanwhile.
pub(super) fn observe(socket: &mut Socket, unread: Unread<'_>) -> Result<Observed, NftError> {
    let mut reader = Reader { socket, interrupted: false };
    let mut before = reader.generation()?;
    for _ in 0..ATTEMPTS {
        reader.interrupted = false;
        let table = reader.table(unread);
        let after = reader.generation()?;
        if before == after && !reader.interrupted {
            // An error counts only now: that something vanished while it was read is no error.
            return Ok(Observed { generation: after, table: table? });
        }
        before = after;
    }
    Err(NftError::Unsettled { attempts: ATTEMPTS })
}

/// The ruleset's current generation.
pub(super) fn generation(socket: &mut Socket) -> Result<Generation, NftError> {
    Reader { socket, interrupted: false }.generation()
}

/// The generation in an `NFT_MSG_NEWGEN`.
pub(super) fn parse_generation(message: &Message<'_>) -> Option<Generation> {
    message.attributes().find(|nla| nla.kind() == nfta::GEN_ID)?.be32().map(Generation)
}

struct Reader<'s> {
    socket: &'s mut Socket,
    /// A dump ran into a change.
    interrupted: bool,
}

impl Reader<'_> {
    fn list<T>(&mut self, dump: Dump, into: T, each: impl FnMut(&mut T, &Message<'_>)) -> io::Result<T> {
        Ok(self.socket.dump(dump, into, each)?.noting(&mut self.interrupted))
    }

    fn generation(&mut self) -> Result<Generation, NftError> {
        const OPERATION: &str = "reading the generation of";
        const OBJECT: &str = "the nftables ruleset";
        let mut generation = None;
        let result = self.socket.request(get(libc::NFT_MSG_GETGEN), |message| {
            generation = parse_generation(message);
        });
        match result {
            // nfnetlink knows no such subsystem (nfnetlink_rcv_msg).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(super::no_nf_tables()),
            Err(error) => Err(NftError::new(OPERATION, OBJECT, error)),
            Ok(()) => {
                generation.ok_or_else(|| NftError::new(OPERATION, OBJECT, io::ErrorKind::InvalidData.into()))
            }
        }
    }

    fn table(&mut self, unread: Unread<'_>) -> Result<Option<ObservedTable>, NftError> {
        let mut owner = None;
        let request = get(libc::NFT_MSG_GETTABLE).name(nfta::TABLE, TABLE);
        let result = self.socket.request(request, |message| {
            owner = Some(marker::owner(value(message, nfta::TABLE_USERDATA)));
        });
        let owner = match result {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            result => {
                result.map_err(failed("the table"))?;
                owner.ok_or_else(|| failed("the table")(io::ErrorKind::InvalidData.into()))?
            }
        };
        Ok(Some(ObservedTable {
            owner,
            flowtables: self.flowtables().map_err(failed("the flowtables"))?,
            chains: self.chains().map_err(failed("the chains and rules"))?,
            sets: self.sets(unread).map_err(failed("the sets"))?,
        }))
    }

    fn flowtables(&mut self) -> io::Result<Vec<ObservedFlowtable>> {
        let request = list_own(NFT_MSG_GETFLOWTABLE);
        let mut flowtables = match self.list(request, Vec::new(), |found, m| found.extend(flowtable(m))) {
            // A kernel without flowtables has none.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
            flowtables => flowtables?,
        };
        if flowtables.iter().all(|flowtable| flowtable.name != FLOWTABLE) {
            // A flowtable that doesn't fit one datagram ends the dump without a word (nf_tables_dump_flowtable);
            // asked for by name, the kernel says something else than that it doesn't exist.
            let request =
                get(NFT_MSG_GETFLOWTABLE).name(nfta::TABLE, TABLE).name(nfta::SECOND_NAME, FLOWTABLE);
            let mut found = None;
            match self.socket.request(request, |m| found = flowtable(m)) {
                Ok(()) => flowtables.extend(found),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(_) => flowtables.push(unreadable(FLOWTABLE.to_owned())),
            }
        }
        Ok(flowtables)
    }

    fn chains(&mut self) -> io::Result<Vec<ObservedChain>> {
        // The kernel doesn't filter chains by table.
        let chains = self.list(list_own(libc::NFT_MSG_GETCHAIN), Vec::new(), |chains, message| {
            if value_name(message, nfta::TABLE) == Some(TABLE.as_bytes()) {
                chains.extend(observed_chain(message));
            }
        })?;
        self.list(list_own(libc::NFT_MSG_GETRULE), chains, |chains, message| {
            let name = value_name(message, nfta::SECOND_NAME);
            if let Some(chain) = chains.iter_mut().find(|chain| Some(chain.name.as_bytes()) == name) {
                chain.rules.extend(observed_rule(message));
            }
        })
    }

    fn sets(&mut self, unread: Unread<'_>) -> io::Result<Vec<ObservedSet>> {
        let request = list_own(libc::NFT_MSG_GETSET);
        let mut sets = self.list(request, Vec::new(), |sets, message| sets.extend(observed_set(message)))?;
        for set in &mut sets {
            let Some(own) = OwnSet::named(&set.name).filter(|own| own.fits(&set.shape, 0)) else { continue };
            match own {
                OwnSet::Devices => self.keys(own, |key| {
                    set.elements.extend(key.try_into().map(|key| IfIndex(u32::from_ne_bytes(key))));
                })?,
                own if own.has_keys() => {
                    let same = |other: &&ObservedSet| (&other.name, other.handle) == (&set.name, set.handle);
                    let known = match unread {
                        Unread::Exclusions => continue,
                        Unread::Known(known) => known.iter().find(same),
                    };
                    if let Some(known) = known {
                        set.keys.clone_from(&known.keys);
                        continue;
                    }
                    self.keys(own, |key| set.keys.push(Key::new(&key[..key.len().min(Key::MAX)])))?;
                    set.keys.sort_unstable();
                    // Where the dump ran into a change some may come twice.
                    set.keys.dedup();
                }
                _ => {}
            }
        }
        Ok(sets)
    }

    fn keys(&mut self, set: OwnSet, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.list(elements(set), (), |(), message| element::of(message).for_each(|element| each(element.key)))
    }
}

fn failed(object: &'static str) -> impl Fn(io::Error) -> NftError {
    move |source| NftError::new("reading", object, source)
}

fn attribute<'a>(message: &Message<'a>, kind: u16) -> Option<Attribute<'a>> {
    message.attributes().find(|nla| nla.kind() == kind)
}

fn value<'a>(message: &Message<'a>, kind: u16) -> &'a [u8] {
    attribute(message, kind).map_or(&[], |nla| nla.value())
}

fn value_name<'a>(message: &Message<'a>, kind: u16) -> Option<&'a [u8]> {
    attribute(message, kind).map(|nla| nla.name())
}

fn text(message: &Message<'_>, kind: u16) -> Option<String> {
    Some(str::from_utf8(value_name(message, kind)?).ok()?.to_owned())
}

fn number(message: &Message<'_>, kind: u16) -> Option<u32> {
    attribute(message, kind)?.be32()
}

fn wide(message: &Message<'_>, kind: u16) -> Option<u64> {
    attribute(message, kind)?.fixed().map(u64::from_be_bytes)
}

fn flowtable(message: &Message<'_>) -> Option<ObservedFlowtable> {
    let name = text(message, nfta::SECOND_NAME)?;
    let hook = value(message, nfta::FLOWTABLE_HOOK);
    let list = find(hook, nfta::FLOWTABLE_HOOK_DEVS).map_or(&[][..], |list| list.value());
    // Devices by prefix, which the agent never makes, make it one that isn't read.
    let device = |nla: Attribute<'_>| {
        (nla.kind() == nfta::DEVICE_NAME).then(|| IfName::from_bytes(nla.name())).flatten()
    };
    let Some(devices) = attributes(list).map(device).collect() else { return Some(unreadable(name)) };
    let flags = number(message, nfta::FLOWTABLE_FLAGS).unwrap_or(0);
    Some(ObservedFlowtable {
        name,
        priority: find(hook, nfta::FLOWTABLE_HOOK_PRIORITY)?.be32()?.cast_signed(),
        counter: flags & FLOWTABLE_COUNTER != 0,
        hw_offload: flags & FLOWTABLE_HW_OFFLOAD != 0,
        devices: Some(devices),
    })
}

fn unreadable(name: String) -> ObservedFlowtable {
    ObservedFlowtable { name, priority: 0, counter: false, hw_offload: false, devices: None }
}

fn observed_chain(message: &Message<'_>) -> Option<ObservedChain> {
    let hook = value(message, nfta::CHAIN_HOOK);
    let number_in_hook = |kind| find(hook, kind)?.be32();
    let hook = number_in_hook(nfta::HOOK_HOOKNUM).map(|hook| ChainHook {
        kind: text(message, nfta::CHAIN_TYPE).unwrap_or_default(),
        hook,
        priority: number_in_hook(nfta::HOOK_PRIORITY).unwrap_or(0).cast_signed(),
        accept: number(message, nfta::CHAIN_POLICY) == Some(libc::NF_ACCEPT as u32),
    });
    Some(ObservedChain { name: text(message, nfta::CHAIN_NAME)?, hook, rules: Vec::new() })
}

fn observed_rule(message: &Message<'_>) -> Option<ObservedRule> {
    let list = value(message, nfta::RULE_EXPRESSIONS);
    Some(ObservedRule {
        handle: wide(message, nfta::RULE_HANDLE)?,
        owner: marker::owner(value(message, nfta::RULE_USERDATA)),
        exprs: attributes(list).map(|nla| instruction::decode(nla.value())).collect(),
        counter: attributes(list).find_map(|nla| instruction::counter(nla.value())),
    })
}

fn observed_set(message: &Message<'_>) -> Option<ObservedSet> {
    let flags = number(message, nfta::SET_FLAGS).unwrap_or(0);
    if flags & libc::NFT_SET_ANONYMOUS as u32 != 0 {
        return None;
    }
    let size = find(value(message, nfta::SET_DESCRIPTION), nfta::SET_DESCRIPTION_SIZE);
    let shape = SetShape {
        key_type: number(message, nfta::SET_KEY_TYPE)?,
        key_len: number(message, nfta::SET_KEY_LEN)?,
        flags,
        size: size.and_then(|size| size.be32()).unwrap_or(0),
        timeout_ms: wide(message, nfta::SET_TIMEOUT).unwrap_or(0),
    };
    Some(ObservedSet {
        name: text(message, nfta::SET_NAME)?,
        handle: wide(message, nfta::SET_HANDLE)?,
        shape,
        elements: BTreeSet::new(),
        keys: Vec::new(),
    })
}

/// Reads any message as each of our objects.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(message: &Message<'_>) {
    let most = message.bytes().len();
    marker::owner(value(message, nfta::TABLE_USERDATA));
    drop(observed_chain(message));
    drop(observed_set(message));
    assert!(
        observed_rule(message).is_none_or(|rule| rule.exprs.len() <= most),
        "instructions come from the message"
    );
    if let Some(devices) = flowtable(message).and_then(|flowtable| flowtable.devices) {
        assert!(devices.len() <= most, "devices come from the message");
    }
}
