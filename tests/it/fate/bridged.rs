//! Traffic that a bridge forwards, and conntrack hears of (`br_netfilter`), beside traffic that is routed in and out by the same
//! bridge.

use std::process::Command;

use fastpath_tests::twin::{
    Case, Flows, Path,
    Step::{Client, Node, Server},
    With,
};

/// Takes the module away again, which else the tests after this one would have.
struct BrNetfilter;

impl BrNetfilter {
    #[track_caller]
    fn load() -> Self {
        assert!(Command::new("modprobe").arg("br_netfilter").status().expect("modprobe").success());
        Self
    }
}

impl Drop for BrNetfilter {
    fn drop(&mut self) {
        // A panic here would hide the test's own.
        let _ = Command::new("rmmod").arg("br_netfilter").status();
    }
}

/// Both links are ports of `br0`, which has the node's addresses.
const BRIDGE: &str = "
    ip link add br0 type bridge; ip link set br0 up
    for net in 1:c0 2:s0; do
        dev=${net#*:}; net=${net%:*}
        ip address flush dev $dev
        ip link set $dev master br0
        ip address add 10.$net.0.1/24 dev br0; ip address add fd00:$net::1/64 dev br0 nodad
    done
    echo 0 | tee /proc/sys/net/ipv4/conf/*/send_redirects > /dev/null";

const HAIRPIN: Case = Case {
    name: "routed through one bridge",
    set_up: &[
        Node(BRIDGE),
        Client("echo 0 | tee /proc/sys/net/ipv[46]/conf/*/accept_redirects > /dev/null"),
        Server("echo 0 | tee /proc/sys/net/ipv[46]/conf/*/accept_redirects > /dev/null"),
    ],
    flows: Flows::BothCross,
    ..Case::PLAIN
};

const BRIDGED: Case = Case {
    name: "bridged, with br_netfilter",
    set_up: &[
        Node(BRIDGE),
        Client("ip route add 10.2.0.2/32 dev eth0; ip -6 route add fd00:2::2/128 dev eth0"),
        Server("ip route add 10.1.0.2/32 dev eth0; ip -6 route add fd00:1::2/128 dev eth0"),
    ],
    path: Path::Slow,
    same_output: "conntrack -L -f ipv4 2> /dev/null | grep -c OFFLOAD || true",
    ..HAIRPIN
};

#[test]
fn bridged_traffic_is_delivered_and_not_offloaded() {
    let _module = BrNetfilter::load();
    BRIDGED.run(With::Agent).assert_same_fate();
}

#[test]
fn routed_through_the_same_bridge_it_is_fast() {
    HAIRPIN.run(With::Agent).assert_same_fate();
}

#[test]
fn routed_through_the_same_bridge_it_is_fast_with_br_netfilter_too() {
    let _module = BrNetfilter::load();
    HAIRPIN.run(With::Agent).assert_same_fate();
}
