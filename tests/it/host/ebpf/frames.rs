//! Frames byte by byte, right or wrong as a test wants them.

use std::net::{Ipv4Addr, Ipv6Addr};

use fastpath_common::{Family, FlowKey};

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const VLAN: u16 = 0x8100;
pub(crate) const QINQ: u16 = 0x88a8;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION: u8 = 60;

pub(crate) const SRC4: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);
pub(crate) const DST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
pub(crate) const SRC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6);
pub(crate) const DST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x99);

/// An Ethernet frame with VLAN tags (TPID, id), outermost first.
pub(crate) fn ethernet(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (tpid, id) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(id.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet from [`SRC4`] to [`DST4`]; `fragment` is the flags and offset field.
pub(crate) fn ipv4(protocol: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let header = 20 + options.len();
    let mut packet = vec![0x40 | (header / 4) as u8, 0];
    packet.extend(((header + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(SRC4.octets());
    packet.extend(DST4.octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 packet from [`SRC6`] to [`DST6`].
pub(crate) fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(SRC6.octets());
    packet.extend(DST6.octets());
    packet.extend(payload);
    packet
}

/// An extension header of `8 * (1 + units)` bytes.
pub(crate) fn extension(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 8 * (1 + usize::from(units))];
    header[0] = next;
    header[1] = units;
    header.extend(payload);
    header
}

/// An authentication header of `4 * (2 + units)` bytes.
pub(crate) fn authentication(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 4 * (2 + usize::from(units))];
    header[0] = next;
    header[1] = units;
    header.extend(payload);
    header
}

/// A fragment header; `offset` in units of eight bytes.
pub(crate) fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset << 3 | u16::from(more)).to_be_bytes());
    header.extend([0, 0, 0, 1]);
    header.extend(payload);
    header
}

pub(crate) fn udp(src_port: u16, dst_port: u16, payload: usize) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(src_port.to_be_bytes());
    datagram.extend(dst_port.to_be_bytes());
    datagram.extend((8 + payload as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + payload, 0x55);
    datagram
}

pub(crate) fn tcp(src_port: u16, dst_port: u16, flags: u8, payload: usize) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(src_port.to_be_bytes());
    segment.extend(dst_port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.resize(20 + payload, 0x55);
    segment
}

/// The key of what [`ipv4`] makes.
pub(crate) fn key4(protocol: u8, src_port: u16, dst_port: u16) -> FlowKey {
    let wide = |address: Ipv4Addr| {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address.octets());
        bytes
    };
    key(Family::V4, wide(SRC4), wide(DST4), protocol, src_port, dst_port)
}

/// The key of what [`ipv6`] makes.
pub(crate) fn key6(protocol: u8, src_port: u16, dst_port: u16) -> FlowKey {
    key(Family::V6, SRC6.octets(), DST6.octets(), protocol, src_port, dst_port)
}

pub(crate) fn key(
    family: Family,
    src: [u8; 16],
    dst: [u8; 16],
    protocol: u8,
    src_port: u16,
    dst_port: u16,
) -> FlowKey {
    FlowKey { src, dst, src_port, dst_port, protocol, family: family as u8, reserved: [0; 2] }
}
