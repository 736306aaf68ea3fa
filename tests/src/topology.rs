//! Client — node — server (and more pods) in namespaces, with NAT on the node and counters of its forward path.
//!
//! Pod `i` (1: client, 2: server, 3 …) has 10.i.0.2 and fd00:i::2; the node has .1 towards it.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    attach::{Attach, NODE_UNDERLAY, Recipe, SERVER_UNDERLAY},
    forwarded, kernel,
    netns::Netns,
    wait_until,
};

/// Address family of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Family {
    V4,
    V6,
}

/// What the node does to addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nat {
    /// Nothing.
    #[default]
    Plain,
    /// The client's packets leave with the node's address.
    Masquerade,
    /// The server is reached by a service address.
    Service,
}

/// What to build.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// How the server hangs on the node; the others are on plain veth pairs.
    pub attach: Attach,
    /// Number of pods, client and server included.
    pub pods: usize,
    /// What the node does to addresses.
    pub nat: Nat,
}

impl Default for Layout {
    fn default() -> Self {
        Self { attach: Attach::Veth, pods: 2, nat: Nat::Plain }
    }
}

/// A pod: a namespace behind a pair of its own.
pub struct Pod {
    /// Its namespace.
    pub ns: Netns,
    /// The node's end of the pair.
    pub node_dev: String,
    number: u16,
}

impl Pod {
    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, self.number as u8, 0, 2).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, self.number, 0, 0, 0, 0, 0, 2).into(),
        }
    }

    /// An address that is on none of its links, after [`Topology::add_second_links`].
    pub fn distant(&self, family: Family) -> IpAddr {
        let net = 100 + self.number;
        match family {
            Family::V4 => Ipv4Addr::new(10, net as u8, 0, 2).into(),
            // The number's decimal digits, as in all addresses here.
            Family::V6 => format!("fd00:{net}::2").parse().expect("an address"),
        }
    }

    fn set_up(&self) {
        let up = "link set lo up\nlink set eth0 up\n".to_owned();
        let addresses = addresses("eth0", self.number, 2, true);
        self.ns.ip(&(up + &addresses + &default_routes("eth0", self.number, true)));
    }
}

/// A node with its pods, all set up, forwarding, and counting what it forwards.
pub struct Topology {
    /// The node.
    pub node: Netns,
    /// Client, server, and further ones.
    pub pods: Vec<Pod>,
    /// How the server is attached.
    pub attach: Attach,
    relays: Vec<Child>,
    sessions: Vec<[OwnedFd; 3]>,
}

impl Topology {
    /// Client and server on routed veth pairs, no NAT.
    pub fn routed() -> Self {
        Self::build(Layout::default())
    }

    /// Builds it.
    pub fn build(layout: Layout) -> Self {
        Self::build_around(Netns::new("node"), layout)
    }

    /// Builds it with a namespace that is there for the node.
    pub fn build_around(node: Netns, layout: Layout) -> Self {
        let topology = Self::bare_around(node, layout);
        forwarded::install(&topology.node, &nat_rules(layout.nat));
        topology
    }

    /// Builds it without any rules on the node: nothing counts what it forwards, and NAT is the caller's.
    pub fn bare(layout: Layout) -> Self {
        Self::bare_around(Netns::new("node"), layout)
    }

    fn bare_around(node: Netns, layout: Layout) -> Self {
        make_router(&node);
        let pods: Vec<Pod> = (1..=layout.pods)
            .map(|number| Pod {
                ns: Netns::new(["client", "server", "pod"][number.min(3) - 1]),
                node_dev: match number {
                    1 => "c0".to_owned(),
                    2 => "s0".to_owned(),
                    _ => format!("p{number}"),
                },
                number: number as u16,
            })
            .collect();
        let mut topology =
            Self { node, pods, attach: layout.attach, relays: Vec::new(), sessions: Vec::new() };
        topology.connect();
        topology
    }

    fn connect(&mut self) {
        let recipe = self.attach.recipe();
        let mut node = String::new();
        for pod in &self.pods {
            let Pod { ns, node_dev, .. } = pod;
            writeln!(node, "link add {node_dev} type veth peer name eth0 netns {}", ns.path())
                .expect("string");
            writeln!(node, "link set {node_dev} up").expect("string");
            if pod.number != 2 {
                node += &addresses(node_dev, pod.number, 1, true);
            }
        }
        if recipe.underlay {
            writeln!(node, "address add {NODE_UNDERLAY}/24 dev s0").expect("string");
        }
        node += &fill_in(recipe.both, true);
        node += recipe.node;
        let top = recipe.uppers.last().copied().unwrap_or("s0");
        let addresses_on_top = addresses(top, 2, 1, recipe.ipv6);
        // Devices that only the steps below make or switch on get their addresses after them.
        let early = recipe.node_steps.is_empty() && !self.attach.is_carried();
        if early {
            node += &addresses_on_top;
        }
        self.node.ip(&node);
        for pod in &self.pods {
            if pod.number == 2 {
                pod.ns.ip(&self.server_batch(&recipe));
            } else {
                pod.set_up();
            }
        }
        match self.attach {
            Attach::Tun => self.start_relays(),
            Attach::Pppoe => self.start_sessions(),
            _ => {}
        }
        run_steps(&self.node, recipe.node_steps);
        run_steps(&self.server().ns, recipe.server_steps);
        if !early {
            self.node.ip(&addresses_on_top);
        }
        if !recipe.server_steps.is_empty() || self.attach.is_carried() {
            self.server().ns.ip(&server_addresses(&recipe));
        }
    }

    fn server_batch(&self, recipe: &Recipe) -> String {
        let mut batch = "link set lo up\nlink set eth0 up\n".to_owned();
        if recipe.underlay {
            writeln!(batch, "address add {SERVER_UNDERLAY}/24 dev eth0").expect("string");
        }
        batch += &fill_in(recipe.both, false);
        if recipe.server_steps.is_empty() && !self.attach.is_carried() {
            batch += &server_addresses(recipe);
        }
        batch
    }

    /// Both ends of a PPPoE session.
    fn start_sessions(&mut self) {
        let ends = [(&self.node, "s0"), (&self.server().ns, "eth0")];
        let [node, server] = ends.map(|(ns, device)| ns.mac(device));
        let sessions = [(ends[0], server), (ends[1], node)].map(|((ns, device), peer)| {
            let session = ns.run(|| kernel::pppoe(7, peer, device)).expect("PPPoE: the kernel needs PPP");
            ns.ip("link set ppp0 mtu 1492 up\n");
            session
        });
        self.sessions = sessions.into();
    }

    /// A tun device on both ends; socat carries its packets over UDP between the ends of the pair.
    fn start_relays(&mut self) {
        if !std::path::Path::new("/dev/net/tun").exists() {
            self.node.output("modprobe", &["tun"]);
        }
        for (ns, local, remote) in [
            (&self.node, NODE_UNDERLAY, SERVER_UNDERLAY),
            (&self.server().ns, SERVER_UNDERLAY, NODE_UNDERLAY),
        ]
        .map(|(ns, local, remote)| (ns.clone(), local, remote))
        {
            let mut command = Command::new("socat");
            command
                .arg("TUN,tun-name=tun0,iff-no-pi,iff-up")
                .arg(format!("UDP4-DATAGRAM:{remote}:9000,bind={local}:9000"))
                .stdin(Stdio::null());
            self.relays.push(ns.spawn(&mut command));
            wait_until("socat's tun0", Duration::from_secs(5), || links(&ns).contains(&"tun0".to_owned()));
        }
    }

    /// Gives a pod (not client or server) whose pair was deleted a new one, of the same name.
    pub fn connect_again(&self, pod: usize) {
        let pod = &self.pods[pod];
        let dev = &pod.node_dev;
        let link =
            format!("link add {dev} type veth peer name eth0 netns {}\nlink set {dev} up\n", pod.ns.path());
        self.node.ip(&(link + &addresses(dev, pod.number, 1, true)));
        pod.set_up();
    }

    /// Gives every pod a second pair to the node (`c1`, `s1`, and `eth1` in the pod; 10.(10+i).0.0/24), and an address that
    /// only a route of the node leads to, over the first pair: see [`Pod::distant`].
    pub fn add_second_links(&self) {
        for pod in &self.pods {
            let (net, dev) = (10 + pod.number, pod.node_dev.replace('0', "1"));
            let near = [Family::V4, Family::V6].map(|family| pod.address(family));
            let far = [Family::V4, Family::V6].map(|family| pod.distant(family));
            let by_ipv6 = match pod.number == 2 && !self.attach.recipe().ipv6 {
                true => String::new(),
                false => format!("route add {} via {}\n", far[1], near[1]),
            };
            self.node.ip(&format!(
                "link add {dev} type veth peer name eth1 netns {}\nlink set {dev} up\n{}\
                 route add {} via {}\n{by_ipv6}",
                pod.ns.path(),
                addresses(&dev, net, 1, true),
                far[0],
                near[0],
            ));
            let own = addresses("eth1", net, 2, true);
            pod.ns.ip(&format!(
                "link set eth1 up\n{own}address add {} dev lo\naddress add {} dev lo\n",
                far[0], far[1]
            ));
            // As behind one more router: no host answers for the address on a link, or asks with it.
            pod.ns.sysctl("net/ipv4/conf/all/arp_ignore", "1");
            pod.ns.sysctl("net/ipv4/conf/all/arp_announce", "2");
        }
    }

    /// Makes the server a second node, with one more pod behind it.
    pub fn add_pod_behind_server(&mut self) {
        let pod = Pod { ns: Netns::new("far pod"), node_dev: "p3".to_owned(), number: 3 };
        let far = &self.server().ns;
        make_router(far);
        far.ip(&format!(
            "link add p3 type veth peer name eth0 netns {}\nlink set p3 up\n{}",
            pod.ns.path(),
            addresses("p3", 3, 1, true),
        ));
        pod.set_up();
        forwarded::install(far, "");
        self.node.ip("route add 10.3.0.0/24 via 10.2.0.2\nroute add fd00:3::/64 via fd00:2::2\n");
        self.pods.push(pod);
    }

    /// Those lines of the server's set-up that begin with `words`.
    pub fn server_recipe_lines(&self, words: &str) -> String {
        let lines = fill_in(self.attach.recipe().both, false);
        lines.lines().filter(|line| line.starts_with(words)).flat_map(|line| [line, "\n"]).collect()
    }

    /// The first pod.
    pub fn client(&self) -> &Pod {
        &self.pods[0]
    }

    /// The second pod.
    pub fn server(&self) -> &Pod {
        &self.pods[1]
    }

    /// Where the client reaches the server.
    pub fn server_at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.server().address(family), port)
    }

    /// The service address of the server ([`Nat::Service`]).
    pub fn service_at(&self, family: Family, port: u16) -> SocketAddr {
        let address = match family {
            Family::V4 => Ipv4Addr::new(10, 96, 0, 1).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1).into(),
        };
        SocketAddr::new(address, port)
    }

    /// Names of the node's devices, loopback included.
    pub fn node_links(&self) -> Vec<String> {
        links(&self.node)
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for relay in &mut self.relays {
            // It may have ended by itself.
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }
}

fn make_router(ns: &Netns) {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ] {
        ns.sysctl(key, value);
    }
}

/// Names of a namespace's devices.
pub fn links(ns: &Netns) -> Vec<String> {
    let table = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("procfs");
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn addresses(dev: &str, net: u16, host: u8, ipv6: bool) -> String {
    let mut batch = format!("address add 10.{net}.0.{host}/24 dev {dev}\n");
    if ipv6 {
        writeln!(batch, "address add fd00:{net}::{host}/64 dev {dev} nodad").expect("string");
    }
    batch
}

fn default_routes(dev: &str, net: u16, ipv6: bool) -> String {
    let mut batch = format!("route add default via 10.{net}.0.1 dev {dev}\n");
    if ipv6 {
        writeln!(batch, "route add default via fd00:{net}::1 dev {dev}").expect("string");
    }
    batch
}

fn server_addresses(recipe: &Recipe) -> String {
    addresses(recipe.server_dev, 2, 2, recipe.ipv6) + &default_routes(recipe.server_dev, 2, recipe.ipv6)
}

fn fill_in(template: &str, node: bool) -> String {
    let words = if node {
        [
            ("LOWER", "s0"),
            ("LOCAL", NODE_UNDERLAY),
            ("REMOTE", SERVER_UNDERLAY),
            ("SPI_OUT", "0x11"),
            ("SPI_IN", "0x22"),
            ("NEAR", "1"),
            ("FAR", "2"),
        ]
    } else {
        [
            ("LOWER", "eth0"),
            ("LOCAL", SERVER_UNDERLAY),
            ("REMOTE", NODE_UNDERLAY),
            ("SPI_OUT", "0x22"),
            ("SPI_IN", "0x11"),
            ("NEAR", "2"),
            ("FAR", "1"),
        ]
    };
    words.iter().fold(template.to_owned(), |text, (word, value)| text.replace(word, value))
}

fn run_steps(ns: &Netns, steps: &[crate::attach::Step]) {
    for (program, args, stdin) in steps {
        let args: Vec<&str> = args.split_whitespace().collect();
        ns.feed(program, &args, stdin);
    }
}

/// The rules that make the node translate addresses.
pub fn nat_rules(nat: Nat) -> String {
    match nat {
        Nat::Plain => String::new(),
        Nat::Masquerade => "table inet test-nat {
            chain post {
                type nat hook postrouting priority srcnat
                ip saddr 10.1.0.0/24 masquerade
                ip6 saddr fd00:1::/64 masquerade
            }
        }\n"
        .to_owned(),
        Nat::Service => "table inet test-nat {
            chain pre {
                type nat hook prerouting priority dstnat
                ip daddr 10.96.0.1 dnat ip to 10.2.0.2
                ip6 daddr fd00:96::1 dnat ip6 to fd00:2::2
            }
        }\n"
        .to_owned(),
    }
}
