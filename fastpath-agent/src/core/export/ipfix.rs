//! Flow records as messages of IPFIX (RFC 7011), and nothing of how they travel. A record has one direction of a connection, as
//! routers write them: collectors that don't know biflows (RFC 5103) count both all the same.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::core::{flow::connection::Tuple, model::Counter};

/// Most bytes of a message: with its headers it fits the smallest MTU of IPv6 (RFC 8200, section 5), so no path cuts it in pieces.
pub const MAX_BYTES: usize = 1232;
/// Port of collectors (RFC 7011, section 10).
pub const PORT: u16 = 4739;
/// For examples in documents (RFC 5612). The project has no number of its own.
pub const ENTERPRISE: u32 = 32473;

const VERSION: u16 = 10;
const HEADER_BYTES: usize = 16;
const SET_HEADER_BYTES: usize = 4;
const TEMPLATES: u16 = 2;
/// The first number that a template may have.
const FIRST_TEMPLATE: u16 = 256;
/// All agents have the same: collectors tell them apart by their address.
const OBSERVATION_DOMAIN: u32 = 1;
/// In the number of an element: the number of an enterprise follows.
const OF_ENTERPRISE: u16 = 0x8000;

/// What a collector gets of one direction of a connection, since the record before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As its packets come in, before NAT.
    pub tuple: Tuple,
    /// As they leave.
    pub leaves: Tuple,
    /// Whether it is the reply direction.
    pub reply: bool,
    /// Conntrack's id of the connection; 0 if it isn't known.
    pub id: u32,
    /// What was counted.
    pub count: Counter,
    /// The time that this is about, in ms since 1970, UTC: from the first packet, or from the record before.
    pub start_ms: u64,
    /// To the last packet.
    pub end_ms: u64,
    /// Why it is written now.
    pub reason: Reason,
    /// What only the programs see; `None` without them.
    pub seen: Option<Seen>,
}

/// What only the programs see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Those packets that bypassed the normal path.
    pub fast: Counter,
    /// Index of the interface that they come in on; 0 if it isn't known.
    pub input: u32,
    /// And on which they leave: the one that the other direction comes in on.
    pub output: u32,
    /// TCP flags of all packets so far, or-ed.
    pub tcp_flags: u8,
}

/// Why a record is written (`flowEndReason`, RFC 5102, section 5.11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// It had no packet for long, or conntrack has forgotten it for that.
    Idle = 1,
    /// It goes on.
    Active = 2,
    /// A FIN or RST was seen.
    Ended = 3,
}

/// What all records of a template have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    v6: bool,
    seen: bool,
}

impl Kind {
    fn of(record: &Record) -> Self {
        Self { v6: record.tuple.source.is_ipv6(), seen: record.seen.is_some() }
    }

    fn template(self) -> u16 {
        FIRST_TEMPLATE + u16::from(self.v6) + 2 * u16::from(self.seen)
    }

    fn fields(self) -> impl Iterator<Item = &'static Field> {
        let seen: &[Field] = if self.seen { SEEN } else { &[] };
        let addresses: &[Field] = if self.v6 { V6 } else { V4 };
        [addresses, ALWAYS, seen].into_iter().flatten()
    }

    fn record_bytes(self) -> usize {
        self.fields().map(|field| usize::from(field.bytes)).sum()
    }

    fn template_bytes(self) -> usize {
        SET_HEADER_BYTES + 4 + self.fields().map(|field| if field.own { 8 } else { 4 }).sum::<usize>()
    }
}

/// A field of a template: its number (IANA's, or the project's own), its length, and what writes it.
struct Field {
    number: u16,
    own: bool,
    bytes: u16,
    put: fn(&Record, &mut Vec<u8>),
}

const fn iana(number: u16, bytes: u16, put: fn(&Record, &mut Vec<u8>)) -> Field {
    Field { number, own: false, bytes, put }
}

const fn own(number: u16, bytes: u16, put: fn(&Record, &mut Vec<u8>)) -> Field {
    Field { number, own: true, bytes, put }
}

/// sourceIPv4Address, destinationIPv4Address, postNATSourceIPv4Address, postNATDestinationIPv4Address.
const V4: &[Field] = &[
    iana(8, 4, |record, out| address(record.tuple.source, out)),
    iana(12, 4, |record, out| address(record.tuple.destination, out)),
    iana(225, 4, |record, out| address(record.leaves.source, out)),
    iana(226, 4, |record, out| address(record.leaves.destination, out)),
];

/// The same of IPv6.
const V6: &[Field] = &[
    iana(27, 16, |record, out| address(record.tuple.source, out)),
    iana(28, 16, |record, out| address(record.tuple.destination, out)),
    iana(281, 16, |record, out| address(record.leaves.source, out)),
    iana(282, 16, |record, out| address(record.leaves.destination, out)),
];

/// sourceTransportPort, destinationTransportPort, postNAPTSourceTransportPort, postNAPTDestinationTransportPort,
/// protocolIdentifier, octetDeltaCount, packetDeltaCount, flowStartMilliseconds, flowEndMilliseconds, flowEndReason, flowId,
/// biflowDirection (1: the source began the connection, 2: the destination did).
const ALWAYS: &[Field] = &[
    iana(7, 2, |record, out| out.extend(record.tuple.source_port.to_be_bytes())),
    iana(11, 2, |record, out| out.extend(record.tuple.destination_port.to_be_bytes())),
    iana(227, 2, |record, out| out.extend(record.leaves.source_port.to_be_bytes())),
    iana(228, 2, |record, out| out.extend(record.leaves.destination_port.to_be_bytes())),
    iana(4, 1, |record, out| out.push(record.tuple.protocol)),
    iana(1, 8, |record, out| out.extend(record.count.bytes.to_be_bytes())),
    iana(2, 8, |record, out| out.extend(record.count.packets.to_be_bytes())),
    iana(152, 8, |record, out| out.extend(record.start_ms.to_be_bytes())),
    iana(153, 8, |record, out| out.extend(record.end_ms.to_be_bytes())),
    iana(136, 1, |record, out| out.push(record.reason as u8)),
    iana(148, 8, |record, out| out.extend(u64::from(record.id).to_be_bytes())),
    iana(239, 1, |record, out| out.push(1 + u8::from(record.reply))),
];

/// ingressInterface, egressInterface, tcpControlBits; bytes and packets that bypassed the normal path.
const SEEN: &[Field] = &[
    iana(10, 4, |record, out| out.extend(seen(record).input.to_be_bytes())),
    iana(14, 4, |record, out| out.extend(seen(record).output.to_be_bytes())),
    iana(6, 1, |record, out| out.push(seen(record).tcp_flags)),
    own(1, 8, |record, out| out.extend(seen(record).fast.bytes.to_be_bytes())),
    own(2, 8, |record, out| out.extend(seen(record).fast.packets.to_be_bytes())),
];

fn seen(record: &Record) -> Seen {
    record.seen.unwrap_or_default()
}

fn address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => out.extend(address.octets()),
        IpAddr::V6(address) => out.extend(address.octets()),
    }
}

/// Writes messages to one collector.
#[derive(Clone, Debug)]
pub struct Writer {
    enterprise: u32,
    /// Records in all messages so far (RFC 7011, section 3.1).
    pub sequence: u32,
    /// Numbers of templates that the collector has; none where each message brings its own.
    declared: Option<Vec<u16>>,
}

impl Writer {
    /// For UDP: each message brings the templates that it needs, so that a collector can read any of them.
    pub fn of_datagrams(enterprise: u32, sequence: u32) -> Self {
        Self { enterprise, sequence, declared: None }
    }

    /// For TCP: a template comes once per connection.
    pub fn of_stream(enterprise: u32, sequence: u32) -> Self {
        Self { enterprise, sequence, declared: Some(Vec::new()) }
    }

    /// A new connection.
    pub fn connected(&mut self) {
        if let Some(declared) = &mut self.declared {
            declared.clear();
        }
    }

    /// A message of templates only, to see whether anything answers that nobody is there.
    pub fn nothing(&self, now_s: u32) -> Vec<u8> {
        let mut out = self.header(now_s);
        for kind in [false, true].map(|v6| Kind { v6, seen: true }) {
            template(kind, self.enterprise, &mut out);
        }
        end_message(&mut out);
        out
    }

    fn header(&self, now_s: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_BYTES);
        out.extend(VERSION.to_be_bytes());
        out.extend([0; 2]);
        out.extend(now_s.to_be_bytes());
        out.extend(self.sequence.to_be_bytes());
        out.extend(OBSERVATION_DOMAIN.to_be_bytes());
        debug_assert_eq!(out.len(), HEADER_BYTES);
        out
    }

    /// A message with as many of `records` as fit, and how many these are; `now_s`: in s since 1970, UTC. What was written counts as
    /// sent.
    pub fn message<'r>(
        &mut self,
        records: impl IntoIterator<Item = &'r Record>,
        now_s: u32,
    ) -> (Vec<u8>, usize) {
        let mut out = self.header(now_s);
        let mut here = Vec::new();
        let declared = self.declared.as_mut().unwrap_or(&mut here);
        let (mut count, mut set) = (0, None);
        for record in records {
            let kind = Kind::of(record);
            let unknown = !declared.contains(&kind.template());
            let open = set.filter(|(of, _)| *of == kind).map(|(_, at)| at);
            let more = kind.record_bytes()
                + if unknown { kind.template_bytes() } else { 0 }
                + if open.is_none() { SET_HEADER_BYTES } else { 0 };
            if out.len() + more > MAX_BYTES {
                break;
            }
            if unknown {
                declared.push(kind.template());
                template(kind, self.enterprise, &mut out);
            }
            let at = open.unwrap_or_else(|| begin_set(kind.template(), &mut out));
            set = Some((kind, at));
            for field in kind.fields() {
                (field.put)(record, &mut out);
            }
            end_set(at, &mut out);
            count += 1;
        }
        end_message(&mut out);
        self.sequence = self.sequence.wrapping_add(count as u32);
        (out, count)
    }
}

/// Writes the length of a message into its header.
fn end_message(out: &mut [u8]) {
    let length = out.len() as u16;
    out[2..4].copy_from_slice(&length.to_be_bytes());
}

/// A set with one template (RFC 7011, section 3.4.1).
fn template(kind: Kind, enterprise: u32, out: &mut Vec<u8>) {
    let at = begin_set(TEMPLATES, out);
    out.extend(kind.template().to_be_bytes());
    out.extend((kind.fields().count() as u16).to_be_bytes());
    for field in kind.fields() {
        let number = if field.own { field.number | OF_ENTERPRISE } else { field.number };
        out.extend(number.to_be_bytes());
        out.extend(field.bytes.to_be_bytes());
        if field.own {
            out.extend(enterprise.to_be_bytes());
        }
    }
    end_set(at, out);
}

/// Begins a set, and gives the place where it begins.
fn begin_set(number: u16, out: &mut Vec<u8>) -> usize {
    out.extend(number.to_be_bytes());
    out.extend([0; 2]);
    out.len() - SET_HEADER_BYTES
}

/// Writes the length of a set into its header.
fn end_set(at: usize, out: &mut [u8]) {
    let length = (out.len() - at) as u16;
    out[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
#[path = "ipfix_tests.rs"]
mod tests;
