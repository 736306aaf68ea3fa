//! Reads the meter: which eligible flows still have packets on the forward path, and since when not.

use std::io;

use super::{Nft, NftError, element, elements_of, get, nfta};
use crate::{
    core::{
        model::{Counter, TABLE},
        ruleset::sets::OwnSet,
    },
    kernel::netlink::Message,
};

/// What the meter has of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowPath {
    /// Id of the connection, the bytes of `CTA_ID` (as in `core::flow::connection::Entry`).
    pub ct_id: u32,
    /// Packets of both directions that took the forward path although the flow was past the threshold and eligible.
    /// Counted from the first one after a minute without any; the packet that offloads the flow isn't among them.
    pub counter: Counter,
    /// Milliseconds since the last of them, always less than the minute after which the flow is forgotten.
    pub idle_ms: u64,
}

impl Nft {
    /// Calls `each` for every flow in the meter, as the kernel lists them. What changes meanwhile may come twice or
    /// not at all. Without our table there is none.
    pub fn slow_paths(&mut self, mut each: impl FnMut(SlowPath)) -> Result<(), NftError> {
        self.elements(OwnSet::SlowPath, |message| {
            element::of(message).filter_map(slow_path).for_each(&mut each);
        })
    }

    /// What the meter has of the flow with this conntrack id (the bytes of `CTA_ID`); `None` if it has had no packet
    /// on the forward path for a minute.
    pub fn slow_path_of(&mut self, ct_id: u32) -> Result<Option<SlowPath>, NftError> {
        let mut found = None;
        self.element(OwnSet::SlowPath, ct_id, |message| {
            found = element::of(message).find_map(slow_path);
        })?;
        Ok(found)
    }

    /// Whether the connection with this id is in a set of such ids.
    pub fn has_listed(&mut self, set: OwnSet, ct_id: u32) -> Result<bool, NftError> {
        let mut found = false;
        self.element(set, ct_id, |message| {
            found |= element::of(message).next().is_some();
        })?;
        Ok(found)
    }

    /// Whether a set has elements. Without the set it has none.
    pub fn has_any(&mut self, set: OwnSet) -> Result<bool, NftError> {
        let mut any = false;
        self.elements(set, |message| any |= element::of(message).next().is_some())?;
        Ok(any)
    }

    /// All elements of one of our sets. What changes meanwhile may come twice or not at all.
    pub(super) fn elements(
        &mut self,
        set: OwnSet,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), NftError> {
        let listed = self.socket.dump(elements_of(set), (), |(), message| each(message));
        or_absent(listed.map(|dumped| dumped.passing()))
    }

    /// The element with this key, if there is one.
    fn element(&mut self, set: OwnSet, key: u32, each: impl FnMut(&Message<'_>)) -> Result<(), NftError> {
        let request = get(libc::NFT_MSG_GETSETELEM)
            .name(nfta::TABLE, TABLE)
            .name(nfta::SECOND_NAME, set.name().as_bytes())
            .nested(nfta::SET_ELEM_LIST_ELEMENTS, |list| {
                list.nested(nfta::LIST_ELEM, |element| {
                    element.nested(nfta::SET_ELEM_KEY, |value| {
                        value.attribute(nfta::DATA_VALUE, &key.to_ne_bytes())
                    })
                })
            });
        or_absent(self.socket.request(request, each))
    }
}

/// No table, no set, or no such element is nothing.
fn or_absent(result: io::Result<()>) -> Result<(), NftError> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(NftError::new("reading", "the elements of a set", error)),
        Ok(()) => Ok(()),
    }
}

pub(super) fn slow_path(element: element::Element<'_>) -> Option<SlowPath> {
    let idle_ms = OwnSet::SlowPath.shape().timeout_ms.saturating_sub(element.expires_ms?);
    Some(SlowPath {
        ct_id: u32::from_ne_bytes(element.key.try_into().ok()?),
        counter: element.counter?,
        idle_ms,
    })
}
