//! The agent's view of nftables against the kernel, without the parts that need a flowtable.

use std::{
    fs,
    future::Future,
    net::Ipv6Addr,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::{Duration, Instant},
};

use fastpath_agent::{
    commands::render,
    core::{
        model::{IfIndex, IfName, Link, OperState, TABLE},
        revalidate::{Notice, Subject},
        route_rule::RouteRule,
        ruleset::{
            chain::OwnChain,
            desired, diff,
            exclude::Exclusions,
            expr::Expr,
            observed::{ChainHook, Generation, ObservedTable, Owner},
            plan::Op,
            rule::Rule,
            sets::{ExcludeSet, OwnSet},
            wanted::{DesiredTable, Policy},
        },
        surroundings::Surroundings,
    },
    kernel::{
        Ruleset, RulesetMonitor,
        nft::{CommitError, Event, Lost, Monitor, Nft},
        probe::{self, Support},
    },
};
use fastpath_tests::netns::Netns;

/// What an agent wants on a node with a VRF, a bridge and policy rules, as far as a kernel without flowtables takes it.
/// All indices are loopback's, which is the only one here.
fn wanted(surroundings: Surroundings) -> DesiredTable {
    let policy = Policy { spare_ipsec: true, assist: true, surroundings, ..Policy::default() };
    let link = |name: &str, kind: &str| Link {
        index: IfIndex(1),
        name: IfName::new(name).expect("a valid name"),
        admin_up: true,
        oper_state: OperState::Up,
        loopback: false,
        kind: Some(kind.to_owned()),
        master: None,
        lower: None,
        address: Some([2, 0, 0, 0, 0, 7]),
        mtu: 1500,
        ethernet: true,
    };
    let links = [link("blue", "vrf"), link("bridge", "bridge")];
    let mut table = DesiredTable { devices: Default::default(), ..merged(&policy, &links) };
    table.sets.push(OwnSet::Revoked);
    table.chains.entry(OwnChain::Offload).or_default().insert(0, Rule::Revoked);
    table
}

/// With links of the same index one after the other.
fn merged(policy: &Policy, links: &[Link]) -> DesiredTable {
    let mut table = desired::desired(policy, &links[..1], &Default::default()).expect("a table");
    let other = desired::desired(policy, &links[1..], &Default::default()).expect("a table");
    table.keys.extend(other.keys);
    table.sets.extend([OwnSet::Bridges, OwnSet::BridgeAddresses]);
    table.chains.insert(OwnChain::Offload, other.chains[&OwnChain::Offload].clone());
    table
}

fn forward_only() -> Surroundings {
    let rule = |input| RouteRule { input: IfName::new(input), ..RouteRule::default() };
    let ports = RouteRule {
        from: Some("10.1.0.0/16".parse().expect("a network")),
        to: Some("10.2.0.9/32".parse().expect("a network")),
        protocol: Some(6),
        destination_ports: Some((443..=444).into()),
        source_ports: Some((1..=1).into()),
        ..rule("blue")
    };
    let ipv6 =
        RouteRule { from: Some("fd00::/8".parse().expect("a network")), ipv6: true, ..RouteRule::default() };
    Surroundings { unguessed: vec![rule("blue"), ports, ipv6], ..Surroundings::default() }
}

fn with_postrouting() -> Surroundings {
    Surroundings { denying_postrouting: Some(0), ..forward_only() }
}

/// Instructions on a kernel without flowtables.
fn without_flow_add(mut exprs: Vec<Expr>) -> Vec<Expr> {
    exprs.retain(|expr| !matches!(expr, Expr::FlowAdd { .. }));
    exprs
}

fn install_all(want: &DesiredTable) -> Vec<Op> {
    let ops = diff::create(want).into_iter().filter_map(|op| match op {
        Op::AddFlowtable { .. } => None,
        Op::AddRule { chain, exprs } => Some(Op::AddRule { chain, exprs: without_flow_add(exprs) }),
        op => Some(op),
    });
    ops.collect()
}

/// The table with these indices of interfaces.
fn install(indices: impl IntoIterator<Item = u32>) -> Vec<Op> {
    let mut ops = install_all(&wanted(forward_only()));
    ops.push(Op::AddIndices(indices.into_iter().map(IfIndex).collect()));
    ops
}

fn exprs(table: &ObservedTable, chain: OwnChain) -> Vec<&Vec<Expr>> {
    table.chain(chain).expect("the chain").rules.iter().map(|rule| &rule.exprs).collect()
}

/// Every chain has the rules that are wanted, and every set its shape and keys.
#[track_caller]
fn assert_has(table: &ObservedTable, want: &DesiredTable) {
    for (chain, rules) in &want.chains {
        let rules: Vec<_> = rules.iter().map(|rule| without_flow_add(rule.exprs())).collect();
        assert_eq!(exprs(table, *chain), rules.iter().collect::<Vec<_>>(), "{chain}");
        let hook = table.chain(*chain).and_then(|chain| chain.hook.as_ref()).map(|hook| hook.hook);
        assert_eq!(hook, chain.hook(), "{chain}");
    }
    assert_eq!(table.chains.len(), want.chains.len());
    for set in &want.sets {
        let observed = table.set(*set).unwrap_or_else(|| panic!("no {set}"));
        assert!(set.fits(&observed.shape, want.keys(*set).len()), "{set}: {:?}", observed.shape);
        assert_eq!(observed.keys, want.keys(*set), "{set}");
    }
    assert_eq!(table.sets.len(), want.sets.len());
}

fn generation(nft: &mut Nft) -> Generation {
    nft.observe().expect("observe").generation
}

fn table(nft: &mut Nft) -> ObservedTable {
    nft.observe().expect("observe").table.expect("a table")
}

#[test]
fn what_was_committed_is_observed() {
    let node = Netns::new("node");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let before = nft.observe().expect("observe");
        assert_eq!(before.table, None);
        let after = nft.commit(&install([1, 77]), before.generation).expect("commit");
        assert_eq!(after, before.generation.next());

        let observed = nft.observe().expect("observe");
        assert_eq!(observed.generation, after);
        let table = observed.table.expect("our table");
        assert_eq!(table.owner, Owner::Agent);
        assert_eq!(table.flowtables, []);
        let want = wanted(forward_only());
        assert_has(&table, &want);
        assert_eq!(table.managed(), Some(&[IfIndex(1), IfIndex(77)].into()));
        let hook = ChainHook { kind: "filter".to_owned(), hook: 2, priority: 300, accept: true };
        assert_eq!(table.chain(OwnChain::Base).expect("the base chain").hook, Some(hook));
        let rules: Vec<_> = table.chains.iter().flat_map(|chain| &chain.rules).collect();
        assert!(rules.iter().all(|rule| rule.owner == Owner::Agent));
        let counters: Vec<_> = rules.iter().filter_map(|rule| rule.counter).collect();
        assert_eq!(counters.iter().map(|counter| counter.packets).collect::<Vec<_>>(), [0; 7]);

        // And all of it can be taken apart again.
        let handle = table.chain(OwnChain::Base).expect("the base chain").rules[0].handle;
        let mut ops =
            vec![Op::RemoveIndices(vec![IfIndex(77)]), Op::DeleteRule { chain: OwnChain::Base, handle }];
        ops.extend(want.chains.keys().rev().map(|chain| Op::DeleteChain(*chain)));
        ops.extend(want.sets.iter().map(|set| Op::DeleteSet(*set)));
        let after = nft.commit(&ops, after).expect("commit");
        assert_eq!(self::table(&mut nft), ObservedTable::empty());
        nft.commit(&[Op::DeleteTable], after).expect("commit");
        assert_eq!(nft.observe().expect("observe").table, None);
    });
}

/// What `nft` lists, and what `render` prints, loads by `nft -f` as the very rules that we make.
#[test]
fn what_nft_lists_and_render_prints_loads_as_the_same() {
    for surroundings in [forward_only(), with_postrouting()] {
        let node = Netns::new("node");
        let want = wanted(surroundings);
        node.run(|| {
            let mut nft = Nft::open().expect("open");
            let generation = generation(&mut nft);
            nft.commit(&install_all(&want), generation).expect("commit");
        });
        let listing = node.output("nft", &["list", "table", "inet", TABLE]);
        println!("{listing}");
        assert!(listing.contains("typeof ct id . iif . oif") && !listing.contains("unknown"), "{listing}");
        // This kernel has no flowtable.
        let rendered = render::ruleset(&Some(want.clone()));
        let (before, rest) = rendered.split_once("\tflowtable").expect("a flowtable");
        let (_, after) = rest.split_once("}\n").expect("its end");
        let rendered = format!("{before}{after}").replace("flow add @kindnet-flowtables ", "");
        for text in [listing, rendered] {
            node.nft(&format!("delete table inet {TABLE}\n{text}"));
            let table = node.run(|| table(&mut Nft::open().expect("open")));
            assert_eq!(table.owner, Owner::Foreign);
            assert_has(&table, &want);
        }
    }
}

#[test]
fn what_others_wrote_is_foreign_and_read_all_the_same() {
    let node = Netns::new("node");
    node.nft(
        "table inet other { set kindnet-set-devices { type iface_index; elements = { 1 } }; chain c { counter; }; }
         table ip kindnet-fastpath { chain c { counter; }; }",
    );
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        assert_eq!(nft.observe().expect("observe").table, None);
    });
    node.nft(
        r#"table inet kindnet-fastpath {
             comment "rules for kindnet fastpath"
             set names { type ifname; elements = { "lo" }; }
             set kindnet-set-devices { type iface_index; elements = { 1 }; }
             chain jumped { ct original packets > 5 log; counter comment "fastpath/1"; tcp dport { 1, 2 } drop; }
             chain kindnet-fastpath-chain { type filter hook forward priority -110; policy drop; counter; }
           }"#,
    );
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let table = table(&mut nft);
        assert_eq!(table.owner, Owner::Foreign);
        let names = table.sets.iter().find(|set| set.name == "names").expect("the set");
        assert_eq!((names.shape.key_type, names.shape.key_len, names.elements.len()), (41, 16, 0));
        assert_eq!(table.managed().map(|indices| indices.len()), Some(1));
        let chain = |name| table.chains.iter().find(|chain| chain.name == name).expect("the chain");
        let hook = ChainHook { kind: "filter".to_owned(), hook: 2, priority: -110, accept: false };
        assert_eq!(chain("kindnet-fastpath-chain").hook, Some(hook));
        assert!(!table.is_rendering());
        assert_eq!(chain("jumped").hook, None);
        assert_eq!(chain("jumped").rules.len(), 3);
        assert!(matches!(&chain("jumped").rules[0].exprs[0], Expr::Other { name } if name == "ct"));
        assert!(chain("jumped").rules.iter().all(|rule| rule.owner == Owner::Foreign));
    });
}

#[test]
fn a_foreign_change_makes_the_plan_stale_and_nothing_is_written() {
    let node = Netns::new("node");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let seen = generation(&mut nft);
        node.nft("table ip other {}");
        let error = nft.commit(&install([1]), seen).expect_err("stale");
        assert!(matches!(error, CommitError::Stale), "{error:?}");
        let observed = nft.observe().expect("observe");
        assert_eq!((observed.table, observed.generation), (None, seen.next()));
        nft.commit(&install([1]), seen.next()).expect("commit");
    });
}

#[test]
fn every_refused_operation_is_named_and_nothing_is_applied() {
    let node = Netns::new("node");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let seen = generation(&mut nft);
        let mut ops = install([1]);
        // More elements than one message takes: the refusal comes from the second one.
        ops.push(Op::AddIndices((2..600).map(IfIndex).collect()));
        let middle = ops.len();
        ops.push(Op::RemoveIndices((1..300).chain([999]).map(IfIndex).collect()));
        let last = ops.len();
        ops.push(Op::DeleteRule { chain: OwnChain::Base, handle: 4711 });
        let refused = |result: Result<_, CommitError>| match result {
            Err(CommitError::Rejected(rejections)) => rejections
                .iter()
                .map(|rejection| (rejection.index, rejection.source.raw_os_error()))
                .collect::<Vec<_>>(),
            other => panic!("not rejected: {other:?}"),
        };
        let enoent = Some(nix::libc::ENOENT);
        assert_eq!(refused(nft.commit(&ops, seen)), [(middle, enoent), (last, enoent)]);
        let observed = nft.observe().expect("observe");
        assert_eq!((observed.table, observed.generation), (None, seen));
        // What the codec can't write doesn't reach the kernel.
        let ops = [
            Op::AddTable,
            Op::AddRule { chain: OwnChain::Base, exprs: vec![Expr::Other { name: "log".to_owned() }] },
        ];
        assert_eq!(refused(nft.commit(&ops, seen)), [(1, None)]);
    });
}

#[test]
fn a_plan_of_thousands_of_elements_and_an_empty_one() {
    let node = Netns::new("node");
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let seen = generation(&mut nft);
        let after = nft.commit(&install(1..=5000), seen).expect("commit");
        assert_eq!(table(&mut nft).managed().map(|indices| indices.len()), Some(5000));
        assert_eq!(nft.commit(&[], after).expect("commit"), after);
        assert_eq!(generation(&mut nft), after);
    });
}

/// Exclusions of every kind.
const EXCLUDED: &str =
    "10.1.2.3\n10.1.0.0/16\nfd00::1\nfd00::/9\ntcp/443\nudp/53-54\nprotocol/gre\nmark/0x10/0xff\nmark/7\n";

fn excluding(file: &str) -> Vec<Op> {
    let exclusions = Arc::new(Exclusions::new(&[], file).expect("exclusions"));
    let policy = Policy { spare_ipsec: true, exclusions, ..Policy::default() };
    let desired = desired::desired(&policy, [], &Default::default()).expect("a table");
    let mut ops = diff::create(&desired);
    ops.retain(|op| !matches!(op, Op::AddFlowtable { .. }));
    let rules =
        ops.iter_mut().filter_map(|op| if let Op::AddRule { exprs, .. } = op { Some(exprs) } else { None });
    rules.for_each(|exprs| exprs.retain(|expr| !matches!(expr, Expr::FlowAdd { .. })));
    ops
}

/// Our rules about exclusions, made by us, are what `nft` makes of its own words for them.
#[test]
fn exclusions_are_what_nft_makes_of_them() {
    let node = Netns::new("node");
    let own = node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = generation(&mut nft);
        nft.commit(&excluding(EXCLUDED), generation).expect("commit");
        table(&mut nft)
    });
    let listing = node.output("nft", &["list", "table", "inet", TABLE]);
    println!("{listing}");
    for words in [
        "ct original ip saddr & 255.255.0.0 == @kindnet-exclude-v4-16 return",
        "ct status dnat ct reply ip6 saddr @kindnet-exclude-v6-128 return",
        "meta l4proto udp ct status snat ct reply proto-dst @kindnet-exclude-udp return",
        "meta mark & 0x000000ff == 0x00000010 return",
        "ct mark 0x00000007 return",
        "elements = { 53, 54 }",
    ] {
        assert!(listing.contains(words), "no {words:?} in {listing}");
    }
    node.nft(&format!("delete table inet {TABLE}\n{listing}"));
    let theirs = node.run(|| table(&mut Nft::open().expect("open")));
    assert_eq!(exprs(&theirs, OwnChain::Offload), exprs(&own, OwnChain::Offload));
    let sets = |table: &ObservedTable| {
        table.sets.iter().map(|set| (set.name.clone(), set.shape, set.keys.clone())).collect::<Vec<_>>()
    };
    assert_eq!(sets(&theirs), sets(&own));
}

#[test]
fn hundreds_of_thousands_of_exclusions_in_one_transaction() {
    let node = Netns::new("node");
    let file = |count: u32| {
        (0..count).map(|n| format!("{}\n", Ipv6Addr::from(u128::from(n) << 64))).collect::<String>()
    };
    for count in [100_000, 300_000] {
        node.run(|| {
            let mut nft = Nft::open().expect("open");
            let began = Instant::now();
            let ops = excluding(&file(count));
            let parsed = began.elapsed();
            let seen = generation(&mut nft);
            let after = nft.commit(&ops, seen).expect("commit");
            let written = began.elapsed() - parsed;
            let table = table(&mut nft);
            let read = began.elapsed() - parsed - written;
            println!("{count}: parsed in {parsed:?}, written in {written:?}, read in {read:?}");
            let set = table.set(OwnSet::Exclude(ExcludeSet::V6(128))).expect("the set");
            assert_eq!(set.keys.len(), count as usize);
            nft.commit(&[Op::DeleteTable], after).expect("commit");
        });
    }
}

/// Runs a future that must be done within five seconds.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(5), future).await.expect("done within five seconds")
    })
}

/// Memory that datagrams take which wait on a netlink socket of this thread's namespace.
fn receive_queue_bytes(socket: RawFd) -> u32 {
    let link = fs::read_link(format!("/proc/self/fd/{socket}")).expect("the socket's inode");
    let link = link.to_str().expect("socket:[INODE]");
    let inode = link.trim_start_matches("socket:[").trim_end_matches(']');
    let sockets = fs::read_to_string("/proc/thread-self/net/netlink").expect("procfs");
    let fields = sockets
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.last() == Some(&inode))
        .expect("our socket is listed");
    fields[4].parse().expect("column Rmem")
}

#[test]
fn the_monitor_hears_of_generations_and_of_nothing_else() {
    let node = Netns::new("node");
    node.run(|| {
        block_on(async {
            let mut nft = Nft::open().expect("open");
            let mut monitor = Monitor::open(&nft).expect("monitor");
            let first = generation(&mut nft);
            let rules: String =
                (0..500).map(|n| format!("add rule ip other c tcp dport {} counter\n", n + 1)).collect();
            node.nft(&format!("add table ip other\nadd chain ip other c\n{rules}"));
            nft.commit(&install([1]), first.next()).expect("commit");
            // Two small datagrams wait, and not those about 500 rules too.
            let waiting = receive_queue_bytes(monitor.as_raw_fd());
            assert!((1..8192).contains(&waiting), "{waiting}");
            let expected = [(first.next(), "nft"), (first.next().next(), "")];
            for (expected, process_name) in expected {
                let Event::Generation { generation, process, name } = monitor.next().await.expect("event")
                else {
                    panic!("an overrun")
                };
                assert_eq!(generation, expected);
                assert!(process.is_some_and(|process| process != 0));
                let name = name.expect("a name");
                assert!(process_name.is_empty() || name == process_name, "{name}");
            }
            let more = tokio::time::timeout(Duration::from_millis(200), monitor.next()).await;
            assert!(more.is_err(), "{more:?}");
        });
    });
}

/// What the monitor tells of other programs' changes, one line an object.
fn heard(monitor: &mut Monitor) -> Vec<String> {
    let mut heard = Vec::new();
    let complete = monitor
        .changes(|Notice { family, table, subject }| heard.push(format!("{family} {table} {subject:?}")))
        .expect("listen");
    assert_eq!(complete, Ok(()));
    heard
}

#[test]
fn the_monitor_tells_what_others_changed_and_nothing_of_ours() {
    let node = Netns::new("node");
    node.run(|| {
        block_on(async {
            let mut nft = Nft::open().expect("open");
            let mut monitor = Monitor::open(&nft).expect("monitor");
            let generation = generation(&mut nft);
            nft.commit(&install([1]), generation).expect("commit");
            assert_eq!(heard(&mut monitor), Vec::<String>::new());
            node.nft(
                "add table ip t
                 add chain ip t base { type filter hook forward priority -5; }
                 add chain ip t jumped-to
                 add set ip t s { type ipv4_addr; }
                 add rule ip t base ip saddr @s jump jumped-to",
            );
            node.nft("add element ip t s { 10.0.0.1 }\ninsert rule inet kindnet-fastpath kindnet-fastpath-chain drop");
            assert_eq!(
                heard(&mut monitor),
                [
                    "2 t Table { gone: false }",
                    r#"2 t Chain { name: "base", hook: Some(Hook { kind: "filter", number: 2, priority: -5 }), gone: false }"#,
                    r#"2 t Chain { name: "jumped-to", hook: None, gone: false }"#,
                    "2 t Other",
                    r#"2 t Rule { chain: "base" }"#,
                    r#"2 t Elements { set: "s" }"#,
                    r#"1 kindnet-fastpath Rule { chain: "kindnet-fastpath-chain" }"#,
                ]
            );
            node.nft("delete table ip t");
            let deleted = heard(&mut monitor);
            assert!(deleted.contains(&r#"2 t Chain { name: "base", hook: None, gone: true }"#.to_owned()), "{deleted:#?}");
            assert!(deleted.contains(&"2 t Table { gone: true }".to_owned()), "{deleted:#?}");
        });
    });
}

#[test]
fn base_chains_of_all_families_are_read() {
    let node = Netns::new("node");
    node.run(|| {
        for (family, number) in [("inet", 1), ("ip", 2), ("ip6", 10), ("bridge", 7)] {
            node.nft(&format!(
                "table {family} t {{
                    chain in {{ type filter hook input priority 0; }}
                    chain forward {{ type filter hook forward priority 0; }}
                    chain jumped-to {{ }}
                }}"
            ));
            let mut chains = Nft::open().expect("open").base_chains().expect("chains");
            let mut rule = |chain| {
                let notice = Notice { family: number, table: "t", subject: Subject::Rule { chain } };
                chains.note(&notice).forwarding
            };
            assert!(rule("forward") && rule("jumped-to"), "{family}");
            assert_eq!(rule("in"), family == "bridge", "{family}");
        }
    });
}

#[test]
fn more_changes_than_the_monitor_holds_are_told() {
    let node = Netns::new("node");
    node.run(|| {
        block_on(async {
            let nft = Nft::open().expect("open");
            let mut monitor = Monitor::open(&nft).expect("monitor");
            let rules = "add rule ip t c counter counter counter counter counter counter counter counter\n"
                .repeat(30_000);
            node.nft(&format!("add table ip t\nadd chain ip t c\n{rules}"));
            assert_eq!(monitor.changes(|_| {}).expect("listen"), Err(Lost));
            assert_eq!(heard(&mut monitor), Vec::<String>::new());
        });
    });
}

#[test]
fn probes_answer_as_nft_does_and_leave_no_trace() {
    let node = Netns::new("node");
    // Below /proc/sys/net each process sees its own namespace's.
    let accounting = || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct").expect("sysctl");
    node.nft("table inet other { chain c { counter; }; }");
    let ruleset = || node.output("nft", &["-a", "list", "ruleset"]);
    let before = (ruleset(), node.run(accounting));
    let kernel = node.run(|| {
        block_on(async {
            let nft = Nft::open().expect("open");
            let mut monitor = Monitor::open(&nft).expect("monitor");
            let before = generation(&mut Nft::open().expect("open"));
            let kernel = probe::probe();
            assert_eq!(generation(&mut Nft::open().expect("open")), before);
            let heard = tokio::time::timeout(Duration::from_millis(200), monitor.next()).await;
            assert!(heard.is_err(), "{heard:?}");
            kernel
        })
    });
    assert_eq!((ruleset(), node.run(accounting)), before);

    let accepts = |script: &str| node.try_run("nft", &["-c", "-f", "-"], script).status.success();
    let flowtable = "flowtable f { hook ingress priority 0; devices = { lo }; ";
    let cases = [
        ("nf_tables", &kernel.nf_tables, accepts("table inet t {}")),
        ("ct", &kernel.ct, accepts("table inet t { chain c { ct packets > 20; }; }")),
        ("flowtable", &kernel.flowtable, accepts(&format!("table inet t {{ {flowtable} }}; }}"))),
        (
            "counter",
            &kernel.flowtable_counter,
            accepts(&format!("table inet t {{ {flowtable} counter; }}; }}")),
        ),
        (
            "flow_offload",
            &kernel.flow_offload,
            accepts(&format!("table inet t {{ {flowtable} }}; chain c {{ flow add @f; }}; }}")),
        ),
    ];
    for (name, support, accepted) in cases {
        assert_eq!(support.known(), Some(accepted), "{name}: {support:?}");
        println!("{name}: {support:?}");
    }
    let release = node.output("uname", &["-r"]);
    assert_eq!(kernel.release, release.trim());
    assert_eq!(kernel.lacks_flowtable().is_none(), kernel.flowtable == Support::Yes);
}
