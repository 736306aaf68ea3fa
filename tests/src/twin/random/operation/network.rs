//! Operations that need more than the node: tunnels between node and server, a bridge that both links are ports of, and services
//! of IPVS. Says what to run where; [`operation`](super) draws them.

use super::{Device, Operation, choices, pods, reroute, restored};

choices! {
    /// A tunnel to the server over its second link.
    Tunnel {
        Ipip = "ipip local LOCAL4 remote REMOTE4",
        Gre = "gre local LOCAL4 remote REMOTE4",
        Vxlan = "vxlan id 77 local LOCAL4 remote REMOTE4 dstport 4789",
        Ip6 = "ip6tnl mode any encaplimit none local LOCAL6 remote REMOTE6",
    }
}
choices! {
    /// How packets between the near addresses pass a bridge that both links are ports of.
    Bridging { Routed = "routed", Direct = "direct", }
}
choices! {
    /// What becomes of the services of IPVS; nothing where the sequence has none.
    Ipvs {
        Cleared = "ipvsadm -C",
        NoServer = "awk '$1 == \"-a\" { print \"-d\", $2, $3, $4, $5 }' SERVICES | ipvsadm -R",
        Drained = "awk '$1 == \"-a\" { $1 = \"-e\"; print $0, \"-w 0\" }' SERVICES | ipvsadm -R",
        OnlyV6 = "awk '$1 == \"-A\" && $3 ~ /^10/ { print \"-D\", $2, $3 }' SERVICES | ipvsadm -R",
        WithoutConntrack = "echo 0 > /proc/sys/net/ipv4/vs/conntrack",
    }
}

/// The services, as ipvsadm reads them.
const SERVICES: &str = "<(for port in $(seq 7001 7012); do for proto in -t -u; do
    echo \"-A $proto 10.96.0.1:$port -s rr\"
    echo \"-a $proto 10.96.0.1:$port -r 10.2.0.2:$port -m\"
    echo \"-A $proto [fd00:96::1]:$port -s rr\"
    echo \"-a $proto [fd00:96::1]:$port -r [fd00:2::2]:$port -m\"
done; done)";

/// Makes the node serve the service addresses by IPVS.
pub(in crate::twin::random) fn ipvs_set_up() -> String {
    format!(
        "ip address add 10.96.0.1/32 dev lo; ip address add fd00:96::1/128 dev lo nodad
         echo 1 > /proc/sys/net/ipv4/vs/conntrack; {}",
        ipvs_undo(Ipvs::Cleared)
    )
}

pub(super) fn ipvs(operation: Ipvs) -> String {
    // Without services its sysctls may be there, since another sequence has loaded the module.
    format!("ip address show dev lo | grep -q 10.96.0.1; {}", operation.text().replace("SERVICES", SERVICES))
}

pub(super) fn ipvs_undo(operation: Ipvs) -> String {
    match operation {
        Ipvs::WithoutConntrack => "echo 1 > /proc/sys/net/ipv4/vs/conntrack".to_owned(),
        _ => format!("ip address show dev lo | grep -q 10.96.0.1; ipvsadm -C; ipvsadm -R < {SERVICES}"),
    }
}

/// The end of a tunnel with the number in its addresses; the distant addresses of the other end are reached by it.
fn tunnel_end(tunnel: Tunnel, own: u8, other: u8, distant: u8) -> String {
    let kind =
        [("LOCAL", own), ("REMOTE", other)].iter().fold(tunnel.text().to_owned(), |text, (word, host)| {
            text.replace(&format!("{word}4"), &format!("10.12.0.{host}"))
                .replace(&format!("{word}6"), &format!("fd00:12::{host}"))
        });
    let mut script = format!(
        "ip link add tw0 type {kind}; ip link set tw0 up; ip address add 10.92.0.{own}/24 dev tw0
         ip route replace 10.{distant}.0.2 via 10.92.0.{other} dev tw0"
    );
    if tunnel != Tunnel::Ipip {
        script += &format!(
            "; ip address add fd00:92::{own}/64 dev tw0 nodad; ip -6 route del fd00:{distant}::2 2>/dev/null || true
             ip -6 route add fd00:{distant}::2 via fd00:92::{other} dev tw0"
        );
    }
    script
}

pub(super) fn tunnel_on_node(tunnel: Tunnel) -> String {
    tunnel_end(tunnel, 1, 2, 102)
}

pub(super) fn tunnel_on_server(tunnel: Tunnel) -> String {
    tunnel_end(tunnel, 2, 1, 101)
}

pub(super) fn tunnel_undone() -> String {
    format!("ip link del tw0 2>/dev/null || true; {}", reroute(2, "first"))
}

/// Both links become ports of a bridge that has the node's addresses.
pub(super) fn one_bridge() -> String {
    format!(
        "ip link add br9 type bridge; ip link set br9 up; ip link set $top master br9; ip link set c0 master br9
         echo 0 | tee /proc/sys/net/ipv4/conf/{{all,br9}}/send_redirects >/dev/null
         for net in 1:c0 2:$top; do
             dev=${{net#*:}}; net=${{net%:*}}; ip address flush dev $dev scope global
             ip address add 10.$net.0.1/24 dev br9; ip address add fd00:$net::1/64 dev br9 nodad
         done
         {}; {}",
        reroute(1, "first"),
        reroute(2, "first")
    )
}

pub(super) fn one_bridge_undone() -> String {
    format!(
        "ip link set c0 nomaster; ip link set $top nomaster; ip link del br9 2>/dev/null || true; {}; {}",
        restored(Device::Client),
        restored(Device::Top)
    )
}

/// Which routes of the client and of the server make them send to each other without the node.
fn directly(operation: &Operation, verb: &str) -> Option<[String; 2]> {
    let Operation::OneBridge(Bridging::Direct) = operation else { return None };
    Some([2, 1].map(|net| {
        format!("ip route {verb} 10.{net}.0.2/32 dev $dev; ip -6 route {verb} fd00:{net}::2/128 dev $dev")
    }))
}

/// Scripts for client and server, after the node's; `$dev` is the device with their addresses.
pub(in crate::twin::random) fn of_the_pods(operation: &Operation) -> [Option<String>; 2] {
    let direct = |operation, verb| directly(operation, verb).map_or([None, None], |both| both.map(Some));
    if let Some(scripts) = pods::of_the_pods(operation) {
        return scripts;
    }
    match operation {
        Operation::Tunnel(tunnel) => [None, Some(tunnel_on_server(*tunnel))],
        Operation::Undo(other) => match &**other {
            Operation::Tunnel(_) => [None, Some("ip link del tw0".to_owned())],
            other => direct(other, "del"),
        },
        other => direct(other, "add"),
    }
}
