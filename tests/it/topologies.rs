//! Kinds of devices: which flows the kernel accelerates when they are in the flowtable.
//!
//! `docs/interfaces.md` has the same in a table. Each test first shows that the set-up delivers without a flowtable.

use std::{fmt, thread, time::Duration};

use fastpath_tests::{
    agent::Agent,
    attach::Attach,
    path, reference,
    topology::{Family, Layout, Topology},
    traffic::{Direction, Flow, Proto},
};

/// What becomes of a flow that is over the threshold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Delivered, past the forward path in both directions.
    Accelerated,
    /// Delivered; the client's packets take the forward path.
    ClientSlow,
    /// Delivered; the server's packets take the forward path.
    ServerSlow,
    /// Delivered; all packets take the forward path.
    Slow,
    /// Not delivered any more.
    Broken,
}

use Outcome::{Accelerated, Broken, ClientSlow, ServerSlow, Slow};

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerated => "accelerated",
            ClientSlow => "client's packets slow",
            ServerSlow => "server's packets slow",
            Slow => "slow",
            Broken => "BROKEN",
        })
    }
}

/// Takes a fresh TCP flow over the threshold and looks what becomes of it.
fn observe(topology: &Topology, mut flow: Flow) -> Outcome {
    let young = flow.rounds(20);
    let measured = topology.measure(&mut flow, 50);
    if young < 20 || !measured.delivered() {
        return Broken;
    }
    for direction in [Direction::Upload, Direction::Download] {
        if let Err(error) = flow.transfer(direction, 256 * 1024) {
            eprintln!("{flow:?}: {direction:?}: {error}");
            return Broken;
        }
    }
    match (measured.original_fast(), measured.reply_fast()) {
        (true, true) => Accelerated,
        (false, true) => ClientSlow,
        (true, false) => ServerSlow,
        (false, false) => Slow,
    }
}

/// What is known of a kind of device: the outcome of flows that the client opens.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    /// With the pair and what is on top of it in the flowtable.
    all: Outcome,
    /// With the pair only.
    lower: Outcome,
    /// With only what is on top of the pair.
    upper: Outcome,
    /// With the agent, if that isn't what all devices give.
    agent: Option<Outcome>,
}

/// Shows `known` with plain rules, and that the agent gets as much as all devices give.
#[track_caller]
fn verify(attach: Attach, known: &Known) {
    let topology = Topology::build(Layout { attach, ..Layout::default() });
    let recipe = attach.recipe();
    let tcp = |port| observe(&topology, topology.open(Proto::Tcp, Family::V4, port));
    let with = |devices: &[&str], port| {
        reference::flowtable_for_all(&topology.node, devices);
        let outcome = tcp(port);
        topology.node.nft("delete table inet reference");
        outcome
    };
    assert_eq!(tcp(7001), Slow, "without a flowtable");
    let seen = Known {
        all: with(&[&["c0", "s0"], recipe.uppers].concat(), 7002),
        lower: with(&["c0", "s0"], 7003),
        upper: with(&[&["c0"], recipe.uppers].concat(), 7004),
        agent: known.agent,
    };
    assert_eq!(seen, *known, "{attach:?}");

    let _agent = Agent::start(&topology.node, &[]);
    let expected = known.agent.unwrap_or(known.all);
    assert_eq!(tcp(7005), expected, "with the agent");
    let backwards = topology.open_between(1, 0, Proto::Tcp, Family::V4, 7006);
    assert_eq!(observe(&topology, backwards), expected, "with the agent, opened by the server");
    if recipe.ipv6 {
        let ipv6 = topology.open(Proto::Tcp, Family::V6, 7007);
        assert_eq!(observe(&topology, ipv6), expected, "with the agent, IPv6");
    }
}

/// Tunnels and others whose packets get an interface of their own on the way in.
const OWN_INTERFACE: Known = Known { all: Accelerated, lower: ServerSlow, upper: Accelerated, agent: None };
/// Kinds that the kernel looks through when it offloads a flow (`ndo_fill_forward_path`).
const TRANSPARENT: Known = Known { all: Accelerated, lower: Accelerated, upper: Accelerated, agent: None };

#[test]
fn bridge() {
    verify(Attach::Bridge, &TRANSPARENT);
}

#[test]
fn bridge_with_vlan_filtering() {
    verify(Attach::BridgeVlan, &TRANSPARENT);
}

#[test]
fn vlan() {
    verify(Attach::Vlan, &TRANSPARENT);
}

#[test]
fn qinq() {
    verify(Attach::QinQ, &TRANSPARENT);
}

#[test]
fn bond() {
    verify(Attach::Bond, &OWN_INTERFACE);
}

#[test]
fn macvlan() {
    verify(Attach::Macvlan, &OWN_INTERFACE);
}

#[test]
fn ipvlan_l3() {
    // What comes in is for no address of the ipvlan's, so it comes in over the lower device: the two directions take
    // different interfaces, which the agent leaves alone.
    let known = Known { all: Accelerated, lower: Accelerated, upper: ServerSlow, agent: Some(Slow) };
    verify(Attach::IpvlanL3, &known);
}

#[test]
fn vxlan() {
    verify(Attach::Vxlan, &OWN_INTERFACE);
}

#[test]
fn ipip() {
    verify(Attach::Ipip, &OWN_INTERFACE);
}

#[test]
fn ipip6_and_ip6ip6() {
    verify(Attach::Ip6Tunnel, &OWN_INTERFACE);
}

#[test]
fn gre() {
    verify(Attach::Gre, &OWN_INTERFACE);
}

#[test]
fn wireguard() {
    verify(Attach::WireGuard, &OWN_INTERFACE);
}

#[test]
fn tun() {
    verify(Attach::Tun, &OWN_INTERFACE);
}

#[test]
fn pppoe() {
    verify(Attach::Pppoe, &TRANSPARENT);
}

/// The flowtable's hook below would take packets before they get to the ppp interface.
#[test]
fn pppoe_with_a_filter_at_the_ppp_interface() {
    let topology = Topology::build(Layout { attach: Attach::Pppoe, ..Layout::default() });
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    topology.node.nft(
        "table netdev edge { chain c { type filter hook ingress device ppp0 priority -10; udp sport 7002 drop; }\n}",
    );
    thread::sleep(Duration::from_millis(1500));
    topology.assert_becomes_accelerated(&mut flow);
    let mut other = topology.open(Proto::Udp, Family::V4, 7003);
    assert_eq!(other.rounds(50), 50);
    topology.node.nft("add rule netdev edge c udp sport 7003 drop");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(other.rounds(20), 0, "an answer that the chain drops arrives");
    topology.assert_becomes_accelerated(&mut flow);
}

#[test]
fn gre_over_esp() {
    verify(Attach::GreOverEsp, &OWN_INTERFACE);
}

#[test]
fn xfrm_interface() {
    verify(Attach::XfrmInterface, &OWN_INTERFACE);
}

#[test]
fn ipvlan_l2() {
    let topology = Topology::build(Layout { attach: Attach::IpvlanL2, ..Layout::default() });
    assert_eq!(observe(&topology, topology.open(Proto::Tcp, Family::V4, 7001)), Slow, "without a flowtable");
    let _agent = Agent::start(&topology.node, &[]);
    // What comes in is for no address of the ipvlan's, so it comes in over the lower device and goes out over the upper one.
    for (port, family) in [(7002, Family::V4), (7003, Family::V6)] {
        assert_eq!(observe(&topology, topology.open(Proto::Tcp, family, port)), Slow, "{family:?}");
    }
}

/// Policy that demands ESP is enforced in the forward path only: packets of an offloaded flow that arrive in clear
/// would pass. So such flows stay on the forward path.
#[test]
fn xfrm_tunnel_by_policy_stays_enforced() {
    let answered_in_clear = |topology: &Topology, port| {
        let mut flow = topology.open(Proto::Udp, Family::V4, port);
        assert_eq!(flow.rounds(20), 20, "through ESP");
        topology.server().ns.ip("xfrm policy flush\n");
        let answered = flow.response();
        // As it was.
        let policies = topology.server_recipe_lines("xfrm policy");
        topology.server().ns.ip(&policies);
        assert_eq!(flow.rounds(5), 5, "through ESP again");
        answered
    };
    let topology = Topology::build(Layout { attach: Attach::XfrmTunnel, ..Layout::default() });
    assert!(!answered_in_clear(&topology, 7001), "the node's policy demands ESP");
    reference::flowtable_for_all(&topology.node, &["c0", "s0"]);
    assert!(answered_in_clear(&topology, 7002), "rules that offload everything let it pass");
    topology.node.nft("delete table inet reference");

    let _agent = Agent::start(&topology.node, &[]);
    assert!(!answered_in_clear(&topology, 7003), "the agent's rules must not");
    assert_eq!(observe(&topology, topology.open(Proto::Tcp, Family::V4, 7004)), Slow, "with the agent");
}

/// Two nodes, each with a pod and the agent, VXLAN between them.
#[test]
fn vxlan_between_two_nodes() {
    let mut topology = Topology::build(Layout { attach: Attach::Vxlan, ..Layout::default() });
    topology.add_pod_behind_server();
    let _near = Agent::start(&topology.node, &[]);
    let _far = Agent::start(&topology.server().ns, &[]);
    for (port, proto, family) in [(7001, Proto::Tcp, Family::V4), (7002, Proto::Udp, Family::V6)] {
        let mut flow = topology.open_between(0, 2, proto, family, port);
        topology.assert_becomes_accelerated(&mut flow);
        let far = path::forwarded(&topology.server().ns, port);
        assert_eq!(flow.rounds(100), 100);
        let passed = path::forwarded(&topology.server().ns, port).total() - far.total();
        assert!(passed <= path::STRAYS, "{passed} packets took the second node's forward path");
    }
}
