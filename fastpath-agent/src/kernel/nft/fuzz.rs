//! What is read of nftables, from any message. For fuzzing only.

use super::{element, meter, monitor, names::Names, notice, observe, others, traces};
use crate::{core::ruleset::expr::Direction, kernel::netlink::Message};

/// Reads it as every kind of object and event.
pub(in crate::kernel) fn read(message: &Message<'_>) {
    if let Some(notice) = notice::parse(message, &Names::default()) {
        drop(format!("{notice:?}"));
    }
    let _ = notice::is_timeout(message);
    drop(monitor::parse(message));
    for element in element::of(message) {
        assert!(element.key.len() <= message.bytes().len(), "a key lies in the message");
        let _ = meter::slow_path(element);
        let _ = traces::trace(Direction::Original, &element);
    }
    others::fuzz::read(message);
    observe::fuzz(message);
}
