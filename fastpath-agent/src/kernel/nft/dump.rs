//! Reads what stands under our table's name, at one generation of the ruleset.

use std::{collections::BTreeSet, io};

use libc::{NLM_F_ACK, NLM_F_DUMP};
use nftnl_sys as sys;

use super::{
    NftError,
    batch::{FLOWTABLE_COUNTER, FLOWTABLE_HW_OFFLOAD, NFT_MSG_GETFLOWTABLE, elements},
    element, expr, marker,
    object::{Chain, Flowtable, Object, Payload, Rule, Scratch, Set, Table},
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
        nfnetlink::{Completion, Message, Socket},
    },
};

/// How often the ruleset may change under us before we give up.
const ATTEMPTS: u32 = 16;
/// `NFTA_GEN_ID` (enum nft_gen_attributes).
pub(super) const NFTA_GEN_ID: u16 = 1;

/// Reads all of our table, again when the ruleset changed meanwhile.
pub(super) fn observe(socket: &mut Socket, unread: Unread<'_>) -> Result<Observed, NftError> {
    let mut reader = Reader { socket, scratch: Scratch::new(), interrupted: false };
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
    Reader { socket, scratch: Scratch::new(), interrupted: false }.generation()
}

/// The generation in an `NFT_MSG_NEWGEN`.
pub(super) fn parse_generation(message: &Message<'_>) -> Option<Generation> {
    let nla = message.attributes().find(|nla| nla.kind() == NFTA_GEN_ID)?;
    Some(Generation(u32::from_be_bytes(nla.value().try_into().ok()?)))
}

struct Reader<'s> {
    socket: &'s mut Socket,
    scratch: Scratch,
    /// A dump ran into a change.
    interrupted: bool,
}

impl Reader<'_> {
    fn get(
        &mut self,
        kind: i32,
        flags: i32,
        payload: &dyn Payload,
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<()> {
        let sequence = self.socket.reserve_sequence(1);
        let request = self.scratch.message(kind, flags, sequence, payload);
        self.interrupted |= self.socket.request(request, each)? == Completion::Interrupted;
        Ok(())
    }

    fn generation(&mut self) -> Result<Generation, NftError> {
        const OPERATION: &str = "reading the generation of";
        const OBJECT: &str = "the nftables ruleset";
        let mut generation = None;
        let result = self.get(libc::NFT_MSG_GETGEN, NLM_F_ACK, &(), |message| {
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
        let request = Table::new().set_str(sys::NFTNL_TABLE_NAME, TABLE);
        let result = self.get(libc::NFT_MSG_GETTABLE, NLM_F_ACK, &request, |message| {
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
        let mut flowtables = Vec::new();
        let request = Flowtable::new().set_str(sys::NFTNL_FLOWTABLE_TABLE, TABLE);
        match self.get(NFT_MSG_GETFLOWTABLE, NLM_F_DUMP, &request, |m| flowtables.extend(flowtable(m))) {
            // A kernel without flowtables has none.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(flowtables),
            result => result?,
        }
        if flowtables.iter().all(|flowtable| flowtable.name != FLOWTABLE) {
            // A flowtable that doesn't fit one datagram ends the dump without a word (nf_tables_dump_flowtable);
            // asked for by name, the kernel says something else than that it doesn't exist.
            let request = request.set_str(sys::NFTNL_FLOWTABLE_NAME, FLOWTABLE);
            let mut found = None;
            match self.get(NFT_MSG_GETFLOWTABLE, NLM_F_ACK, &request, |m| found = flowtable(m)) {
                Ok(()) => flowtables.extend(found),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(_) => flowtables.push(unreadable(FLOWTABLE.to_owned())),
            }
        }
        Ok(flowtables)
    }

    fn chains(&mut self) -> io::Result<Vec<ObservedChain>> {
        let mut chains = Vec::new();
        // The kernel doesn't filter chains by table.
        self.get(libc::NFT_MSG_GETCHAIN, NLM_F_DUMP, &(), |message| {
            let (chain, _) = Chain::parse(message);
            if chain.get_str(sys::NFTNL_CHAIN_TABLE).as_deref() == Some(TABLE) {
                chains.extend(observed_chain(&chain));
            }
        })?;
        let request = Rule::new().set_str(sys::NFTNL_RULE_TABLE, TABLE);
        self.get(libc::NFT_MSG_GETRULE, NLM_F_DUMP, &request, |message| {
            let (rule, complete) = Rule::parse(message);
            let name = rule.get_str(sys::NFTNL_RULE_CHAIN);
            if let Some(chain) = chains.iter_mut().find(|chain| Some(&chain.name) == name.as_ref()) {
                chain.rules.extend(observed_rule(&rule, complete));
            }
        })?;
        Ok(chains)
    }

    fn sets(&mut self, unread: Unread<'_>) -> io::Result<Vec<ObservedSet>> {
        let mut sets = Vec::new();
        let request = Set::new().set_str(sys::NFTNL_SET_TABLE, TABLE);
        self.get(libc::NFT_MSG_GETSET, NLM_F_DUMP, &request, |message| sets.extend(observed_set(message)))?;
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
}

impl Reader<'_> {
    fn keys(&mut self, set: OwnSet, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.get(libc::NFT_MSG_GETSETELEM, NLM_F_DUMP, &elements(set), |message| {
            element::of(message).for_each(|element| each(element.key));
        })
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
