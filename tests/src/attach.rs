//! Ways to attach the server to the node: links on top of the pair `s0` (node) – `eth0` (server).
//!
//! Says what to set up on both ends; [`topology`](crate::topology) does it.

/// How the server is attached: the links between the pair and the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The addresses are on the pair itself.
    Veth,
    /// `s0` is a port of the bridge `br0`.
    Bridge,
    /// `s0` is an untagged port, VLAN 5, of a bridge that filters VLANs; `br0.5` has the address.
    BridgeVlan,
    /// 802.1Q 5 on both ends.
    Vlan,
    /// 802.1Q 6 in 802.1ad 5 on both ends.
    QinQ,
    /// A bond (active-backup) with `s0` in it.
    Bond,
    /// A macvlan on `s0`.
    Macvlan,
    /// An ipvlan in L2 mode on `s0`.
    IpvlanL2,
    /// An ipvlan in L3 mode on `s0`.
    IpvlanL3,
    /// VXLAN on both ends.
    Vxlan,
    /// IPv4 in IPv4.
    Ipip,
    /// IPv4 and IPv6 in IPv6.
    Ip6Tunnel,
    /// GRE.
    Gre,
    /// WireGuard.
    WireGuard,
    /// A tun device on both ends, whose packets socat carries over UDP.
    Tun,
    /// PPP over Ethernet, with no negotiation, as the kernel has it. Takes a kernel with PPP.
    Pppoe,
    /// ESP in tunnel mode by policy, with no device of its own.
    XfrmTunnel,
    /// ESP in tunnel mode through an xfrm interface.
    XfrmInterface,
    /// GRE whose outer packets go in ESP transport mode.
    GreOverEsp,
}

/// The node's address on the pair, where something is tunnelled over it.
pub const NODE_UNDERLAY: &str = "192.168.9.1";
/// The server's address on the pair.
pub const SERVER_UNDERLAY: &str = "192.168.9.2";

/// A command to run after the devices are made: program, arguments, standard input.
pub type Step = (&'static str, &'static str, &'static str);

/// What to set up on both ends.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// `ip -batch` lines once the pair exists; LOWER, LOCAL, REMOTE, SPI_OUT, SPI_IN are replaced by each end's own.
    pub both: &'static str,
    /// More of them for the node only.
    pub node: &'static str,
    /// Commands for the node, in order.
    pub node_steps: &'static [Step],
    /// Commands for the server, in order.
    pub server_steps: &'static [Step],
    /// The node's devices above `s0`, the last one has the addresses; none: `s0` has them.
    pub uppers: &'static [&'static str],
    /// The server's device with the addresses.
    pub server_dev: &'static str,
    /// The pair needs addresses of its own: [`NODE_UNDERLAY`] and [`SERVER_UNDERLAY`].
    pub underlay: bool,
    /// It carries IPv6 too.
    pub ipv6: bool,
}

const PLAIN: Recipe = Recipe {
    both: "",
    node: "",
    node_steps: &[],
    server_steps: &[],
    uppers: &[],
    server_dev: "eth0",
    underlay: false,
    ipv6: true,
};

const ESP_TUNNEL: &str = "\
xfrm state add src LOCAL dst REMOTE proto esp spi SPI_OUT reqid 1 mode tunnel enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm state add src REMOTE dst LOCAL proto esp spi SPI_IN reqid 1 mode tunnel enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm policy add src 10.NEAR.0.0/24 dst 10.FAR.0.0/24 dir out tmpl src LOCAL dst REMOTE proto esp reqid 1 mode tunnel
xfrm policy add src 10.FAR.0.0/24 dst 10.NEAR.0.0/24 dir fwd tmpl src REMOTE dst LOCAL proto esp reqid 1 mode tunnel
xfrm policy add src 10.FAR.0.0/24 dst 10.NEAR.0.0/24 dir in tmpl src REMOTE dst LOCAL proto esp reqid 1 mode tunnel
";

const ESP_INTERFACE: &str = "\
link add xf0 type xfrm dev LOWER if_id 42
link set xf0 up
xfrm state add src LOCAL dst REMOTE proto esp spi SPI_OUT reqid 1 if_id 42 mode tunnel enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm state add src REMOTE dst LOCAL proto esp spi SPI_IN reqid 1 if_id 42 mode tunnel enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm policy add dir out if_id 42 tmpl src LOCAL dst REMOTE proto esp reqid 1 mode tunnel
xfrm policy add dir fwd if_id 42 tmpl src REMOTE dst LOCAL proto esp reqid 1 mode tunnel
xfrm policy add dir in if_id 42 tmpl src REMOTE dst LOCAL proto esp reqid 1 mode tunnel
";

const GRE_IN_ESP: &str = "\
link add gre1 type gre local LOCAL remote REMOTE
link set gre1 up
xfrm state add src LOCAL dst REMOTE proto esp spi SPI_OUT reqid 1 mode transport enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm state add src REMOTE dst LOCAL proto esp spi SPI_IN reqid 1 mode transport enc cbc(aes) 0x00112233445566778899aabbccddeeff auth-trunc hmac(sha256) 0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 128
xfrm policy add src LOCAL/32 dst REMOTE/32 proto gre dir out tmpl src LOCAL dst REMOTE proto esp reqid 1 mode transport
xfrm policy add src REMOTE/32 dst LOCAL/32 proto gre dir in tmpl src REMOTE dst LOCAL proto esp reqid 1 mode transport
";

// Thirty-two times 1 and thirty-two times 2: keys that protect nothing.
const NODE_WG: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const SERVER_WG: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

impl Attach {
    /// A process that runs as long as they do makes the devices.
    pub fn is_carried(self) -> bool {
        matches!(self, Self::Tun | Self::Pppoe)
    }

    /// How to set it up.
    pub fn recipe(self) -> Recipe {
        match self {
            Self::Veth => PLAIN,
            Self::Bridge => Recipe {
                node: "link add br0 type bridge\nlink set s0 master br0\nlink set br0 up\n",
                uppers: &["br0"],
                ..PLAIN
            },
            Self::BridgeVlan => Recipe {
                node: "link add br0 type bridge vlan_filtering 1\nlink set s0 master br0\nlink set br0 up\n\
                       link add link br0 name br0.5 type vlan id 5\nlink set br0.5 up\n",
                node_steps: &[(
                    "bridge",
                    "-batch -",
                    "vlan del dev s0 vid 1\nvlan add dev s0 vid 5 pvid untagged\nvlan add dev br0 vid 5 self\n",
                )],
                uppers: &["br0", "br0.5"],
                ..PLAIN
            },
            Self::Vlan => Recipe {
                both: "link add link LOWER name v5 type vlan id 5\nlink set v5 up\n",
                uppers: &["v5"],
                server_dev: "v5",
                ..PLAIN
            },
            Self::QinQ => Recipe {
                both: "link add link LOWER name v5 type vlan proto 802.1ad id 5\nlink set v5 up\n\
                       link add link v5 name v5.6 type vlan id 6\nlink set v5.6 up\n",
                uppers: &["v5", "v5.6"],
                server_dev: "v5.6",
                ..PLAIN
            },
            Self::Bond => Recipe {
                node: "link add bond0 type bond mode active-backup miimon 100\nlink set s0 down\n\
                       link set s0 master bond0\nlink set s0 up\nlink set bond0 up\n",
                uppers: &["bond0"],
                ..PLAIN
            },
            Self::Macvlan => Recipe {
                node: "link add link s0 name mv0 type macvlan mode bridge\nlink set mv0 up\n",
                uppers: &["mv0"],
                ..PLAIN
            },
            Self::IpvlanL2 => Recipe {
                node: "link add link s0 name iv0 type ipvlan mode l2\nlink set iv0 up\n",
                uppers: &["iv0"],
                ..PLAIN
            },
            // What goes out of an L3 ipvlan is routed once more, bound to the lower device; ARP doesn't work over it.
            Self::IpvlanL3 => Recipe {
                node: "link set s0 address 02:00:00:00:02:01\nlink add link s0 name iv0 type ipvlan mode l3\n\
                       link set iv0 up\nroute add 10.2.0.0/24 dev s0 metric 900\n\
                       neighbour add 10.2.0.2 lladdr 02:00:00:00:02:02 dev s0\n",
                server_steps: &[
                    ("ip", "link set eth0 address 02:00:00:00:02:02", ""),
                    ("ip", "neighbour add 10.2.0.1 lladdr 02:00:00:00:02:01 dev eth0", ""),
                ],
                uppers: &["iv0"],
                ipv6: false,
                ..PLAIN
            },
            Self::Vxlan => Recipe {
                both: "link add vx0 type vxlan id 7 local LOCAL remote REMOTE dstport 4789 dev LOWER\n\
                       link set vx0 up\n",
                uppers: &["vx0"],
                server_dev: "vx0",
                underlay: true,
                ..PLAIN
            },
            Self::Ipip => Recipe {
                both: "link add ip4 type ipip local LOCAL remote REMOTE\nlink set ip4 up\n",
                uppers: &["ip4"],
                server_dev: "ip4",
                underlay: true,
                ipv6: false,
                ..PLAIN
            },
            Self::Ip6Tunnel => Recipe {
                both: "address add fd00:9::NEAR/64 dev LOWER nodad\n\
                       link add ip6t type ip6tnl mode any encaplimit none local fd00:9::NEAR remote fd00:9::FAR\n\
                       link set ip6t up\n",
                uppers: &["ip6t"],
                server_dev: "ip6t",
                ..PLAIN
            },
            Self::Gre => Recipe {
                both: "link add gre1 type gre local LOCAL remote REMOTE\nlink set gre1 up\n",
                uppers: &["gre1"],
                server_dev: "gre1",
                underlay: true,
                ..PLAIN
            },
            Self::WireGuard => Recipe {
                both: "link add wg0 type wireguard\n",
                node_steps: &[
                    (
                        "wg",
                        "set wg0 private-key /dev/stdin listen-port 51820 peer zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk= \
                         allowed-ips 0.0.0.0/0,::/0 endpoint 192.168.9.2:51820",
                        NODE_WG,
                    ),
                    ("ip", "link set wg0 up", ""),
                ],
                server_steps: &[
                    (
                        "wg",
                        "set wg0 private-key /dev/stdin listen-port 51820 peer pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk= \
                         allowed-ips 0.0.0.0/0,::/0 endpoint 192.168.9.1:51820",
                        SERVER_WG,
                    ),
                    ("ip", "link set wg0 up", ""),
                ],
                uppers: &["wg0"],
                server_dev: "wg0",
                underlay: true,
                ..PLAIN
            },
            Self::Tun => Recipe { uppers: &["tun0"], server_dev: "tun0", underlay: true, ..PLAIN },
            Self::Pppoe => Recipe { uppers: &["ppp0"], server_dev: "ppp0", ipv6: false, ..PLAIN },
            Self::XfrmTunnel => Recipe { both: ESP_TUNNEL, underlay: true, ipv6: false, ..PLAIN },
            Self::XfrmInterface => Recipe {
                both: ESP_INTERFACE,
                uppers: &["xf0"],
                server_dev: "xf0",
                underlay: true,
                ipv6: false,
                ..PLAIN
            },
            Self::GreOverEsp => {
                Recipe { both: GRE_IN_ESP, uppers: &["gre1"], server_dev: "gre1", underlay: true, ..PLAIN }
            }
        }
    }
}
