//! Rules that want every packet: flows that match them aren't offloaded, so that they see each. Only IPv4 flows of the client
//! are concerned; others stay fast where the rule's conditions can be copied.

use fastpath_tests::{
    topology::{Family, Layout, Nat},
    twin::{Case, Change, Path, Step::Node, With},
};

const FIREWALL: &str = "nft 'table inet fw {
    set metered { type ipv4_addr; flags dynamic; }
    limit slow { rate over 10/second; }
    quota little { over 2000 bytes; }
    chain shape { limit rate over 10/second drop; }
    chain mine { meta mark 0 jump shape; }
    chain forward { type filter hook forward priority 0; }
 }'";
/// Otherwise the first rule that asks for counts switches it on, for connections from then on. The agent's own rule does.
const ACCOUNTING: &str = "echo 1 > /proc/sys/net/netfilter/nf_conntrack_acct";
const FLUSH: &[fastpath_tests::twin::Step] = &[Node("nft flush chain inet fw forward")];

/// IPv6 flows stay fast.
const STOP_V4: Change = Change { family: Some(Family::V4), path: Path::Fast, undo: FLUSH, ..Change::STOP };

const NFT: Case = Case {
    name: "nft",
    set_up: &[Node(ACCOUNTING), Node(FIREWALL)],
    changes: &[
        Change {
            name: "limit",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.2 limit rate over 10/second drop")],
            ..STOP_V4
        },
        Change {
            name: "limit of the answers",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.2.0.2 limit rate over 10/second drop")],
            ..STOP_V4
        },
        Change {
            name: "limit and accept",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr 10.1.0.2 limit rate 10/second accept; add rule inet fw forward ip saddr 10.1.0.2 drop'",
            )],
            ..STOP_V4
        },
        Change {
            name: "named limit",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.0/16 limit name slow drop")],
            ..STOP_V4
        },
        Change {
            name: "quota",
            steps: &[Node(
                "nft add rule inet fw forward iif c0 ip protocol { tcp, udp } quota over 2000 bytes drop",
            )],
            ..STOP_V4
        },
        Change {
            name: "named quota",
            steps: &[Node(
                "nft add rule inet fw forward iifname c0 ip daddr 10.2.0.2 quota name little drop",
            )],
            ..STOP_V4
        },
        Change {
            name: "ct packets",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.2 ct packets \\> 150 drop")],
            ..STOP_V4
        },
        Change {
            name: "queue without a program",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.2 ct packets \\> 150 queue num 3")],
            ..STOP_V4
        },
        Change {
            name: "numgen",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.2 numgen random mod 20 != 0 drop")],
            ..STOP_V4
        },
        Change {
            name: "meter",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr 10.1.0.2 add @metered { ip saddr limit rate over 10/second } drop'",
            )],
            ..STOP_V4
        },
        Change {
            name: "behind a jump",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.1.0.2 jump shape")],
            ..STOP_V4
        },
        Change {
            name: "behind two jumps, of the answers",
            steps: &[Node("nft add rule inet fw forward ip daddr 10.1.0.2 goto mine")],
            ..STOP_V4
        },
        Change {
            name: "behind several jumps",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr 10.9.0.1 jump shape; add rule inet fw forward ip saddr 10.1.0.2 jump shape; add rule inet fw forward iifname eth7 jump mine'",
            )],
            ..STOP_V4
        },
        Change {
            name: "behind a verdict map of addresses",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr vmap { 10.9.0.1 : drop, 10.1.0.2 : jump shape }'",
            )],
            ..STOP_V4
        },
        Change {
            name: "behind a verdict map of networks",
            steps: &[Node("nft 'add rule inet fw forward ip saddr vmap { 10.0.0.0-10.1.0.9 : jump shape }'")],
            ..STOP_V4
        },
        Change {
            name: "behind a jump, and the map's default",
            steps: &[Node(
                "nft 'add rule inet fw forward ip daddr vmap { 10.1.0.2 : accept, * : goto mine }'",
            )],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

/// Conditions in sets of the rule's own.
const OWN_SETS: Case = Case {
    name: "sets of the rule's own",
    changes: &[
        Change {
            name: "behind a jump by addresses of its own",
            steps: &[Node("nft 'add rule inet fw forward ip saddr { 10.9.0.1, 10.1.0.2 } jump shape'")],
            ..STOP_V4
        },
        Change {
            name: "by networks of its own",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr { 10.9.0.0/16, 10.1.0.0/24 } limit rate over 10/second drop'",
            )],
            ..STOP_V4
        },
        Change {
            name: "by other addresses",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr { 10.9.0.0/16, 10.1.0.3-10.1.0.9 } jump shape
                  add rule inet fw forward tcp dport { 22, 8000-8100 } limit rate over 10/second drop'",
            )],
            undo: FLUSH,
            ..Change::HARMLESS
        },
    ],
    ..NFT
};

/// Addresses are others there, so that all IPv4 flows are left out; in postrouting both directions leave traces.
const ELSEWHERE: Case = Case {
    name: "in other hooks",
    layout: Layout { nat: Nat::Masquerade, ..Case::PLAIN.layout },
    changes: &[
        Change {
            name: "prerouting",
            steps: &[Node(
                "nft 'table ip raw { chain c { type filter hook prerouting priority raw; ip saddr 10.1.0.2 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip raw")],
            ..STOP_V4
        },
        Change {
            name: "forward",
            steps: &[Node(
                "nft 'table ip fw { chain c { type filter hook forward priority 0; ip saddr 10.1.0.2 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip fw")],
            ..STOP_V4
        },
        Change {
            name: "prerouting, of the answers as they come in",
            steps: &[Node(
                "nft 'table ip raw { chain c { type filter hook prerouting priority raw; ip saddr 10.2.0.2 ip daddr 10.2.0.1 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip raw")],
            ..STOP_V4
        },
        Change {
            name: "postrouting, behind NAT",
            steps: &[Node(
                "nft 'table ip post { chain c { type filter hook postrouting priority 300; ip saddr 10.2.0.1 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip post")],
            ..STOP_V4
        },
        Change {
            name: "postrouting",
            steps: &[Node(
                "nft 'table ip post { chain c { type filter hook postrouting priority 0; ip saddr 10.1.0.2 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip post")],
            ..STOP_V4
        },
        Change {
            name: "postrouting behind NAT",
            steps: &[Node(
                "nft 'table ip post { chain c { type filter hook postrouting priority 150; ip saddr 10.2.0.1 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table ip post")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

const XT_V4: Change = Change { undo: &[Node("iptables-nft -F FORWARD")], ..STOP_V4 };

const XTABLES: Case = Case {
    name: "xtables",
    set_up: &[Node(ACCOUNTING)],
    changes: &[
        Change {
            name: "limit",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m limit --limit 10/s -j ACCEPT; iptables-nft -A FORWARD -s 10.1.0.2 -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "hashlimit",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m hashlimit --hashlimit-above 10/s --hashlimit-name x -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "statistic",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m statistic --mode random --probability 0.95 -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "connbytes",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m connbytes --connbytes 150: --connbytes-dir both --connbytes-mode packets -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "quota",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m quota --quota 2000 -j ACCEPT; iptables-nft -A FORWARD -s 10.1.0.2 -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "NFQUEUE without a program",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m connbytes --connbytes 150: --connbytes-dir both --connbytes-mode packets -j NFQUEUE --queue-num 3",
            )],
            ..XT_V4
        },
    ],
    ..Case::PLAIN
};

/// Rules that drop none of these packets, but have to see them.
const SLOW: Change = Change { path: Path::Slow, ..Change::HARMLESS };
const SEES_ALL: Case = Case {
    name: "seen by",
    family: Some(Family::V4),
    changes: &[
        Change {
            name: "string",
            steps: &[Node("iptables-nft -A FORWARD -s 10.1.0.2 -m string --algo bm --string secret -j DROP")],
            undo: &[Node("iptables-nft -F FORWARD")],
            ..SLOW
        },
        Change {
            name: "connlimit",
            steps: &[Node("iptables-nft -A FORWARD -s 10.1.0.2 -m connlimit --connlimit-above 900 -j DROP")],
            undo: &[Node("iptables-nft -F FORWARD")],
            ..SLOW
        },
        Change {
            name: "an edit of addresses",
            steps: &[Node(
                "nft 'table ip edit { chain c { type filter hook postrouting priority 300; ip saddr 10.1.0.2 ip saddr set 10.1.0.2; }; }'",
            )],
            undo: &[Node("nft delete table ip edit")],
            ..SLOW
        },
        Change {
            name: "a rule without conditions",
            steps: &[Node(
                "nft 'table inet edge { chain c { type filter hook forward priority 0; limit rate over 1000000/second drop; }; }'",
            )],
            undo: &[Node("nft delete table inet edge")],
            ..SLOW
        },
    ],
    ..Case::PLAIN
};

/// The rule that wants every packet decides by what other rules make of it, or isn't the first that looks like an end.
const ROUNDABOUT: Case = Case {
    name: "in roundabout ways",
    layout: Layout { nat: Nat::Masquerade, ..Case::PLAIN.layout },
    set_up: &[Node(ACCOUNTING), Node(FIREWALL)],
    changes: &[
        Change {
            name: "a ban of those over a limit",
            steps: &[Node(
                "nft 'add set inet fw ban { type ipv4_addr; flags dynamic,timeout; timeout 5m; }
                  add rule inet fw forward ip saddr @ban drop
                  add rule inet fw forward ip saddr 10.1.0.2 limit rate over 10/second add @ban { ip saddr }'",
            )],
            undo: &[Node("nft 'flush chain inet fw forward; delete set inet fw ban'")],
            ..STOP_V4
        },
        Change {
            name: "state and interface in one map",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr 10.1.0.2 ct state . iifname vmap { established . \"c0\" : jump shape }'",
            )],
            ..STOP_V4
        },
        Change {
            name: "behind a target that lets packets go on",
            steps: &[Node(
                "iptables-nft -A FORWARD -j AUDIT --type accept
                 iptables-nft -A FORWARD -s 10.1.0.2 -m hashlimit --hashlimit-above 10/s --hashlimit-name a -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "recent, with a number of packets",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m recent --name f --set
                 iptables-nft -A FORWARD -s 10.1.0.2 -m recent --name f --update --seconds 10 --hitcount 10 -j DROP",
            )],
            ..XT_V4
        },
        Change {
            name: "a mark by which routing denies",
            steps: &[Node(
                "ip rule add fwmark 0x66 prohibit
                 nft 'table ip marks { chain c { type filter hook prerouting priority -150; \
                  ip saddr 10.1.0.2 limit rate over 10/second meta mark set 0x66; }; }'",
            )],
            undo: &[Node("ip rule del fwmark 0x66; nft delete table ip marks")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

#[test]
fn in_roundabout_ways() {
    ROUNDABOUT.run(With::Programs).assert_same_fate();
}

#[test]
fn with_sets_of_their_own() {
    OWN_SETS.run(With::Agent).assert_same_fate();
}

#[test]
fn of_nft() {
    NFT.run(With::Agent).assert_same_fate();
}

#[test]
fn in_other_hooks() {
    ELSEWHERE.run(With::Agent).assert_same_fate();
}

#[test]
fn of_xtables() {
    XTABLES.run(With::Programs).assert_same_fate();
}

#[test]
fn that_drop_nothing_yet() {
    SEES_ALL.run(With::Agent).assert_same_fate();
}

/// The same changes where the operator ignores such rules: no flow feels them.
#[test]
fn ignored_by_choice() {
    NFT.run(With::Ignoring).assert_each_change_wrongs();
}

#[test]
fn of_xtables_ignored_by_choice() {
    XTABLES.run(With::Ignoring).assert_each_change_wrongs();
}
