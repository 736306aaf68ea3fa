//! Operations at a pod's end of its link, and to the pair itself. `$client`, `$server` and `$node` are paths of their namespaces, `$xdp` that of
//! an XDP program that drops everything.

use super::{Device, Operation, choices, restored};

choices! {
    /// What becomes of the client's pair.
    Pair {
        Replaced = "ip link del c0; ip link add c0 type veth peer name eth0 netns $client",
        NodeEndMoved = "ip link set c0 netns $client",
        PodEndMoved = "nsenter --net=$client ip link set eth0 netns $node",
    }
}
choices! {
    /// What comes to a pod's end, `$dev`.
    AtPod {
        Ingress = "tc qdisc add dev $dev clsact 2>/dev/null || true; tc filter add dev $dev ingress protocol ip pref 7 flower ip_proto udp action drop",
        Egress = "tc qdisc add dev $dev clsact 2>/dev/null || true; tc filter add dev $dev egress protocol ipv6 pref 7 flower ip_proto udp action drop",
        Chain = "nft \"table netdev pod { chain ingress { type filter hook ingress device $dev priority 0; udp dport 7001-7006 drop; }; }\"",
        Rules = "nft 'table inet pod { chain input { type filter hook input priority 0; udp dport 7001-7004 drop; }; }'",
        Xdp = "ip link set $dev xdpdrv pinned $xdp",
        XdpGeneric = "ip link set $dev xdpgeneric pinned $xdp",
        Mtu = "ip link set $dev mtu 1300",
        // When a neighbour notices is a matter of chance.
        Address = "ip link set $dev address 02:00:00:00:00:77; nsenter --net=$node ip neighbour flush all",
    }
}

/// Gives the client's end its addresses and routes again.
const CLIENT_RESTORED: &str = "ip link set eth0 up
    ip address replace 10.1.0.2/24 dev eth0; ip address replace fd00:1::2/64 dev eth0 nodad
    ip route replace default via 10.1.0.1 dev eth0; ip -6 route replace default via fd00:1::1 dev eth0";

impl Pair {
    /// For the node.
    pub(super) fn script(self) -> String {
        match self {
            Self::Replaced => format!("{}; {}", self.text(), restored(Device::Client)),
            Self::NodeEndMoved | Self::PodEndMoved => self.text().to_owned(),
        }
    }

    pub(super) fn undo(self) -> String {
        let back = match self {
            Self::Replaced => return ":".to_owned(),
            Self::NodeEndMoved => "nsenter --net=$client ip link set c0 netns $node",
            Self::PodEndMoved => "ip link set eth0 netns $client",
        };
        format!("{back}; {}", restored(Device::Client))
    }
}

impl AtPod {
    fn undo(self) -> &'static str {
        match self {
            Self::Ingress | Self::Egress => "tc qdisc del dev $dev clsact",
            Self::Chain => "nft delete table netdev pod",
            Self::Rules => "nft delete table inet pod",
            Self::Xdp => "ip link set $dev xdpdrv off",
            Self::XdpGeneric => "ip link set $dev xdpgeneric off",
            Self::Mtu => "ip link set $dev mtu 1500",
            Self::Address => ":",
        }
    }
}

/// Scripts for client and server, after the node's.
pub(super) fn of_the_pods(operation: &Operation) -> Option<[Option<String>; 2]> {
    let at = |end, script: &str| match end {
        super::End::Client => [Some(script.to_owned()), None],
        super::End::Server => [None, Some(script.to_owned())],
    };
    match operation {
        Operation::Pair(Pair::Replaced) => Some([Some(CLIENT_RESTORED.to_owned()), None]),
        Operation::AtPod(end, what) => Some(at(*end, what.text())),
        Operation::Undo(other) => match &**other {
            Operation::Pair(Pair::Replaced) => None,
            Operation::Pair(_) => Some([Some(CLIENT_RESTORED.to_owned()), None]),
            Operation::AtPod(end, what) => Some(at(*end, what.undo())),
            _ => None,
        },
        _ => None,
    }
}
