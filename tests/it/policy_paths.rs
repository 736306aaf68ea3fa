//! Routes, neighbours and bridge ports that change under an offloaded flow: it follows, or takes the normal path, within a
//! second.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::Agent,
    attach::Attach,
    reference,
    topology::{Family, Layout, Topology},
    traffic::{Flow, Proto},
};

/// What changes, with the old way cut off in the same moment.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The route goes through another interface.
    RouteToOtherInterface,
    /// The route goes to another next hop on the same interface.
    RouteToOtherNextHop,
    /// A rule of policy routing sends it through another interface.
    RoutingRule,
    /// The next hop has another MAC address, which it announces.
    NeighbourMac,
    /// The next hop is found behind another port of the bridge.
    BridgePort,
    /// The interface goes down, and there is another route.
    InterfaceDown,
}

/// A topology whose server has an address of its own (10.50.0.2, fd00:50::2), which the node reaches through the
/// server's `eth0`, and a second link to the node, `t0` – `eth1`. With a bridge on the node both are ports of it.
struct Ways {
    topology: Topology,
    attach: Attach,
}

const OLD_MAC: &str = "02:00:00:00:00:11";
const NEW_MAC: &str = "02:00:00:00:00:22";

impl Ways {
    fn build(attach: Attach, change: Change) -> Self {
        let topology = Topology::build(Layout { attach, ..Layout::default() });
        let (node, server) = (&topology.node, &topology.server().ns);
        let bridged = matches!(change, Change::BridgePort);
        node.ip(&format!(
            "link add t0 type veth peer name eth1 netns {}\nlink set t0 up\n{}",
            server.path(),
            if bridged {
                "link set t0 master br0\n"
            } else {
                "address add 10.22.0.1/24 dev t0\naddress add fd00:22::1/64 dev t0 nodad\n"
            }
        ));
        for key in [
            "net/ipv4/conf/all/arp_ignore",
            "net/ipv4/conf/eth0/arp_notify",
            "net/ipv6/conf/eth0/ndisc_notify",
        ] {
            server.sysctl(key, "1");
        }
        for family in ["ipv4", "ipv6"] {
            server.sysctl(&format!("net/{family}/conf/all/ignore_routes_with_linkdown"), "1");
        }
        server.sysctl("net/ipv4/conf/all/rp_filter", "0");
        server.ip(
            "address add 10.50.0.2/32 dev lo\naddress add fd00:50::2/128 dev lo nodad\nlink set eth1 up\n",
        );
        if bridged {
            // The server's address moves from port to port with the bridge's MAC address.
            server.ip(&format!(
                "address flush dev eth0\nlink add sbr type bridge\nlink set sbr address {OLD_MAC}\nlink set eth0 master sbr\n\
                 link set eth1 master sbr\nlink set sbr up\naddress add 10.2.0.2/24 dev sbr\n\
                 address add fd00:2::2/64 dev sbr nodad\nroute add default via 10.2.0.1\nroute replace default via fd00:2::1 dev sbr\n"
            ));
            server.output("bridge", &["link", "set", "dev", "eth1", "state", "0"]);
        } else {
            server.ip(&format!(
                "link set eth0 address {OLD_MAC}\naddress add 10.22.0.2/24 dev eth1\naddress add fd00:22::2/64 dev eth1 nodad\n\
                 route add default via 10.22.0.1 metric 2000\nroute add default via fd00:22::1 metric 2000\n\
                 link add mv0 link eth0 type macvlan mode bridge\nlink set mv0 up\naddress add 10.2.0.3/24 dev mv0\n\
                 address add fd00:2::3/64 dev mv0 nodad\n"
            ));
        }
        node.ip("route add 10.50.0.2 via 10.2.0.2 metric 10\nroute add fd00:50::2 via fd00:2::2 metric 10\n");
        if !bridged {
            node.ip("route add 10.50.0.2 via 10.22.0.2 metric 20\nroute add fd00:50::2 via fd00:22::2 metric 20\n");
        }
        Self { topology, attach }
    }

    fn open(&self, family: Family, port: u16) -> Flow {
        let address = match family {
            Family::V4 => "10.50.0.2".parse().expect("address"),
            Family::V6 => "fd00:50::2".parse().expect("address"),
        };
        let at = SocketAddr::new(address, port);
        Flow::open(Proto::Udp, &self.topology.client().ns, &self.topology.server().ns, at, at)
    }

    /// The server answers by the other link too: with answers on another interface than requests nothing is offloaded.
    fn answers_follow(&self) {
        self.topology
            .server()
            .ns
            .ip("route add 10.1.0.0/24 via 10.22.0.1\nroute add fd00:1::/64 via fd00:22::1\n");
    }

    fn apply(&self, change: Change) {
        let (node, server) = (&self.topology.node, &self.topology.server().ns);
        let cut = |what: &str| {
            server.nft(&format!(
                "table netdev cut {{ chain c {{ type filter hook ingress device eth0 priority 0; {what} drop; }}; }}"
            ));
        };
        let both = "ip daddr 10.50.0.2 drop; ip6 daddr fd00:50::2";
        match change {
            Change::RouteToOtherInterface => {
                node.ip("route replace 10.50.0.2 via 10.22.0.2 metric 10\nroute replace fd00:50::2 via fd00:22::2 metric 10\n");
                self.answers_follow();
                cut(both);
            }
            Change::RouteToOtherNextHop => {
                node.ip("route replace 10.50.0.2 via 10.2.0.3 metric 10\nroute replace fd00:50::2 via fd00:2::3 metric 10\n");
                cut(&format!("ether daddr {OLD_MAC}"));
            }
            Change::RoutingRule => {
                node.ip("route add 10.50.0.2 via 10.22.0.2 table 100\nroute add fd00:50::2 via fd00:22::2 table 100\n");
                node.ip("rule add to 10.50.0.2 lookup 100\n");
                node.output("ip", &["-6", "rule", "add", "to", "fd00:50::2", "lookup", "100"]);
                self.answers_follow();
                cut(both);
            }
            Change::NeighbourMac => server.ip(&format!("link set eth0 address {NEW_MAC}\n")),
            Change::BridgePort => {
                for (dev, state) in [("eth0", "0"), ("eth1", "3")] {
                    server.output("bridge", &["link", "set", "dev", dev, "state", state]);
                }
                // Something of its own, as a host that moves sends.
                let socket = server.run(|| std::net::UdpSocket::bind("10.2.0.2:0")).expect("bind");
                socket.send_to(b"here", "10.2.0.1:9").expect("send");
            }
            Change::InterfaceDown => {
                // The port goes down with the bridge, so that the server knows, too.
                let bridge = if self.attach == Attach::Bridge { "link set br0 down\n" } else { "" };
                node.ip(&format!("{bridge}link set s0 down\n"));
            }
        }
    }
}

/// How long no packet arrives, at most `limit`.
fn outage(flow: &mut Flow, limit: Duration) -> Option<Duration> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if flow.rounds(1) == 1 {
            return Some(start.elapsed());
        }
    }
    None
}

/// An accelerated flow of each family, and what becomes of it.
#[track_caller]
fn change_under_offloaded_flows(ways: &Ways, change: Change) -> [Option<Duration>; 2] {
    let mut flows = [(Family::V4, 7001), (Family::V6, 7002)].map(|(family, port)| ways.open(family, port));
    for flow in &mut flows {
        ways.topology.assert_becomes_accelerated(flow);
        flow.set_patience(Duration::from_millis(50));
    }
    ways.apply(change);
    let outages = flows.each_mut().map(|flow| outage(flow, Duration::from_secs(2)));
    println!("{:?}, {change:?}: IPv4 back after {:?}, IPv6 after {:?}", ways.attach, outages[0], outages[1]);
    if !outages.contains(&None) {
        for flow in &mut flows {
            flow.set_patience(Duration::from_secs(1));
            assert_eq!(flow.rounds(30), 30, "{flow:?} after {change:?}");
            ways.topology.assert_accelerated(flow);
        }
    }
    outages
}

#[track_caller]
fn follows(attach: Attach, change: Change) {
    let ways = Ways::build(attach, change);
    let _agent = Agent::start(&ways.topology.node, &[]);
    let outages = change_under_offloaded_flows(&ways, change);
    let in_time = |outage: &Option<Duration>| outage.is_some_and(|outage| outage < Duration::from_secs(1));
    assert!(outages.iter().all(in_time), "{attach:?}, {change:?}: {outages:?}");
}

#[test]
fn route_to_another_interface() {
    follows(Attach::Veth, Change::RouteToOtherInterface);
}

#[test]
fn route_to_another_next_hop() {
    follows(Attach::Veth, Change::RouteToOtherNextHop);
}

#[test]
fn rule_of_policy_routing() {
    follows(Attach::Veth, Change::RoutingRule);
}

#[test]
fn neighbour_with_another_mac_address() {
    follows(Attach::Veth, Change::NeighbourMac);
}

#[test]
fn interface_down_with_another_route() {
    follows(Attach::Veth, Change::InterfaceDown);
}

#[test]
fn bridge_route_to_another_interface() {
    follows(Attach::Bridge, Change::RouteToOtherInterface);
}

#[test]
fn bridge_route_to_another_next_hop() {
    follows(Attach::Bridge, Change::RouteToOtherNextHop);
}

#[test]
fn bridge_rule_of_policy_routing() {
    follows(Attach::Bridge, Change::RoutingRule);
}

#[test]
fn bridge_neighbour_with_another_mac_address() {
    follows(Attach::Bridge, Change::NeighbourMac);
}

#[test]
fn bridge_host_moves_to_another_port() {
    follows(Attach::Bridge, Change::BridgePort);
}

#[test]
fn bridge_down_with_another_route() {
    follows(Attach::Bridge, Change::InterfaceDown);
}

/// With the ports in the flowtable, as kindnet has them, no packet arrives any more.
#[track_caller]
fn kindnet_rules_lose(change: Change) {
    let ways = Ways::build(Attach::Bridge, change);
    ways.topology.node.nft(&reference::kindnet(&["c0", "s0", "t0", "br0"]));
    let outages = change_under_offloaded_flows(&ways, change);
    assert_eq!(outages, [None, None], "{change:?}");
}

#[test]
fn kindnet_rules_lose_flows_when_a_route_changes() {
    kindnet_rules_lose(Change::RouteToOtherInterface);
}

#[test]
fn kindnet_rules_lose_flows_when_a_neighbour_changes() {
    kindnet_rules_lose(Change::NeighbourMac);
}

#[test]
fn kindnet_rules_lose_flows_when_a_host_moves() {
    kindnet_rules_lose(Change::BridgePort);
}
