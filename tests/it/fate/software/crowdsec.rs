//! CrowdSec's firewall bouncer (cs-firewall-bouncer): its nftables mode (pkg/nftables/nftables_context.go, `initOwnTable`) and
//! its iptables mode (pkg/iptables/iptables_context.go). Bans run out.

use fastpath_tests::{
    topology::Family,
    twin::{
        Case, Change,
        Step::{self, Node},
        With,
    },
};

use super::{HARMLESS_REVALIDATED, REVALIDATED, STOP_V4_REVALIDATED, concerned};

const NFTABLES: Step = Node(
    "nft 'table ip crowdsec {
        set crowdsec-blacklists { type ipv4_addr; flags timeout; }
        chain crowdsec-chain-input { type filter hook input priority -10; ip saddr @crowdsec-blacklists counter drop; }
        chain crowdsec-chain-forward { type filter hook forward priority -10; ip saddr @crowdsec-blacklists counter drop; }
     }
     table ip6 crowdsec6 {
        set crowdsec6-blacklists { type ipv6_addr; flags timeout; }
        chain crowdsec6-chain-input { type filter hook input priority -10; ip6 saddr @crowdsec6-blacklists counter drop; }
        chain crowdsec6-chain-forward { type filter hook forward priority -10; ip6 saddr @crowdsec6-blacklists counter drop; }
     }'",
);

const NFTABLES_CASE: Case = Case {
    name: "CrowdSec, nftables",
    set_up: &[NFTABLES],
    changes: &[
        Change {
            name: "a ban",
            steps: &[Node("nft 'add element ip crowdsec crowdsec-blacklists { 10.1.0.2 timeout 4h }'")],
            undo: &[Node("nft 'delete element ip crowdsec crowdsec-blacklists { 10.1.0.2 }'")],
            ..STOP_V4_REVALIDATED
        },
        Change {
            name: "a ban of an IPv6 address",
            steps: &[Node("nft 'add element ip6 crowdsec6 crowdsec6-blacklists { fd00:1::2 timeout 4h }'")],
            undo: &[Node("nft 'delete element ip6 crowdsec6 crowdsec6-blacklists { fd00:1::2 }'")],
            family: Some(Family::V6),
            ..STOP_V4_REVALIDATED
        },
        Change {
            name: "a ban of another",
            steps: &[Node("nft 'add element ip crowdsec crowdsec-blacklists { 10.9.0.1 timeout 4h }'")],
            ..HARMLESS_REVALIDATED
        },
    ],
    ..REVALIDATED
};

/// With logging: a set for each origin of bans is asked at the head of FORWARD.
const IPTABLES: Step = Node(
    "iptables-nft -N CROWDSEC_CHAIN; iptables-nft -I INPUT -j CROWDSEC_CHAIN; iptables-nft -I FORWARD -j CROWDSEC_CHAIN
     iptables-nft -N CROWDSEC_LOG; iptables-nft -I CROWDSEC_LOG -j LOG --log-prefix crowdsec:; iptables-nft -A CROWDSEC_LOG -j DROP
     for origin in 0 1; do
        ipset create crowdsec-blacklists-$origin hash:net timeout 300 maxelem 131072
        iptables-nft -I CROWDSEC_CHAIN -m set --match-set crowdsec-blacklists-$origin src -j CROWDSEC_LOG -m comment --comment \"CrowdSec: crowdsec-blacklists-$origin\"
     done",
);

const IPTABLES_CASE: Case = Case {
    name: "CrowdSec, iptables",
    set_up: &[IPTABLES],
    changes: &[
        Change {
            name: "a ban",
            steps: &[Node("echo add crowdsec-blacklists-1 10.1.0.0/24 timeout 14400 -exist | ipset restore")],
            undo: &[Node("ipset del crowdsec-blacklists-1 10.1.0.0/24")],
            ..STOP_V4_REVALIDATED
        },
        Change {
            name: "a ban of another",
            steps: &[Node("echo add crowdsec-blacklists-0 10.9.0.1 timeout 14400 -exist | ipset restore")],
            ..HARMLESS_REVALIDATED
        },
    ],
    ..REVALIDATED
};

#[test]
fn its_sets_concern_established_connections() {
    assert_eq!(
        concerned(NFTABLES_CASE.set_up),
        [
            "changing set crowdsec-blacklists in ip crowdsec crowdsec-chain-forward",
            "changing set crowdsec6-blacklists in ip6 crowdsec6 crowdsec6-chain-forward",
        ]
    );
    assert_eq!(concerned(IPTABLES_CASE.set_up), ["changing ipset in ip filter CROWDSEC_CHAIN"; 2]);
}

#[test]
fn same_fate_with_nftables() {
    NFTABLES_CASE.run(With::Agent).assert_same_fate();
}

#[test]
fn same_fate_with_iptables() {
    IPTABLES_CASE.run(With::Agent).assert_same_fate();
}
