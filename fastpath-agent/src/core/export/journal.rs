//! What of the export survives the agent, as bytes: a snapshot of all accounts and of records that aren't sent, then what happened since.
//! Only this version reads it; another version's is as good as none. Knows no file.

use postcard::{take_from_bytes, to_extend};
use serde::{Deserialize, Serialize};

use super::{
    accounts::{Account, Accounts, Key, Timeouts},
    ipfix::Record,
};
use crate::core::flow::connection::Tuple;

/// Of the bytes.
const VERSION: u32 = 1;

/// Where the bytes mean something: another boot's clock and another namespace's connections are none of this agent's business.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The boot's id.
    pub boot: String,
    /// The network namespace's number.
    pub namespace: u64,
}

#[derive(Serialize, Deserialize)]
enum Item {
    Begin {
        version: u32,
        place: Place,
        read_ns: u64,
        sequence: u32,
    },
    Account(Key, Account),
    Unsent(Record),
    /// A connection is over; its last records were unsent then.
    Over(Key, Tuple),
    /// So many records were sent, the first ones first.
    Sent(u32),
}

/// What an agent left behind.
pub struct Left {
    /// What it had exported.
    pub accounts: Accounts,
    /// Its records that weren't sent.
    pub unsent: Vec<Record>,
    /// Records sent by it.
    pub sequence: u32,
}

/// Appends a snapshot.
pub fn snapshot<'r>(
    place: &Place,
    accounts: &Accounts,
    unsent: impl Iterator<Item = &'r Record>,
    sequence: u32,
) -> Vec<u8> {
    let begin = Item::Begin { version: VERSION, place: place.clone(), read_ns: accounts.read_ns(), sequence };
    let mut out = Vec::new();
    add(&mut out, &begin);
    for (key, account) in accounts.iter() {
        add(&mut out, &Item::Account(*key, account.clone()));
    }
    unsent.for_each(|record| self::unsent(&mut out, record));
    out
}

/// Appends a record that isn't sent yet.
pub fn unsent(out: &mut Vec<u8>, record: &Record) {
    add(out, &Item::Unsent(record.clone()));
}

/// Appends that a connection is over.
pub fn over(out: &mut Vec<u8>, key: Key, reply: Tuple) {
    add(out, &Item::Over(key, reply));
}

/// Appends that the first `count` unsent records are sent.
pub fn sent(out: &mut Vec<u8>, count: usize) {
    add(out, &Item::Sent(count as u32));
}

fn add(out: &mut Vec<u8>, item: &Item) {
    // Appending to memory doesn't fail.
    if let Ok(with) = to_extend(item, std::mem::take(out)) {
        *out = with;
    }
}

/// Reads it, as far as it is whole; `None` if it isn't of this place.
pub fn read(bytes: &[u8], here: &Place, timeouts: Timeouts) -> Option<Left> {
    let (begin, mut rest) = take_from_bytes(bytes).ok()?;
    let Item::Begin { version: VERSION, place, read_ns, sequence } = begin else { return None };
    if place != *here {
        return None;
    }
    let mut left = Left { accounts: Accounts::resumed(timeouts, read_ns), unsent: Vec::new(), sequence };
    let mut sent = 0_usize;
    while let Ok((item, behind)) = take_from_bytes(rest) {
        rest = behind;
        match item {
            Item::Begin { .. } => return None,
            Item::Account(key, account) => left.accounts.restore(key, account),
            Item::Unsent(record) => left.unsent.push(record),
            Item::Over(key, reply) => left.accounts.forget(&key, &reply),
            Item::Sent(count) => {
                sent += count as usize;
                left.sequence = left.sequence.wrapping_add(count);
            }
        }
    }
    left.unsent.drain(..sent.min(left.unsent.len()));
    Some(left)
}
