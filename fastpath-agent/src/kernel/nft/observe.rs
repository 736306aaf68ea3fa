//! Reads what stands under our table's name, at one generation of the ruleset.

use std::{collections::BTreeSet, io};

use nftnl_sys as sys;

use super::{
    NftError,
    batch::{FLOWTABLE_COUNTER, FLOWTABLE_HW_OFFLOAD, NFT_MSG_GETFLOWTABLE},
    element, elements_of as elements, expr, get, list_own, marker, nfta,
    object::{Chain, Flowtable, Object, Rule, Set, Table},
};
use crate::{
    core::{
        model::{FLOWTABLE, IfIndex, TABLE},
        ruleset::{
            expr::Expr,
            observed::{
                ChainHook, Generation, Observed, ObservedChain, ObservedFlowtable, ObservedRule, ObservedSet,
                ObservedTable, Owner,
            },
            sets::{Key, OwnSet, SetShape},
        },
    },
    kernel::{
        Unread,
        netlink::{Dump, Message, Socket},
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
            let (table, _) = Table::parse(message);
            owner = Some(marker::owner(table.get(sys::NFTNL_TABLE_USERDATA).unwrap_or_default()));
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
            let (chain, _) = Chain::parse(message);
            if chain.get_str(sys::NFTNL_CHAIN_TABLE).as_deref() == Some(TABLE) {
                chains.extend(observed_chain(&chain));
            }
        })?;
        self.list(list_own(libc::NFT_MSG_GETRULE), chains, |chains, message| {
            let (rule, complete) = Rule::parse(message);
            let name = rule.get_str(sys::NFTNL_RULE_CHAIN);
            if let Some(chain) = chains.iter_mut().find(|chain| Some(&chain.name) == name.as_ref()) {
                chain.rules.extend(observed_rule(&rule, complete));
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

fn flowtable(message: &Message<'_>) -> Option<ObservedFlowtable> {
    let (flowtable, complete) = Flowtable::parse(message);
    let name = flowtable.get_str(sys::NFTNL_FLOWTABLE_NAME)?;
    if !complete {
        // Devices by prefix, which no ruleset of ours has and libnftnl 1.2.4 can't read.
        return Some(unreadable(name));
    }
    let flags = flowtable.get_u32(sys::NFTNL_FLOWTABLE_FLAGS).unwrap_or(0);
    Some(ObservedFlowtable {
        name,
        priority: flowtable.get_u32(sys::NFTNL_FLOWTABLE_PRIO)?.cast_signed(),
        counter: flags & FLOWTABLE_COUNTER != 0,
        hw_offload: flags & FLOWTABLE_HW_OFFLOAD != 0,
        devices: Some(flowtable.devices()),
    })
}

fn unreadable(name: String) -> ObservedFlowtable {
    ObservedFlowtable { name, priority: 0, counter: false, hw_offload: false, devices: None }
}

fn observed_chain(chain: &Chain) -> Option<ObservedChain> {
    let hook = chain.get_u32(sys::NFTNL_CHAIN_HOOKNUM).map(|hook| ChainHook {
        kind: chain.get_str(sys::NFTNL_CHAIN_TYPE).unwrap_or_default(),
        hook,
        priority: chain.get_u32(sys::NFTNL_CHAIN_PRIO).unwrap_or(0).cast_signed(),
        accept: chain.get_u32(sys::NFTNL_CHAIN_POLICY) == Some(libc::NF_ACCEPT as u32),
    });
    Some(ObservedChain { name: chain.get_str(sys::NFTNL_CHAIN_NAME)?, hook, rules: Vec::new() })
}

fn observed_rule(rule: &Rule, complete: bool) -> Option<ObservedRule> {
    let handle = u64::from_ne_bytes(rule.get(sys::NFTNL_RULE_HANDLE)?.try_into().ok()?);
    if !complete {
        // An instruction that libnftnl doesn't know: not a rule of ours, or not any more.
        let exprs = vec![Expr::Other { name: String::new() }];
        return Some(ObservedRule { handle, owner: Owner::Foreign, exprs, counter: None });
    }
    let owner = marker::owner(rule.get(sys::NFTNL_RULE_USERDATA).unwrap_or_default());
    let mut observed = ObservedRule { handle, owner, exprs: Vec::new(), counter: None };
    rule.for_each_expr(|instruction| {
        observed.counter = observed.counter.or(expr::counter(&instruction));
        observed.exprs.push(expr::decode(&instruction));
    });
    Some(observed)
}

fn observed_set(message: &Message<'_>) -> Option<ObservedSet> {
    let (set, _) = Set::parse(message);
    let anonymous = set.get_u32(sys::NFTNL_SET_FLAGS).unwrap_or(0) & libc::NFT_SET_ANONYMOUS as u32 != 0;
    if anonymous {
        return None;
    }
    let shape = SetShape {
        key_type: set.get_u32(sys::NFTNL_SET_KEY_TYPE)?,
        key_len: set.get_u32(sys::NFTNL_SET_KEY_LEN)?,
        flags: set.get_u32(sys::NFTNL_SET_FLAGS).unwrap_or(0),
        size: set.get_u32(sys::NFTNL_SET_DESC_SIZE).unwrap_or(0),
        timeout_ms: set.get_u64(sys::NFTNL_SET_TIMEOUT).unwrap_or(0),
    };
    Some(ObservedSet {
        name: set.get_str(sys::NFTNL_SET_NAME)?,
        handle: set.get_u64(sys::NFTNL_SET_HANDLE)?,
        shape,
        elements: BTreeSet::new(),
        keys: Vec::new(),
    })
}
