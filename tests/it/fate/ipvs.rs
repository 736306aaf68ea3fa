//! IPVS in NAT mode whose connections are conntrack's too: requests leave without passing the forward hook, answers pass it.

use fastpath_tests::twin::{Case, Change, Ends, Flows, Path, Step::Node, With};

const IPVS: Case = Case {
    name: "IPVS with conntrack",
    ends: Ends::Service("10.96.0.1", "fd00:96::1"),
    flows: Flows::BothCross,
    set_up: &[Node(
        "modprobe -a ip_vs ip_vs_rr
         ip link set lo up
         ip address add 10.96.0.1/32 dev lo; ip address add fd00:96::1/128 dev lo nodad
         echo 1 > /proc/sys/net/ipv4/vs/conntrack
         for port in $(seq 7001 7012); do for proto in -t -u; do
             echo \"-A $proto 10.96.0.1:$port -s rr
             -a $proto 10.96.0.1:$port -r 10.2.0.2:$port -m
             -A $proto [fd00:96::1]:$port -s rr
             -a $proto [fd00:96::1]:$port -r [fd00:2::2]:$port -m\"
         done; done | ipvsadm -R",
    )],
    // Nothing counts the requests: they don't reach the forward hook.
    path: Path::Any,
    ..Case::PLAIN
};

const CHANGES: Case = Case {
    flows: Flows::AllNext,
    changes: &[Change {
        name: "others are denied",
        steps: &[Node(
            "nft 'table inet firewall { chain forward { type filter hook forward priority filter; udp dport 9 drop; }; }'",
        )],
        undo: &[Node("nft delete table inet firewall")],
        path: Path::Any,
        ..Change::HARMLESS
    }],
    ..IPVS
};

#[test]
fn connections_arrive() {
    IPVS.run(With::Agent).assert_same_fate();
}

#[test]
fn connections_arrive_after_a_change() {
    CHANGES.run(With::Agent).assert_same_fate();
}

#[test]
fn kindnet_rules_lose_them() {
    IPVS.run(With::Kindnet).assert_some_wronged();
}
