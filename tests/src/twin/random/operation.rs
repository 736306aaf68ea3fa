//! What may be done to a node: typed, drawn by `proptest`, and written as a script for `bash -euc`. Whether it succeeds is
//! no matter; on both nodes it ends alike.

pub(super) mod firewall;
pub(super) mod network;
pub(super) mod pods;

use std::fmt;

use proptest::{prelude::*, sample::select};

use self::{
    firewall::{Chain, Match, Target, Verdict, Xtables},
    network::{Bridging, Ipvs, Tunnel},
    pods::{AtPod, Pair},
};

/// One operation. Names are from a small stock, so that operations meet each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// One more rule, with the table and the chain if they aren't there.
    Rule(Chain, Match, Verdict),
    /// The policy `drop` of a chain.
    DropPolicy(Chain),
    /// The same rule as the whole ruleset, in one transaction: a firewall that reloads.
    Reloaded(Chain, Match, Verdict),
    /// A rule in front of the others of an xtables chain, or behind them.
    Iptables(Xtables, Match, Target, Place),
    /// `iptables -P FORWARD DROP`.
    IptablesPolicy(Ip),
    /// An element that makes a rule deny, in a set or in a map of verdicts.
    Element(Element),
    /// Masquerades new flows that leave by the server's interface.
    Masquerade(Ip),
    /// The tables that translate addresses go.
    NoTranslation,
    /// All tables go.
    FlushRuleset,
    /// A link goes down.
    Down(Device),
    /// A link goes down and comes back at once.
    Flap(Device),
    /// Another MTU.
    Mtu(Device, u16),
    /// A link is put into a VRF or a bridge.
    Master(Device, Master),
    /// The node's IPv4 address on a link goes.
    NoAddress(Device),
    /// Both links become ports of one bridge.
    OneBridge(Bridging),
    /// A tunnel to the server, by which the distant addresses are reached from then on.
    Tunnel(Tunnel),
    /// Something happens to the services of IPVS.
    Ipvs(Ipvs),
    /// The client's pair goes, or one of its ends into the other one's namespace.
    Pair(Pair),
    /// Something comes to a pod's end of its link.
    AtPod(End, AtPod),
    /// A VLAN on a link, which no flow uses.
    NewVlan(Device),
    /// A route that denies, to an end's near address.
    Deny(End, Denial),
    /// The distant addresses of an end by the second link, or by both links.
    Reroute(End, Via),
    /// A policy rule.
    PolicyRule(Selector, RuleAction),
    /// A MAC address that no host has, for an end's near address.
    WrongNeighbour(End),
    /// A filter at a link that drops.
    Tc(Device, TcHook, TcMatch),
    /// Another root qdisc.
    Qdisc(Device, &'static str),
    /// A sysctl of forwarding, set to what it isn't.
    Sysctl(Sysctl),
    /// Takes back what the other one did, done or not.
    Undo(Box<Self>),
    /// Happens to the agent or to what is the agent's; on the other node nothing does.
    Agent(AgentOperation),
}

macro_rules! choices {
    ($(#[$of:meta])* $name:ident { $($variant:ident = $text:expr,)+ }) => {
        $(#[$of])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "they say it")]
        pub enum $name { $($variant,)+ }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// As the programs want it.
            pub fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}
pub(super) use choices;

choices! {
    /// Version of the Internet Protocol.
    Ip { V4 = "", V6 = "6", }
}
choices! {
    /// Where a rule goes.
    Place { First = "-I", Last = "-A", }
}
choices! {
    /// A link of the node; `$top` is the server's with the address.
    Device { Client = "c0", Server = "s0", Top = "$top", SecondClient = "c1", SecondServer = "s1", }
}
choices! {
    /// An end of the flows, by the number in its addresses.
    End { Client = "1", Server = "2", }
}
choices! {
    /// What a link is put into.
    Master { Vrf = "type vrf table 10", Bridge = "type bridge", }
}
choices! {
    /// A kind of route that denies, all packets or large ones.
    Denial {
        Blackhole = "blackhole",
        Unreachable = "unreachable",
        Prohibit = "prohibit",
        Local = "local",
        Mtu = "mtu 1300",
        LockedMtu = "mtu lock 1300",
    }
}
choices! {
    /// What a policy rule does.
    RuleAction {
        Blackhole = "blackhole",
        Unreachable = "unreachable",
        EmptyTable = "lookup 99",
        SecondServerLink = "lookup 102",
        SecondClientLink = "lookup 101",
    }
}
choices! {
    /// Place of a filter.
    TcHook { Ingress = "ingress", Egress = "egress", }
}
choices! {
    /// What it drops.
    TcMatch {
        All = "protocol all pref 7 matchall",
        UdpV4 = "protocol ip pref 7 flower ip_proto udp",
        TcpV6 = "protocol ipv6 pref 7 flower ip_proto tcp",
    }
}
choices! {
    /// What a policy rule asks; CLIENT and SERVER are replaced by their near addresses.
    Selector {
        InputClient = "iif c0",
        InputServer = "iif $top",
        FromClient = "from CLIENT",
        FromServer = "from SERVER",
        ToClient = "to CLIENT",
        ToServer = "to SERVER",
        Mark = "fwmark 7",
        TcpPort = "ipproto tcp dport 7001-7012",
        UdpSourcePort = "ipproto udp sport 7001-7012",
        Tos = "dsfield 0x10",
        Everything = "from all",
    }
}
choices! {
    /// An element of a set or a map that forwarded packets are looked up in.
    Element {
        DeniedClient = "bad { 10.1.0.2 }",
        DeniedServer = "bad { 10.2.0.2 }",
        DeniedDistant = "bad { 10.101.0.2 }",
        DeniedClient6 = "bad6 { fd00:1::2 }",
        DeniedPort = "verdicts { 7003 : drop }",
        AllowedPort = "verdicts { 7002 : accept }",
    }
}
choices! {
    /// A sysctl of the node, below `net/`, and the value that it doesn't have at first.
    Sysctl {
        Forward = "ipv4/ip_forward 0",
        Forward6 = "ipv6/conf/all/forwarding 0",
        ForwardClient = "ipv4/conf/c0/forwarding 0",
        ForwardServer = "ipv4/conf/$top/forwarding 0",
        ReversePath = "ipv4/conf/all/rp_filter 1",
        ReversePathClient = "ipv4/conf/c0/rp_filter 1",
        NoIpv6 = "ipv6/conf/c0/disable_ipv6 1",
        Liberal = "netfilter/nf_conntrack_tcp_be_liberal 1",
        BridgeRules = "bridge/bridge-nf-call-iptables 1",
        BridgeRules6 = "bridge/bridge-nf-call-ip6tables 1",
    }
}
choices! {
    /// By which link the distant addresses are reached.
    Via { Second = "second", Both = "both", Nowhere = "nowhere", }
}
choices! {
    /// What happens to the agent's node only. Those with a script damage what is the agent's.
    AgentOperation {
        Killed = "",
        Stopped = "",
        // Another one, with other flags.
        Upgraded = "",
        Reloaded = "",
        Second = "",
        TableDeleted = "nft delete table inet kindnet-fastpath",
        TableFlushed = "nft flush table inet kindnet-fastpath",
        FlowtableEmptied = "fastpath-agent revalidate",
        CleanedUp = "fastpath-agent cleanup",
        PinsDeleted = "rm -rf /sys/fs/bpf/fastpath/*",
        PinsUnmounted = "umount -l /sys/fs/bpf; mount -t bpf bpf /sys/fs/bpf",
        BpffsUnmounted = "umount -l /sys/fs/bpf",
        ProgramsDetached = "for link in /sys/fs/bpf/fastpath/links/*; do bpftool link detach pinned $link; done",
        ClsactDeleted = "tc qdisc del dev c0 clsact 2>/dev/null || true",
    }
}

/// All tables go. Without any rule that asks for connections a node without the agent would stop to track them.
const FLUSHED: &str = "flush ruleset; add table inet tracks; \
     add chain inet tracks forward { type filter hook forward priority -400; }; add rule inet tracks forward ct state new";

impl AgentOperation {
    /// Whether programs or maps go, which the agent may find out only with its safety net.
    pub(super) fn damages(self) -> bool {
        use AgentOperation::{
            BpffsUnmounted, CleanedUp, ClsactDeleted, PinsDeleted, PinsUnmounted, ProgramsDetached,
        };
        matches!(
            self,
            CleanedUp | PinsDeleted | PinsUnmounted | BpffsUnmounted | ProgramsDetached | ClsactDeleted
        )
    }

    /// Whether the agent has to make its table again: it does so ever more slowly if that goes on.
    pub(super) fn harms_the_table(self) -> bool {
        matches!(self, Self::TableDeleted | Self::TableFlushed | Self::CleanedUp)
    }
}

/// Puts a link with its addresses and routes back to what they were.
pub(super) fn restored(device: Device) -> String {
    let (net, up) = match device {
        Device::Client => (1, "ip link set c0 up"),
        // A lower link first, which may have been what went down.
        Device::Server | Device::Top => (
            2,
            "ip link set s0 up; case $top in vx0|gre1|ip4) ip address replace 192.168.9.1/24 dev s0;; esac; ip link set $top up",
        ),
        Device::SecondClient => (11, "ip link set c1 up"),
        Device::SecondServer => (12, "ip link set s1 up"),
    };
    let holder = match device {
        Device::Server => "$top",
        other => other.text(),
    };
    let mut script = format!(
        "{up}; ip address replace 10.{net}.0.1/24 dev {holder}; ip address replace fd00:{net}::1/64 dev {holder} nodad"
    );
    if net < 10 {
        script += &format!("; {}", reroute(net, "first"));
    }
    script
}

/// Routes to the distant addresses of an end.
pub(super) fn reroute(net: u8, via: &str) -> String {
    let second = 10 + net;
    let hops = match via {
        "first" => (format!("via 10.{net}.0.2"), format!("via fd00:{net}::2")),
        "second" => (format!("via 10.{second}.0.2"), format!("via fd00:{second}::2")),
        "both" => (
            format!("nexthop via 10.{net}.0.2 nexthop via 10.{second}.0.2"),
            // Over IPv6 the flow label decides too, which is chosen at random.
            format!("via fd00:{second}::2"),
        ),
        _ => {
            return format!(
                "ip route replace blackhole 10.10{net}.0.2; ip -6 route del fd00:10{net}::2; ip -6 route add blackhole fd00:10{net}::2"
            );
        }
    };
    format!(
        "ip route replace 10.10{net}.0.2 {}; ip -6 route del fd00:10{net}::2 2>/dev/null || true; ip -6 route add fd00:10{net}::2 {}",
        hops.0, hops.1
    )
}

fn both_families(command: &str, words: &str) -> String {
    let v6 = words.replace("CLIENT", "fd00:1::2").replace("SERVER", "fd00:2::2");
    let v4 = words.replace("CLIENT", "10.1.0.2").replace("SERVER", "10.2.0.2");
    format!("ip {command} {v4}; ip -6 {command} {v6}")
}

impl Operation {
    /// The script for a node; `$top` in it is the server's device.
    pub(super) fn script(&self) -> String {
        match self {
            Self::Rule(chain, matching, verdict) => chain.with_rule(*matching, *verdict),
            Self::DropPolicy(chain) => chain.with_policy("drop"),
            Self::Reloaded(chain, matching, verdict) => {
                chain.with_rule(*matching, *verdict).replacen("nft '", &format!("nft '{FLUSHED}; "), 1)
            }
            Self::Iptables(chain, matching, target, place) => {
                format!("{} {}", chain.command(place.text()), target.words(*chain, *matching))
            }
            Self::IptablesPolicy(ip) => format!("ip{}tables-nft -P FORWARD DROP", ip.text()),
            Self::Element(element) => {
                format!("{}; nft add element inet sets '{}'", firewall::SETS, element.text())
            }
            Self::Masquerade(ip) => {
                format!("ip{}tables-nft -t nat -A POSTROUTING -o $top -j MASQUERADE", ip.text())
            }
            Self::NoTranslation => {
                "for table in ip ip6 inet; do nft delete table $table nat 2>/dev/null || true; done; \
                 nft delete table inet test-nat 2>/dev/null || true"
                    .to_owned()
            }
            Self::FlushRuleset => format!("nft '{FLUSHED}'"),
            Self::Down(device) => format!("ip link set {} down", device.text()),
            Self::Flap(device) => format!("ip link set {} down; {}", device.text(), restored(*device)),
            Self::Mtu(device, mtu) => format!("ip link set {} mtu {mtu}", device.text()),
            Self::Master(device, kind) => format!(
                "ip link add twin-{kind:?} {} 2>/dev/null || true; ip link set twin-{kind:?} up; ip link set {} master twin-{kind:?}",
                kind.text(),
                device.text()
            ),
            Self::NoAddress(device) => format!("ip -4 address flush dev {}", device.text()),
            Self::OneBridge(_) => network::one_bridge(),
            Self::Tunnel(tunnel) => network::tunnel_on_node(*tunnel),
            Self::Ipvs(operation) => network::ipvs(*operation),
            Self::Pair(pair) => pair.script(),
            Self::AtPod(..) => ":".to_owned(),
            Self::NewVlan(device) => format!(
                "ip link add twin.9 link {0} type vlan id 9; ip link set twin.9 up; ip address add 10.77.0.1/24 dev twin.9",
                device.text()
            ),
            Self::Deny(end, denial) => denying("add", *end, *denial),
            Self::Reroute(end, via) => reroute(number(*end), via.text()),
            Self::PolicyRule(selector, action) => {
                both_families("rule add pref 50", &format!("{} {}", selector.text(), action.text()))
            }
            Self::WrongNeighbour(end) => both_families(
                "neighbour replace",
                &format!("{} lladdr 02:00:00:00:00:99 nud permanent dev {}", near(*end), device(*end)),
            ),
            Self::Tc(device, hook, matching) => format!(
                "tc qdisc add dev {0} clsact 2>/dev/null || true; tc filter add dev {0} {1} {2} action drop",
                device.text(),
                hook.text(),
                matching.text()
            ),
            Self::Qdisc(device, kind) => format!("tc qdisc replace dev {} root {kind}", device.text()),
            Self::Sysctl(sysctl) => {
                let (key, value) = sysctl.text().split_once(' ').expect("a key and a value");
                format!("echo {value} > /proc/sys/net/{key}")
            }
            Self::Undo(other) => other.undo(),
            Self::Agent(operation) => operation.text().to_owned(),
        }
    }

    /// What takes it back; nothing for what can't be.
    fn undo(&self) -> String {
        match self {
            Self::Rule(chain, ..) => chain.flushed(),
            Self::DropPolicy(chain) => chain.with_policy("accept"),
            Self::Reloaded(chain, ..) => chain.table_deleted(),
            Self::Iptables(chain, ..) => chain.command("-F"),
            Self::IptablesPolicy(ip) => format!("ip{}tables-nft -P FORWARD ACCEPT", ip.text()),
            Self::Element(element) => format!("nft delete element inet sets '{}'", element.text()),
            Self::Masquerade(ip) => format!("ip{}tables-nft -t nat -F POSTROUTING", ip.text()),
            Self::Down(device) | Self::NoAddress(device) => restored(*device),
            Self::Mtu(device, _) => format!("ip link set {} mtu 1500; {}", device.text(), restored(*device)),
            Self::Master(device, _) => {
                format!("ip link set {} nomaster; {}", device.text(), restored(*device))
            }
            Self::OneBridge(_) => network::one_bridge_undone(),
            Self::Tunnel(_) => network::tunnel_undone(),
            Self::Ipvs(operation) => network::ipvs_undo(*operation),
            Self::Pair(pair) => pair.undo(),
            Self::NewVlan(_) => "ip link del twin.9".to_owned(),
            Self::Deny(end, denial) => denying("del", *end, *denial),
            Self::Reroute(end, _) => reroute(number(*end), "first"),
            Self::PolicyRule(selector, action) => {
                both_families("rule del pref 50", &format!("{} {}", selector.text(), action.text()))
            }
            Self::WrongNeighbour(end) => {
                both_families("neighbour del", &format!("{} dev {}", near(*end), device(*end)))
            }
            Self::Tc(device, hook, _) => {
                format!("tc filter del dev {} {} pref 7", device.text(), hook.text())
            }
            Self::Qdisc(device, _) => format!("tc qdisc del dev {} root", device.text()),
            Self::Sysctl(sysctl) => {
                let (key, value) = sysctl.text().split_once(' ').expect("a key and a value");
                let before = if value == "0" { "1" } else { "0" };
                format!("echo {before} > /proc/sys/net/{key}")
            }
            Self::NoTranslation
            | Self::FlushRuleset
            | Self::Flap(_)
            | Self::AtPod(..)
            | Self::Undo(_)
            | Self::Agent(_) => ":".to_owned(),
        }
    }
}

fn number(end: End) -> u8 {
    match end {
        End::Client => 1,
        End::Server => 2,
    }
}

/// In words for [`both_families`].
fn near(end: End) -> &'static str {
    match end {
        End::Client => "CLIENT",
        End::Server => "SERVER",
    }
}

/// A route that denies comes or goes.
fn denying(verb: &str, end: End, denial: Denial) -> String {
    match denial {
        Denial::Local => {
            let number = number(end);
            format!(
                "ip route {verb} local 10.{number}.0.2 dev lo; ip -6 route {verb} local fd00:{number}::2 dev lo"
            )
        }
        Denial::Mtu | Denial::LockedMtu => {
            let words = format!("{} dev {} {}", near(end), device(end), denial.text());
            both_families(&format!("route {verb}"), &words)
        }
        other => both_families(&format!("route {verb} {}", other.text()), near(end)),
    }
}

fn device(end: End) -> &'static str {
    match end {
        End::Client => "c0",
        End::Server => "$top",
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(operation) if operation.text().is_empty() => {
                write!(f, "# the agent: {operation:?}")
            }
            Self::Agent(_) => write!(f, "{}  # on the agent's node", self.script()),
            _ => {
                f.write_str(&self.script())?;
                for (script, pod) in network::of_the_pods(self).iter().zip(["client", "server"]) {
                    if let Some(script) = script {
                        write!(f, "\n# at the {pod}: {script}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Operations, those more often by which flows are denied.
pub(super) fn any() -> impl Strategy<Value = Operation> {
    let device = || select(Device::ALL);
    let busy = || select(&[Device::Client, Device::Server, Device::Top][..]);
    let end = || select(End::ALL);
    let rule = || (firewall::chain(), select(Match::ALL), select(Verdict::ALL));
    prop_oneof![
        24 => rule().prop_map(|(chain, matching, verdict)| Operation::Rule(chain, matching, verdict)),
        2 => firewall::chain().prop_map(Operation::DropPolicy),
        2 => rule().prop_map(|(chain, matching, verdict)| Operation::Reloaded(chain, matching, verdict)),
        12 => (firewall::xtables(), select(Match::ALL), select(Target::ALL), select(Place::ALL))
            .prop_map(|(chain, matching, target, place)| Operation::Iptables(chain, matching, target, place)),
        1 => select(Ip::ALL).prop_map(Operation::IptablesPolicy),
        5 => select(Element::ALL).prop_map(Operation::Element),
        2 => select(Ip::ALL).prop_map(Operation::Masquerade),
        1 => Just(Operation::NoTranslation),
        1 => Just(Operation::FlushRuleset),
        2 => device().prop_map(Operation::Down),
        3 => device().prop_map(Operation::Flap),
        3 => (busy(), select(&[1000, 1280, 1400, 9000][..])).prop_map(|(device, mtu)| Operation::Mtu(device, mtu)),
        2 => (device(), select(Master::ALL)).prop_map(|(device, master)| Operation::Master(device, master)),
        1 => busy().prop_map(Operation::NoAddress),
        3 => select(Bridging::ALL).prop_map(Operation::OneBridge),
        4 => select(Tunnel::ALL).prop_map(Operation::Tunnel),
        4 => select(Ipvs::ALL).prop_map(Operation::Ipvs),
        3 => select(Pair::ALL).prop_map(Operation::Pair),
        6 => (end(), select(AtPod::ALL)).prop_map(|(end, what)| Operation::AtPod(end, what)),
        2 => busy().prop_map(Operation::NewVlan),
        5 => (end(), select(Denial::ALL)).prop_map(|(end, denial)| Operation::Deny(end, denial)),
        5 => (end(), select(Via::ALL)).prop_map(|(end, via)| Operation::Reroute(end, via)),
        8 => (select(Selector::ALL), select(RuleAction::ALL))
            .prop_map(|(selector, action)| Operation::PolicyRule(selector, action)),
        2 => end().prop_map(Operation::WrongNeighbour),
        5 => (busy(), select(TcHook::ALL), select(TcMatch::ALL))
            .prop_map(|(device, hook, matching)| Operation::Tc(device, hook, matching)),
        2 => (busy(), select(&["pfifo limit 1000", "tbf rate 1gbit burst 1mb latency 50ms", "netem delay 3ms"][..]))
            .prop_map(|(device, kind)| Operation::Qdisc(device, kind)),
        5 => select(Sysctl::ALL).prop_map(Operation::Sysctl),
        15 => select(AgentOperation::ALL).prop_map(Operation::Agent),
    ]
}
