//! strongSwan: a network behind a gateway, by policies of IPsec. The kernel takes no such flow into the flowtable.

use super::{Node, Trial};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "strongswan",
    packages: &["charon-systemd"],
    again: &[
        "swanctl --load-all",
        "swanctl --reload-settings",
        "systemctl restart strongswan; swanctl --initiate --child net",
    ],
    told: &[
        ("doctor --no-canary --all", "flows that one of these applies to stay on the normal path: "),
        ("doctor --no-canary --all", "fwd 10.98.0.0/24 > 10.1.0.0/24"),
    ],
    run: trial,
    ..Trial::PLAIN
};

/// A connection as one of both ends has it: its own address and network, and the other's.
fn connection(own: [&str; 2], other: [&str; 2]) -> String {
    format!(
        "connections {{ field {{ version = 2
            local_addrs = {}\n remote_addrs = {}
            local {{ auth = psk\n id = {} }}
            remote {{ auth = psk\n id = {} }}
            children {{ net {{ local_ts = {}\n remote_ts = {} }} }} }} }}
        secrets {{ ike-field {{ secret = field }} }}\n",
        own[0], other[0], own[0], other[0], own[1], other[1]
    )
}

const NODE: [&str; 2] = ["10.2.0.1", "10.1.0.0/24"];
const GATEWAY: [&str; 2] = ["10.2.0.2", "10.98.0.0/24"];

/// The gateway's daemon, in its own namespace.
fn start_gateway(server: &Netns) {
    sh(&format!(
        "mkdir -p /run/gateway/swanctl
         echo 'charon-systemd {{ plugins {{ vici {{ socket = unix:///run/gateway/vici }} }} }}' >/run/gateway/strongswan.conf
         cat >/run/gateway/swanctl/swanctl.conf <<'END'\n{}END",
        connection(GATEWAY, NODE)
    ));
    server.output(
        "bash",
        &["-euc", "STRONGSWAN_CONF=/run/gateway/strongswan.conf charon-systemd >/run/gateway/log 2>&1 </dev/null & echo $! >/run/gateway/pid
                   for i in $(seq 300); do [ -S /run/gateway/vici ] && break; sleep 0.2; done
                   SWANCTL_DIR=/run/gateway/swanctl swanctl --load-all --uri unix:///run/gateway/vici >>/run/gateway/log 2>&1 || { cat /run/gateway/log; exit 1; }"],
    );
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    server.ip("address add 10.98.0.2/24 dev lo\n");
    node.software(|| {
        start_gateway(&server);
        sh(&format!("cat >/etc/swanctl/conf.d/field.conf <<'END'\n{}END", connection(NODE, GATEWAY)));
        service::start("strongswan");
        run("swanctl", &["--initiate", "--child", "net"]);
    });
    let plain = node.open(Tcp, &client, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    let mut plain = node.agent(plain);
    let mut tcp = node.open(Tcp, &client, &server, "10.98.0.2:7001", "10.98.0.2:7001");
    node.slow("TCP through the tunnel", &mut tcp, "ipsec", "out 10.1.0.0/24 > 10.98.0.0/24");
    let mut udp = node.open(Udp, &client, &server, "10.98.0.2:7002", "10.98.0.2:7002");
    node.slow("UDP through the tunnel", &mut udp, "ipsec", "out 10.1.0.0/24 > 10.98.0.0/24");
    node.fast("TCP beside the tunnel", &mut plain);
    node.change("swanctl --terminate", &mut udp, || {
        run("swanctl", &["--terminate", "--ike", "field"]);
    });
    node.change("swanctl --initiate", &mut udp, || {
        run("swanctl", &["--initiate", "--child", "net"]);
    });
    node.slow("UDP through the next tunnel", &mut udp, "ipsec", "out 10.1.0.0/24 > 10.98.0.0/24");
    node.change("swanctl --reload-settings", &mut udp, || drop(run("swanctl", &["--reload-settings"])));
    // Its configuration doesn't dial by itself.
    node.change("systemctl restart strongswan", &mut udp, || drop(sh("systemctl restart strongswan")));
    node.change("swanctl --initiate after the restart", &mut udp, || {
        run("swanctl", &["--initiate", "--child", "net"]);
    });
    node.slow(
        "UDP through the tunnel after the restart",
        &mut udp,
        "ipsec",
        "out 10.1.0.0/24 > 10.98.0.0/24",
    );
    node.agent_goes(plain);
    sh(
        "systemctl stop strongswan; kill $(cat /run/gateway/pid); sleep 1; rm -rf /run/gateway /etc/swanctl/conf.d/field.conf",
    );
    server.ip("address del 10.98.0.2/24 dev lo\nxfrm state flush\nxfrm policy flush\n");
}
