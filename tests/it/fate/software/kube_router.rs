//! kube-router's network policies (kube-router, pkg/controllers/netpol: network_policy_controller.go, pod.go, policy.go). The
//! server is a pod with a policy for what comes in and goes out; ipsets, marks and the limited NFLOG are behind
//! `RELATED,ESTABLISHED` in KUBE-NWPLCY-COMMON.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{IN_FRONT, concerned};

const RULES: Step = Node(
    "ipset create KUBE-SRC-CLIENT hash:ip timeout 0; ipset create KUBE-DST-SERVER hash:ip timeout 0
     ipset add KUBE-SRC-CLIENT 10.1.0.2; ipset add KUBE-DST-SERVER 10.2.0.2
     iptables-nft-restore --noflush <<'END'
*filter
:KUBE-NWPLCY-COMMON - [0:0]
:KUBE-NWPLCY-DEFAULT - [0:0]
:KUBE-NWPLCY-SERVER - [0:0]
:KUBE-POD-FW-SERVER - [0:0]
:KUBE-ROUTER-FORWARD - [0:0]
-A FORWARD -m comment --comment \"kube-router netpol - TEMCG2JMHZYE7H7T\" -j KUBE-ROUTER-FORWARD
-A FORWARD -m comment --comment \"rule to explicitly ACCEPT traffic that comply to network policies\" -m mark --mark 0x20000/0x20000 -j ACCEPT
-A KUBE-ROUTER-FORWARD -d 10.2.0.2/32 -m physdev --physdev-is-bridged -m comment --comment \"jump traffic destined to POD name:server\" -j KUBE-POD-FW-SERVER
-A KUBE-ROUTER-FORWARD -d 10.2.0.2/32 -m comment --comment \"jump traffic destined to POD name:server\" -j KUBE-POD-FW-SERVER
-A KUBE-ROUTER-FORWARD -s 10.2.0.2/32 -m comment --comment \"jump traffic from POD name:server\" -j KUBE-POD-FW-SERVER
-A KUBE-NWPLCY-COMMON -m comment --comment \"rule to drop invalid state for pod\" -m conntrack --ctstate INVALID -j DROP
-A KUBE-NWPLCY-COMMON -m comment --comment \"rule for stateful firewall for pod\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NWPLCY-COMMON -p icmp -m comment --comment \"allow icmp echo requests\" -m icmp --icmp-type 8 -j ACCEPT
-A KUBE-NWPLCY-DEFAULT -m comment --comment \"rule to mark traffic matching a network policy\" -j MARK --set-xmark 0x10000/0x10000
-A KUBE-NWPLCY-SERVER -m set --match-set KUBE-SRC-CLIENT src -m set --match-set KUBE-DST-SERVER dst -m comment --comment \"rule to ACCEPT traffic from source pods\" -j MARK --set-xmark 0x10000/0x10000
-A KUBE-NWPLCY-SERVER -m set --match-set KUBE-SRC-CLIENT src -m set --match-set KUBE-DST-SERVER dst -m comment --comment \"rule to ACCEPT traffic from source pods\" -m mark --mark 0x10000/0x10000 -j RETURN
-A KUBE-POD-FW-SERVER -m comment --comment \"rule to run through common policies\" -j KUBE-NWPLCY-COMMON
-A KUBE-POD-FW-SERVER -m comment --comment \"run through nw policy server\" -j KUBE-NWPLCY-SERVER
-A KUBE-POD-FW-SERVER -m comment --comment \"rule to log dropped traffic POD name:server\" -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100
-A KUBE-POD-FW-SERVER -m comment --comment \"rule to REJECT traffic destined for POD name:server\" -m mark ! --mark 0x10000/0x10000 -j REJECT
-A KUBE-POD-FW-SERVER -j MARK --set-xmark 0/0x10000
-A KUBE-POD-FW-SERVER -m comment --comment \"set mark to ACCEPT traffic that comply to network policies\" -j MARK --set-xmark 0x20000/0x20000
COMMIT
END",
);

const CASE: Case = Case {
    name: "kube-router",
    set_up: &[RULES],
    changes: &[
        Change {
            name: "a source of the policy goes, for new connections",
            steps: &[Node("ipset del KUBE-SRC-CLIENT 10.1.0.2")],
            undo: &[Node("ipset add KUBE-SRC-CLIENT 10.1.0.2")],
            ..Change::HARMLESS
        },
        IN_FRONT,
    ],
    ..Case::PLAIN
};

#[test]
fn none_of_its_rules_concerns_established_connections() {
    assert_eq!(concerned(CASE.set_up), [""; 0]);
}

#[test]
fn same_fate() {
    CASE.run(With::Agent).assert_same_fate();
}
