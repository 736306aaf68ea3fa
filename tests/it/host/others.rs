//! Chains and rules of others, as the kernel hands them out, and what is made of them.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use fastpath_agent::{
    core::{
        model::IfName,
        policy::others::{Device, Others},
        surroundings::RouteRule,
    },
    kernel::{
        nft::{Nft, Which},
        route_rules,
    },
};
use fastpath_tests::netns::Netns;

fn run(node: &Netns, command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    node.output(words[0], &words[1..]);
}

fn read(node: &Netns) -> Others {
    let mut others = Others::default();
    let settled = node.run(|| Nft::open().expect("open").read_others(&mut others, Which::All));
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

/// Nearly all of it is the kernel's work.
#[test]
fn many_rules_are_read_fast() {
    const RULES: u32 = 5_000;
    let node = Netns::new("node");
    let rules: String = (0..RULES)
        .map(|n| {
            let (high, low) = (n >> 8, n & 0xff);
            format!("add rule ip t c ip saddr 10.0.{high}.{low} udp dport 53 counter jump other\n")
        })
        .collect();
    node.nft(&format!(
        "add table ip t
         add chain ip t other
         add chain ip t not-reached
         add rule ip t not-reached drop
         add chain ip t c {{ type filter hook postrouting priority 0; }}
         {rules}"
    ));
    read(&node);
    let timed = || {
        let begun = Instant::now();
        let others = read(&node);
        (begun.elapsed(), others)
    };
    // Others may have the processor meanwhile, and not each time.
    let (took, others) = [(); 3].map(|()| timed()).into_iter().min_by_key(|(took, _)| *took).expect("three");
    println!("{RULES} rules in {took:?}");
    let count = |chain: &str| others.0[&(2, "t".to_owned())][chain].rules.len();
    assert_eq!((count("c"), count("not-reached")), (RULES as usize, 0));
    assert_eq!(others.denying_postrouting(), None);
    // 4 µs a rule on a processor of 2024; the guest counts some 24,000 instructions, most of them the kernel's.
    assert!(took < Duration::from_micros(25) * RULES, "{took:?}");
}
