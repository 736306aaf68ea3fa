//! Kinds of devices: which flows the kernel accelerates when they are in the flowtable.
//!
//! `docs/interfaces.md` has the same in a table. Each test first shows that the set-up delivers without a flowtable.

use std::fmt;

use fastpath_tests::{
    attach::Attach,
    reference,
    topology::{Family, Layout, Topology},
    traffic::{Direction, Proto},
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
fn observe(topology: &Topology, family: Family, port: u16) -> Outcome {
    look(topology, topology.open(Proto::Tcp, family, port))
}

fn observe_back(topology: &Topology, family: Family, port: u16) -> Outcome {
    look(topology, topology.open_between(1, 0, Proto::Tcp, family, port))
}
fn look(topology: &Topology, mut flow: fastpath_tests::traffic::Flow) -> Outcome {
    let port = flow.port();
    let young = flow.rounds(20);
    let measured = topology.measure(&mut flow, 50);
    eprintln!("{flow:?}: {young} {measured:?} {}", topology.marked_offloaded(port));
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

fn explore(attach: Attach) {
    let topology = Topology::build(Layout { attach, ..Layout::default() });
    let none = observe(&topology, Family::V4, 7001);
    eprintln!("RESULT {attach:?} none: {none:?}");
    let recipe = attach.recipe();
    let mut port = 7002;
    for (name, devices) in [
        ("all", [&["c0", "s0"], recipe.uppers].concat()),
        ("lower", vec!["c0", "s0"]),
        ("upper", [&["c0"], recipe.uppers].concat()),
    ] {
        reference::flowtable_for_all(&topology.node, &devices);
        let outcome = observe(&topology, Family::V4, port);
        let outcome6 =
            if recipe.ipv6 && name == "all" { Some(observe(&topology, Family::V6, port)) } else { None };
        let back = observe_back(&topology, Family::V4, port);
        eprintln!("RESULT {attach:?} {name}: {outcome:?} {outcome6:?} back {back:?}");
        port += 1;
        topology.node.nft("delete table inet reference");
    }
    panic!("explored");
}

macro_rules! explore { ($($name:ident $attach:ident,)*) => { $(#[test] fn $name() { explore(Attach::$attach) })* } }
explore! { veth Veth, bridge Bridge, bridge_vlan BridgeVlan, vlan Vlan, qinq QinQ, bond Bond, macvlan Macvlan, ipvlan_l2 IpvlanL2,
ipvlan_l3 IpvlanL3, vxlan Vxlan, ipip Ipip, gre Gre, wireguard WireGuard, tun Tun, xfrm_tunnel XfrmTunnel, xfrm_interface XfrmInterface, gre_over_esp GreOverEsp, }
