//! The node under measurement: client and server behind it, whose rules it has, and the kernel's counters.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    ops::Sub,
    thread,
    time::Duration,
};

use super::services;
use crate::{
    agent::{self, Agent},
    netns::Netns,
    pktgen, reference,
    topology::{Family, Layout, Nat, Topology, nat_rules},
};

/// What the node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Drops the packet as it comes in: what source and sink cost.
    Floor,
    /// Routes.
    Routed,
    /// Routes, tracks connections, and masquerades.
    Nat,
    /// Like `Nat`, and has 5,000 services as kube-proxy lays them out in its nftables mode; the flow is to one of them.
    Services,
    /// The services alone: the flow is to one of them and isn't masqueraded.
    ServicesOnly,
}

/// Whose rules for the fast path the node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// No rules.
    None,
    /// kindnet's, as its current source writes them.
    Kindnet,
    /// kindnet's, as its document shows them.
    KindnetDocument,
    /// Those that `fastpath-agent render` prints, loaded by nft; no agent runs.
    Alone,
    /// The agent's, without eBPF programs.
    Agent,
    /// The agent's, with eBPF programs.
    AgentEbpf,
    /// The agent's, with XDP programs.
    AgentXdp,
    /// The agent's, with eBPF programs that forward ahead of the flowtable.
    AgentForward,
}

impl Rules {
    /// All that have rows of their own in each state.
    pub const ALL: [Self; 5] =
        [Self::Kindnet, Self::KindnetDocument, Self::Agent, Self::AgentEbpf, Self::AgentXdp];

    /// Those that other kinds of traffic are measured with.
    pub const MAIN: [Self; 3] = [Self::Kindnet, Self::Agent, Self::AgentEbpf];

    /// As rows call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Kindnet => "kindnet",
            Self::KindnetDocument => "kindnet-document",
            Self::Alone => "rules-alone",
            Self::Agent => "ours",
            Self::AgentEbpf => "ours-ebpf",
            Self::AgentXdp => "ours-xdp",
            Self::AgentForward => "ours-forward",
        }
    }
}

/// What is between the ends of an established connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Nothing: they are on one pair.
    Nothing,
    /// A node with these rules.
    Node(Rules),
}

impl Between {
    /// All that has rows.
    pub(super) const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Node(Rules::None),
        Self::Node(Rules::Kindnet),
        Self::Node(Rules::Agent),
        Self::Node(Rules::AgentEbpf),
        Self::Node(Rules::AgentForward),
    ];

    /// As rows call it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => "direct".to_owned(),
            Self::Node(Rules::None) => "no-fastpath".to_owned(),
            Self::Node(rules) => format!("offloaded/{}", rules.name()),
        }
    }

    /// The ends, and the node with its rules, whether packets pass it or not; `tune` is done to both ends' device first.
    pub(super) fn build(self, family: Family, tune: &[&str]) -> (Node, TcpStream, TcpStream) {
        let mut node = Node::build(Base::Nat, Ends::Answer);
        let (client, server) = (&node.topology.client().ns, &node.topology.server().ns);
        let (device, to) = match (self, family) {
            (Self::Node(_), family) => ("eth0", node.topology.server().address(family)),
            (Self::Nothing, Family::V4) => ("eth8", IpAddr::from([10, 8, 0, 2])),
            (Self::Nothing, Family::V6) => ("eth8", IpAddr::from([0xfd00, 8, 0, 0, 0, 0, 0, 2])),
        };
        if self == Self::Nothing {
            client.ip(&format!("link add eth8 type veth peer name eth8 netns {}\n", server.path()));
            for (end, ns) in [client, server].into_iter().enumerate() {
                let host = end + 1;
                ns.ip(&format!(
                    "address add 10.8.0.{host}/24 dev eth8\naddress add fd00:8::{host}/64 dev eth8 nodad\nlink set eth8 up\n"
                ));
            }
        }
        for ns in [client, server].into_iter().filter(|_| !tune.is_empty()) {
            ns.output("ethtool", &[&["-K", device], tune].concat());
        }
        if let Self::Node(rules) = self {
            node.load(rules, 20, &[]);
        }
        let (near, far) = node.connect(SocketAddr::new(to, 7001));
        (node, near, far)
    }

    /// Shows that packets took the way that the row is about; `forwarded` of them took the normal path.
    #[track_caller]
    pub(super) fn check(self, forwarded: u64) {
        assert_eq!(forwarded <= STRAYS, self != Self::Node(Rules::None), "{self:?}: {forwarded} forwarded");
    }

    /// Packets that came in, of both ends' and at what is between them.
    pub(super) fn received(self, node: &Node) -> u64 {
        match self {
            Self::Node(_) => node.received(),
            Self::Nothing => {
                let (client, server) = (node.topology.client(), node.topology.server());
                received(&client.ns, "eth8") + received(&server.ns, "eth8")
            }
        }
    }
}

/// A node with client and server, and perhaps a running agent.
pub struct Node {
    pub(super) topology: Topology,
    pub(super) agent: Option<Agent>,
    /// Those that flows come in by.
    devices: [&'static str; 2],
}

/// What becomes of packets that reach the client or the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// Dropped as they arrive.
    Drop,
    /// Sockets get them.
    Answer,
}

/// Entries in the agent's map of flows: enough for both directions of the most flows that a row has.
const MAX_FLOWS: &str = "--max-flows=262144";

/// Packets that don't count when it is looked which way they took.
pub(super) const STRAYS: u64 = 5;
/// What stands for a network card: it receives what the packet generator hands it, and sends nothing anywhere.
pub(super) const CARD: &str = "card0";
/// Who sends behind it.
pub(super) const BEHIND_CARD: &str = "10.1.0.9";

/// Where the agent reads what it excludes.
const EXCLUSIONS: &str = "/tmp/bench-exclusions";

impl Node {
    /// Packets that it has received from both sides.
    pub(super) fn received(&self) -> u64 {
        self.devices.map(|device| received(&self.topology.node, device)).iter().sum()
    }

    /// A TCP connection of the client's to the server: its end and the server's.
    pub(super) fn connect(&self, to: SocketAddr) -> (TcpStream, TcpStream) {
        let (client, server) = (self.topology.client(), self.topology.server());
        let listener = server.ns.run(|| TcpListener::bind(to)).expect("listen");
        let near = client.ns.run(|| TcpStream::connect(to)).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        (near, far)
    }

    pub(super) fn build(base: Base, ends: Ends) -> Self {
        Self::build_with(base, ends, "c0")
    }

    /// A node to which the client's packets come by this device.
    pub(super) fn build_with(base: Base, ends: Ends, device: &'static str) -> Self {
        let topology = Topology::bare(Layout::default());
        if ends == Ends::Drop {
            pktgen::load(&topology.node);
        }
        // Neighbours that never need to be asked again.
        let mut batch = String::new();
        for pod in &topology.pods {
            let address = hardware_address(&pod.ns, "eth0");
            for family in [Family::V4, Family::V6] {
                batch += &format!(
                    "neighbour replace {} lladdr {address} dev {} nud permanent\n",
                    pod.address(family),
                    pod.node_dev
                );
            }
        }
        if device == CARD {
            batch += &format!(
                "link add {CARD} type dummy\nlink set {CARD} up\nroute add {BEHIND_CARD} dev {CARD}\n"
            );
            batch += &format!(
                "neighbour replace {BEHIND_CARD} lladdr 02:00:00:00:00:09 dev {CARD} nud permanent\n"
            );
        }
        topology.node.ip(&batch);
        // Where packets end.
        if base == Base::Floor {
            drop_at_ingress(&topology.node, device);
        }
        if ends == Ends::Drop {
            for pod in &topology.pods {
                drop_at_ingress(&pod.ns, "eth0");
            }
        }
        match base {
            Base::Floor | Base::Routed => {}
            Base::Nat => topology.node.nft(&nat_rules(Nat::Masquerade)),
            Base::Services => topology.node.nft(&(nat_rules(Nat::Masquerade) + &services::rules())),
            Base::ServicesOnly => topology.node.nft(&services::rules()),
        }
        Self { topology, agent: None, devices: [device, "s0"] }
    }

    pub(super) fn hardware_address(&self, device: &str) -> String {
        hardware_address(&self.topology.node, device)
    }

    /// The node's address that the server sees when the node masquerades.
    pub(super) fn address_to_server(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => "10.2.0.1",
            Family::V6 => "fd00:2::1",
        }
        .parse()
        .expect("an address")
    }

    /// Loads the rules, or starts the agent, which excludes these addresses, and leaves it running.
    pub(super) fn load(&mut self, rules: Rules, threshold: u32, exclusions: &[String]) {
        let node = &self.topology.node;
        let threshold_flag = format!("--fastpath-threshold={threshold}");
        let ebpf: &[&str] = match rules {
            Rules::None => return,
            Rules::Kindnet => return node.nft(&reference::kindnet_above(threshold, &self.devices)),
            Rules::KindnetDocument => {
                return node.nft(&reference::kindnet_document_above(threshold, &self.devices));
            }
            Rules::Alone => return node.nft(&rendered(node, threshold)),
            Rules::Agent => &["--ebpf=off"],
            Rules::AgentEbpf => &["--ebpf=tc"],
            Rules::AgentXdp => &["--ebpf=xdp"],
            Rules::AgentForward => &["--ebpf=tc", "--forward=peer"],
        };
        let mut flags = vec![threshold_flag.as_str(), MAX_FLOWS];
        flags.extend(ebpf);
        if !exclusions.is_empty() {
            fs::write(EXCLUSIONS, exclusions.join("\n") + "\n").expect("the list of exclusions");
            flags.extend(["--exclude-file", EXCLUSIONS]);
        }
        let agent = Agent::start_with(node, &flags);
        agent.wait_until_idle();
        self.agent = Some(agent);
    }

    /// Waits for the end of what has been begun. While nothing happens, the guest's time passes at once.
    pub(super) fn settle(&self) {
        thread::sleep(Duration::from_secs(2));
    }

    pub(super) fn counts(&self, family: Family) -> Counts {
        let arrived = received(&self.topology.server().ns, "eth0");
        let forwarded = self.topology.node.run(|| match family {
            Family::V4 => {
                let table = fs::read_to_string("/proc/thread-self/net/snmp").expect("procfs");
                let mut lines = table.lines().filter_map(|line| line.strip_prefix("Ip: "));
                let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
                let place = names.split(' ').position(|name| name == "ForwDatagrams");
                number(place.and_then(|place| values.split(' ').nth(place)))
            }
            Family::V6 => {
                let table = fs::read_to_string("/proc/thread-self/net/snmp6").expect("procfs");
                number(table.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")))
            }
        });
        Counts { arrived, forwarded }
    }
}

/// What the agent prints for the node's interfaces as they are.
pub(super) fn rendered(node: &Netns, threshold: u32) -> String {
    agent::output(node, &["render", &format!("--fastpath-threshold={threshold}")])
}

/// Packets that a device has received.
fn received(ns: &Netns, device: &str) -> u64 {
    let devices = ns.run(|| fs::read_to_string("/proc/thread-self/net/dev")).expect("procfs");
    let line = devices.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
    number(line.and_then(|line| line.split_whitespace().nth(1)))
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).expect("a counter in procfs")
}

/// The kernel's counters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    /// Packets that reached the server's device.
    pub(super) arrived: u64,
    /// Packets that the node's IP layer forwarded: those of offloaded flows never get there.
    pub(super) forwarded: u64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { arrived: self.arrived - before.arrived, forwarded: self.forwarded - before.forwarded }
    }
}

fn drop_at_ingress(ns: &Netns, device: &str) {
    ns.nft(&format!(
        "table netdev sink {{
            chain in {{
                type filter hook ingress device {device} priority 0
                drop
            }}
        }}"
    ));
}

fn hardware_address(ns: &Netns, device: &str) -> String {
    let links = ns.output("ip", &["-j", "link", "show", "dev", device]);
    let links: serde_json::Value = serde_json::from_str(&links).expect("ip prints JSON");
    links[0]["address"].as_str().expect("a hardware address").to_owned()
}
