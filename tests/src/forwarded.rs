//! Counters late in the forward hook: packets that took the normal path, by the port that the client dialled and by direction.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::netns::Netns;

/// Name of the table that counts, family inet.
pub const TABLE: &str = "path-probe";

/// Ports whose flows are counted.
pub const PORTS: std::ops::RangeInclusive<u16> = 7001..=7012;

/// Loads the counters and `more` rules into the node, in one transaction.
pub fn install(node: &Netns, more: &str) {
    let ports: Vec<String> = PORTS.map(|port| port.to_string()).collect();
    let ports = ports.join(", ");
    node.nft(&format!(
        "table inet {TABLE} {{
            set original {{ type inet_service; counter; elements = {{ {ports} }} }}
            set reply {{ type inet_service; counter; elements = {{ {ports} }} }}
            chain late {{
                type filter hook forward priority 500; policy accept;
                meta l4proto {{ tcp, udp }} ct direction original ct original proto-dst @original
                meta l4proto {{ tcp, udp }} ct direction reply ct original proto-dst @reply
            }}
        }}
        {more}"
    ));
}

/// Packets that took the forward path, by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's.
    pub original: u64,
    /// The server's.
    pub reply: u64,
}

impl Forwarded {
    /// Both directions.
    pub fn total(self) -> u64 {
        self.original + self.reply
    }
}

/// Packets forwarded so far for flows to `port`, in a namespace that [`install`] has prepared.
#[track_caller]
pub fn forwarded(node: &Netns, port: u16) -> Forwarded {
    *all_forwarded(node).get(&port).unwrap_or_else(|| panic!("no counter for port {port}"))
}

/// The same for each of [`PORTS`].
#[track_caller]
pub fn all_forwarded(node: &Netns) -> BTreeMap<u16, Forwarded> {
    let listing = node.output("nft", &["-j", "list", "table", "inet", TABLE]);
    let listing: Value = serde_json::from_str(&listing).expect("nft prints JSON");
    let mut all: BTreeMap<u16, Forwarded> = PORTS.map(|port| (port, Forwarded::default())).collect();
    for object in listing["nftables"].as_array().into_iter().flatten() {
        for element in object["set"]["elem"].as_array().into_iter().flatten() {
            let (port, packets) = (&element["elem"]["val"], &element["elem"]["counter"]["packets"]);
            let (Some(port), Some(packets)) = (port.as_u64(), packets.as_u64()) else { continue };
            let counts = all.get_mut(&(port as u16)).unwrap_or_else(|| panic!("port {port} in {listing}"));
            match object["set"]["name"].as_str() {
                Some("original") => counts.original = packets,
                _ => counts.reply = packets,
            }
        }
    }
    all
}
