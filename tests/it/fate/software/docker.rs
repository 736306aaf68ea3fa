//! Docker: chains of its iptables backend (moby, daemon/libnetwork/drivers/bridge/internal/iptabler, golden files of
//! TestIptabler) and of its nftables backend (…/internal/nftabler). The server plays a container, `s0` its bridge.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{HARMLESS_REVALIDATED, REVALIDATED, STOP_V4, STOP_V4_REVALIDATED, concerned};

/// Gateway mode `routed`, with all ports of the tests published; DOCKER-USER has an administrator's block list.
const IPTABLES: Step = Node(
    "ipset create block hash:ip timeout 0
     iptables-nft-restore --noflush <<'END'
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-INTERNAL - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER-USER -i c0 -m set --match-set block src -j DROP
-A DOCKER -d 10.2.0.2/32 ! -i s0 -o s0 -p tcp -m tcp --dport 7001:7012 -j ACCEPT
-A DOCKER -d 10.2.0.2/32 ! -i s0 -o s0 -p udp -m udp --dport 7001:7012 -j ACCEPT
-A DOCKER ! -i s0 -o s0 -j DROP
-A DOCKER-BRIDGE -o s0 -j DOCKER
-A DOCKER-CT -o s0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-INTERNAL
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i s0 -j ACCEPT
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i s0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.2.0.2:7001
COMMIT
END",
);

const IPTABLES_CASE: Case = Case {
    name: "Docker",
    set_up: &[IPTABLES],
    changes: &[
        Change {
            name: "another container",
            steps: &[Node(
                "iptables-nft -I DOCKER -d 10.2.0.9/32 ! -i s0 -o s0 -p tcp -m tcp --dport 80 -j ACCEPT",
            )],
            undo: &[Node("iptables-nft -D DOCKER 1")],
            ..HARMLESS_REVALIDATED
        },
        Change {
            name: "a rule in DOCKER-USER",
            steps: &[Node("iptables-nft -I DOCKER-USER -s 10.1.0.2 -j DROP")],
            undo: &[Node("iptables-nft -D DOCKER-USER 1")],
            ..STOP_V4_REVALIDATED
        },
        Change {
            name: "an entry of the block list in DOCKER-USER",
            steps: &[Node("ipset add block 10.1.0.2")],
            undo: &[Node("ipset del block 10.1.0.2")],
            ..STOP_V4_REVALIDATED
        },
    ],
    ..REVALIDATED
};

/// Gateway mode `routed`. Chains of a network are reached by verdict maps.
const NFTABLES: Step = Node(
    "nft 'table ip docker-bridges {
        map filter-forward-in-jumps { type ifname : verdict; elements = { \"s0\" : jump filter-forward-in__s0 }; }
        map filter-forward-out-jumps { type ifname : verdict; elements = { \"s0\" : jump filter-forward-out__s0 }; }
        map nat-postrouting-out-jumps { type ifname : verdict; elements = { \"s0\" : jump nat-postrouting-out__s0 }; }
        chain filter-FORWARD { type filter hook forward priority filter; policy accept;
            oifname vmap @filter-forward-in-jumps
            iifname vmap @filter-forward-out-jumps
        }
        chain nat-POSTROUTING { type nat hook postrouting priority srcnat; iifname vmap @nat-postrouting-out-jumps; }
        chain raw-PREROUTING { type filter hook prerouting priority raw; policy accept; }
        chain filter-forward-in__s0 {
            ct state established,related counter accept
            iifname s0 counter accept comment \"ICC\"
            ip daddr 10.2.0.2 th dport 7001-7012 counter accept
            counter drop comment \"UNPUBLISHED PORT DROP\"
        }
        chain filter-forward-out__s0 {
            ct state established,related counter accept
            counter accept comment \"OUTGOING\"
        }
        chain nat-postrouting-out__s0 { }
     }'",
);

const NFTABLES_CASE: Case = Case {
    name: "Docker, nftables",
    set_up: &[NFTABLES],
    changes: &[
        Change {
            name: "another network",
            steps: &[Node(
                "nft 'add chain ip docker-bridges filter-forward-in__br1 { ct state established,related accept; drop; }
                      add element ip docker-bridges filter-forward-in-jumps { \"br1\" : jump filter-forward-in__br1 }'",
            )],
            undo: &[Node(
                "nft 'delete element ip docker-bridges filter-forward-in-jumps { \"br1\" }; delete chain ip docker-bridges filter-forward-in__br1'",
            )],
            ..Change::HARMLESS
        },
        Change {
            name: "an administrator's limit in a network's chain",
            steps: &[Node(
                "nft insert rule ip docker-bridges filter-forward-in__s0 ip saddr 10.1.0.2 limit rate over 10/second drop",
            )],
            undo: &[Node(
                "nft 'flush chain ip docker-bridges filter-forward-in__s0; add rule ip docker-bridges filter-forward-in__s0 accept'",
            )],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

#[test]
fn only_the_block_list_concerns_established_connections() {
    assert_eq!(concerned(IPTABLES_CASE.set_up), ["changing ipset in ip filter DOCKER-USER"]);
    assert_eq!(concerned(NFTABLES_CASE.set_up), [""; 0]);
}

#[test]
fn same_fate_with_iptables() {
    IPTABLES_CASE.run(With::Agent).assert_same_fate();
}

#[test]
fn same_fate_with_nftables() {
    NFTABLES_CASE.run(With::Agent).assert_same_fate();
}
