//! The harness itself: every topology delivers, and the counters see every packet that is forwarded.

use fastpath_tests::{
    monitor::Monitor,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Direction, Proto},
};

#[test]
fn every_packet_of_the_forward_path_is_counted() {
    for nat in [Nat::Plain, Nat::Masquerade, Nat::Service] {
        let topology = Topology::build(Layout { nat, ..Layout::default() });
        for proto in [Proto::Tcp, Proto::Udp] {
            for family in [Family::V4, Family::V6] {
                let port = 7001;
                let mut flow = match nat {
                    Nat::Service => topology.open_service(proto, family, port),
                    Nat::Plain | Nat::Masquerade => topology.open(proto, family, port),
                };
                topology.assert_forwarded(&mut flow);
                if proto == Proto::Tcp {
                    flow.transfer(Direction::Upload, 1 << 20).expect("upload");
                    flow.transfer(Direction::Download, 1 << 20).expect("download");
                }
                assert!(!topology.marked_offloaded(port));
            }
        }
    }
}

#[test]
fn a_lost_datagram_is_noticed() {
    let topology = Topology::routed();
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    assert_eq!(flow.rounds(3), 3);
    topology.node.nft("table inet loss { chain forward { type filter hook forward priority 0; ct direction reply drop; }; }");
    assert_eq!(flow.rounds(3), 0);
}

#[test]
fn the_monitor_names_who_changed_the_ruleset() {
    let topology = Topology::routed();
    let mut monitor = Monitor::start(&topology.node);
    assert_eq!(monitor.commits_of_agent(), 0);
    topology.node.nft("table inet something {}");
    assert_eq!(monitor.commits_of_agent(), 0);
    let lines = monitor.lines();
    assert!(lines.iter().any(|line| line == "add table inet something"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("(nft)")), "{lines:#?}");
}
