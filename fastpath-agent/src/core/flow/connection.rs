//! Connections as conntrack describes them.

use std::{fmt, net::IpAddr};

use fastpath_common::{Family, FlowKey};
use serde::{Deserialize, Serialize};

use crate::core::model::Counter;

/// One direction of a connection: what its packets have in their headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port; 0 for protocols without ports.
    pub source_port: u16,
    /// Destination port; 0 for protocols without ports.
    pub destination_port: u16,
}

/// State bits of a connection (enum ip_conntrack_status, include/uapi/linux/netfilter/nf_conntrack_common.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Status(pub u32);

impl Status {
    /// `IPS_SEEN_REPLY`: packets were seen in both directions.
    pub fn seen_reply(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// `IPS_ASSURED`: isn't dropped early when the table is full.
    pub fn assured(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// `IPS_SEQ_ADJUST`: sequence numbers are corrected (by a helper that changed the payload, or by SYNPROXY).
    pub fn sequence_adjusted(self) -> bool {
        self.0 & 1 << 6 != 0
    }

    /// `IPS_OFFLOAD`: is in a flowtable. Doesn't say that packets take that way.
    pub fn offloaded(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// `IPS_HW_OFFLOAD`: was handed to hardware.
    pub fn hw_offloaded(self) -> bool {
        self.0 & 1 << 15 != 0
    }
}

/// State of a TCP connection, as conntrack sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TcpState {
    /// Not established yet.
    Opening,
    /// Established.
    Established,
    /// A FIN or RST was seen on the normal path.
    Closing,
}

impl TcpState {
    /// From the kernel's number (`TCP_CONNTRACK_ESTABLISHED` is 3).
    pub fn new(number: u8) -> Self {
        match number {
            3 => Self::Established,
            4..=8 => Self::Closing,
            _ => Self::Opening,
        }
    }
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// `CTA_ID` as nftables has it in a register (`ct id`): the four bytes as they are. `conntrack -o id` prints
    /// the same bytes as a big-endian number.
    pub id: u32,
    /// As the first packet had it.
    pub original: Tuple,
    /// As answers have it; differs from the original turned round where there is NAT.
    pub reply: Tuple,
    /// State bits.
    pub status: Status,
    /// Conntrack zone of the original direction.
    pub zone: u16,
    /// State of a TCP connection (enum tcp_conntrack, include/uapi/linux/netfilter/nf_conntrack_tcp.h); none for other
    /// protocols.
    pub tcp_state: Option<TcpState>,
    /// Name of the conntrack helper that reads along (ftp, sip …): such connections are never offloaded.
    pub helper: Option<String>,
    /// `ct mark`.
    pub mark: u32,
    /// Packets and bytes in the original and in the reply direction; `None` if conntrack doesn't count (`nf_conntrack_acct` was
    /// off when the connection began).
    pub counters: Option<[Counter; 2]>,
}

impl Entry {
    /// Whether addresses or ports of its packets are translated.
    pub fn is_translated(&self) -> bool {
        self.original.reversed() != self.reply
    }

    /// Its packets on the forward path, original direction first: behind the change of the destination, ahead of that of the source.
    /// That is how routing and the forward hook see them.
    pub fn forwarded(&self) -> [Tuple; 2] {
        let Tuple { source, source_port, .. } = self.reply;
        let original = Tuple { destination: source, destination_port: source_port, ..self.original };
        [original, original.reversed()]
    }

    /// Whether its state is final: it is offloaded, or it ends and won't be.
    pub fn is_decided(&self) -> bool {
        self.status.offloaded() || self.tcp_state == Some(TcpState::Closing)
    }
}

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

impl Tuple {
    /// The same with source and destination exchanged.
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }

    /// The key that the eBPF programs count packets with this tuple under; `None` for protocols that they don't count.
    pub fn flow_key(&self) -> Option<FlowKey> {
        if !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        let family = if self.source.is_ipv4() { Family::V4 } else { Family::V6 };
        Some(FlowKey {
            src: octets(self.source),
            dst: octets(self.destination),
            src_port: self.source_port,
            dst_port: self.destination_port,
            protocol: self.protocol,
            family: family as u8,
            reserved: [0; 2],
        })
    }

    /// The tuple of a key.
    pub fn from_flow_key(key: &FlowKey) -> Self {
        Self {
            source: address(key.src, key.family),
            destination: address(key.dst, key.family),
            protocol: key.protocol,
            source_port: key.src_port,
            destination_port: key.dst_port,
        }
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(octets: [u8; 16], family: u8) -> IpAddr {
    if family == Family::V4 as u8 {
        IpAddr::from([octets[0], octets[1], octets[2], octets[3]])
    } else {
        IpAddr::from(octets)
    }
}

/// Protocols that are known by name, and their numbers (IANA).
const PROTOCOLS: [(&str, u8); 9] = [
    ("tcp", TCP),
    ("udp", UDP),
    ("icmp", 1),
    ("icmpv6", 58),
    ("gre", 47),
    ("esp", 50),
    ("sctp", 132),
    ("dccp", 33),
    ("udplite", 136),
];

/// Name of an IP protocol, or its number.
pub fn protocol_name(protocol: u8) -> String {
    let named = PROTOCOLS.iter().find(|(_, number)| *number == protocol);
    named.map_or_else(|| protocol.to_string(), |(name, _)| (*name).to_owned())
}

/// Number of an IP protocol by its name or number.
pub fn protocol_number(word: &str) -> Option<u8> {
    let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, number)| *number);
    named.or_else(|| word.parse().ok())
}

/// Whether packets of the protocol have ports: TCP, UDP, SCTP, DCCP, UDP-Lite.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | 132 | 33 | 136)
}

impl fmt::Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: IpAddr, port: u16| match address {
            _ if !has_ports(self.protocol) => address.to_string(),
            IpAddr::V4(address) => format!("{address}:{port}"),
            IpAddr::V6(address) => format!("[{address}]:{port}"),
        };
        write!(
            f,
            "{} {} > {}",
            protocol_name(self.protocol),
            end(self.source, self.source_port),
            end(self.destination, self.destination_port)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_and_its_key_are_the_same() {
        for (source, destination) in [("10.0.0.1", "192.0.2.7"), ("fd00::1", "2001:db8::7")] {
            let tuple = Tuple {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: TCP,
                source_port: 40000,
                destination_port: 443,
            };
            assert_eq!(Tuple::from_flow_key(&tuple.flow_key().unwrap()), tuple);
            assert_eq!(Tuple { protocol: 1, ..tuple }.flow_key(), None);
        }
    }
}
