//! Rules that ask for what differs between packets of one flow: TTL, DSCP, TCP flags … The flows are there before their packets
//! change, which the client does to its own on their way out.

use fastpath_tests::{
    topology::Family,
    twin::{
        Case, Change, Path,
        Step::{self, Client, Node},
        With,
    },
};

/// A table of the client's that edits what it sends.
macro_rules! client {
    ($family:literal, $edit:literal) => {
        Client(concat!(
            "nft 'table ",
            $family,
            " edit { chain o { type filter hook output priority 0; ",
            $edit,
            "; }; }'"
        ))
    };
}

const UNEDITED: &[Step] = &[Client("nft delete table ip edit")];
const STOP: Change = Change { undo: UNEDITED, ..Change::STOP };

const NFT: Case = Case {
    name: "headers, by nft",
    family: Some(Family::V4),
    path: Path::Slow,
    set_up: &[Node(
        "nft 'table inet fw {
            chain denied { drop; }
            chain forward { type filter hook forward priority 0;
                ip saddr 10.1.0.2 ip ttl 20-39 drop
                iifname c0 ip dscp cs3 drop
                ip saddr 10.1.0.2 ip dscp { cs1, cs2 } drop
                ip ecn ce ip saddr 10.1.0.2 jump denied
                meta nfproto ipv4 iifname c0 ip id 7 drop
                iifname c0 tcp flags & ecn == ecn drop
                iifname c0 udp checksum 0 drop
                iifname c0 ip dscp vmap { cs5 : drop, cs6 : jump denied }
            }
         }'",
    )],
    changes: &[
        Change { name: "TTL", steps: &[client!("ip", "ip ttl set 30")], ..STOP },
        Change { name: "DSCP", steps: &[client!("ip", "ip dscp set cs3")], ..STOP },
        Change { name: "DSCP, one of a set", steps: &[client!("ip", "ip dscp set cs1")], ..STOP },
        Change { name: "DSCP, by a map", steps: &[client!("ip", "ip dscp set cs6")], ..STOP },
        Change { name: "ECN, behind a jump", steps: &[client!("ip", "ip ecn set ce")], ..STOP },
        Change { name: "the identification", steps: &[client!("ip", "ip id set 7")], ..STOP },
        Change {
            name: "TCP flags, and UDP's checksum",
            steps: &[client!(
                "ip",
                "meta l4proto tcp tcp flags set 0x58; meta l4proto udp udp checksum set 0"
            )],
            ..STOP
        },
    ],
    ..Case::PLAIN
};

const MARKED: Case = Case {
    name: "a mark by DSCP",
    family: Some(Family::V4),
    path: Path::Slow,
    set_up: &[Node(
        "nft 'table inet fw {
            chain pre { type filter hook prerouting priority mangle; iifname c0 ip dscp cs3 meta mark set 7; }
            chain forward { type filter hook forward priority 0; meta mark 7 drop; }
         }'",
    )],
    changes: &[Change { name: "DSCP", steps: &[client!("ip", "ip dscp set cs3")], ..STOP }],
    ..Case::PLAIN
};

const IPV6: Case = Case {
    name: "headers of IPv6",
    family: Some(Family::V6),
    path: Path::Slow,
    set_up: &[Node(
        "nft 'table inet fw { chain forward { type filter hook forward priority 0;
            iifname c0 ip6 hoplimit < 40 drop
            iifname c0 ip6 dscp cs3 drop
         }; }'",
    )],
    changes: &[
        Change {
            name: "hop limit",
            steps: &[client!("ip6", "meta l4proto { tcp, udp } ip6 hoplimit set 30")],
            undo: &[Client("nft delete table ip6 edit")],
            ..STOP
        },
        Change {
            name: "DSCP",
            steps: &[client!("ip6", "meta l4proto { tcp, udp } ip6 dscp set cs3")],
            undo: &[Client("nft delete table ip6 edit")],
            ..STOP
        },
    ],
    ..Case::PLAIN
};

const XTABLES: Case = Case {
    name: "headers, by xtables",
    family: Some(Family::V4),
    path: Path::Slow,
    set_up: &[Node(
        "iptables-nft -t mangle -A PREROUTING -i c0 -m ttl --ttl-lt 20 -j DROP
         iptables-nft -A FORWARD -s 10.1.0.2 -m dscp --dscp-class cs3 -j DROP
         iptables-nft -A FORWARD -s 10.1.0.2 -m tos --tos 0x20/0xfc -j DROP
         iptables-nft -A FORWARD -s 10.1.0.2 -m ecn --ecn-ip-ect 3 -j DROP
         iptables-nft -A FORWARD -s 10.1.0.2 -m length --length 1300:1600 -j DROP",
    )],
    changes: &[
        Change { name: "ttl", steps: &[client!("ip", "ip ttl set 15")], ..STOP },
        Change { name: "dscp", steps: &[client!("ip", "ip dscp set cs3")], ..STOP },
        Change { name: "tos", steps: &[client!("ip", "ip dscp set cs1")], ..STOP },
        Change { name: "ecn", steps: &[client!("ip", "ip ecn set ce")], ..STOP },
    ],
    ..Case::PLAIN
};

/// Rules whose conditions can't change under these flows: they have to see all packets.
const SLOW: Change = Change { path: Path::Slow, ..Change::HARMLESS };
const FLUSH: &[Step] = &[Node("nft flush chain inet fw forward")];
const XT_FLUSH: &[Step] = &[Node("iptables-nft -F FORWARD")];
const SEES_ALL: Case = Case {
    name: "headers, seen by",
    family: Some(Family::V4),
    set_up: &[Node("nft 'table inet fw { chain forward { type filter hook forward priority 0; }; }'")],
    changes: &[
        Change {
            name: "meta length",
            steps: &[Node("nft add rule inet fw forward iifname c0 meta length \\> 1300 drop")],
            undo: FLUSH,
            ..SLOW
        },
        Change {
            name: "raw payload",
            steps: &[Node("nft add rule inet fw forward iifname c0 @th,160,32 0xdeadbeef drop")],
            undo: FLUSH,
            ..SLOW
        },
        Change {
            name: "length",
            steps: &[Node("iptables-nft -A FORWARD -s 10.1.0.2 -m length --length 1300: -j DROP")],
            undo: XT_FLUSH,
            ..SLOW
        },
    ],
    ..Case::PLAIN
};

/// Not of these packets, or of none that the flowtable would take, or deciding nothing.
const ADDED: Change = Change { undo: FLUSH, ..Change::HARMLESS };
const XT: Change = Change { undo: XT_FLUSH, ..Change::HARMLESS };
const FAST: Case = Case {
    name: "headers of other flows",
    family: None,
    changes: &[
        Change {
            name: "TTL of another port",
            steps: &[Node("nft add rule inet fw forward udp dport 9 ip ttl \\< 40 drop")],
            ..ADDED
        },
        Change {
            name: "TTL behind a jump for other flows",
            steps: &[Node(
                "nft 'add chain inet fw low { ip ttl < 40 drop; }; add rule inet fw forward ip saddr 10.9.0.1 jump low'",
            )],
            ..ADDED
        },
        Change {
            name: "TTL behind what accepts all that is established",
            steps: &[Node(
                "nft 'add rule inet fw forward ct state established,related accept; add rule inet fw forward ip ttl < 40 drop'",
            )],
            ..ADDED
        },
        Change {
            name: "DSCP that is set, and one that is counted",
            steps: &[Node(
                "nft 'add rule inet fw forward ip dscp set cs1; add rule inet fw forward ip dscp cs1 counter; add rule inet fw forward ip dscp cs1 ct mark set 1'",
            )],
            ..ADDED
        },
        Change {
            name: "fragments",
            steps: &[Node("nft add rule inet fw forward ip frag-off \\& 0x1fff != 0 drop")],
            ..ADDED
        },
        Change {
            name: "IP options",
            steps: &[Node(
                "nft 'add rule inet fw forward ip option lsrr exists drop; add rule inet fw forward exthdr rt exists drop'",
            )],
            ..ADDED
        },
        Change {
            name: "a TTL that is spent",
            steps: &[Node(
                "nft 'table inet pre { chain c { type filter hook prerouting priority raw; ip ttl 1 drop; ip6 hoplimit < 2 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet pre")],
            ..ADDED
        },
        Change {
            name: "resets",
            steps: &[Node(
                "nft add rule inet fw forward tcp flags \\& rst == rst limit rate over 1/second drop",
            )],
            ..ADDED
        },
        Change {
            name: "the size of segments",
            steps: &[Node("nft add rule inet fw forward tcp flags syn tcp option maxseg size set 1200")],
            ..ADDED
        },
        Change {
            name: "TCPMSS",
            steps: &[Node(
                "iptables-nft -A FORWARD -p tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 1400:65495 -j TCPMSS --set-mss 1200",
            )],
            ..XT
        },
        Change { name: "fragments, by xtables", steps: &[Node("iptables-nft -A FORWARD -f -j DROP")], ..XT },
        Change {
            name: "packets to others",
            steps: &[Node("iptables-nft -A FORWARD -m pkttype --pkt-type broadcast -j DROP")],
            ..XT
        },
    ],
    path: Path::Fast,
    ..SEES_ALL
};

#[test]
fn of_nft() {
    NFT.run(With::Agent).assert_same_fate();
    MARKED.run(With::Agent).assert_same_fate();
}

#[test]
fn of_ipv6() {
    IPV6.run(With::Agent).assert_same_fate();
}

#[test]
fn of_xtables() {
    XTABLES.run(With::Programs).assert_same_fate();
}

#[test]
fn that_drop_nothing_yet() {
    SEES_ALL.run(With::Agent).assert_same_fate();
}

#[test]
fn others_leave_flows_fast() {
    FAST.run(With::Agent).assert_same_fate();
}

/// Where the operator ignores such rules, no flow feels them.
#[test]
fn ignored_by_choice() {
    NFT.run(With::Ignoring).assert_each_change_wrongs();
    MARKED.run(With::Ignoring).assert_each_change_wrongs();
    IPV6.run(With::Ignoring).assert_each_change_wrongs();
    XTABLES.run(With::Ignoring).assert_each_change_wrongs();
}
