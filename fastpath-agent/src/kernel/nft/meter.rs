//! Reads the meter: which eligible flows still have packets on the forward path, and since when not.

use libc::{NLM_F_ACK, NLM_F_DUMP};

use super::{
    Nft, NftError,
    batch::elements,
    element,
    object::{Element, Scratch},
};
use crate::{
    core::ruleset::{observed::Counter, sets::OwnSet},
    kernel::nfnetlink::Message,
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
        let read = |message: &Message<'_>| element::of(message).filter_map(slow_path).for_each(&mut each);
        self.get_elements(OwnSet::SlowPath, NLM_F_DUMP, None, read)
    }

    /// What the meter has of the flow with this conntrack id (the bytes of `CTA_ID`); `None` if it has had no packet
    /// on the forward path for a minute.
    pub fn slow_path_of(&mut self, ct_id: u32) -> Result<Option<SlowPath>, NftError> {
        let mut found = None;
        self.get_elements(OwnSet::SlowPath, NLM_F_ACK, Some(ct_id), |message| {
            found = element::of(message).find_map(slow_path);
        })?;
        Ok(found)
    }

    /// Whether the connection with this id is in a set of such ids.
    pub fn has_listed(&mut self, set: OwnSet, ct_id: u32) -> Result<bool, NftError> {
        let mut found = false;
        self.get_elements(set, NLM_F_ACK, Some(ct_id), |message| {
            found |= element::of(message).next().is_some();
        })?;
        Ok(found)
    }

    /// Whether a set has elements. Without the set it has none.
    pub fn has_any(&mut self, set: OwnSet) -> Result<bool, NftError> {
        let mut any = false;
        self.get_elements(set, NLM_F_DUMP, None, |message| any |= element::of(message).next().is_some())?;
        Ok(any)
    }

    pub(super) fn get_elements(
        &mut self,
        set: OwnSet,
        flags: i32,
        key: Option<u32>,
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), NftError> {
        let sequence = self.socket.reserve_sequence(1);
        let mut request = elements(set);
        if let Some(key) = key {
            request = request.push(Element::with_key(&key.to_ne_bytes()));
        }
        let mut scratch = Scratch::new();
        let message = scratch.message(libc::NFT_MSG_GETSETELEM, flags, sequence, &request);
        match self.socket.request(message, each) {
            // No table, no set, or no such element.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(NftError::new("reading", "the elements of a set", error)),
            Ok(_) => Ok(()),
        }
    }
}

fn slow_path(element: element::Element<'_>) -> Option<SlowPath> {
    let idle_ms = OwnSet::SlowPath.shape().timeout_ms.saturating_sub(element.expires_ms?);
    Some(SlowPath {
        ct_id: u32::from_ne_bytes(element.key.try_into().ok()?),
        counter: element.counter?,
        idle_ms,
    })
}
