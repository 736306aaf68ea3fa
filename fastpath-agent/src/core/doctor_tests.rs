//! A good node is all green; each thing that is wrong is found, at its level and with its remedy, and nothing else is.

use clap::Parser;

use super::{
    facts::{
        AgentFacts, CanaryFlow, EbpfFacts, Families, Feature, IngressChain, IngressProgram, KernelFacts,
        MapFacts, Missing, OtherFlowtable, OtherTable, Others, Unread,
    },
    *,
};
use crate::{
    cli::Cli,
    config::Config,
    core::{
        model::{FLOWTABLE, IfIndex, IfName, Link, OperState, test_link},
        ruleset::{
            desired::desired,
            diff::{Decision, ForeignTable, diff},
            observed::{ObservedTable, Owner},
            wanted::Policy,
        },
        threshold::Lengths,
    },
    kernel::{Ruleset, fake::FakeRuleset},
};

fn policy(flags: &[&str]) -> Policy {
    let cli = Cli::try_parse_from([&["fastpath-agent", "run"], flags].concat()).unwrap();
    Config::new(cli.agent().unwrap(), "n1".to_owned()).unwrap().rules.policy(true, true)
}

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn link(index: u32, name: &str) -> Link {
    Link { index: IfIndex(index), kind: Some("veth".to_owned()), ..test_link(name) }
}

/// Makes the kernel have what `policy` wants.
fn install(facts: &mut NodeFacts) {
    let mut kernel = FakeRuleset::new(facts.links.iter().map(|link| link.name.clone()));
    let observed = kernel.observe().unwrap();
    let table = desired(&facts.policy, &facts.links, &Default::default());
    let Decision::Apply(ops) = diff(&table, &observed, ForeignTable::Refuse) else {
        panic!("nothing is there")
    };
    kernel.commit(&ops, observed.generation).unwrap();
    facts.observed = Ok(kernel.observe().unwrap());
}

fn good() -> NodeFacts {
    let lo = Link { loopback: true, kind: None, ..link(1, "lo") };
    let mut facts = NodeFacts {
        kernel: KernelFacts {
            release: "6.12.117+deb12-cloud-amd64".to_owned(),
            version: "#1 SMP".to_owned(),
            signature: None,
            features: ["flowtables", "flow add", "flowtables with counters"]
                .map(|name| Feature { name, vital: !name.contains("counters"), missing: None })
                .into(),
        },
        agent: Some(AgentFacts { pid: 7, unread: None }),
        capabilities: Ok(u64::MAX),
        policy: policy(&[]),
        ignores_known_bugs: false,
        chooses_threshold: false,
        lengths: Some(Lengths::default()),
        without_ebpf: false,
        sysctls: [
            ("net.ipv4.conf.all.forwarding", 1),
            ("net.ipv4.conf.default.forwarding", 1),
            ("net.ipv4.conf.eth0.forwarding", 1),
            ("net.ipv4.conf.eth1.forwarding", 1),
            ("net.ipv6.conf.all.forwarding", 1),
            ("net.netfilter.nf_conntrack_acct", 1),
            ("net.netfilter.nf_conntrack_count", 10),
            ("net.netfilter.nf_conntrack_max", 1000),
            ("net.netfilter.nf_conntrack_tcp_be_liberal", 0),
            ("net.netfilter.nf_conntrack_tcp_timeout_established", 432_000),
            ("net.netfilter.nf_conntrack_udp_timeout_stream", 120),
            ("net.netfilter.nf_flowtable_tcp_timeout", 30),
            ("net.netfilter.nf_flowtable_udp_timeout", 30),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        links: vec![lo, link(2, "eth0"), link(3, "eth1")],
        reachable: Families { v4: true, v6: true },
        observed: Err("not read".to_owned()),
        others: Ok(Others::default()),
        ipvs_services: 0,
        timeouts: Ok(Vec::new()),
        ipsec: Ok(Vec::new()),
        saved: Vec::new(),
        legacy_tables: Vec::new(),
        bpffs: Ok(true),
        pin_path: "/sys/fs/bpf/fastpath".to_owned(),
        ebpf: Ok(EbpfFacts {
            attached: [IfIndex(2), IfIndex(3)].into(),
            maps: Some(MapFacts { counted: 1_000_000, max_flows: 65536, ..MapFacts::default() }),
        }),
        at_ingress: Ok(Default::default()),
        forward: None,
        mark_filters: Ok(Vec::new()),
        hardware: Default::default(),
    };
    install(&mut facts);
    facts
}

fn flow() -> CanaryFlow {
    CanaryFlow {
        protocol: "tcp".to_owned(),
        family: "ipv6".to_owned(),
        rounds: 50,
        intact: 50,
        ingress: 102,
        forwarded: 1,
        error: None,
    }
}

/// What isn't green, in short.
fn wrong(facts: &NodeFacts, canary: &Canary) -> Vec<(Level, String)> {
    let findings = examine(facts, canary);
    for finding in &findings {
        assert_eq!(finding.remedy.is_none(), finding.level == Level::Green, "{finding:?}");
        assert!(!finding.found.contains('\n'), "{finding:?}");
    }
    let short = |finding: Finding| match finding.subject {
        Some(subject) => (finding.level, format!("{}/{subject}", finding.check)),
        None => (finding.level, finding.check.to_owned()),
    };
    findings.into_iter().filter(|finding| finding.level != Level::Green).map(short).collect()
}

#[test]
fn a_good_node_is_all_green() {
    let canary = Canary::Flows(vec![flow()]);
    assert_eq!(wrong(&good(), &canary), []);
    assert_eq!(worst(&examine(&good(), &canary)), Level::Green);
    // Every interface has its line, and every check says something.
    let findings = examine(&good(), &canary);
    let checks: std::collections::BTreeSet<_> = findings.iter().map(|finding| finding.check).collect();
    let page = include_str!("../../../docs/doctor.md");
    for check in &checks {
        assert!(page.contains(&format!("| `{check}` |")), "{check} is not in docs/doctor.md");
    }
    assert_eq!(checks.len(), 26, "{checks:?}");
    assert_eq!(findings.iter().filter(|finding| finding.check == "interface").count(), 3);
}

/// The table of our name.
fn table(facts: &mut NodeFacts) -> &mut Option<ObservedTable> {
    &mut facts.observed.as_mut().unwrap().table
}

type Change = fn(&mut NodeFacts);

fn set(facts: &mut NodeFacts, name: &str, value: i64) {
    assert!(facts.sysctls.insert(name.to_owned(), value).is_some_and(|old| old != value), "{name}");
}

#[test]
fn what_is_wrong_with_the_host_is_found() {
    use Level::{Amber, Red};
    let cases: &[(Change, &[(Level, &str)])] = &[
        (
            |f| {
                f.kernel.features[0].missing =
                    Some(Missing { certain: true, reason: "none: modprobe x".to_owned() })
            },
            &[(Red, "kernel/flowtables"), (Red, "canary")],
        ),
        (
            |f| f.kernel.features[2].missing = Some(Missing { certain: true, reason: "old".to_owned() }),
            &[(Amber, "kernel/flowtables with counters")],
        ),
        (
            |f| f.kernel.features[0].missing = Some(Missing { certain: false, reason: "EPERM".to_owned() }),
            &[(Amber, "kernel/flowtables")],
        ),
        (|f| f.kernel.release = "5.15.40".to_owned(), &[(Red, "known-bugs")]),
        (
            |f| {
                f.kernel.release = "5.15.40".to_owned();
                f.ignores_known_bugs = true;
            },
            &[(Red, "known-bugs")],
        ),
        (|f| f.kernel.release = "6.19.1".to_owned(), &[(Red, "known-bugs")]),
        (|f| f.agent = None, &[(Amber, "agent")]),
        (
            |f| {
                let unread = Some(Unread::Flags("EACCES".to_owned()));
                f.agent = Some(AgentFacts { pid: 7, unread });
            },
            &[(Amber, "agent")],
        ),
        (
            |f| {
                let unread = Some(Unread::Exclusions("ENOENT".to_owned()));
                f.agent = Some(AgentFacts { pid: 7, unread });
            },
            &[(Amber, "agent")],
        ),
        (|f| f.capabilities = Ok(!(1 << 12)), &[(Red, "capabilities")]),
        (|f| f.capabilities = Ok(!(1 << 21 | 1 << 39)), &[(Amber, "capabilities")]),
        (|f| f.capabilities = Ok(!(1 << 39)), &[]),
        (|f| f.capabilities = Err("gone".to_owned()), &[(Amber, "capabilities")]),
        (|f| f.bpffs = Ok(false), &[(Amber, "bpffs")]),
        (|f| set(f, "net.ipv4.conf.eth0.forwarding", 0), &[(Amber, "forwarding/ipv4")]),
        (|f| set(f, "net.ipv4.conf.default.forwarding", 0), &[(Amber, "forwarding/ipv4")]),
        (
            |f| {
                set(f, "net.ipv4.conf.all.forwarding", 0);
                set(f, "net.ipv4.conf.eth0.forwarding", 0);
                set(f, "net.ipv4.conf.eth1.forwarding", 0);
            },
            &[(Red, "forwarding/ipv4")],
        ),
        (|f| set(f, "net.ipv6.conf.all.forwarding", 0), &[(Amber, "forwarding/ipv6")]),
        (
            |f| {
                set(f, "net.ipv6.conf.all.forwarding", 0);
                f.reachable.v6 = false;
            },
            &[],
        ),
        (
            |f| {
                set(f, "net.ipv6.conf.all.forwarding", 0);
                f.reachable.v4 = false;
            },
            &[(Red, "forwarding/ipv6")],
        ),
        (|f| set(f, "net.netfilter.nf_conntrack_acct", 0), &[(Red, "conntrack/accounting")]),
        (|f| set(f, "net.netfilter.nf_conntrack_count", 749), &[]),
        (|f| set(f, "net.netfilter.nf_conntrack_count", 750), &[(Amber, "conntrack/table")]),
        (|f| set(f, "net.netfilter.nf_conntrack_count", 900), &[(Red, "conntrack/table")]),
        (|f| set(f, "net.netfilter.nf_flowtable_udp_timeout", 120), &[(Red, "conntrack/udp-timeout")]),
        (
            |f| set(f, "net.netfilter.nf_conntrack_tcp_timeout_established", 30),
            &[(Red, "conntrack/tcp-timeout")],
        ),
    ];
    check(cases);
}

fn foreign_flowtable(device: &str) -> OtherFlowtable {
    let table = OtherTable { family: "inet", name: "firewalld".to_owned() };
    OtherFlowtable { table, name: "fastpath".to_owned(), devices: [name(device)].into() }
}

fn program(facts: &mut NodeFacts, before_ours: bool) {
    let program = IngressProgram { kind: "TCX", name: "cil_from_netdev".to_owned(), before_ours };
    facts.at_ingress = Ok([(IfIndex(2), vec![program])].into());
}

fn maps(facts: &mut NodeFacts) -> &mut MapFacts {
    facts.ebpf.as_mut().unwrap().maps.as_mut().unwrap()
}

#[test]
fn what_is_wrong_with_the_network_is_found() {
    use Level::{Amber, Red};
    let cases: &[(Change, &[(Level, &str)])] = &[
        (|f| *table(f) = None, &[(Red, "ruleset")]),
        (
            |f| {
                *table(f) = None;
                f.agent = None;
            },
            &[(Amber, "agent"), (Amber, "ruleset")],
        ),
        (
            |f| {
                *table(f) = None;
                f.policy.threshold = 0;
            },
            &[(Amber, "ruleset")],
        ),
        (|f| table(f).as_mut().unwrap().owner = Owner::Foreign, &[(Amber, "ruleset")]),
        (
            |f| {
                let table = table(f).as_mut().unwrap();
                table.owner = Owner::Foreign;
                table.sets.clear();
            },
            &[(Red, "ruleset")],
        ),
        (|f| table(f).as_mut().unwrap().chains[0].rules.clear(), &[(Red, "ruleset")]),
        (|f| f.policy = policy(&["--fastpath-threshold=6"]), &[(Red, "ruleset")]),
        (|f| f.observed = Err("EPERM".to_owned()), &[(Amber, "ruleset")]),
        (
            // Another program's filter comes after the agent's chain, which hasn't moved yet.
            |f| f.policy.surroundings.last_forward = Some(400),
            &[(Red, "ruleset"), (Amber, "chain-priority")],
        ),
        (
            |f| {
                let chain = IngressChain::new("netdev", "edge", "in", &["eth0".to_owned()], i32::MAX);
                f.others.as_mut().unwrap().ingress.push(chain);
            },
            &[(Amber, "ingress-chains")],
        ),
        (|f| f.timeouts = Ok(vec!["long in table voip".to_owned()]), &[(Amber, "flow-timeouts")]),
        (|f| f.ipsec = Err("EPERM".to_owned()), &[(Amber, "ipsec-policies")]),
        (|f| f.ipsec = Ok(vec!["fwd 10.1.0.0/24 > 10.2.0.0/24".to_owned()]), &[]),
        (|f| f.saved = vec!["/etc/nftables.conf".to_owned()], &[(Amber, "saved-ruleset")]),
        // An interface that the kernel refuses has a line of its own; the rest of the ruleset is right.
        (
            |f| {
                f.links.push(link(4, "eth2"));
                f.ebpf.as_mut().unwrap().attached.insert(IfIndex(4));
            },
            &[(Amber, "interface/eth2")],
        ),
        (|f| f.links.push(Link { oper_state: OperState::Down, ..link(4, "eth2") }), &[]),
        (
            |f| {
                let mut theirs = table(f).as_ref().unwrap().flowtables[0].clone();
                theirs.name = "theirs".to_owned();
                let own = table(f).as_mut().unwrap();
                own.flowtables.iter_mut().find(|t| t.name == FLOWTABLE).unwrap().devices =
                    Some([name("eth0")].into());
                for set in &mut own.sets {
                    set.elements.remove(&IfIndex(3));
                }
                own.flowtables.push(theirs);
            },
            &[(Amber, "interface/eth1")],
        ),
        (|f| f.policy.hw_offload = true, &[(Amber, "hardware-offload")]),
        (
            |f| f.others.as_mut().unwrap().flowtables.push(foreign_flowtable("eth0")),
            &[(Amber, "other-flowtables/inet firewalld fastpath")],
        ),
        (|f| f.others.as_mut().unwrap().flowtables.push(foreign_flowtable("eth9")), &[]),
        (|f| f.others = Err("EPERM".to_owned()), &[(Amber, "other-owners")]),
        (|f| f.ipvs_services = 3, &[]),
        (
            |f| {
                f.ipvs_services = 3;
                f.links.push(Link { oper_state: OperState::Down, ..link(9, "kube-ipvs0") });
                let table = OtherTable { family: "ip", name: "kube-proxy".to_owned() };
                f.others.as_mut().unwrap().tables.insert(table);
            },
            &[(Amber, "kube-proxy")],
        ),
        (|f| program(f, true), &[(Amber, "ebpf-order/eth0")]),
        (|f| program(f, false), &[(Amber, "ebpf-order/eth0")]),
        (|f| f.at_ingress = Err("EPERM".to_owned()), &[(Amber, "ebpf-order")]),
        (|f| f.mark_filters = Err("EPERM".to_owned()), &[(Amber, "rules")]),
        (|f| f.mark_filters = Ok(vec!["fw at eth0".to_owned()]), &[]),
        (|f| f.ebpf = Err("EPERM".to_owned()), &[(Amber, "ebpf")]),
        (|f| f.ebpf.as_mut().unwrap().maps = None, &[(Amber, "ebpf")]),
        (|f| f.ebpf.as_mut().unwrap().attached.clear(), &[(Amber, "ebpf")]),
        (
            |f| {
                f.ebpf.as_mut().unwrap().maps = None;
                f.bpffs = Ok(false);
                f.without_ebpf = true;
            },
            &[],
        ),
        (|f| maps(f).events_lost = 1, &[(Amber, "ebpf-loss/events")]),
        (|f| maps(f).no_room = 1, &[(Amber, "ebpf-loss/flow map")]),
        (|f| maps(f).malformed = 100, &[]),
        (|f| maps(f).malformed = 101, &[(Amber, "ebpf-loss/malformed packets")]),
    ];
    check(cases);
}

fn check(cases: &[(Change, &[(Level, &str)])]) {
    for (number, (change, expected)) in cases.iter().enumerate() {
        let mut facts = good();
        change(&mut facts);
        let expected: Vec<_> = expected.iter().map(|(level, what)| (*level, (*what).to_owned())).collect();
        assert_eq!(wrong(&facts, &Canary::Flows(vec![flow()])), expected, "case {number}");
    }
}

#[test]
fn what_the_canary_says() {
    let with = |change: fn(&mut CanaryFlow)| {
        let mut flow = flow();
        change(&mut flow);
        Canary::Flows(vec![flow])
    };
    let about = |level| vec![(level, "canary/tcp/ipv6".to_owned())];
    assert_eq!(wrong(&good(), &with(|f| f.forwarded = 10)), []);
    assert_eq!(wrong(&good(), &with(|f| f.forwarded = 11)), about(Level::Red));
    assert_eq!(wrong(&good(), &with(|f| (f.ingress, f.forwarded) = (0, 0))), about(Level::Red));
    assert_eq!(wrong(&good(), &with(|f| f.intact = 49)), about(Level::Red));
    assert_eq!(wrong(&good(), &with(|f| f.error = Some("read-only".to_owned()))), about(Level::Amber));
    assert_eq!(wrong(&good(), &Canary::Failed("EPERM".to_owned())), [(Level::Amber, "canary".to_owned())]);
    assert_eq!(wrong(&good(), &Canary::NotWanted), []);
}

#[test]
fn a_threshold_that_does_not_suit_is_told() {
    let lives_on = |facts: &mut NodeFacts| {
        let mut lengths = Lengths::default();
        (0..4000).for_each(|_| lengths.add(60));
        facts.lengths = Some(lengths);
    };
    let found = |change: &dyn Fn(&mut NodeFacts)| {
        let mut facts = good();
        change(&mut facts);
        let findings = examine(&facts, &Canary::NotWanted);
        findings.into_iter().find(|finding| finding.check == "threshold")
    };
    let few = found(&|_| {}).unwrap();
    assert_eq!(few.found, "20: too few flows seen to tell whether another is better (0 directions)");
    let other = found(&lives_on).unwrap();
    assert_eq!(
        (other.level, other.found.as_str()),
        (
            Level::Amber,
            "20: 82 % of the packets of 4000 counted directions come after it; 6 saves more work (94 %)"
        )
    );
    assert!(other.remedy.unwrap().contains("--fastpath-threshold=6, or with auto"));
    let left_to_it = found(&|facts| {
        lives_on(facts);
        facts.chooses_threshold = true;
    });
    assert_eq!(left_to_it.unwrap().level, Level::Green);
    let suits = found(&|facts| {
        lives_on(facts);
        facts.policy.threshold = 6;
    });
    assert_eq!(
        suits.unwrap().found,
        "6: 94 % of the packets of 4000 counted directions come after it; no other threshold would save much more work"
    );
    assert!(found(&|facts| facts.policy.threshold = 0).is_none(), "nothing is offloaded");
    assert!(found(&|facts| facts.lengths = None).is_none(), "nothing is counted");
}

#[test]
fn neighbours_are_named() {
    let mut facts = good();
    let others = facts.others.as_mut().unwrap();
    others.chains.extend(["DOCKER-USER", "cali-FORWARD", "CNI-DN-1", "KUBE-SERVICES"].map(str::to_owned));
    others.tables.insert(OtherTable { family: "inet", name: "firewalld".to_owned() });
    let found = |facts: &NodeFacts, check| {
        let findings = examine(facts, &Canary::NotWanted);
        findings.into_iter().find(|finding| finding.check == check).unwrap().found
    };
    assert_eq!(
        found(&facts, "other-owners"),
        "rules of Calico, the CNI plugins, firewalld, Docker are there, and stay as they are"
    );
    let kube_proxy = |facts: &NodeFacts, words| {
        let found = found(facts, "kube-proxy");
        assert!(found.starts_with(words), "{found}");
    };
    kube_proxy(&facts, "iptables mode");
    facts.links.push(link(9, "kube-ipvs0"));
    kube_proxy(&facts, "ipvs mode");
    // keepalived has services of IPVS without kube-proxy.
    facts.links.pop();
    facts.others.as_mut().unwrap().chains.remove("KUBE-SERVICES");
    facts.ipvs_services = 3;
    kube_proxy(&facts, "no rules of kube-proxy; services of IPVS");
}
