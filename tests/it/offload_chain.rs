//! The chain behind the threshold: what the meter counts, what the assist rule takes up, and that a table of an
//! earlier agent becomes today's without a flow noticing.

use std::{thread, time::Duration};

use fastpath_agent::{
    core::{
        flow::{connection::Entry, trace::Evidence},
        model::FLOWTABLE,
        ruleset::{
            chain::OwnChain,
            desired,
            diff::{self, Decision, ForeignTable},
            expr::{CmpOp, CtKey, Expr, MetaKey, RtKey},
            plan::Op,
            rule::Rule,
            sets::OwnSet,
            wanted::{Desired, Policy},
        },
    },
    kernel::{
        Ruleset,
        conntrack::Conntrack,
        links::Links,
        nft::{Nft, SlowPath},
    },
};
use fastpath_tests::{
    agent::Agent,
    monitor::Monitor,
    netns::Netns,
    table,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
};

fn policy(assist: bool) -> Policy {
    Policy { spare_ipsec: true, assist, ..Policy::default() }
}

/// The table as the agent would want it in this namespace.
fn wanted(assist: bool) -> Desired {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let links = runtime.block_on(async { Links::open().expect("links").list().expect("links") });
    desired::desired(&policy(assist), &links, &Default::default())
}

/// One reconcile as the agent does it; says what it took.
fn reconcile(node: &Netns, assist: bool) -> Vec<Op> {
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let observed = nft.observe().expect("observe");
        let Decision::Apply(ops) = diff::diff(&wanted(assist), &observed, ForeignTable::Refuse) else {
            panic!("a foreign table")
        };
        nft.commit(&ops, observed.generation).expect("commit");
        ops
    })
}

fn commit(node: &Netns, ops: &[Op]) {
    node.run(|| {
        let mut nft = Nft::open().expect("open");
        let generation = nft.observe().expect("observe").generation;
        nft.commit(ops, generation).expect("commit");
    });
}

/// Conntrack's entry of the flow to `port`.
fn entry(node: &Netns, port: u16) -> Entry {
    let mut found = Vec::new();
    node.run(|| {
        let mut conntrack = Conntrack::open().expect("conntrack");
        conntrack.dump(|entry| {
            if entry.original.destination_port == port {
                found.push(entry);
            }
        })
    })
    .expect("dump");
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn slow_paths(node: &Netns) -> Vec<SlowPath> {
    let mut found = Vec::new();
    node.run(|| Nft::open().expect("open").slow_paths(|slow| found.push(slow))).expect("the meter");
    found
}

fn traces(node: &Netns) -> Vec<u32> {
    let mut found = Vec::new();
    node.run(|| Nft::open().expect("open").traces(|id, _| found.push(id))).expect("traces");
    found
}

fn slow_path(node: &Netns, port: u16) -> Option<SlowPath> {
    let id = entry(node, port).id;
    node.run(|| Nft::open().expect("open").slow_path_of(id)).expect("the meter")
}

/// Has a helper read along with TCP flows to `port`, which the kernel then never offloads.
fn helper_on(node: &Netns, port: u16) {
    node.nft(&format!(
        "table inet helpers-{port} {{
            ct helper reader {{ type \"ftp\" protocol tcp; l3proto inet; }}
            chain pre {{ type filter hook prerouting priority 0; tcp dport {port} ct helper set \"reader\"; }}
        }}"
    ));
}

#[test]
fn flows_that_the_kernel_refuses_leave_traces_and_are_not_metered() {
    let topology = Topology::routed();
    let node = &topology.node;
    assert_eq!(traces(node), [0_u32; 0], "without a table");
    let _agent = Agent::start(node, &[]);
    let mut fast = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(fast.rounds(100), 100);
    topology.assert_accelerated(&mut fast);
    let mut short = topology.open(Proto::Udp, Family::V4, 7003);
    assert_eq!(short.rounds(9), 9);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!((slow_paths(node), traces(node)), (vec![], vec![]), "an offloaded flow and a short one");

    for (family, port) in [(Family::V4, 7004), (Family::V6, 7005)] {
        helper_on(node, port);
        let mut stalled = topology.open(Proto::Tcp, family, port);
        assert_eq!(stalled.rounds(20), 20);
        topology.assert_forwarded(&mut stalled);
        let id = entry(node, port).id;
        let of_flow = node.run(|| Nft::open().expect("open").traces_of(id)).expect("traces");
        assert_eq!(Evidence::of(&of_flow), Evidence::Both, "{of_flow:?}");
        assert!(of_flow.iter().all(|trace| trace.idle_ms < 1500), "{of_flow:?}");
    }
    assert_eq!(slow_paths(node), []);
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(traces(node), [0_u32; 0], "two seconds after the last packet");
    topology.assert_accelerated(&mut fast);
}

/// Packets that the flowtable hands back are in the meter too, though the flow is offloaded.
#[test]
fn the_meter_shows_an_offloaded_flow_whose_packets_are_slow() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(slow_path(node, 7001), None);
    // Larger than the MTU: fragments, in either direction.
    flow.set_payload(3000);
    assert_eq!(flow.rounds(10), 10);
    let slow = slow_path(node, 7001).expect("fragments");
    assert!(slow.counter.packets >= 20, "{slow:?}");
}

#[test]
fn a_full_meter_is_harmless() {
    let topology = Topology::routed();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    // As many as it takes, added by hand.
    let elements: Vec<String> = (1..=OwnSet::SlowPath.shape().size).map(|id| id.to_string()).collect();
    for chunk in elements.chunks(8192) {
        node.nft(&format!("add element inet kindnet-fastpath kindnet-slow-path {{ {} }}", chunk.join(", ")));
    }
    helper_on(node, 7002);
    let mut stalled = topology.open(Proto::Tcp, Family::V4, 7002);
    assert_eq!(stalled.rounds(20), 20);
    topology.assert_forwarded(&mut stalled);
    assert_eq!(slow_path(node, 7002), None, "there is no room");
    let mut fast = topology.open(Proto::Udp, Family::V6, 7001);
    topology.assert_becomes_accelerated(&mut fast);
    assert_eq!(slow_paths(node), [], "those of other programs have no counter");
}

/// Opens flows before anything counts packets, and a table behind their back.
fn old_flows(topology: &Topology) -> Vec<Flow> {
    let mut flows = Vec::new();
    for (proto, family, port) in [
        (Proto::Tcp, Family::V4, 7001),
        (Proto::Udp, Family::V4, 7002),
        (Proto::Tcp, Family::V6, 7003),
        (Proto::Udp, Family::V6, 7004),
    ] {
        let mut flow = topology.open(proto, family, port);
        assert_eq!(flow.rounds(5), 5);
        flows.push(flow);
    }
    reconcile(&topology.node, false);
    for flow in &mut flows {
        topology.assert_forwarded(flow);
        assert_eq!(
            entry(&topology.node, flow.port()).counters,
            None,
            "older than the first rule with a counter"
        );
    }
    flows
}

fn listed_are_offloaded(nat: Nat) {
    let topology = Topology::build(Layout { nat, ..Layout::default() });
    let node = &topology.node;
    let mut flows = old_flows(&topology);
    reconcile(node, true);
    topology.assert_forwarded(&mut flows[0]);
    let (listed, left) = flows.split_at_mut(3);
    let ids = listed.iter().map(|flow| entry(node, flow.port()).id).collect();
    commit(node, &[Op::AddAssisted { ids, timeout_ms: 60_000 }]);
    for flow in listed {
        assert_eq!(flow.rounds(5), 5);
        topology.assert_accelerated(flow);
    }
    topology.assert_forwarded(&mut left[0]);
    // A new flow has counters, and is none of the rule's business even if its id is listed.
    let mut young = topology.open(Proto::Udp, Family::V4, 7005);
    assert_eq!(young.rounds(5), 5);
    commit(node, &[Op::AddAssisted { ids: vec![entry(node, 7005).id], timeout_ms: 60_000 }]);
    assert_eq!(young.rounds(5), 5);
    assert!(!topology.marked_offloaded(7005), "below the threshold");
}

#[test]
fn listed_connections_without_counters_are_offloaded() {
    listed_are_offloaded(Nat::Plain);
}

#[test]
fn listed_connections_without_counters_are_offloaded_with_nat() {
    listed_are_offloaded(Nat::Masquerade);
}

#[test]
fn listed_connections_meet_the_same_guards() {
    let topology = Topology::routed();
    let node = &topology.node;
    // One way only, so never established.
    let mut one_way = topology.open(Proto::Udp, Family::V4, 7005);
    assert!(one_way.request());
    let mut flows = old_flows(&topology);
    reconcile(node, true);
    let ids = vec![entry(node, 7005).id, entry(node, 7001).id];
    commit(node, &[Op::RemoveIndices(wanted_index(node, "s0")), Op::AddAssisted { ids, timeout_ms: 60_000 }]);
    for _ in 0..30 {
        assert!(one_way.request());
    }
    assert!(!topology.marked_offloaded(7005));
    topology.assert_forwarded(&mut flows[0]);
    assert_eq!(slow_paths(node), [], "what the guards turn away isn't metered");
}

fn wanted_index(node: &Netns, name: &str) -> Vec<fastpath_agent::core::model::IfIndex> {
    let devices = node.run(|| wanted(false)).expect("a table").devices;
    devices.into_iter().filter(|(_, device)| device.as_str() == name).map(|(index, _)| index).collect()
}

#[test]
fn listed_connections_are_forgotten_in_time() {
    let topology = Topology::routed();
    let node = &topology.node;
    let mut flows = old_flows(&topology);
    reconcile(node, true);
    let ids = flows.iter().map(|flow| entry(node, flow.port()).id).collect();
    commit(node, &[Op::AddAssisted { ids, timeout_ms: 500 }]);
    thread::sleep(Duration::from_millis(700));
    topology.assert_forwarded(&mut flows[0]);
    // No more assistance: the rule and its set are gone, everything else is untouched.
    let ops = reconcile(node, false);
    assert!(ops.iter().all(|op| matches!(
        op,
        Op::DeleteRule { chain: OwnChain::Base, .. }
            | Op::AddRule { chain: OwnChain::Base, .. }
            | Op::DeleteSet(OwnSet::Assist)
    )));
    assert_eq!(reconcile(node, false), []);
}

/// The rule of the agent's first version, the only one in its only chain.
fn first_rule() -> Vec<Expr> {
    let reg = 1;
    let devices = || Expr::Lookup { set: OwnSet::Devices.name().into_owned(), sreg: reg, inverted: false };
    vec![
        Expr::Ct { key: CtKey::Packets, dreg: reg },
        Expr::HostToNet { reg, size: 8, len: 8 },
        Expr::Cmp { sreg: reg, op: CmpOp::Gt, data: 20_u64.to_be_bytes().to_vec() },
        Expr::Ct { key: CtKey::State, dreg: reg },
        Expr::Bitwise { reg, mask: 2_u32.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { sreg: reg, op: CmpOp::Neq, data: vec![0; 4] },
        Expr::Rt { key: RtKey::Ipsec, dreg: reg },
        Expr::Cmp { sreg: reg, op: CmpOp::Eq, data: vec![0] },
        Expr::Meta { key: MetaKey::InIfIndex, dreg: reg },
        devices(),
        Expr::Meta { key: MetaKey::OutIfIndex, dreg: reg },
        devices(),
        Expr::FlowAdd { flowtable: FLOWTABLE.to_owned() },
        Expr::Counter,
    ]
}

#[test]
fn a_table_of_the_first_version_is_upgraded_under_offloaded_flows() {
    let topology = Topology::routed();
    let node = &topology.node;
    let today = node.run(|| wanted(false)).expect("a table");
    let mut ops = diff::create(&today);
    ops.retain(|op| {
        !matches!(
            op,
            Op::AddRule { .. }
                | Op::AddChain(_)
                | Op::AddSet(OwnSet::SlowPath | OwnSet::Assist | OwnSet::Seen(_))
        )
    });
    ops.push(Op::AddRule { chain: OwnChain::Base, exprs: first_rule() });
    commit(node, &ops);
    let before = table::listing(node).expect("a table");
    assert!(
        before.contains("ct packets > 20 ct state established") && !before.contains(OwnChain::Offload.name()),
        "{before}"
    );

    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let forwarded = topology.forwarded(7001);
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);
    let agent = Agent::start(node, &["--flowtable-priority=0"]);
    assert_eq!(monitor.commits_of_agent(), 1, "{:#?}", monitor.lines());
    let (mut flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(7001), forwarded, "it left the flowtable: {report:?}");
    topology.assert_accelerated(&mut flow);
    let after = table::listing(node).expect("a table");
    let threshold = Rule::Threshold { threshold: 20, to: OwnChain::Offload };
    for line in [threshold, Rule::OnlyEstablished, Rule::MeterOffloaded] {
        assert!(after.contains(&line.to_string()), "no {line} in {after}");
    }
    assert!(!after.contains("ct packets > 20 ct state"), "{after}");
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Udp, Family::V6, 7002));
    agent.stop();
    // And from nothing to the same, but for the order of the chains.
    node.nft("delete table inet kindnet-fastpath");
    let _agent = Agent::start(node, &["--flowtable-priority=0"]);
    let sorted = |listing: &str| {
        let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&table::listing(node).expect("a table")), sorted(&after));
}
