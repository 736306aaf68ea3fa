//! ufw's chains (ufw, src/ufw-init-functions and conf/before.rules), and rules against bogus packets as guides to harden a node have
//! them, before everything else. None of those asks for packets that a TCP connection has, past its end.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{STOP_V4, concerned};

const UFW: Step = Node(
    "iptables-nft-restore --noflush <<'END'
*filter
:FORWARD DROP [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-before-forward - [0:0]
:ufw-after-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-user-forward - [0:0]
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type destination-unreachable -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type time-exceeded -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type parameter-problem -j ACCEPT
-A ufw-before-forward -p icmp -m icmp --icmp-type echo-request -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-after-logging-forward -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"
-A ufw-user-forward -i c0 -o s0 -j ACCEPT
COMMIT
END",
);

const BOGUS: Step = Node(
    "iptables-nft-restore --noflush <<'END'
*mangle
-A PREROUTING -m conntrack --ctstate INVALID -j DROP
-A PREROUTING -p tcp ! --syn -m conntrack --ctstate NEW -j DROP
-A PREROUTING -p tcp -m conntrack --ctstate NEW -m tcpmss ! --mss 536:65535 -j DROP
-A PREROUTING -p tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP
-A PREROUTING -p tcp --tcp-flags FIN,SYN FIN,SYN -j DROP
-A PREROUTING -p tcp --tcp-flags SYN,RST SYN,RST -j DROP
-A PREROUTING -p tcp --tcp-flags FIN,RST FIN,RST -j DROP
-A PREROUTING -p tcp --tcp-flags FIN,ACK FIN -j DROP
-A PREROUTING -p tcp --tcp-flags ACK,URG URG -j DROP
-A PREROUTING -p tcp --tcp-flags ACK,PSH PSH -j DROP
-A PREROUTING -p tcp --tcp-flags ALL ALL -j DROP
-A PREROUTING -p tcp --tcp-flags ALL FIN,PSH,URG -j DROP
-A PREROUTING -p tcp --tcp-flags ALL SYN,FIN,PSH,URG -m limit --limit 5/min -j DROP
-A PREROUTING -p icmp -m limit --limit 5/sec -j ACCEPT
-A PREROUTING -p icmp -j DROP
-A PREROUTING -s 224.0.0.0/3 -j DROP
-A PREROUTING -f -j DROP
COMMIT
END
     nft 'table inet bogus { chain c { type filter hook prerouting priority raw;
        tcp flags & (fin|syn) == (fin|syn) drop
        tcp flags & (syn|rst) == (syn|rst) drop
        tcp flags & (fin|syn|rst|psh|ack|urg) == 0x0 drop
        tcp flags & (fin|syn|rst|psh|ack|urg) == (fin|psh|urg) drop
        ip frag-off & 0x1fff != 0 drop
     }; }'",
);

const CASE: Case = Case {
    name: "ufw, and rules against bogus packets",
    set_up: &[UFW, BOGUS],
    changes: &[
        Change {
            name: "another route of ufw's",
            steps: &[Node("iptables-nft -A ufw-user-forward -i c0 -p udp --dport 9 -j ACCEPT")],
            undo: &[Node("iptables-nft -D ufw-user-forward 2")],
            ..Change::HARMLESS
        },
        Change {
            name: "a rule of one's own in before.rules",
            steps: &[Node("iptables-nft -I ufw-before-forward -s 10.1.0.2 -j DROP")],
            undo: &[Node("iptables-nft -D ufw-before-forward 1")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

#[test]
fn none_of_their_rules_concerns_established_connections() {
    assert_eq!(concerned(CASE.set_up), [""; 0]);
}

#[test]
fn same_fate() {
    CASE.run(With::Agent).assert_same_fate();
}
