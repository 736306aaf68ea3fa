//! Clients of the HTTP port that are slow, and many of them: the loop goes on, others are answered, and descriptors stay few.

use std::{
    io::Write,
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    agent::Agent,
    faults::{Held, descriptors, rounds},
    http::{self, SERVE, bring_loopback_up},
    table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};

/// Connections that the agent has at a time.
const MOST: usize = 16;

/// A client that reads next to nothing ahead.
fn small_client(bytes: &str) -> TcpStream {
    let client = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    socket::setsockopt(&client, sockopt::RcvBuf, &1024).expect("a small buffer");
    let address: SockaddrIn = http::ADDRESS.parse().expect("an address");
    socket::connect(client.as_raw_fd(), &address).expect("the port");
    let mut client = TcpStream::from(client);
    client.write_all(bytes.as_bytes()).expect("a connection");
    client
}

/// With `bytes` said by so many clients that then do nothing, others are answered within a second.
fn assert_others_are_answered(bytes: &str, clients: usize) {
    let topology = Topology::routed();
    let node = &topology.node;
    bring_loopback_up(node);
    // A page of metrics doesn't fit into the agent's socket then.
    node.sysctl("net/ipv4/tcp_wmem", "4096 4096 4096");
    let agent = Agent::start_with(node, &[SERVE]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    assert_eq!(http::get(node, "/metrics").status, 200);
    thread::sleep(Duration::from_millis(500));
    let before = Held::by(&agent, node);
    let background = flow.in_background();
    let stalled: Vec<TcpStream> = node.run(|| (0..clients).map(|_| small_client(bytes)).collect());
    for path in ["/healthz", "/readyz", "/metrics"] {
        let asked = Instant::now();
        assert_eq!(http::get(node, path).status, 200, "{path}");
        assert!(asked.elapsed() < Duration::from_secs(1), "{path} took {:?}", asked.elapsed());
    }
    let open = descriptors(agent.pid());
    assert!(open <= before.descriptors + MOST + 3, "{open} descriptors, {} before", before.descriptors);
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    table::wait_for_devices(node, &["c0", "d0", "s0"], Duration::from_secs(1));
    drop(stalled);
    node.ip("link del d0\n");
    table::wait_for_devices(node, &["c0", "s0"], Duration::from_secs(1));
    let (mut flow, _) = background.stop_intact();
    topology.assert_accelerated(&mut flow);
    wait_until("descriptors as before", Duration::from_secs(3), || {
        descriptors(agent.pid()) <= before.descriptors
    });
    // Its threads end.
    thread::sleep(Duration::from_millis(300));
    Held::by(&agent, node).assert_no_more_than(&before);
    agent.stop();
}

#[test]
fn many_that_never_finish_their_request() {
    assert_others_are_answered("GET /metrics HTTP/1.1\r\nHo", rounds(60, 500));
}

#[test]
fn many_that_never_read_the_answer() {
    // Each has a page made, which takes the emulated processor 3.5 ms: 500 of them would take longer than the others may wait.
    assert_others_are_answered("GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n", rounds(30, 200));
}
