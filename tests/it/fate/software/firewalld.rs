//! firewalld with its nftables backend (firewalld, src/firewall/core/nftables.py: `build_default_rules`, `_rich_rule_*`):
//! everything is behind `ct state { established, related } accept`.

use fastpath_tests::twin::{
    Case, Change,
    Step::{self, Node},
    With,
};

use super::{STOP_V4, concerned};

/// `IPv6_rpfilter`, `LogDenied=all`, a zone `lan` of both links with a rich rule that limits, a zone `drop` whose source is
/// an ipset with a timeout.
const RULES: Step = Node(
    "nft 'table inet firewalld {
        set blocked { type ipv4_addr; flags timeout; }
        chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; jump mangle_PREROUTING_dispatch; }
        chain mangle_PREROUTING_dispatch { }
        chain filter_PREROUTING { type filter hook prerouting priority filter + 10;
            icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
            meta nfproto ipv6 fib saddr . mark . iif oif missing log prefix \"rpfilter_DROP: \" drop
        }
        chain filter_INPUT { type filter hook input priority filter + 10; ct state { established, related } accept; }
        chain filter_FORWARD { type filter hook forward priority filter + 10;
            ct state { established, related } accept
            ct status dnat accept
            iifname lo accept
            ct state { invalid } log prefix \"STATE_INVALID_DROP: \"
            ct state { invalid } drop
            jump filter_FORWARD_dispatch
            log prefix \"FINAL_REJECT: \"
            reject with icmpx type admin-prohibited
        }
        chain filter_FORWARD_dispatch {
            ip saddr @blocked goto filter_FWD_drop
            iifname { c0, s0 } jump filter_FWD_lan
        }
        chain filter_FWD_drop { drop; }
        chain filter_FWD_lan { jump filter_FWD_lan_deny; jump filter_FWD_lan_allow; }
        chain filter_FWD_lan_deny { tcp dport 23 limit rate 10/minute log prefix \"telnet \"; tcp dport 23 drop; }
        chain filter_FWD_lan_allow { udp dport 53 limit rate 1000/second accept; accept; }
        chain nat_POSTROUTING { type nat hook postrouting priority srcnat + 10; oifname wan0 masquerade; }
     }'",
);

const CASE: Case = Case {
    name: "firewalld",
    set_up: &[RULES],
    changes: &[
        Change {
            name: "an entry of an ipset, for new connections",
            steps: &[Node("nft 'add element inet firewalld blocked { 10.1.0.2 timeout 1h }'")],
            undo: &[Node("nft 'delete element inet firewalld blocked { 10.1.0.2 }'")],
            ..Change::HARMLESS
        },
        Change {
            name: "panic mode",
            // base.py and nftables.py, `build_set_policy_rules`.
            steps: &[Node(
                "nft 'table inet firewalld_policy_drop { chain filter_forward { type filter hook forward priority filter + 9; ip saddr 10.1.0.2 drop; }; }'",
            )],
            undo: &[Node("nft delete table inet firewalld_policy_drop")],
            ..STOP_V4
        },
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
