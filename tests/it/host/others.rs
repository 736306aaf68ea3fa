//! Other programs' chains and rules, as the kernel gives them, and what the agent makes of them.

use std::{collections::BTreeSet, fs, time::Duration};

use fastpath_agent::{
    core::{
        model::IfName,
        policy::{chain::Device, others::Others},
        route_rule::RouteRule,
    },
    kernel::{
        nft::{Nft, Which},
        route_rules,
    },
};
use fastpath_tests::{emulated, netns::Netns};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};

fn run(node: &Netns, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    node.output(words[0], &words[1..]);
}

fn read(node: &Netns) -> Others {
    node.run(read_here)
}

/// In this thread's network namespace.
fn read_here() -> Others {
    let mut others = Others::default();
    let settled = Nft::open().expect("open").read_others(&mut others, Which::All);
    assert!(settled.expect("read"));
    others
}

/// Rules of a postrouting chain, and whether they can deny a packet of an established connection.
#[test]
fn rules_that_can_deny_are_told_from_those_that_cannot() {
    for (rules, denies) in [
        ("counter", false),
        ("tcp flags syn tcp option maxseg size set rt mtu", false),
        ("meta mark set 7 counter accept", false),
        ("ip daddr 10.0.0.1 log prefix \"x\" accept", false),
        ("udp dport 7001 drop", true),
        ("limit rate over 10/second drop", true),
        ("quota over 20 bytes drop", true),
        ("udp dport vmap { 7001 : drop }", true),
        ("ct state new udp dport 7001 drop", false),
        ("ct state { new, untracked } drop", false),
        ("ct state { new, established } drop", true),
        ("ct state invalid drop", false),
        ("ct state != established drop", false),
        ("ct state established,related accept\nudp dport 7001 drop", false),
        ("ct state established udp dport 7002 accept\nudp dport 7001 drop", true),
        ("udp dport 7001 jump other", true),
        ("udp dport 7001 goto other", true),
        ("ct state new jump other", false),
        ("return\njump other", false),
    ] {
        let node = Netns::new("node");
        node.nft(&format!(
            "table inet t {{
                chain other {{ udp sport 9 drop; }}
                chain c {{ type filter hook postrouting priority 7;
                    {rules}
                }}
            }}"
        ));
        assert_eq!(read(&node).denying_postrouting(), denies.then_some(7), "{rules}");
    }
}

#[test]
fn rules_of_iptables_are_understood() {
    for (rule, denies) in [
        ("-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", false),
        ("-j MARK --set-mark 7", false),
        ("-m comment --comment hello -j ACCEPT", false),
        ("-p udp --dport 7001 -j DROP", true),
        ("-p udp --dport 7001 -m limit --limit 5/s -j ACCEPT", false),
        ("-m conntrack --ctstate NEW -j DROP", false),
        ("-m conntrack ! --ctstate NEW -j DROP", true),
        ("-j NFQUEUE --queue-num 3", true),
    ] {
        let node = Netns::new("node");
        run(&node, &format!("iptables-nft -t mangle -A POSTROUTING {rule}"));
        run(&node, "iptables-nft -t mangle -A FORWARD -j DROP");
        run(&node, "iptables-nft -t nat -A POSTROUTING -j MASQUERADE");
        assert_eq!(read(&node).denying_postrouting(), denies.then_some(-150), "{rule}");
        assert_eq!(read(&node).last_forward(), Some(-150));
    }
    let node = Netns::new("node");
    run(&node, "ip6tables-nft -t mangle -A POSTROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    run(&node, "ip6tables-nft -t mangle -A POSTROUTING -j DROP");
    run(&node, "ip6tables-nft -A FORWARD -j ACCEPT");
    assert_eq!((read(&node).denying_postrouting(), read(&node).last_forward()), (None, Some(0)));
    run(&node, "ip6tables-nft -t mangle -P POSTROUTING DROP");
    assert_eq!(read(&node).denying_postrouting(), None, "the policy isn't reached");
    run(&node, "ip6tables-nft -t mangle -D POSTROUTING 1");
    assert_eq!(read(&node).denying_postrouting(), Some(-150));
}

#[test]
fn only_what_changed_is_read_again() {
    let node = Netns::new("node");
    for table in ["a", "b"] {
        node.nft(&format!("table ip {table} {{ chain c {{ type filter hook postrouting priority 5; }}; }}"));
    }
    let mut others = read(&node);
    assert_eq!(others.denying_postrouting(), None);
    for table in ["a", "b"] {
        node.nft(&format!("add rule ip {table} c udp dport 9 drop"));
    }
    let rules = |others: &Others, table: &str| others.0[&(2, table.to_owned())]["c"].rules.len();
    let mut again = |tables: &[&str]| {
        let tables: BTreeSet<_> = tables.iter().map(|table| (2, (*table).to_owned())).collect();
        let read = node.run(|| Nft::open().expect("open").read_others(&mut others, Which::Tables(&tables)));
        assert!(read.expect("read"));
        (rules(&others, "a"), rules(&others, "b"), others.denying_postrouting())
    };
    assert_eq!(again(&["a"]), (1, 0, Some(5)));
    // A table that wasn't read yet is, whatever was asked for.
    node.nft("table ip d { chain c { type filter hook postrouting priority 9; drop; }; }");
    assert_eq!(again(&["b"]), (1, 1, Some(9)));
    node.nft("delete table ip d\ndelete table ip a");
    node.nft("table ip a { chain c { type filter hook input priority 5; drop; }; }");
    assert_eq!(again(&["a"]), (0, 1, Some(5)));
}

#[test]
fn devices_with_a_chain_at_ingress_are_told() {
    let node = Netns::new("node");
    node.ip("link add d0 type veth peer d1\nlink add d2 type veth peer d3\n");
    node.nft(
        "table netdev n { chain c { type filter hook ingress devices = { d0, d1 } priority -10; }; }
         table inet i { chain c { type filter hook ingress device d2 priority 0; }; }",
    );
    let expected = ["d0", "d1", "d2"].map(|name| Device::Name(name.to_owned()));
    assert_eq!(read(&node).ingress(), expected.into());
}

#[test]
fn policy_rules_that_the_guess_does_not_evaluate_are_told() {
    let node = Netns::new("node");
    let unguessed = || node.run(route_rules::read).expect("read").unguessed;
    assert_eq!(unguessed(), []);
    let add = |rules: &[&str]| rules.iter().for_each(|rule| run(&node, &format!("ip {rule} table 102")));
    add(&[
        "rule add from 10.1.0.0/24",
        "rule add fwmark 7",
        "rule add iif lo",
        "rule add uidrange 5-6",
        "-6 rule add from fd00:1::/64",
    ]);
    assert_eq!(unguessed(), []);
    add(&[
        "rule add iif lan0 from 10.1.0.0/24",
        "rule add ipproto udp dport 53",
        "rule add not iif lan0 to 10.3.0.0/24",
        "-6 rule add iif lan0",
        "-6 rule add tos 0x10",
    ]);
    let any = RouteRule::default();
    let mut expected = vec![
        RouteRule { input: IfName::new("lan0"), from: "10.1.0.0/24".parse().ok(), ..any.clone() },
        RouteRule { protocol: Some(17), destination_ports: Some((53..=53).into()), ..any.clone() },
        any.clone(),
        RouteRule { input: IfName::new("lan0"), ipv6: true, ..any.clone() },
        RouteRule { ipv6: true, ..any },
    ];
    expected.sort();
    assert_eq!(unguessed(), expected);
}

/// kB of this process's own memory.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let used = getrusage(UsageWho::RUSAGE_THREAD).expect("getrusage");
    let micros = [used.user_time(), used.system_time()].map(|time| time.num_microseconds());
    Duration::from_micros(micros.iter().sum::<i64>().cast_unsigned())
}

/// As many, and laid out as kube-proxy has them in iptables mode for 5,000 services with three endpoints each. Nearly all of it is
/// the kernel's work.
#[test]
fn many_rules_are_read_fast() {
    // 300 ms on a processor of 2024, three quarters of them the kernel's; 410 were seen beside a guest, which takes its share of the
    // caches. The guest emulates its processor, and has a tenth to read.
    const LIMIT: Duration = Duration::from_millis(600);
    let services = if emulated() { 500 } else { 5_000 };
    const MOST_KB: u64 = 20_000;
    let node = Netns::new("node");
    let mut chains = String::new();
    let mut rules = String::new();
    for service in 0..services as u32 {
        let (high, low) = (service >> 8, service & 0xff);
        chains += &format!("add chain ip t svc{service}\n");
        rules +=
            &format!("add rule ip t services ip daddr 10.0.{high}.{low} tcp dport 80 jump svc{service}\n");
        for endpoint in 0..3 {
            chains += &format!("add chain ip t sep{service}-{endpoint}\n");
            rules += &format!(
                "add rule ip t svc{service} ip protocol tcp counter jump sep{service}-{endpoint}
                 add rule ip t sep{service}-{endpoint} ip saddr 10.1.{high}.{low} counter
                 add rule ip t sep{service}-{endpoint} meta l4proto tcp counter accept\n"
            );
        }
    }
    node.nft(&format!(
        "add table ip t
         add chain ip t services {{ type filter hook postrouting priority 0; }}
         add chain ip t not-reached
         add rule ip t not-reached drop
         {chains}
         {rules}"
    ));
    let before = memory();
    let kept = read(&node);
    let took = memory().saturating_sub(before);
    println!("{services} services in {took} kB");
    assert!(took <= MOST_KB, "{took} kB");
    drop(kept);
    let timed = || {
        let begun = processor_time();
        let others = read_here();
        (processor_time() - begun, others)
    };
    // The least of some: what else this machine does takes its share of the processor's caches.
    let ((took, others), more) = node.run(|| (timed(), [timed().0, timed().0]));
    let took = more.into_iter().fold(took, Duration::min);
    println!("{services} services in {took:?}");
    let table = &others.0[&(2, "t".to_owned())];
    assert_eq!(table.values().map(|chain| chain.rules.len()).sum::<usize>(), 10 * services);
    assert!(table["not-reached"].rules.is_empty());
    assert_eq!(others.denying_postrouting(), None);
    assert!(took < LIMIT, "{took:?}");
}
