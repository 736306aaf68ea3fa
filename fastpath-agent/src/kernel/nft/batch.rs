//! A plan as one nf_tables transaction: messages between a begin and an end, sent in one datagram.
//!
//! Decides nothing: every operation becomes the messages that say it.

use std::{io, ops::Range};

use libc::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_core::NlaBuffer;
use nftnl::{ChainType, Hook, MsgType, NlMsg, Policy, ProtoFamily};
use nftnl_sys as sys;

use super::{
    Rejection, expr, marker,
    object::{Element, Elements, Flowtable, Object, Payload, Rule, Scratch, Set, Table, c_string},
};
use crate::{
    core::{
        flow::one_way::Answer,
        model::{FLOWTABLE, IfIndex, IfName, MAX_DEVICES_PER_MESSAGE, TABLE, TABLE_COMMENT},
        ruleset::{
            chain::OwnChain,
            expr::Direction,
            plan::Op,
            sets::{Key, OwnSet},
        },
    },
    kernel::netlink::Refusal,
};

/// Messages of enum nf_tables_msg_types that libc lacks.
pub(super) const NFT_MSG_NEWFLOWTABLE: i32 = 22;
pub(super) const NFT_MSG_GETFLOWTABLE: i32 = 23;
const NFT_MSG_DELFLOWTABLE: i32 = 24;
/// `NFT_FLOWTABLE_HW_OFFLOAD`.
pub(super) const FLOWTABLE_HW_OFFLOAD: u32 = 1;
/// `NFT_FLOWTABLE_COUNTER`.
pub(super) const FLOWTABLE_COUNTER: u32 = 2;
/// `NF_NETDEV_INGRESS`.
const INGRESS: u32 = 0;
/// Set elements that go into one message.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// A transaction under construction.
pub(super) struct Batch {
    scratch: Scratch,
    bytes: Vec<u8>,
    /// Sequence number of the begin message; those after it count up.
    first: u32,
    /// For every message behind the begin: the operation's position, and the message's place in `bytes`.
    messages: Vec<(usize, Range<usize>)>,
}

impl Batch {
    /// Sequence numbers that a batch of `ops` takes at most.
    pub(super) fn sequence_numbers(ops: &[Op]) -> u32 {
        let messages: usize = ops.iter().map(message_count).sum();
        u32::try_from(messages + 2).expect("a plan has fewer messages than sequence numbers")
    }

    /// Begins a transaction with the first of its reserved sequence numbers; `generation` binds it to one
    /// generation of the ruleset.
    pub(super) fn begin(first: u32, generation: Option<u32>) -> Self {
        let mut scratch = Scratch::new();
        let bytes = scratch.batch_begin(first, generation).to_vec();
        Self { scratch, bytes, first, messages: Vec::new() }
    }

    /// Ends it with the message that makes the kernel commit.
    pub(super) fn end(mut self) -> Self {
        let message = self.scratch.batch_end(self.first + 1 + self.messages.len() as u32);
        self.bytes.extend_from_slice(message);
        self
    }

    /// What goes into the socket.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds one message of the operation at `index`.
    pub(super) fn push(&mut self, index: usize, kind: i32, flags: i32, payload: &dyn Payload) {
        let sequence = self.first + 1 + self.messages.len() as u32;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(self.scratch.message(kind, flags, sequence, payload));
        self.messages.push((index, start..self.bytes.len()));
    }

    /// Adds a message of the nftnl crate. The kernel acknowledges it, too.
    pub(super) fn push_object(&mut self, index: usize, object: &dyn NlMsg, kind: MsgType) {
        let sequence = self.first + 1 + self.messages.len() as u32;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(self.scratch.crate_message(sequence, object, kind));
        self.messages.push((index, start..self.bytes.len()));
    }

    /// Adds one operation. On error it holds an instruction that can't be written.
    pub(super) fn add(&mut self, index: usize, op: &Op) -> Result<(), Rejection> {
        match op {
            Op::AddTable => {
                let payload = Table::new()
                    .set_str(sys::NFTNL_TABLE_NAME, TABLE)
                    .set(sys::NFTNL_TABLE_USERDATA, &marker::table(TABLE_COMMENT));
                self.push(index, libc::NFT_MSG_NEWTABLE, NLM_F_CREATE, &payload);
            }
            Op::DeleteTable => self.push_object(index, &table(), MsgType::Del),
            Op::AddFlowtable { priority, counter, hw_offload } => {
                let flags =
                    u32::from(*counter) * FLOWTABLE_COUNTER + u32::from(*hw_offload) * FLOWTABLE_HW_OFFLOAD;
                let mut payload = flowtable()
                    .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, INGRESS)
                    .set_u32(sys::NFTNL_FLOWTABLE_PRIO, priority.cast_unsigned());
                if flags != 0 {
                    payload = payload.set_u32(sys::NFTNL_FLOWTABLE_FLAGS, flags);
                }
                self.push(index, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &payload);
            }
            Op::DeleteFlowtable => self.push(index, NFT_MSG_DELFLOWTABLE, 0, &flowtable()),
            Op::AddSet(set) => {
                let payload = new_set(*set, set.shape().size, index);
                self.push(index, libc::NFT_MSG_NEWSET, NLM_F_CREATE, &payload);
            }
            Op::AddKeySet(set, size) => {
                let payload = new_set(*set, *size, index);
                self.push(index, libc::NFT_MSG_NEWSET, NLM_F_CREATE, &payload);
            }
            Op::DeleteSet(set) => self.push(index, libc::NFT_MSG_DELSET, 0, &named_set(*set)),
            Op::AddBaseChain { chain, priority } => {
                let table = table();
                let mut message = self::chain(*chain, &table);
                message.set_type(ChainType::Filter);
                message.set_hook(hook(*chain), *priority);
                message.set_policy(Policy::Accept);
                self.push_object(index, &message, MsgType::Add);
            }
            Op::AddChain(chain) => {
                self.push_object(index, &self::chain(*chain, &table()), MsgType::Add);
            }
            Op::DeleteChain(chain) => {
                self.push_object(index, &self::chain(*chain, &table()), MsgType::Del);
            }
            Op::AddRule { chain, exprs } => {
                let mut payload = rule(*chain).set(sys::NFTNL_RULE_USERDATA, &marker::rule());
                for instruction in exprs {
                    payload = payload.push(expr::encode(instruction).ok_or_else(|| Rejection {
                        index,
                        source: io::ErrorKind::InvalidInput.into(),
                        message: Some(format!("cannot write {instruction:?}")),
                        device: None,
                    })?);
                }
                self.push(index, libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &payload);
            }
            Op::DeleteRule { chain, handle } => {
                let table = table();
                let chain = self::chain(*chain, &table);
                let mut rule = nftnl::Rule::new(&chain);
                rule.set_handle(*handle);
                self.push_object(index, &rule, MsgType::Del);
            }
            Op::AddDevices(names) => {
                if !names.is_empty() {
                    self.push(index, NFT_MSG_NEWFLOWTABLE, NLM_F_CREATE, &devices(names));
                }
            }
            Op::RemoveDevices(names) => {
                // Without devices the message would delete the flowtable.
                if !names.is_empty() {
                    self.push(index, NFT_MSG_DELFLOWTABLE, 0, &devices(names));
                }
            }
            Op::AddIndices(indices) => {
                self.push_elements(index, libc::NFT_MSG_NEWSETELEM, OwnSet::Devices, indices, by_index);
            }
            Op::RemoveIndices(indices) => {
                self.push_elements(index, libc::NFT_MSG_DELSETELEM, OwnSet::Devices, indices, by_index);
            }
            Op::AddKeys(set, keys) | Op::RemoveKeys(set, keys) => {
                let kind = match op {
                    Op::AddKeys(..) => libc::NFT_MSG_NEWSETELEM,
                    _ => libc::NFT_MSG_DELSETELEM,
                };
                let length = set.shape().key_len as usize;
                let element = |key: &Key| Element::with_key(&key.bytes()[..length]);
                self.push_elements(index, kind, *set, keys, element);
            }
            Op::AddAssisted { ids, timeout_ms } | Op::AddRevoked { ids, timeout_ms } => {
                let set = match op {
                    Op::AddRevoked { .. } => OwnSet::Revoked,
                    _ => OwnSet::Assist,
                };
                let element =
                    |id: &u32| by_id(id).set(sys::NFTNL_SET_ELEM_TIMEOUT, &timeout_ms.to_ne_bytes());
                self.push_elements(index, libc::NFT_MSG_NEWSETELEM, set, ids, element);
            }
            Op::AddTraces(answers) => {
                for direction in Direction::ALL {
                    let answers: Vec<Answer> =
                        answers.iter().copied().filter(|answer| answer.direction == direction).collect();
                    let element = |answer: &Answer| {
                        let Answer { id, input, output, .. } = answer;
                        Element::with_key(&[*id, input.0, output.0].map(u32::to_ne_bytes).concat())
                    };
                    self.push_elements(
                        index,
                        libc::NFT_MSG_NEWSETELEM,
                        OwnSet::Seen(direction),
                        &answers,
                        element,
                    );
                }
            }
            Op::RemoveAssisted(ids) => {
                self.push_elements(index, libc::NFT_MSG_DELSETELEM, OwnSet::Assist, ids, by_id);
            }
        }
        Ok(())
    }

    /// Adds elements to a set or takes them out of it, in as many messages as that takes.
    fn push_elements<T>(
        &mut self,
        index: usize,
        kind: i32,
        set: OwnSet,
        items: &[T],
        element: impl Fn(&T) -> Element,
    ) {
        let flags = if kind == libc::NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
        for chunk in items.chunks(ELEMENTS_PER_MESSAGE) {
            let payload = chunk.iter().fold(elements(set), |payload, item| payload.push(element(item)));
            self.push(index, kind, flags, &payload);
        }
    }

    /// The refused message's operation; `Err` gives back a refusal of the batch as a whole.
    pub(super) fn rejection(&self, refusal: Refusal) -> Result<Rejection, Refusal> {
        let message =
            refusal.sequence.checked_sub(self.first + 1).and_then(|i| self.messages.get(i as usize));
        let Some((index, range)) = message else { return Err(refusal) };
        // The offset is that of the attribute which the kernel objected to.
        let device = refusal
            .offset
            .and_then(|offset| self.bytes[range.clone()].get(offset..))
            .and_then(|attribute| NlaBuffer::new_checked(attribute).ok())
            .and_then(|attribute| IfName::from_bytes(attribute.value().strip_suffix(&[0])?));
        Ok(Rejection {
            index: *index,
            source: io::Error::from_raw_os_error(refusal.errno),
            message: refusal.message,
            device: device.filter(|_| self.is_about_devices(range)),
        })
    }

    fn is_about_devices(&self, message: &Range<usize>) -> bool {
        let kind = i32::from(self.bytes[message.start + 4]);
        kind == NFT_MSG_NEWFLOWTABLE || kind == NFT_MSG_DELFLOWTABLE
    }
}

fn message_count(op: &Op) -> usize {
    match op {
        Op::AddIndices(indices) | Op::RemoveIndices(indices) => indices.len().div_ceil(ELEMENTS_PER_MESSAGE),
        Op::AddKeys(_, keys) | Op::RemoveKeys(_, keys) => keys.len().div_ceil(ELEMENTS_PER_MESSAGE),
        // Those of either direction have messages of their own.
        Op::AddTraces(answers) => 2 * answers.len().div_ceil(ELEMENTS_PER_MESSAGE),
        Op::AddAssisted { ids, .. } | Op::RemoveAssisted(ids) | Op::AddRevoked { ids, .. } => {
            ids.len().div_ceil(ELEMENTS_PER_MESSAGE)
        }
        _ => 1,
    }
}

fn table() -> nftnl::Table {
    nftnl::Table::new(c_string(TABLE), ProtoFamily::Inet)
}

fn chain(chain: OwnChain, table: &nftnl::Table) -> nftnl::Chain<'_> {
    nftnl::Chain::new(c_string(chain.name()), table)
}

fn hook(chain: OwnChain) -> Hook {
    let postrouting = chain.hook() == Some(Hook::PostRouting as u32);
    if postrouting { Hook::PostRouting } else { Hook::Forward }
}

fn rule(chain: OwnChain) -> Rule {
    Rule::new().set_str(sys::NFTNL_RULE_TABLE, TABLE).set_str(sys::NFTNL_RULE_CHAIN, chain.name())
}

fn named_set(set: OwnSet) -> Set {
    Set::new().set_str(sys::NFTNL_SET_TABLE, TABLE).set_str(sys::NFTNL_SET_NAME, &set.name())
}

fn new_set(set: OwnSet, size: u32, index: usize) -> Set {
    let shape = set.shape();
    let mut payload = named_set(set)
        // The kernel wants a number that is unique in the transaction.
        .set_u32(sys::NFTNL_SET_ID, index as u32 + 1)
        .set_u32(sys::NFTNL_SET_FLAGS, shape.flags)
        .set_u32(sys::NFTNL_SET_KEY_TYPE, shape.key_type)
        .set_u32(sys::NFTNL_SET_KEY_LEN, shape.key_len)
        .set(sys::NFTNL_SET_USERDATA, &marker::set(set));
    if size != 0 {
        payload = payload.set_u32(sys::NFTNL_SET_DESC_SIZE, size);
    }
    if shape.timeout_ms != 0 {
        payload = payload.set(sys::NFTNL_SET_TIMEOUT, &shape.timeout_ms.to_ne_bytes());
    }
    if let Some(interval) = set.gc_interval_ms() {
        payload = payload.set_u32(sys::NFTNL_SET_GC_INTERVAL, interval);
    }
    payload
}

fn flowtable() -> Flowtable {
    Flowtable::new().set_str(sys::NFTNL_FLOWTABLE_TABLE, TABLE).set_str(sys::NFTNL_FLOWTABLE_NAME, FLOWTABLE)
}

fn devices(names: &[IfName]) -> Flowtable {
    assert!(names.len() <= MAX_DEVICES_PER_MESSAGE, "a plan has at most so many devices in an operation");
    flowtable()
        // Without a hook number libnftnl 1.2.4 writes no hook attribute around the devices.
        .set_u32(sys::NFTNL_FLOWTABLE_HOOKNUM, INGRESS)
        .set_devices(names.iter())
}

/// No elements of a set yet.
fn elements(set: OwnSet) -> Elements {
    Elements::new().set_str(sys::NFTNL_SET_TABLE, TABLE).set_str(sys::NFTNL_SET_NAME, &set.name())
}

fn by_index(index: &IfIndex) -> Element {
    Element::with_key(&index.0.to_ne_bytes())
}

fn by_id(id: &u32) -> Element {
    Element::with_key(&id.to_ne_bytes())
}
