//! What the metrics say of offloaded flows, held against what was sent, what conntrack has and what was forwarded.

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command, thread, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, SERVE, bring_loopback_up},
    reference, table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
    wait_until,
};

/// A page of metrics: values by name and labels, as written.
struct Page(BTreeMap<String, f64>);

impl Page {
    #[track_caller]
    fn read(topology: &Topology) -> Self {
        let answer = http::get(&topology.node, "/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let samples = answer.body.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| {
                    line.rsplit_once(' ')
                        .map(|(name, value)| (name.to_owned(), value.parse().expect("a number")))
                })
                .collect(),
        )
    }

    #[track_caller]
    fn get(&self, series: &str) -> u64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0)) as u64
    }

    /// Over all interfaces.
    fn sum(&self, family: &str) -> u64 {
        self.0
            .iter()
            .filter(|(name, _)| name.starts_with(&format!("{family}{{")))
            .map(|(_, value)| *value as u64)
            .sum()
    }

    fn all(&self) -> u64 {
        self.sum("fastpath_interface_receive_packets_total")
    }

    fn fast(&self) -> u64 {
        self.sum("fastpath_interface_fast_path_packets_total")
    }
}

/// Starts an agent that serves metrics, and waits until it watches and the ruleset is installed.
#[track_caller]
fn start(topology: &Topology, flags: &[&str]) -> Agent {
    bring_loopback_up(&topology.node);
    let agent = Agent::start_with(&topology.node, &[&[SERVE], flags].concat());
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    agent
}

/// Fresh flow over the threshold and on, all of it delivered.
#[track_caller]
fn send(topology: &Topology, proto: Proto, family: Family, port: u16, rounds: usize) -> Flow {
    let mut flow = topology.open(proto, family, port);
    assert_eq!(flow.rounds(rounds), rounds, "{flow:?}");
    flow
}

#[test]
fn packets_on_the_fast_path_are_those_that_were_not_forwarded() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let agent = start(&topology, &[]);
    let mut ports = 7001..;
    let (mut all, mut bytes, mut forwarded) = (0, 0, 0);
    // Kept until the end: a connection that is closed has some packets more.
    let mut flows = Vec::new();
    for (proto, family) in [(Proto::Udp, Family::V4), (Proto::Udp, Family::V6), (Proto::Tcp, Family::V4)] {
        let port = ports.next().expect("a port");
        let mut flow = send(&topology, proto, family, port, 100);
        // Alive, from page to page.
        for _ in 0..2 {
            let (packets, length) = topology.counted_in_the_end(port);
            let page = Page::read(&topology);
            let slow = topology.forwarded(port).total();
            assert!(slow >= 20 && packets > 2 * slow, "{proto:?}: {slow} of {packets} took the forward path");
            assert_eq!(page.all(), all + packets, "{proto:?} {family:?}: all");
            assert_eq!(
                page.sum("fastpath_interface_receive_bytes_total"),
                bytes + length,
                "{proto:?} {family:?}: bytes"
            );
            assert_eq!(page.fast(), all - forwarded + packets - slow, "{proto:?} {family:?}: fast");
            assert_eq!(flow.rounds(50), 50);
        }
        flows.push(flow);
        let last = topology.counted_in_the_end(port);
        (all, bytes, forwarded) =
            (all + last.0, bytes + last.1, forwarded + topology.forwarded(port).total());
    }
    let page = Page::read(&topology);
    assert_eq!((page.all(), page.fast()), (all, all - forwarded));
    for interface in ["c0", "s0"] {
        let fast =
            page.get(&format!("fastpath_interface_fast_path_packets_total{{interface=\"{interface}\"}}"));
        let all = page.get(&format!("fastpath_interface_receive_packets_total{{interface=\"{interface}\"}}"));
        assert!(fast > all / 2 && fast < all, "{interface}: {fast} of {all}");
    }
    for (series, expected) in [
        ("fastpath_ready", 1),
        ("fastpath_threshold_packets", 20),
        ("fastpath_ruleset{standing=\"right\"}", 1),
        ("fastpath_flows_crossed_total", 3),
        ("fastpath_flows_offloaded_total", 3),
        ("fastpath_rule_offloads_total", table::offered(&topology.node)),
        ("fastpath_flows_slow", 0),
        ("fastpath_interfaces_managed", 2),
        ("fastpath_interfaces_watched", 2),
        ("fastpath_unmeasured_packets_total", 0),
        ("fastpath_scrape_failed{part=\"flows\"}", 0),
        ("fastpath_scrape_failed{part=\"maps\"}", 0),
    ] {
        assert_eq!(page.get(series), expected, "{series}");
    }
    agent.stop();
}

/// Most connections end between two pages.
#[test]
fn a_flow_that_ended_before_the_page_counts_too() {
    let topology = Topology::routed();
    let agent = start(&topology, &[]);
    Page::read(&topology);
    let first = send(&topology, Proto::Tcp, Family::V4, 7001, 100);
    // A flow that ends before the agent looks isn't known to have been offloaded.
    thread::sleep(Duration::from_millis(500));
    drop(first);
    wait_until("the end of the connection", Duration::from_secs(5), || {
        topology
            .conntrack(7001)
            .iter()
            .all(|line| !line.contains("ESTABLISHED") && !line.contains("[OFFLOAD]"))
    });
    let (packets, _) = topology.counted(7001);
    let page = Page::read(&topology);
    assert_eq!(page.get("fastpath_flows_offloaded_total"), 1);
    let slow = topology.forwarded(7001).total();
    let fast = page.fast();
    // FIN and what follows is forwarded, and partly behind the meter's back.
    assert!(fast.abs_diff(packets - slow) <= 4 && fast > 100, "{fast} fast, {slow} of {packets} forwarded");
    // Conntrack forgets it altogether.
    let before = page.fast();
    let second = send(&topology, Proto::Tcp, Family::V4, 7002, 100);
    thread::sleep(Duration::from_millis(500));
    drop(second);
    let slow = topology.forwarded(7002).total();
    topology.node.output("conntrack", &["-F"]);
    let (all, fast) = (Page::read(&topology).all() - page.all(), Page::read(&topology).fast() - before);
    // The threshold is taken off either direction, since they can't be told to belong together.
    assert!(fast <= all - slow + 4 && fast + 21 + 4 >= all - slow, "{fast} fast, {slow} of {all} forwarded");
    agent.stop();
}

#[test]
fn flows_that_are_not_offloaded_say_why() {
    let topology = Topology::routed();
    let agent = start(&topology, &["--exclude=port/7002"]);
    let mut flows = [7001, 7002].map(|port| send(&topology, Proto::Udp, Family::V4, port, 100));
    wait_until("both fates", Duration::from_secs(5), || {
        Page::read(&topology).get("fastpath_flows_crossed_total") == 2
    });
    let page = Page::read(&topology);
    assert_eq!(page.get("fastpath_flows_offloaded_total"), 1);
    assert_eq!(page.sum("fastpath_flows_not_offloaded_total"), 1, "{:#?}", page.0);
    assert_eq!(page.get("fastpath_flows{state=\"offloaded\"}"), 1);
    let forwarded: u64 = [7001, 7002].iter().map(|port| topology.forwarded(*port).total()).sum();
    assert_eq!((page.all(), page.fast()), (400, 400 - forwarded));
    // Another program changes the ruleset: the flowtable is emptied, and the flow comes back with its next packet.
    topology.node.nft(
        "table inet others { chain forward { type filter hook forward priority 0; tcp dport 9 drop; }; }",
    );
    let series = "fastpath_revalidations_total{trigger=\"ruleset\",outcome=\"emptied\"}";
    wait_until("a revalidation", Duration::from_secs(5), || Page::read(&topology).get(series) == 1);
    assert_eq!(flows[0].rounds(100), 100);
    assert!(Page::read(&topology).fast() > page.fast() + 100);
    agent.stop();
}

#[test]
fn rules_of_others_are_counted_with_what_they_cost() {
    let topology = Topology::routed();
    topology.node.nft(
        "table inet edge {
            set ban { type ipv4_addr; flags dynamic,timeout; }
            chain forward { type filter hook forward priority 0;
                ip saddr @ban drop
                ip saddr 10.1.0.2 udp dport 7001 limit rate over 1000000/second drop
            }
         }",
    );
    let agent = start(&topology, &[]);
    let mut flows = [7001, 7002].map(|port| send(&topology, Proto::Udp, Family::V4, port, 100));
    let series = |name: &str| Page::read(&topology).get(name);
    for (class, handling, count) in
        [("every-packet", "respected", 1), ("changing", "re-validated", 1), ("changing", "ignored", 0)]
    {
        let name = format!("fastpath_rules_bypassed{{class=\"{class}\",handling=\"{handling}\"}}");
        assert_eq!(series(&name), count, "{name}");
    }
    wait_until("flows revalidated", Duration::from_secs(10), || {
        flows.iter_mut().for_each(|flow| assert_eq!(flow.rounds(10), 10));
        series("fastpath_rule_revalidations_total{cause=\"set\"}") > 1
    });
    assert_eq!(series("fastpath_rule_revalidations_total{cause=\"ipset\"}"), 0);
    assert_eq!(series("fastpath_flows_stalled{cause=\"every-packet\"}"), 1);
    assert_eq!(series("fastpath_flows_left_out{rule=\"inet edge forward\"}"), 1);
    assert_eq!(series("fastpath_flows_left_out{rule=\"others\"}"), 0);
    agent.stop();
}

#[test]
fn ready_is_when_the_ruleset_stands() {
    let topology = Topology::routed();
    let node = &topology.node;
    bring_loopback_up(node);
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let agent = Agent::spawn(node, &mut agent::command(&[SERVE, "--ebpf=off"]));
    let status = || http::try_get(node, "/readyz", "").map(|answer| (answer.status, answer.body));
    wait_until("a stranger's table", Duration::from_secs(10), || {
        status().is_ok_and(|(status, said)| status == 503 && said.contains("--takeover"))
    });
    assert_eq!(Page::read(&topology).get("fastpath_ruleset{standing=\"foreign\"}"), 1);
    assert_eq!(http::get(node, "/healthz").status, 200);
    node.nft("delete table inet kindnet-fastpath");
    wait_until("our table", Duration::from_secs(10), || status().is_ok_and(|(status, _)| status == 200));
    assert_eq!(Page::read(&topology).get("fastpath_ready"), 1);
    // Deleted, it is put back.
    node.nft("delete table inet kindnet-fastpath");
    wait_until("a repair", Duration::from_secs(10), || {
        Page::read(&topology).get("fastpath_ruleset_repairs_total") == 1
    });
    assert_eq!(status().expect("an answer"), (200, "ok\n".to_owned()));
    agent.stop();
}

/// No look-up is needed: the programs see the kernel take them. They don't where it has no probes.
#[test]
fn flows_that_go_over_by_themselves_are_counted_without_a_signal() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    let agent = start(&topology, &[]);
    let _flows =
        [(Proto::Udp, Family::V4, 7001), (Proto::Tcp, Family::V4, 7002), (Proto::Tcp, Family::V6, 7003)]
            .map(|(proto, family, port)| send(&topology, proto, family, port, 100));
    let page = Page::read(&topology);
    assert_eq!(page.get("fastpath_flows_offloaded_total"), 3);
    assert_eq!(page.get("fastpath_flows_crossed_total"), 3);
    assert_eq!(page.get("fastpath_signals_sent_total"), 0);
    agent.stop();
}

/// A router in a namespace beside, with the same addresses and ports.
#[test]
fn what_goes_over_in_another_namespace_is_not_taken_for_ours() {
    let [own, others] = [Topology::routed(), Topology::routed()];
    let agent = start(&own, &["--exclude=port/7001"]);
    others.node.nft(&reference::kindnet(&["c0", "s0"]));
    let [mut here, mut there] = [&own, &others].map(|topology| {
        let (client, server) = (topology.client(), topology.server());
        let from = SocketAddr::new(client.address(Family::V4), 40_000);
        let to = topology.server_at(Family::V4, 7001);
        Flow::open_from(Proto::Udp, &client.ns, from, &server.ns, to, to)
    });
    // It is in the map by then.
    assert_eq!(here.rounds(5), 5);
    assert_eq!(there.rounds(100), 100);
    assert!(table::offered(&others.node) > 0, "offloaded there");
    assert_eq!(here.rounds(50), 50);
    wait_until("its fate", Duration::from_secs(5), || {
        Page::read(&own).get("fastpath_flows_crossed_total") == 1
    });
    let page = Page::read(&own);
    assert_eq!(page.get("fastpath_flows_offloaded_total"), 0);
    assert_eq!(page.sum("fastpath_flows_not_offloaded_total"), 1, "{:#?}", page.0);
    agent.stop();
}

/// What the pod and the service may do, on kernels that allow more only to who may do everything. A setting helps.
#[test]
fn a_setting_of_the_kernel_may_forbid_the_probe() {
    const SETTING: &str = "/proc/sys/kernel/perf_event_paranoid";
    const CAPABILITIES: &str = "-all,+net_admin,+bpf,+perfmon";
    let before = fs::read_to_string(SETTING).expect("a sysctl");
    for (level, allowed) in [("3", false), ("2", true)] {
        fs::write(SETTING, level).expect("a level");
        let topology = Topology::routed();
        let mut command = Command::new("setpriv");
        command.args([format!("--bounding-set={CAPABILITIES}"), format!("--inh-caps={CAPABILITIES}")]);
        command.args([&agent::binary(), "run", "--v=3"]).env("FASTPATH_METRICS_BIND_ADDRESS", "");
        let mut agent = Agent::spawn(&topology.node, &mut command);
        agent.wait_for_programs();
        assert_eq!(agent.count("kernel.perf_event_paranoid") == 0, allowed, "{}", agent.log().join("\n"));
        assert_eq!(agent.count("WARN"), 0, "{}", agent.log().join("\n"));
        agent.stop();
    }
    fs::write(SETTING, before.trim()).expect("as it was");
}
