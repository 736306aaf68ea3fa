//! MTU 9000 → 1500 → 2000 (client — node — second node — server), with and without path MTU discovery, and with
//! discovery whose ICMP messages are dropped: what is delivered without the agent is delivered with it, and the same.

use fastpath_tests::{
    agent::Agent,
    topology::{Family, Topology},
    traffic::{Direction, Flow, Proto},
};

const BULK: usize = 1 << 20;

fn build() -> Topology {
    build_with([9000, 1500, 2000])
}

/// The server becomes the second node, and the pod behind it the server. MTUs of the client's link, of that between the
/// nodes, and of the server's.
fn build_with([near, between, far]: [u64; 3]) -> Topology {
    let mut topology = Topology::routed();
    topology.add_pod_behind_server();
    topology.node.ip(&format!("link set c0 mtu {near}\nlink set s0 mtu {between}\n"));
    topology.client().ns.ip(&format!("link set eth0 mtu {near}\n"));
    topology.server().ns.ip(&format!("link set eth0 mtu {between}\nlink set p3 mtu {far}\n"));
    topology.pods[2].ns.ip(&format!("link set eth0 mtu {far}\n"));
    topology
}

fn open(topology: &Topology, family: Family, port: u16) -> Flow {
    topology.open_between(0, 2, Proto::Tcp, family, port)
}

/// Both transfers, and how many packets of them took the forward path.
#[track_caller]
fn transfer(topology: &Topology, flow: &mut Flow) -> u64 {
    transfer_bytes(topology, flow, BULK)
}

#[track_caller]
fn transfer_bytes(topology: &Topology, flow: &mut Flow, bytes: usize) -> u64 {
    let before = topology.forwarded(flow.port()).total();
    flow.transfer(Direction::Upload, bytes).expect("upload");
    flow.transfer(Direction::Download, bytes).expect("download");
    topology.forwarded(flow.port()).total() - before
}

#[test]
fn with_path_mtu_discovery() {
    let topology = build();
    let mut before = open(&topology, Family::V4, 7001);
    // A packet of a burst can be as large as 64 KiB here (segmentation offload).
    assert!(transfer(&topology, &mut before) > 32, "without the agent");
    let _agents = [Agent::start(&topology.node, &[]), Agent::start(&topology.server().ns, &[])];
    for (family, port) in [(Family::V4, 7002), (Family::V6, 7003)] {
        let mut flow = open(&topology, family, port);
        topology.assert_becomes_accelerated(&mut flow);
        // Until both ends know the path's MTU, larger packets are handed to the forward path, which answers them.
        transfer(&topology, &mut flow);
        let passed = transfer(&topology, &mut flow);
        assert!(passed <= 20, "{family:?}: {passed} packets took the forward path once the MTU was known");
        topology.assert_accelerated(&mut flow);
    }
}

/// Neither end sets DF: the nodes fragment (IPv4 only), and that is the forward path's work.
#[test]
fn without_path_mtu_discovery() {
    let topology = build();
    for pod in [0, 2] {
        topology.pods[pod].ns.sysctl("net/ipv4/ip_no_pmtu_disc", "1");
    }
    let mut before = open(&topology, Family::V4, 7001);
    transfer(&topology, &mut before);
    let _agents = [Agent::start(&topology.node, &[]), Agent::start(&topology.server().ns, &[])];
    let mut flow = open(&topology, Family::V4, 7002);
    topology.assert_becomes_accelerated(&mut flow);
    let passed = transfer(&topology, &mut flow);
    assert!(
        passed > 100,
        "what is larger than the MTU can't bypass the forward path, {passed} packets didn't"
    );
    // What fits still does.
    topology.assert_accelerated(&mut flow);
}

/// MTUs from the least of IPv6 to the most of a link, and numbers of bytes, as `nft_flowtable.sh` of the kernel's selftests draws
/// them; the same ones each time (SplitMix64).
fn random_sizes() -> impl Iterator<Item = ([u64; 3], usize)> {
    let mut state = 20_u64;
    let mut below = move |limit: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = state;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % limit
    };
    (0..4).map(move |_| ([(); 3].map(|()| 1280 + below(65_536 - 1280)), 1 + below(2 << 20) as usize))
}

/// The same flow before and with the agents, by which all arrives that did.
#[track_caller]
fn transfer_random_sizes(discovery: bool) {
    for (mtus, bytes) in random_sizes() {
        let topology = build_with(mtus);
        for pod in [0, 2] {
            topology.pods[pod].ns.sysctl("net/ipv4/ip_no_pmtu_disc", if discovery { "0" } else { "1" });
        }
        transfer_bytes(&topology, &mut open(&topology, Family::V4, 7001), bytes);
        let _agents = [Agent::start(&topology.node, &[]), Agent::start(&topology.server().ns, &[])];
        for (family, port) in [(Family::V4, 7002), (Family::V6, 7003)] {
            let mut flow = open(&topology, family, port);
            topology.assert_becomes_accelerated(&mut flow);
            let passed = [(); 2].map(|()| transfer_bytes(&topology, &mut flow, bytes));
            println!(
                "MTUs {mtus:?}, {bytes} bytes, {family:?}, discovery {discovery}: {passed:?} on the forward path"
            );
            // Over IPv6 the ends always know what fits, after the first transfer.
            if discovery || family == Family::V6 {
                assert!(
                    passed[1] <= 20,
                    "MTUs {mtus:?}, {family:?}: {passed:?} packets took the forward path"
                );
            }
            topology.assert_accelerated(&mut flow);
        }
    }
}

#[test]
fn random_sizes_with_path_mtu_discovery() {
    transfer_random_sizes(true);
}

#[test]
fn random_sizes_without_path_mtu_discovery() {
    transfer_random_sizes(false);
}

/// Nothing tells the ends what fits: large packets are lost, with the agent as without it, and small ones go on.
#[test]
fn with_path_mtu_discovery_into_a_black_hole() {
    let topology = build();
    let drop_icmp = "table inet black-hole { chain out { type filter hook output priority 0; policy accept;
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
    }; }";
    topology.node.nft(drop_icmp);
    topology.server().ns.nft(drop_icmp);
    let fate = |port, offloaded| {
        let mut flow = open(&topology, Family::V4, port);
        assert_eq!(flow.rounds(30), 30, "small packets");
        assert_eq!(topology.marked_offloaded(port), offloaded);
        let error = flow.transfer(Direction::Upload, 100_000).expect_err("nothing tells the client the MTU");
        assert!(error.contains("100000 bytes left"), "{error}");
    };
    fate(7001, false);
    let _agents = [Agent::start(&topology.node, &[]), Agent::start(&topology.server().ns, &[])];
    fate(7002, true);
}

/// The MTU changes while a flow is offloaded.
#[test]
fn lowered_and_raised_under_traffic() {
    let topology = Topology::routed();
    let _agent = Agent::start(&topology.node, &[]);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    for mtu in [1300, 1500] {
        topology.node.ip(&format!("link set s0 mtu {mtu}\n"));
        topology.server().ns.ip(&format!("link set eth0 mtu {mtu}\n"));
        flow.transfer(Direction::Upload, BULK).expect("upload");
        flow.transfer(Direction::Download, BULK).expect("download");
        topology.assert_accelerated(&mut flow);
    }
}
