//! Rules that ask more than headers and connection, but not of these flows, or that decide nothing: flows stay fast.

use fastpath_tests::twin::{Case, Change, Path, Step::Node, With};

const ADDED: Change = Change { undo: &[Node("nft flush chain inet fw forward")], ..Change::HARMLESS };
const XT: Change = Change { undo: &[Node("iptables-nft -F FORWARD")], ..Change::HARMLESS };

const CASE: Case = Case {
    name: "unconcerned",
    set_up: &[Node(
        "nft 'table inet fw {
            set ban { type ipv4_addr; flags timeout; }
            chain logs { limit rate 1/minute log; }
            chain shape { limit rate over 10/second drop; }
            chain forward { type filter hook forward priority 0; }
         }'",
    )],
    changes: &[
        Change {
            name: "a limit of another port",
            steps: &[Node("nft add rule inet fw forward udp dport 9 limit rate over 10/second drop")],
            ..ADDED
        },
        Change {
            name: "a limit of other addresses",
            steps: &[Node(
                "nft add rule inet fw forward ip saddr 10.9.0.0/16 limit rate over 10/second drop",
            )],
            ..ADDED
        },
        Change {
            name: "a limit of other addresses, before NAT",
            steps: &[Node(
                "nft 'table inet pre { chain c { type filter hook prerouting priority raw; ip saddr 10.9.0.0/16 limit rate over 10/second drop; udp dport 9 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table inet pre")],
            ..ADDED
        },
        Change {
            name: "a limit of other addresses, behind NAT",
            steps: &[Node(
                "nft 'table inet post { chain c { type filter hook postrouting priority 300; ip daddr 10.9.0.0/16 limit rate over 10/second drop; tcp sport 9 limit rate over 10/second drop; }; }'",
            )],
            undo: &[Node("nft delete table inet post")],
            ..ADDED
        },
        Change {
            name: "a quota of another interface",
            steps: &[Node("nft add rule inet fw forward iifname eth7 quota over 20 bytes drop")],
            ..ADDED
        },
        Change {
            name: "a limit behind jumps for other flows",
            steps: &[Node(
                "nft 'add rule inet fw forward ip saddr 10.9.0.1 jump shape; add rule inet fw forward oifname eth7 goto shape; add rule inet fw forward iifname vmap { eth7 : jump shape, eth8 : goto shape }'",
            )],
            ..ADDED
        },
        Change {
            name: "a limit behind a jump of new connections",
            steps: &[Node("nft add rule inet fw forward ct state new jump shape")],
            ..ADDED
        },
        Change {
            name: "a limit of new connections",
            steps: &[Node("nft add rule inet fw forward ct state new limit rate over 1/minute drop")],
            ..ADDED
        },
        Change {
            name: "a queue behind what accepts all that is established",
            steps: &[Node(
                "nft 'add rule inet fw forward ct state established,related accept; add rule inet fw forward queue num 3'",
            )],
            ..ADDED
        },
        Change {
            name: "a limited log",
            steps: &[Node("nft add rule inet fw forward limit rate 1/minute log")],
            ..ADDED
        },
        Change {
            name: "a limited jump to a log",
            steps: &[Node("nft add rule inet fw forward limit rate 1/minute jump logs")],
            ..ADDED
        },
        Change {
            name: "a set with timeouts that others are in",
            steps: &[Node(
                "nft 'add element inet fw ban { 10.9.0.1 timeout 1h }; add rule inet fw forward ip saddr @ban drop'",
            )],
            path: Path::Revalidated,
            ..ADDED
        },
        Change {
            name: "a time of day for others",
            steps: &[Node("nft add rule inet fw forward ip saddr 10.9.0.1 meta hour \\>= 00:00 drop")],
            path: Path::Revalidated,
            ..ADDED
        },
        Change {
            name: "hashlimit of other flows",
            steps: &[Node(
                "iptables-nft -A FORWARD -s 10.9.0.1 -m hashlimit --hashlimit-above 10/s --hashlimit-name x -j DROP",
            )],
            ..XT
        },
        Change {
            name: "a limited LOG",
            steps: &[Node("iptables-nft -A FORWARD -m limit --limit 1/min -j LOG")],
            ..XT
        },
        Change {
            name: "NFQUEUE of another port",
            steps: &[Node("iptables-nft -A FORWARD -p udp --dport 9 -j NFQUEUE --queue-num 3")],
            ..XT
        },
    ],
    ..Case::PLAIN
};

#[test]
fn flows_stay_fast() {
    CASE.run(With::Agent).assert_same_fate();
}
