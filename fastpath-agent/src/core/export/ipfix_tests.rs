//! What is written, read by a parser that knows nothing of the writer; and by hand where the RFC says it byte by byte.

use std::collections::BTreeMap;

use netflow_parser::{NetflowPacket, NetflowParser, variable_versions::ipfix::FlowSetBody};

use super::*;
use crate::core::flow::connection::{TCP, UDP};

fn tuple(source: &str, destination: &str, protocol: u8) -> Tuple {
    Tuple {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        source_port: 40_000,
        destination_port: 443,
    }
}

fn v4() -> Record {
    Record {
        tuple: tuple("10.1.0.2", "10.96.0.1", TCP),
        leaves: Tuple { source_port: 50_000, ..tuple("192.0.2.1", "10.2.0.2", TCP) },
        reply: false,
        id: 77,
        count: Counter { packets: 3, bytes: 0x0102_0304_0506 },
        start_ms: 1_700_000_000_123,
        end_ms: 1_700_000_001_456,
        reason: Reason::Active,
        seen: Some(Seen { fast: Counter { packets: 2, bytes: 100 }, input: 5, output: 6, tcp_flags: 0x1b }),
    }
}

fn v6() -> Record {
    let tuple = tuple("fd00:1::2", "fd00:2::2", UDP);
    Record { tuple, leaves: tuple, reply: true, reason: Reason::Idle, seen: None, ..v4() }
}

/// Fields of each record, by number and enterprise (0: IANA's), as bytes.
type Fields = BTreeMap<(u16, u32), Vec<u8>>;

/// Takes a message apart by RFC 7011, section 3, by the templates known so far.
fn by_hand(message: &[u8], templates: &mut BTreeMap<u16, Vec<(u16, u32, usize)>>) -> (u32, Vec<Fields>) {
    let u16_at = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!((u16_at(0), usize::from(u16_at(2)), u32_at(12)), (10, message.len(), 1));
    let (mut at, mut records) = (16, Vec::new());
    while at < message.len() {
        let (set, end) = (u16_at(at), at + usize::from(u16_at(at + 2)));
        let mut place = at + 4;
        if set == 2 {
            let (number, fields) = (u16_at(place), u16_at(place + 2));
            place += 4;
            let mut template = Vec::new();
            for _ in 0..fields {
                let (element, length) = (u16_at(place), usize::from(u16_at(place + 2)));
                place += 4;
                let mut enterprise = 0;
                if element & 0x8000 != 0 {
                    enterprise = u32_at(place);
                    place += 4;
                }
                template.push((element & 0x7fff, enterprise, length));
            }
            assert_eq!(place, end, "a template fills its set");
            templates.insert(number, template);
        } else {
            let template = &templates[&set];
            while place < end {
                let mut fields = Fields::new();
                for (element, enterprise, length) in template {
                    fields.insert((*element, *enterprise), message[place..place + length].to_vec());
                    place += length;
                }
                records.push(fields);
            }
            assert_eq!(place, end, "records fill their set");
        }
        at = end;
    }
    assert_eq!(at, message.len());
    (u32_at(8), records)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[test]
fn each_datagram_can_be_read_by_itself() {
    let records: Vec<Record> =
        (0..50).map(|id| Record { id, ..if id % 3 == 0 { v6() } else { v4() } }).collect();
    let mut writer = Writer::of_datagrams(ENTERPRISE, u32::MAX - 1);
    let (mut left, mut ids) = (&records[..], Vec::new());
    while !left.is_empty() {
        let before = u32::MAX.wrapping_sub(1).wrapping_add(ids.len() as u32);
        let (message, count) = writer.message(left, 1_700_000_002);
        assert!(count > 0 && message.len() <= MAX_BYTES, "{count} in {}", message.len());
        let (sequence, found) = by_hand(&message, &mut BTreeMap::new());
        assert_eq!((sequence, found.len()), (before, count), "the number of records before this message");
        assert_eq!(message[4..8], 1_700_000_002_u32.to_be_bytes());
        ids.extend(found.iter().map(|fields| number(&fields[&(148, 0)]) as u32));
        left = &left[count..];
    }
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}

#[test]
fn a_stream_has_each_template_once_per_connection() {
    let mut writer = Writer::of_stream(ENTERPRISE, 0);
    let mut templates = BTreeMap::new();
    let lengths: Vec<usize> = (0..3)
        .map(|round| {
            if round == 2 {
                writer.connected();
                templates.clear();
            }
            let (message, count) = writer.message(&[v4(), v6()], 0);
            assert_eq!((count, by_hand(&message, &mut templates).1.len()), (2, 2));
            message.len()
        })
        .collect();
    assert!(lengths[1] < lengths[0] && lengths[2] == lengths[0], "{lengths:?}");
}

#[test]
fn every_field_has_its_value() {
    let (message, _) = Writer::of_datagrams(4711, 0).message(&[v4(), v6()], 0);
    let found = by_hand(&message, &mut BTreeMap::new()).1;
    let expected: &[((u16, u32), u64)] = &[
        ((8, 0), 0x0a01_0002),
        ((12, 0), 0x0a60_0001),
        ((7, 0), 40_000),
        ((11, 0), 443),
        ((4, 0), 6),
        ((225, 0), 0xc000_0201),
        ((226, 0), 0x0a02_0002),
        ((227, 0), 50_000),
        ((228, 0), 443),
        ((1, 0), 0x0102_0304_0506),
        ((2, 0), 3),
        ((152, 0), 1_700_000_000_123),
        ((153, 0), 1_700_000_001_456),
        ((136, 0), 2),
        ((148, 0), 77),
        ((10, 0), 5),
        ((14, 0), 6),
        ((6, 0), 0x1b),
        ((1, 4711), 100),
        ((2, 4711), 2),
        ((239, 0), 1),
    ];
    for (key, value) in expected {
        assert_eq!(number(&found[0][key]), *value, "{key:?}");
    }
    assert_eq!(found[0].len(), expected.len());
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec();
    for (key, value) in [(27, "fd00:1::2"), (28, "fd00:2::2"), (281, "fd00:1::2"), (282, "fd00:2::2")] {
        assert_eq!(found[1][&(key, 0)], address(value), "{key}");
    }
    assert_eq!((number(&found[1][&(136, 0)]), number(&found[1][&(239, 0)])), (1, 2));
    assert!(!found[1].contains_key(&(10, 0)) && !found[1].contains_key(&(1, 4711)), "nothing was seen of it");
}

/// The same words from a parser that others wrote.
#[test]
fn another_parser_reads_the_same() {
    let (message, _) = Writer::of_datagrams(ENTERPRISE, 9).message(&[v4(), v4(), v6()], 1_700_000_002);
    let parsed = NetflowParser::default().parse_bytes(&message);
    let [NetflowPacket::IPFix(packet)] = &parsed.packets[..] else { panic!("{parsed:?}") };
    assert_eq!((packet.header.sequence_number, packet.header.observation_domain_id), (9, 1));
    let records: Vec<_> = packet
        .flowsets
        .iter()
        .filter_map(|set| match &set.body {
            FlowSetBody::Data(data) => Some(&data.fields),
            _ => None,
        })
        .flatten()
        .collect();
    assert_eq!(records.len(), 3);
    let words: Vec<String> = records[0].iter().map(|(field, value)| format!("{field:?} {value:?}")).collect();
    let all = words.join("\n");
    for word in ["10.1.0.2", "10.96.0.1", "192.0.2.1", "40000", "50000", "1108152157446"] {
        assert!(all.contains(word), "{word} in\n{all}");
    }
    assert_eq!(records[0].len(), 21, "{all}");
}

#[test]
fn a_message_of_nothing_has_templates_only() {
    let writer = Writer::of_datagrams(ENTERPRISE, 5);
    let mut templates = BTreeMap::new();
    assert_eq!(by_hand(&writer.nothing(0), &mut templates), (5, vec![]));
    assert_eq!(templates.len(), 2);
}
