//! Counts packets that leave this node, whichever path brought them: at the place where `tcpdump` sees them, behind traffic
//! control and just before the driver. Copies next to nothing of them.

#![expect(unsafe_code, reason = "packet sockets have no safe wrapper")]

use std::{
    io, mem,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use super::netlink::filter::{attach, statement};
use crate::core::flow::connection::Tuple;

/// Where a filter finds what isn't in the packet (include/uapi/linux/filter.h): `SKF_AD_OFF` with its protocol, and with
/// where it comes from.
const AD_PROTOCOL: u32 = -0x1000_i32 as u32;
const AD_PACKET_TYPE: u32 = AD_PROTOCOL + 4;
const PACKET_OUTGOING: u32 = 4;
/// The kernel's least receive buffer is more. Packets are counted whether there is room or not.
const BUFFER_BYTES: usize = 1;

/// Counts packets with one tuple that leave.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Counts from now on. Takes CAP_NET_RAW.
    pub fn open(leaving: &Tuple) -> io::Result<Self> {
        // Without a protocol it gets no packets before it is bound.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        attach(&socket, &filter(leaving))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            // Only sockets for all protocols see what leaves.
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: `address` is a sockaddr_ll of that size, and outlives the call.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of_val(&address) as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(socket)) }
    }

    /// Packets since it was opened. One that leaves by several interfaces (a VLAN and the link below) counts with each.
    pub fn left(self) -> io::Result<u64> {
        // SAFETY: a struct of integers, for which zeros are a value.
        let mut statistics: libc::tpacket_stats = unsafe { mem::zeroed() };
        let mut length = mem::size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of `statistics`.
        let read = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if read < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_packets.into()) }
    }
}

/// A filter (classic BPF) that accepts outgoing packets with these addresses, ports and protocol, but fragments other than
/// the first. The packet begins with its IP header.
fn filter(tuple: &Tuple) -> Vec<libc::sock_filter> {
    use libc::{
        BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
        BPF_W,
    };
    let mut tests = Vec::new();
    let mut equal = |load: u32, at: u32, value: u32| {
        tests.push((statement(BPF_LD | load, at), BPF_JEQ, value));
    };
    equal(BPF_W | BPF_ABS, AD_PACKET_TYPE, PACKET_OUTGOING);
    let (ethertype, protocol_at, addresses) = match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            (libc::ETH_P_IP, 9, [source.octets().to_vec(), destination.octets().to_vec()].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            (libc::ETH_P_IPV6, 6, [source.octets().to_vec(), destination.octets().to_vec()].concat())
        }
        // No packet has this tuple.
        _ => return vec![statement(BPF_RET | BPF_K, 0)],
    };
    equal(BPF_W | BPF_ABS, AD_PROTOCOL, ethertype as u32);
    equal(BPF_B | BPF_ABS, protocol_at, tuple.protocol.into());
    let addresses_at = if tuple.source.is_ipv4() { 12 } else { 8 };
    for (at, word) in (addresses_at..).step_by(4).zip(addresses.as_chunks().0) {
        equal(BPF_W | BPF_ABS, at, u32::from_be_bytes(*word));
    }
    let mut ports = vec![(BPF_IND, 0, tuple.source_port), (BPF_IND, 2, tuple.destination_port)];
    if tuple.source.is_ipv6() {
        ports = ports.into_iter().map(|(_, at, port)| (BPF_ABS, 40 + at, port)).collect();
    }
    let mut code = Vec::new();
    let refuse = |code: &mut Vec<_>, kind: u32, value, accepts_if: bool| {
        let (jt, jf) = if accepts_if { (1, 0) } else { (0, 1) };
        code.push(libc::sock_filter { code: (BPF_JMP | kind | BPF_K) as u16, jt, jf, k: value });
        code.push(statement(BPF_RET | BPF_K, 0));
    };
    for (load, kind, value) in tests {
        code.push(load);
        refuse(&mut code, kind, value, true);
    }
    if tuple.source.is_ipv4() {
        const FRAGMENT_OFFSET: u32 = 0x1fff;
        code.push(statement(BPF_LD | BPF_H | BPF_ABS, 6));
        refuse(&mut code, BPF_JSET, FRAGMENT_OFFSET, false);
        // The header's length.
        code.push(statement(BPF_LDX | BPF_B | BPF_MSH, 0));
    }
    for (mode, at, port) in ports {
        code.push(statement(BPF_LD | BPF_H | mode, at));
        refuse(&mut code, BPF_JEQ, port.into(), true);
    }
    code.push(statement(BPF_RET | BPF_K, 1));
    code
}
