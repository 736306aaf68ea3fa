//! Sorts out signals of flows that the programs saw offloaded: nothing is left to find out about those.

use fastpath_common::{FlowEvent, FlowKey};
use tracing::debug;

use crate::{core::flow::connection::Tuple, kernel::bpf::FlowEyes};

/// Those whose state only conntrack knows.
pub(super) fn unclear(events: &[FlowEvent], eyes: &mut dyn FlowEyes) -> Vec<Tuple> {
    let keys: Vec<FlowKey> = events.iter().map(|event| event.key).collect();
    match eyes.went_over(&keys) {
        Ok(known) => {
            let unclear = keys.iter().zip(known).filter(|(_, went_over)| !went_over);
            unclear.map(|(key, _)| Tuple::from_flow_key(key)).collect()
        }
        Err(error) => {
            debug!(%error, "asking conntrack about every flow that crossed");
            all(events)
        }
    }
}

/// Every one.
pub(super) fn all(events: &[FlowEvent]) -> Vec<Tuple> {
    events.iter().map(|event| Tuple::from_flow_key(&event.key)).collect()
}
