//! firewalld as a router has it: a zone for each side, and a policy between them. It accepts established connections before it asks
//! zones and rich rules, so those stop no running flow, with the agent or without.

use super::{Node, Trial};
use crate::{
    service::{self, run, sh},
    traffic::Proto::{Tcp, Udp},
};

pub(super) const TRIAL: Trial = Trial {
    name: "firewalld",
    packages: &["firewalld"],
    told: &[("doctor --no-canary --all", "rules of firewalld are there")],
    run: trial,
    ..Trial::PLAIN
};

fn trial(node: &mut Node) {
    let (client, server) = (node.client(), node.server());
    node.software(|| {
        service::start("firewalld");
        sh("firewall-cmd --zone=internal --add-interface=c0
            firewall-cmd --zone=external --add-interface=s0
            if ! firewall-cmd --permanent --get-policies | grep -q outwards; then
                firewall-cmd --permanent --zone=internal --add-interface=c0
                firewall-cmd --permanent --zone=external --add-interface=s0
                firewall-cmd --permanent --new-policy outwards
                firewall-cmd --permanent --policy outwards --add-ingress-zone internal
                firewall-cmd --permanent --policy outwards --add-egress-zone external
                firewall-cmd --permanent --policy outwards --set-target ACCEPT
            fi
            firewall-cmd --reload");
    });
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7001", "10.2.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("out, masqueraded", &mut tcp);
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7002", "10.2.0.2:7002");
    node.fast("out, masqueraded, UDP", &mut udp);
    let mut inwards = node.open(Udp, &server, &client, "10.1.0.2:7003", "10.1.0.2:7003");
    node.arrives("in, which no policy allows", &mut inwards);
    drop(inwards);

    let rule = "rule family=ipv4 source address=10.1.0.2 drop";
    node.change("a rich rule of the policy", &mut udp, || {
        run("firewall-cmd", &["--policy=outwards", &format!("--add-rich-rule={rule}")]);
    });
    let mut new = node.open(Udp, &client, &server, "10.2.0.2:7004", "10.2.0.2:7004");
    node.arrives("a new flow behind the rich rule", &mut new);
    drop(new);
    node.change("--reload", &mut udp, || drop(run("firewall-cmd", &["--reload"])));
    node.fast("UDP after --reload", &mut udp);
    node.change("the client's link in zone drop", &mut udp, || {
        run("firewall-cmd", &["--zone=drop", "--change-interface=c0"]);
    });
    run("firewall-cmd", &["--zone=internal", "--change-interface=c0"]);
    node.fast("UDP after the zone was changed twice", &mut udp);
    node.change("--panic-on", &mut udp, || drop(run("firewall-cmd", &["--panic-on"])));
    node.change("--panic-off", &mut udp, || drop(run("firewall-cmd", &["--panic-off"])));
    node.change("--complete-reload", &mut udp, || drop(run("firewall-cmd", &["--complete-reload"])));
    node.count_again();
    let mut udp = node.open(Udp, &client, &server, "10.2.0.2:7005", "10.2.0.2:7005");
    node.fast("UDP after --complete-reload", &mut udp);
    // Nothing is sent meanwhile: without its rules a masqueraded connection breaks.
    node.change("systemctl restart firewalld", &mut udp, || drop(sh("systemctl restart firewalld")));
    node.count_again();
    node.fast("UDP after the restart", &mut udp);
    drop(tcp);
    let tcp = node.open(Tcp, &client, &server, "10.2.0.2:7006", "10.2.0.2:7006");
    node.agent_goes(tcp);
    sh("systemctl stop firewalld");
    node.count_again();
}
