//! kube-network-policies (kube-network-policies, pkg/dataplane/controller.go, `syncNFTablesRules`): packets of pods go to a
//! program, which accepts a connection by a label of conntrack. Established connections with the label pass; a policy that no
//! longer allows one takes the label off, which nothing announces.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{HARMLESS_REVALIDATED, REVALIDATED, STOP_V4_REVALIDATED, concerned};

/// The first rule replaces the program. Nothing serves the queue, so what goes there is dropped.
const RULES: Step = Node(
    "nft 'table inet kube-network-policies {
        set podips-v4 { type ipv4_addr; elements = { 10.2.0.2 }; }
        set podips-v6 { type ipv6_addr; elements = { fd00:2::2 }; }
        chain postrouting { type filter hook postrouting priority srcnat - 5; policy accept;
            ct state new ct label set 100 accept
            icmpv6 type { 133, 134, 135, 136, 137 } accept
            meta skuid 0 counter accept
            ct label 100 ct state established,related counter accept
            ip saddr @podips-v4 queue num 100
            ip daddr @podips-v4 queue num 100
            ip6 saddr @podips-v6 queue num 100
            ip6 daddr @podips-v6 queue num 100
        }
     }'",
);

/// Admin network policies want all packets that have no label yet.
const DIVERT_ALL: Step = Node(
    "nft 'table inet kube-network-policies {
        chain postrouting { type filter hook postrouting priority srcnat - 5; policy accept;
            ct state new ct label set 100 accept
            icmpv6 type { 133, 134, 135, 136, 137 } accept
            meta skuid 0 counter accept
            ct label 100 ct state established,related counter accept
            queue num 100
        }
     }'",
);

/// As the program does by ctnetlink.
const FORGET: Change = Change {
    name: "a policy is revoked: the label is taken off",
    steps: &[Node(
        "mkdir -p /etc/xtables; [ -e /etc/xtables/connlabel.conf ] || echo 100 accepted > /etc/xtables/connlabel.conf
         conntrack -U -s 10.1.0.2 --label-del",
    )],
    ..STOP_V4_REVALIDATED
};

const CASE: Case = Case {
    name: "kube-network-policies",
    set_up: &[RULES],
    changes: &[
        FORGET,
        Change {
            name: "another pod",
            steps: &[Node("nft 'add element inet kube-network-policies podips-v4 { 10.2.0.9 }'")],
            ..HARMLESS_REVALIDATED
        },
    ],
    ..REVALIDATED
};

const ALL: Case = Case {
    name: "kube-network-policies, all packets",
    set_up: &[DIVERT_ALL],
    changes: &[FORGET],
    ..REVALIDATED
};

/// Up to 0.7 the program wanted new connections only.
const OLDER: Step = Node(
    "nft 'table inet kube-network-policies {
        chain postrouting { type filter hook postrouting priority srcnat - 5; policy accept;
            icmpv6 type { 133, 134, 135, 136, 137 } accept
            meta skuid 0 counter accept
            ct state established,related counter accept
            queue num 100 bypass
        }
     }'",
);

#[test]
fn connections_without_the_label_are_the_programs() {
    const LABEL: &str = "ct label & 0x00000000000000000000000010000000 == 0x00000000000000000000000000000000";
    let queue = |conditions: &str| {
        format!("every-packet queue in inet kube-network-policies postrouting [{conditions}]")
    };
    let label = "changing ct-mark ct label in inet kube-network-policies postrouting".to_owned();
    let [v4, v6] = ["4", "6"].map(|family| queue(&format!("meta nfproto ipv{family} {LABEL}")));
    assert_eq!(concerned(CASE.set_up), [label.clone(), v4.clone(), v4, v6.clone(), v6]);
    assert_eq!(concerned(ALL.set_up), [label, queue(LABEL)]);
    assert_eq!(concerned(&[OLDER]), [""; 0]);
}

#[test]
fn same_fate() {
    CASE.run(With::Agent).assert_same_fate();
}

#[test]
fn same_fate_where_all_packets_are_the_programs() {
    ALL.run(With::Agent).assert_same_fate();
}
