//! Verdicts that change by themselves, or by what the kernel doesn't announce. Only IPv4 flows of the client are concerned.

use fastpath_tests::{
    topology::Family,
    twin::{
        Case, Change, Path,
        Step::{Client, Node},
        With,
    },
};

const STOP_V4: Change = Change { family: Some(Family::V4), path: Path::Any, ..Change::STOP };

/// Runs the rest of the script at 0.7 s of a second, `$t` being the next one in s since 1970; the other world's right after.
macro_rules! before_the_next_second {
    ($script:literal) => {
        concat!(
            "export TZ=UTC; w=/tmp/when-$PPID; if [ -e $w ]; then t=$(cat $w); rm $w; else
                sleep 0.$(printf %09d $(( (1700000000 - 10#$(date +%N)) % 1000000000 )))
                t=$(( $(date +%s) + 1 )); echo $t > $w; fi\n",
            $script
        )
    };
}

const SETS: Case = Case {
    name: "sets that change by themselves",
    set_up: &[Node(
        "nft 'table inet fw {
            set auth { type ipv4_addr; flags timeout; elements = { 10.1.0.2 timeout 1h }; }
            set ban { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
            set known { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
            map verdicts { type ipv4_addr : verdict; flags timeout; }
            chain forward { type filter hook forward priority 0;
                udp dport 9 add @ban { ip saddr }
                ip saddr @ban drop
                ip saddr vmap @verdicts
                ip saddr @auth accept
                ip saddr 10.1.0.2 drop
            }
         }'",
    )],
    changes: &[
        Change {
            name: "an element runs out",
            steps: &[Node(
                "nft 'delete element inet fw auth { 10.1.0.2 }; add element inet fw auth { 10.1.0.2 timeout 400ms }'",
            )],
            undo: &[Node("nft 'add element inet fw auth { 10.1.0.2 timeout 1h }'")],
            ..STOP_V4
        },
        Change {
            name: "a packet fills a set",
            steps: &[Client("echo > /dev/udp/10.2.0.2/9")],
            undo: &[Node("nft flush set inet fw ban")],
            ..STOP_V4
        },
        Change {
            name: "a verdict runs out",
            steps: &[Node(
                "nft 'add element inet fw verdicts { 10.1.0.2 timeout 400ms : accept }; delete element inet fw auth { 10.1.0.2 }'",
            )],
            undo: &[Node("nft 'add element inet fw auth { 10.1.0.2 timeout 1h }'")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

const TIME: Case = Case {
    name: "times",
    set_up: &[Node("nft 'table inet fw { chain forward { type filter hook forward priority 0; }; }'")],
    changes: &[
        Change {
            name: "meta time",
            steps: &[Node(before_the_next_second!(
                "nft \"add rule inet fw forward ip saddr 10.1.0.2 meta time >= \\\"$(date -d @$t '+%Y-%m-%d %H:%M:%S')\\\" drop\""
            ))],
            undo: &[Node("nft flush chain inet fw forward")],
            ..STOP_V4
        },
        Change {
            name: "meta hour",
            steps: &[Node(before_the_next_second!(
                "nft \"add rule inet fw forward ip saddr 10.1.0.2 meta hour >= \\\"$(date -d @$t '+%H:%M:%S')\\\" drop\""
            ))],
            undo: &[Node("nft flush chain inet fw forward")],
            ..STOP_V4
        },
        Change {
            name: "xtables' time",
            steps: &[Node(before_the_next_second!(
                "iptables-nft -A FORWARD -s 10.1.0.2 -m time --datestart $(date -d @$t '+%Y-%m-%dT%H:%M:%S') -j DROP"
            ))],
            undo: &[Node("iptables-nft -F FORWARD")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

const IPSET: Case = Case {
    name: "ipset",
    set_up: &[Node(
        "ipset create ban hash:ip timeout 0; iptables-nft -A FORWARD -m set --match-set ban src -j DROP
         iptables-nft -A FORWARD -m recent --name ban --rcheck --rsource -j DROP",
    )],
    changes: &[
        Change {
            name: "ipset add",
            steps: &[Node("ipset add ban 10.1.0.2")],
            undo: &[Node("ipset del ban 10.1.0.2")],
            ..STOP_V4
        },
        Change {
            name: "recent",
            steps: &[Node("echo +10.1.0.2 > /proc/self/net/xt_recent/ban")],
            undo: &[Node("echo / > /proc/self/net/xt_recent/ban")],
            ..STOP_V4
        },
    ],
    ..Case::PLAIN
};

const MARKS: Case = Case {
    name: "marks of connections",
    set_up: &[Node(
        "nft 'table inet fw { chain forward { type filter hook forward priority 0; ct mark 7 drop; }; }'",
    )],
    changes: &[Change {
        name: "conntrack -U",
        steps: &[Node("conntrack -U -s 10.1.0.2 --mark 7")],
        undo: &[Node("conntrack -U -s 10.1.0.2 --mark 0")],
        ..STOP_V4
    }],
    ..Case::PLAIN
};

const MARKED_QUOTA: Case = Case {
    name: "marks say which flows a rule wants",
    set_up: &[Node(
        "nft 'table inet fw { chain forward { type filter hook forward priority 0; ct mark 7 quota over 1 bytes drop; }; }'",
    )],
    ..MARKS
};

const LEGACY: Case = Case {
    name: "iptables-legacy",
    set_up: &[Node("iptables-legacy -A FORWARD -s 10.9.0.1 -j DROP")],
    changes: &[Change {
        name: "iptables-legacy -I FORWARD",
        steps: &[Node("iptables-legacy -I FORWARD -s 10.1.0.2 -j DROP")],
        undo: &[Node("iptables-legacy -D FORWARD 1")],
        ..STOP_V4
    }],
    ..Case::PLAIN
};

/// The node's first legacy table, which the kernel doesn't announce.
const FIRST_LEGACY: Case = Case { name: "first table of iptables-legacy", set_up: &[], ..LEGACY };

#[test]
fn sets() {
    SETS.run(With::Agent).assert_same_fate();
}

#[test]
fn times() {
    TIME.run(With::Agent).assert_same_fate();
}

#[test]
fn ipsets_and_recent() {
    IPSET.run(With::Programs).assert_same_fate();
}

#[test]
fn marks() {
    MARKS.run(With::Agent).assert_same_fate();
    MARKED_QUOTA.run(With::Agent).assert_same_fate();
}

#[test]
fn legacy() {
    LEGACY.run(With::Agent).assert_same_fate();
}

/// The kernel loads the module for it, where it has none yet.
#[test]
fn first_legacy_table() {
    let modules =
        ["iptable_filter", "iptable_mangle", "iptable_nat", "iptable_raw", "iptable_security", "ip_tables"];
    for module in modules {
        // What isn't there, or is in use, stays so.
        let _ = std::process::Command::new("rmmod").arg(module).status();
    }
    println!("legacy tables before: {}", std::path::Path::new("/proc/self/net/ip_tables_names").exists());
    FIRST_LEGACY.run(With::Agent).assert_same_fate();
    println!("and the next time: {}", std::path::Path::new("/proc/self/net/ip_tables_names").exists());
    FIRST_LEGACY.run(With::Agent).assert_same_fate();
}

/// Without them being revalidated flows feel none of it.
#[test]
fn sets_ignored_by_choice() {
    SETS.run(With::Ignoring).assert_each_change_wrongs();
}

#[test]
fn times_ignored_by_choice() {
    TIME.run(With::Ignoring).assert_each_change_wrongs();
}

#[test]
fn ipsets_and_legacy_ignored_by_choice() {
    IPSET.run(With::Ignoring).assert_each_change_wrongs();
    LEGACY.run(With::Ignoring).assert_each_change_wrongs();
}
