//! kube-proxy (kubernetes, pkg/proxy): filter rules of its modes iptables (iptables/proxier.go), nftables (nftables/proxier.go) and
//! IPVS (ipvs/proxier.go), with one service that has endpoints, one without, and one whose sources are limited.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{HARMLESS_REVALIDATED, IN_FRONT, REVALIDATED, STOP_V4_REVALIDATED, concerned};

const IPTABLES: Step = Node(
    "iptables-nft-restore --noflush <<'END'
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-PROXY-FIREWALL -d 5.6.7.8/32 -p tcp -m comment --comment \"ns5/svc5:p80 traffic not accepted by KUBE-FW-NUKIZ6OKUXPJNT4C\" -m tcp --dport 80 -j DROP
-A KUBE-SERVICES -d 172.30.0.44/32 -p tcp -m comment --comment \"ns4/svc4:p80 has no endpoints\" -m tcp --dport 80 -j REJECT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.2.0.2:80
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.2.0.3:80
-A KUBE-SERVICES -d 172.30.0.41/32 -p tcp -m comment --comment \"ns1/svc1:p80 cluster IP\" -m tcp --dport 80 -j KUBE-SVC-X
-A KUBE-SVC-X -m statistic --mode random --probability 0.5 -j KUBE-SEP-A
-A KUBE-SVC-X -j KUBE-SEP-B
COMMIT
END",
);

const IPTABLES_CASE: Case = Case {
    name: "kube-proxy, iptables",
    set_up: &[IPTABLES],
    changes: &[
        Change {
            name: "a service loses its endpoints",
            steps: &[Node(
                "iptables-nft -A KUBE-SERVICES -d 10.2.0.2/32 -p tcp -m comment --comment 'ns1/svc1:p80 has no endpoints' -j REJECT",
            )],
            undo: &[Node("iptables-nft -D KUBE-SERVICES 2")],
            ..Change::HARMLESS
        },
        IN_FRONT,
    ],
    ..Case::PLAIN
};

const NFTABLES: Step = Node(
    "nft 'table ip kube-proxy {
        map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; comment \"destinations that are subject to LoadBalancerSourceRanges\"; }
        map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
        map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
        chain filter-prerouting { type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }
        chain filter-input { type filter hook input priority -110; ct state new jump service-endpoints-check; }
        chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check; }
        chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
        chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
        chain reject-chain { reject; }
        chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
        chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
        chain service-svc1 { numgen random mod 2 vmap { 0 : goto endpoint-a, 1 : goto endpoint-b }; }
        chain endpoint-a { meta l4proto tcp dnat to 10.2.0.2:80; }
        chain endpoint-b { meta l4proto tcp dnat to 10.2.0.3:80; }
        chain firewall-svc5 { ip saddr != 203.0.113.0/25 drop; }
     }
     add element ip kube-proxy service-ips { 172.30.0.41 . tcp . 80 : goto service-svc1 }
     add element ip kube-proxy firewall-ips { 5.6.7.8 . tcp . 80 : goto firewall-svc5 }
     add element ip kube-proxy no-endpoint-services { 172.30.0.44 . tcp . 80 : goto reject-chain }'",
);

const NFTABLES_CASE: Case = Case {
    name: "kube-proxy, nftables",
    set_up: &[NFTABLES],
    changes: &[Change {
        name: "a service loses its endpoints",
        steps: &[Node(
            "nft 'add element ip kube-proxy no-endpoint-services { 10.2.0.2 . tcp . 7001 : goto reject-chain }'",
        )],
        undo: &[Node("nft 'delete element ip kube-proxy no-endpoint-services { 10.2.0.2 . tcp . 7001 }'")],
        ..Change::HARMLESS
    }],
    ..Case::PLAIN
};

/// The balancer's firewall is in front of `RELATED,ESTABLISHED`. The server has a balancer's address.
const IPVS: Step = Node(
    "ipset create KUBE-LOAD-BALANCER-FW hash:ip,port; ipset create KUBE-LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net
     ipset create KUBE-LOAD-BALANCER-SOURCE-IP hash:ip,port,ip; ipset create KUBE-HEALTH-CHECK-NODE-PORT bitmap:port range 0-65535
     for port in {7001..7012}; do for proto in tcp udp; do
        ipset add KUBE-LOAD-BALANCER-FW 10.2.0.2,$proto:$port; ipset add KUBE-LOAD-BALANCER-SOURCE-CIDR 10.2.0.2,$proto:$port,10.1.0.0/24
     done; done
     iptables-nft-restore --noflush <<'END'
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-A FORWARD -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-PROXY-FIREWALL -m comment --comment \"Kubernetes service load balancer ip + port for load balancer with sourceRange\" -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-SOURCE-RANGES-FIREWALL -m comment --comment \"Kubernetes service load balancer ip + port + source cidr for packet filter purpose\" -m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN
-A KUBE-SOURCE-RANGES-FIREWALL -m comment --comment \"Kubernetes service load balancer ip + port + source IP for packet filter purpose\" -m set --match-set KUBE-LOAD-BALANCER-SOURCE-IP dst,dst,src -j RETURN
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NODE-PORT -m comment --comment \"Kubernetes health check node port\" -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
COMMIT
END",
);

const IPVS_CASE: Case = Case {
    name: "kube-proxy, IPVS",
    set_up: &[IPVS],
    changes: &[
        Change {
            name: "another service",
            steps: &[Node("ipset add KUBE-LOAD-BALANCER-FW 5.6.7.8,tcp:80")],
            undo: &[Node("ipset del KUBE-LOAD-BALANCER-FW 5.6.7.8,tcp:80")],
            ..HARMLESS_REVALIDATED
        },
        Change {
            name: "loadBalancerSourceRanges lose the client",
            steps: &[Node("ipset flush KUBE-LOAD-BALANCER-SOURCE-CIDR")],
            undo: &[Node(
                "for port in {7001..7012}; do for proto in tcp udp; do ipset add KUBE-LOAD-BALANCER-SOURCE-CIDR 10.2.0.2,$proto:$port,10.1.0.0/24; done; done",
            )],
            ..STOP_V4_REVALIDATED
        },
    ],
    ..REVALIDATED
};

#[test]
fn only_the_sets_of_ipvs_concern_established_connections() {
    assert_eq!(concerned(IPTABLES_CASE.set_up), [""; 0]);
    assert_eq!(concerned(NFTABLES_CASE.set_up), [""; 0]);
    assert_eq!(
        concerned(IPVS_CASE.set_up),
        [
            "changing ipset in ip filter KUBE-PROXY-FIREWALL",
            "changing ipset in ip filter KUBE-SOURCE-RANGES-FIREWALL",
            "changing ipset in ip filter KUBE-SOURCE-RANGES-FIREWALL",
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

#[test]
fn same_fate_with_ipvs() {
    IPVS_CASE.run(With::Agent).assert_same_fate();
}
