//! The agent's view of conntrack against the kernel and against conntrack-tools.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use fastpath_agent::{
    core::flow::connection::{Entry, Tuple},
    kernel::conntrack::{self, Conntrack, Deletion},
};
use fastpath_tests::netns::Netns;

const UDP: u8 = 17;

fn tuple(from: SocketAddr, to: SocketAddr) -> Tuple {
    Tuple {
        source: from.ip(),
        destination: to.ip(),
        protocol: UDP,
        source_port: from.port(),
        destination_port: to.port(),
    }
}

/// Two sockets on loopback; the first has sent one datagram to the second.
fn datagram(address: &str) -> (UdpSocket, UdpSocket, Tuple) {
    let bind = || UdpSocket::bind((address.parse::<IpAddr>().expect("address"), 0)).expect("bind");
    let (client, server) = (bind(), bind());
    let local = |socket: &UdpSocket| socket.local_addr().expect("local address");
    client.send_to(b"ask", local(&server)).expect("send");
    let tuple = tuple(local(&client), local(&server));
    (client, server, tuple)
}

#[test]
fn a_connection_is_found_in_both_directions_with_id_state_and_counters() {
    let node = Netns::new("node");
    node.ip("link set lo up");
    node.nft("table inet t { chain c { type filter hook output priority 0; ct state new; }; }");
    node.sysctl("net/netfilter/nf_conntrack_acct", "1");
    node.run(|| {
        let mut conntrack = Conntrack::open().expect("open");
        for address in ["127.0.0.1", "::1"] {
            let (client, server, original) = datagram(address);
            let turned = tuple(
                (original.destination, original.destination_port).into(),
                (original.source, original.source_port).into(),
            );
            let entry = conntrack.get(&original, 0).expect("read").expect("the connection");
            assert_eq!((entry.original, entry.reply), (original, turned));
            assert!(!entry.status.seen_reply() && !entry.status.offloaded());
            let [sent, answered] = entry.counters.expect("counters are on");
            assert_eq!((sent.packets, answered.packets), (1, 0));
            assert!(sent.bytes > 20);

            server.send_to(b"answer", client.local_addr().expect("address")).expect("send");
            let entry = conntrack.get(&turned, 0).expect("read").expect("the connection");
            assert_eq!(entry.original, original);
            assert!(entry.status.seen_reply());
            assert_eq!(entry.counters.map(|counters| counters[1].packets), Some(1));

            assert_eq!(conntrack.get(&original, 7).expect("read"), None, "another zone");
            assert_eq!(conntrack.get(&Tuple { source_port: 1, ..original }, 0).expect("read"), None);
            assert_eq!(conntrack.get(&Tuple { protocol: 6, ..original }, 0).expect("read"), None);

            // The same id as conntrack-tools print, which take it for big-endian.
            let port = original.source_port.to_string();
            let family = if original.source.is_ipv4() { "ipv4" } else { "ipv6" };
            let line = node.output(
                "conntrack",
                &["-L", "-f", family, "-p", "udp", "--orig-port-src", &port, "-o", "id"],
            );
            let id = u32::from_be_bytes(entry.id.to_ne_bytes());
            assert!(line.contains(&format!("id={id}")), "{line}");
        }
    });
}

#[test]
fn the_dump_has_every_connection_with_mark_and_zone() {
    let node = Netns::new("node");
    node.ip("link set lo up");
    node.nft(
        "table inet t { chain c { type filter hook output priority -300; ct zone set 9; }; \
                        chain d { type filter hook output priority 0; ct mark set 0x1234; }; }",
    );
    node.run(|| {
        let sockets: Vec<_> = (0..500).map(|_| datagram("127.0.0.1")).collect();
        let mut entries = HashMap::new();
        let mut conntrack = Conntrack::open().expect("open");
        conntrack
            .dump(|entry| {
                entries.insert(entry.original, entry);
            })
            .expect("dump");
        assert_eq!(entries.len(), sockets.len());
        for (_, _, tuple) in &sockets {
            let entry = &entries[tuple];
            assert_eq!((entry.zone, entry.mark, entry.counters), (9, 0x1234, None));
            assert_eq!(conntrack.get(tuple, 9).expect("read").as_ref(), Some(entry));
        }
        let summary = conntrack::summary().expect("summary");
        assert_eq!((summary.entries, summary.seen_reply, summary.offloaded), (500, 0, 0));
        assert_eq!(summary.without_counters, 500);
    });
}

#[test]
fn a_connection_is_deleted_and_no_other_in_its_place() {
    let node = Netns::new("node");
    node.ip("link set lo up");
    node.nft("table inet t { chain c { type filter hook output priority 0; ct state new; }; }");
    node.run(|| {
        let mut conntrack = Conntrack::open().expect("open");
        for address in ["127.0.0.1", "::1"] {
            let (client, server, tuple) = datagram(address);
            let entry = conntrack.get(&tuple, 0).expect("read").expect("the connection");
            assert_eq!(conntrack.delete(&entry).expect("delete"), Deletion::Done);
            assert_eq!(conntrack.get(&tuple, 0).expect("read"), None);
            assert_eq!(conntrack.delete(&entry).expect("delete"), Deletion::Gone);
            // The same tuple again is another connection, mostly with another id.
            client.send_to(b"again", server.local_addr().expect("address")).expect("send");
            let new = conntrack.get(&tuple, 0).expect("read").expect("the connection");
            let old = Entry { id: new.id ^ 1, ..new };
            assert_eq!(conntrack.delete(&old).expect("delete"), Deletion::Gone);
            assert!(conntrack.get(&tuple, 0).expect("read").is_some());
        }
    });
}
