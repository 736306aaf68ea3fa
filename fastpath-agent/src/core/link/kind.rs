//! What kind of link it is, where that decides about its flows.

use crate::core::model::{IfIndex, Link};

/// Whether `link` is a port of a bridge that is managed too: then the bridge is in the flowtable and the port isn't.
/// With the port in it, offloaded flows would go to the port and MAC address of that moment (`FLOW_OFFLOAD_XMIT_DIRECT`),
/// even after the host, a neighbour's address or the route has changed. Hardware needs the ports.
pub fn is_bridged<'a>(link: &Link, managed: impl Fn(IfIndex) -> Option<&'a Link>) -> bool {
    link.master.and_then(managed).is_some_and(is_bridge)
}

/// Whether `link` is a VRF.
pub fn is_vrf(link: &Link) -> bool {
    link.kind.as_deref() == Some("vrf")
}

/// Whether `link` is a bridge.
pub fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge")
}
