//! Suricata in line, by NFQUEUE, as its guide sets it up. A rule drops by content, in a flow's 40th message.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use super::{Node, Trial};
use crate::{
    netns::Netns,
    service::{said, sh},
    traffic::Proto::{Tcp, Udp},
    wait_until,
};

pub(super) const TRIAL: Trial = Trial {
    name: "suricata",
    packages: &["suricata"],
    told: &[("doctor --no-canary --all", "NFQUEUE")],
    run: trial,
    ..Trial::PLAIN
};

/// What `--enforce-within` promises.
const ENFORCED: Duration = Duration::from_millis(1500);
/// In the 40th message of a flow, which is long enough past any threshold.
const AT: usize = 40;

fn start() {
    sh("mkdir -p /run/suricata-trial
        echo 'drop udp any any -> any any (msg:\"field\"; content:\"FORBIDDEN\"; sid:1000001; rev:1;)' \
            >/run/suricata-trial/drop.rules
        rm -f /var/log/suricata/suricata.log
        systemd-run --unit=suricata-trial --quiet \
            suricata -c /etc/suricata/suricata.yaml -S /run/suricata-trial/drop.rules -q 0 --pidfile /run/suricata-trial/pid");
    let log = "/var/log/suricata/suricata.log";
    wait_until("Suricata's engine has started", Duration::from_secs(300), || {
        assert_ne!(
            said("systemctl", &["is-failed", "suricata-trial"]).trim(),
            "failed",
            "{}",
            said("cat", &[log])
        );
        said("cat", &[log]).contains("Engine started")
    });
}

/// Changes what goes to Suricata, and waits as long as it may take until that is enforced: flows that begin meanwhile may be offloaded
/// once more.
fn queue(change: &str) {
    sh(change);
    thread::sleep(ENFORCED);
}

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        start();
        queue("iptables -I FORWARD -j NFQUEUE");
    });
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.slow("TCP by a queue without conditions", &mut tcp, "every-packet", "NFQUEUE");
    dropped(node, &client, &server, 7002);

    // Only some flows to it, as those who count on speed set it up.
    queue("iptables -D FORWARD 1; iptables -I FORWARD -p udp --dport 7003 -j NFQUEUE");
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7003", "10.2.0.2:7003");
    node.slow("UDP by a queue for its port", &mut udp, "every-packet", "NFQUEUE");
    drop(udp);
    node.fast("TCP beside a queue for another port", &mut tcp);
    sh("conntrack -D -p udp >/dev/null 2>&1 || true");
    dropped(node, &client, &server, 7003);
    node.agent_goes(tcp);
    sh("systemctl stop suricata-trial; nft delete table ip filter");
}

/// Sends messages, the 40th with the words that are forbidden, and notes which one didn't arrive first.
fn dropped(node: &mut Node, client: &Netns, server: &Netns, port: u16) {
    let server = server.run(|| UdpSocket::bind(("10.2.0.2", port))).expect("bind the server");
    let client = client.run(|| UdpSocket::bind("10.1.0.2:0")).expect("bind the client");
    client.connect(("10.2.0.2", port)).expect("a route");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("time limit");
    }
    let began = Instant::now();
    let mut buffer = [0; 64];
    let lost = (1..=AT + 5).find(|number| {
        let message = if *number == AT { "a FORBIDDEN word".to_owned() } else { format!("message {number}") };
        client.send(message.as_bytes()).expect("send");
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return true };
        server.send_to(b"answer", from).expect("answer");
        client.recv(&mut buffer).is_err()
    });
    println!("  {AT} messages took {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(lost, Some(AT), "Suricata is to drop the message with the forbidden word, and no earlier one");
    node.note(&format!("forbidden content to port {port}"), "dropped");
}
