//! Reads the traces that packets past the threshold leave: which directions of which flows were accepted just now, and
//! between which interfaces.

use super::{Nft, NftError, element};
use crate::core::{
    flow::trace::Trace,
    model::IfIndex,
    ruleset::{expr::Direction, sets::OwnSet},
};

impl Nft {
    /// Calls `each` with the conntrack id (the bytes of `CTA_ID`) and every trace, as the kernel lists them. What changes
    /// meanwhile may come twice or not at all. Without our table there is none.
    pub fn traces(&mut self, mut each: impl FnMut(u32, Trace)) -> Result<(), NftError> {
        for direction in Direction::ALL {
            self.elements(OwnSet::Seen(direction), |message| {
                element::of(message)
                    .filter_map(|element| trace(direction, &element))
                    .for_each(|(id, trace)| each(id, trace));
            })?;
        }
        Ok(())
    }

    /// Traces of the flow with this conntrack id.
    pub fn traces_of(&mut self, ct_id: u32) -> Result<Vec<Trace>, NftError> {
        let mut found = Vec::new();
        self.traces(|id, trace| found.extend((id == ct_id).then_some(trace)))?;
        Ok(found)
    }
}

pub(super) fn trace(direction: Direction, element: &element::Element<'_>) -> Option<(u32, Trace)> {
    let (id, interfaces) = element.key.split_first_chunk::<4>()?;
    let (input, output) = interfaces.split_first_chunk::<4>()?;
    let index = |bytes: [u8; 4]| IfIndex(u32::from_ne_bytes(bytes));
    let idle_ms = OwnSet::Seen(direction).shape().timeout_ms.saturating_sub(element.expires_ms?);
    let (input, output) = (index(*input), index(output.try_into().ok()?));
    // An element whose time is up stays until the kernel collects it.
    (element.expires_ms? > 0)
        .then_some((u32::from_ne_bytes(*id), Trace { direction, input, output, idle_ms }))
}
