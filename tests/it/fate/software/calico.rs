//! Calico's Felix (calico, felix/rules: static.go, dispatch.go, endpoints.go), with iptables and with nftables. The server is a
//! workload, whose link has the prefix `s` (`InterfacePrefix`). Its policies are behind `RELATED,ESTABLISHED`; its
//! limit of packets a second is before.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{STOP_V4, concerned};

const IPTABLES: Step = Node(
    "ipset create cali40s:clients hash:ip; ipset add cali40s:clients 10.1.0.2
     iptables-nft-restore --noflush <<'END'
*raw
:cali-PREROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i s+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*mangle
:cali-PREROUTING - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*filter
:cali-FORWARD - [0:0]
:cali-from-hep-forward - [0:0]
:cali-to-hep-forward - [0:0]
:cali-cidr-block - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-to-wl-dispatch - [0:0]
:cali-fw-s0 - [0:0]
:cali-tw-s0 - [0:0]
:cali-pi-clients - [0:0]
:cali-pro-default - [0:0]
-A FORWARD -j cali-FORWARD
-A FORWARD -m comment --comment \"Policy explicitly accepted packet.\" -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -j MARK --set-xmark 0x10000/0x10000
-A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i s+ -j cali-from-wl-dispatch
-A cali-FORWARD -o s+ -j cali-to-wl-dispatch
-A cali-FORWARD -j cali-to-hep-forward
-A cali-FORWARD -j cali-cidr-block
-A cali-from-wl-dispatch -i s0 -g cali-fw-s0
-A cali-from-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP
-A cali-to-wl-dispatch -o s0 -g cali-tw-s0
-A cali-to-wl-dispatch -m comment --comment \"Unknown interface\" -j DROP
-A cali-fw-s0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-fw-s0 -m conntrack --ctstate INVALID -j DROP
-A cali-fw-s0 -j MARK --set-xmark 0x0/0x30000
-A cali-fw-s0 -j cali-pro-default
-A cali-fw-s0 -m comment --comment \"Return if profile accepted\" -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-fw-s0 -m comment --comment \"Drop if no profiles matched\" -j DROP
-A cali-tw-s0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-tw-s0 -m conntrack --ctstate INVALID -j DROP
-A cali-tw-s0 -j MARK --set-xmark 0x0/0x30000
-A cali-tw-s0 -m mark --mark 0x0/0x20000 -j cali-pi-clients
-A cali-tw-s0 -m comment --comment \"Return if policy accepted\" -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-tw-s0 -m comment --comment \"Drop if no policies passed packet\" -m mark --mark 0x0/0x20000 -j DROP
-A cali-pi-clients -m set --match-set cali40s:clients src -j MARK --set-xmark 0x10000/0x10000
-A cali-pro-default -j MARK --set-xmark 0x10000/0x10000
COMMIT
END",
);

/// What Felix writes at the head of a workload's chain with `qos.projectcalico.org/ingressPacketRate`.
const LIMIT: Step = Node(
    "iptables-nft-restore --noflush <<'END'
*filter
-I cali-tw-s0 1 -m comment --comment \"Clear ingress packet rate limit mark\" -j MARK --set-xmark 0x0/0x80000
-I cali-tw-s0 2 -m comment --comment \"Mark packets within ingress packet rate limit\" -m limit --limit 10/sec --limit-burst 20 -j MARK --set-xmark 0x80000/0x80000
-I cali-tw-s0 3 -m comment --comment \"Drop packets over ingress packet rate limit\" -m mark ! --mark 0x80000/0x80000 -j DROP
-I cali-tw-s0 4 -m comment --comment \"Clear ingress packet rate limit mark\" -j MARK --set-xmark 0x0/0x80000
COMMIT
END",
);

/// The same for another workload.
const LIMIT_OF_ANOTHER: Step = Node(
    "iptables-nft-restore --noflush <<'END'
*filter
:cali-tw-s9 - [0:0]
-A cali-tw-s9 -j MARK --set-xmark 0x0/0x80000
-A cali-tw-s9 -m limit --limit 10/sec --limit-burst 20 -j MARK --set-xmark 0x80000/0x80000
-A cali-tw-s9 -m mark ! --mark 0x80000/0x80000 -j DROP
-A cali-tw-s9 -j MARK --set-xmark 0x0/0x80000
-A cali-tw-s9 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I cali-to-wl-dispatch 1 -o s9 -g cali-tw-s9
COMMIT
END",
);

const IPTABLES_CASE: Case = Case {
    name: "Calico",
    set_up: &[IPTABLES],
    changes: &[
        Change {
            name: "a policy is revoked, for new connections",
            steps: &[Node("ipset del cali40s:clients 10.1.0.2")],
            undo: &[Node("ipset add cali40s:clients 10.1.0.2")],
            ..Change::HARMLESS
        },
        Change {
            name: "another workload",
            steps: &[Node(
                "iptables-nft -N cali-tw-s9; iptables-nft -A cali-tw-s9 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
                 iptables-nft -I cali-to-wl-dispatch -o s9 -g cali-tw-s9",
            )],
            undo: &[Node(
                "iptables-nft -D cali-to-wl-dispatch 1; iptables-nft -F cali-tw-s9; iptables-nft -X cali-tw-s9",
            )],
            ..Change::HARMLESS
        },
        Change {
            name: "the workload is disabled",
            steps: &[Node(
                "iptables-nft -I cali-tw-s0 -m comment --comment 'Endpoint admin disabled' -j DROP",
            )],
            undo: &[Node("iptables-nft -D cali-tw-s0 1")],
            ..STOP_V4
        },
        Change {
            name: "another workload's limit of packets a second",
            steps: &[LIMIT_OF_ANOTHER],
            undo: &[Node(
                "iptables-nft -D cali-to-wl-dispatch 1; iptables-nft -F cali-tw-s9; iptables-nft -X cali-tw-s9",
            )],
            ..Change::HARMLESS
        },
        Change {
            name: "a limit of packets a second, by a mark",
            steps: &[LIMIT],
            undo: &[Node("for rule in 1 2 3 4; do iptables-nft -D cali-tw-s0 1; done")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

/// Workloads are found by verdict maps.
const NFTABLES: Step = Node(
    "nft 'table ip calico {
        set cali40s-clients { type ipv4_addr; elements = { 10.1.0.2 }; }
        map cali-fw-dispatch { type ifname : verdict; }
        map cali-tw-dispatch { type ifname : verdict; }
        chain filter-FORWARD { type filter hook forward priority filter; policy accept;
            counter jump filter-cali-FORWARD
            mark and 0x10000 == 0x10000 counter accept comment \"Policy explicitly accepted packet.\"
            counter meta mark set mark or 0x10000
        }
        chain filter-cali-FORWARD {
            counter meta mark set mark and 0xfff1ffff
            iifname \"s*\" counter jump filter-cali-from-wl-dispatch
            oifname \"s*\" counter jump filter-cali-to-wl-dispatch
        }
        chain filter-cali-from-wl-dispatch { iifname vmap @cali-fw-dispatch; counter drop comment \"Unknown interface\"; }
        chain filter-cali-to-wl-dispatch { oifname vmap @cali-tw-dispatch; counter drop comment \"Unknown interface\"; }
        chain filter-cali-fw-s0 {
            ct state established,related counter accept
            ct state invalid counter drop
            counter meta mark set mark or 0x10000
            mark and 0x10000 == 0x10000 counter return comment \"Return if profile accepted\"
            counter drop comment \"Drop if no profiles matched\"
        }
        chain filter-cali-tw-s0 {
            ct state established,related counter accept
            ct state invalid counter drop
            counter jump filter-cali-pi-clients
            mark and 0x10000 == 0x10000 counter return comment \"Return if policy accepted\"
            counter drop comment \"Drop if no policies passed packet\"
        }
        chain filter-cali-tw-limited {
            limit rate over 10/second burst 20 packets counter drop comment \"Drop packets over ingress packet rate limit\"
            ct state established,related counter accept
        }
        chain filter-cali-pi-clients { ip saddr @cali40s-clients counter meta mark set mark or 0x10000; }
     }
     add element ip calico cali-fw-dispatch { \"s0\" : goto filter-cali-fw-s0 }
     add element ip calico cali-tw-dispatch { \"s0\" : goto filter-cali-tw-s0 }'",
);

const NFTABLES_CASE: Case = Case {
    name: "Calico, nftables",
    set_up: &[NFTABLES],
    changes: &[
        Change {
            name: "a policy is revoked, for new connections",
            steps: &[Node("nft 'delete element ip calico cali40s-clients { 10.1.0.2 }'")],
            undo: &[Node("nft 'add element ip calico cali40s-clients { 10.1.0.2 }'")],
            ..Change::HARMLESS
        },
        Change {
            name: "the workload is gone",
            steps: &[Node("nft 'delete element ip calico cali-tw-dispatch { \"s0\" }'")],
            undo: &[Node("nft 'add element ip calico cali-tw-dispatch { \"s0\" : goto filter-cali-tw-s0 }'")],
            ..STOP_V4
        },
        Change {
            name: "a limit of packets a second",
            steps: &[Node(
                "nft insert rule ip calico filter-cali-tw-s0 limit rate over 10/second burst 20 packets counter drop",
            )],
            undo: &[Node(
                "nft 'flush chain ip calico filter-cali-tw-s0; add rule ip calico filter-cali-tw-s0 accept'",
            )],
            ..STOP_V4
        },
        Change {
            name: "another workload's limit of packets a second",
            steps: &[Node(
                "nft 'add element ip calico cali-tw-dispatch { \"s9\" : goto filter-cali-tw-limited }'",
            )],
            undo: &[Node("nft 'delete element ip calico cali-tw-dispatch { \"s9\" }'")],
            ..Change::HARMLESS
        },
        Change {
            name: "a verdict map leads to a limit",
            steps: &[Node(
                "nft 'delete element ip calico cali-tw-dispatch { \"s0\" }; add element ip calico cali-tw-dispatch { \"s0\" : goto filter-cali-tw-limited }'",
            )],
            undo: &[Node(
                "nft 'delete element ip calico cali-tw-dispatch { \"s0\" }; add element ip calico cali-tw-dispatch { \"s0\" : goto filter-cali-tw-s0 }'",
            )],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

#[test]
fn only_its_limits_concern_established_connections() {
    assert_eq!(concerned(IPTABLES_CASE.set_up), [""; 0]);
    assert_eq!(
        concerned(&[IPTABLES, LIMIT]),
        ["every-packet limit in ip filter cali-tw-s0 [meta nfproto ipv4 oifname \"s*\" oifname \"s0\"]"]
    );
    assert_eq!(concerned(NFTABLES_CASE.set_up), [""; 0]);
    let limited = Node(
        "nft insert rule ip calico filter-cali-tw-s0 limit rate over 10/second burst 20 packets counter drop",
    );
    assert_eq!(
        concerned(&[NFTABLES, limited]),
        [
            "every-packet limit in ip calico filter-cali-tw-s0 [meta nfproto ipv4 oifname \"s*\" oifname \"s0\"]"
        ]
    );
}

#[test]
fn same_fate_with_iptables() {
    IPTABLES_CASE.run(With::Agent).assert_same_fate();
}

#[test]
fn same_fate_with_nftables() {
    NFTABLES_CASE.run(With::Agent).assert_same_fate();
}
