//! Interfaces that come, go, and change, while a flow of other interfaces stays offloaded.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use fastpath_tests::{
    agent::Agent,
    netns::Netns,
    table,
    topology::{Family, Layout, Topology},
    traffic::{Background, Proto},
};

/// Generous in the emulator; `scale` measures how long it really takes.
const SOON: Duration = Duration::from_secs(3);

/// A flow between the first two pods that is offloaded and has to stay so.
struct Bystander {
    flow: Background,
    forwarded: u64,
}

const BYSTANDER: u16 = 7008;
/// Whenever any link comes up, the kernel forgets all cached routes (`rt_cache_flush`) and tears down the offloaded
/// flows that used them; they are offloaded again with their next packet. That is so without an agent, too
/// (`reference::any_link_that_comes_up_costs_a_few_packets`), and no agent can prevent it.
const ROUTE_STRAYS: u64 = 30;

impl Bystander {
    #[track_caller]
    fn start(topology: &Topology) -> Self {
        let mut flow = topology.open(Proto::Udp, Family::V4, BYSTANDER);
        topology.assert_becomes_accelerated(&mut flow);
        Self { forwarded: topology.forwarded(BYSTANDER).total(), flow: flow.in_background() }
    }

    #[track_caller]
    fn assert_undisturbed(self, topology: &Topology) {
        self.assert_undisturbed_but_for(ROUTE_STRAYS, topology);
    }

    #[track_caller]
    fn assert_undisturbed_but_for(self, strays: u64, topology: &Topology) {
        // What comes of it may come later.
        thread::sleep(Duration::from_millis(300));
        let (flow, report) = self.flow.stop_intact();
        let passed = topology.forwarded(BYSTANDER).total() - self.forwarded;
        assert!(report.rounds > 50, "{report:?}");
        assert!(passed <= strays, "{flow:?}: {passed} packets took the forward path, of {report:?}");
    }
}

fn four_pods() -> Topology {
    Topology::build(Layout { pods: 4, ..Layout::default() })
}

#[test]
fn down_and_up_under_traffic() {
    let topology = four_pods();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);
    let bystander = Bystander::start(&topology);
    let mut flow = topology.open_between(2, 3, Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let background = flow.in_background();

    node.ip("link set p3 down\n");
    table::wait_for_devices(node, &["c0", "s0", "p4"], SOON);
    // Its addresses of IPv6 are lost with it, those of IPv4 are not.
    node.ip("link set p3 up\n");
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);

    let (mut flow, _) = background.stop();
    flow.settle();
    assert_eq!(flow.rounds(20), 20, "{flow:?} after p3 is up again");
    topology.assert_accelerated(&mut flow);
    bystander.assert_undisturbed(&topology);
}

#[test]
fn carrier_lost_and_found() {
    let topology = four_pods();
    let _agent = Agent::start(&topology.node, &[]);
    let bystander = Bystander::start(&topology);
    // The other end of the pair: p3 stays switched on, and has no carrier.
    topology.pods[2].ns.ip("link set eth0 down\n");
    table::wait_for_devices(&topology.node, &["c0", "s0", "p4"], SOON);
    topology.pods[2].ns.ip("link set eth0 up\n");
    table::wait_for_devices(&topology.node, &["c0", "s0", "p3", "p4"], SOON);
    bystander.assert_undisturbed(&topology);
}

#[test]
fn removed_and_made_again_under_traffic() {
    let topology = four_pods();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    let bystander = Bystander::start(&topology);
    let mut flow = topology.open_between(2, 3, Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let background = flow.in_background();
    node.ip("link del p3\n");
    table::wait_for_devices(node, &["c0", "s0", "p4"], SOON);
    background.stop();

    // Same name, another index: the set holds indices.
    topology.connect_again(2);
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);
    let mut flow = topology.open_between(2, 3, Proto::Tcp, Family::V4, 7002);
    topology.assert_becomes_accelerated(&mut flow);
    bystander.assert_undisturbed(&topology);
}

#[test]
fn added_later() {
    let topology = four_pods();
    let node = &topology.node;
    node.ip("link del p4\n");
    let _agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0", "p3"], SOON);
    let bystander = Bystander::start(&topology);
    topology.connect_again(3);
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);
    let mut flow = topology.open_between(2, 3, Proto::Tcp, Family::V6, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    bystander.assert_undisturbed(&topology);
}

/// A name may hold any bytes but a few; netlink's readers demand UTF-8.
#[test]
fn a_name_that_is_no_text_disturbs_nothing() {
    let topology = four_pods();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let bystander = Bystander::start(&topology);
    // From Linux 6.2 on an interface needn't be down for it.
    node.output(
        "bash",
        &[
            "-euc",
            "new=$'p\\xff\\xfe'
             ip link set p3 name $new || { ip link set p3 down; ip link set p3 name $new; ip link set $new up; }",
        ],
    );
    thread::sleep(Duration::from_secs(2));
    node.ip("link set p4 down\nlink set p4 name p9\nlink set p9 up\n");
    // While the device is in the flowtable, nft can't list it as JSON.
    thread::sleep(Duration::from_secs(1));
    table::wait_for_devices(node, &["c0", "s0", "p9"], SOON);
    bystander.assert_undisturbed_but_for(2 * ROUTE_STRAYS, &topology);
    let log = agent.log();
    assert!(log.len() < 12, "{}", log.join("\n"));
    // One that starts then finds it so.
    drop(agent);
    let agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0", "p9"], SOON);
    assert!(agent.log().len() < 8, "{}", agent.log().join("\n"));
}

#[test]
fn renamed_under_traffic() {
    let topology = four_pods();
    let node = &topology.node;
    let _agent = Agent::start(node, &[]);
    let bystander = Bystander::start(&topology);
    let background = topology.open_between(2, 3, Proto::Udp, Family::V4, 7001).in_background();
    node.ip("link set p3 down\nlink set p3 name uplink\nlink set uplink up\n");
    table::wait_for_devices(node, &["c0", "s0", "uplink", "p4"], SOON);
    let (mut flow, _) = background.stop();
    flow.settle();
    assert_eq!(flow.rounds(20), 20, "{flow:?} after the renaming");
    topology.assert_accelerated(&mut flow);
    // Names that are swapped are two renamings at once.
    node.ip("link set uplink down\nlink set p4 down\nlink set uplink name swap\nlink set p4 name uplink\n\
         link set swap name p4\nlink set uplink up\nlink set p4 up\n");
    table::wait_for_devices(node, &["c0", "s0", "uplink", "p4"], SOON);
    flow.settle();
    assert_eq!(flow.rounds(20), 20, "{flow:?} after the swap");
    topology.assert_accelerated(&mut flow);
    bystander.assert_undisturbed(&topology);
}

#[test]
fn moved_to_another_namespace_and_back_under_traffic() {
    let topology = four_pods();
    let node = &topology.node;
    let elsewhere = Netns::new("elsewhere");
    let _agent = Agent::start(node, &[]);
    let bystander = Bystander::start(&topology);
    let background = topology.open_between(2, 3, Proto::Udp, Family::V4, 7001).in_background();
    node.ip(&format!("link set p3 netns {}\n", elsewhere.path()));
    table::wait_for_devices(node, &["c0", "s0", "p4"], SOON);
    background.stop();
    elsewhere.ip(&format!("link set p3 netns {}\n", node.path()));
    node.ip("link set p3 up\naddress add 10.3.0.1/24 dev p3\n");
    table::wait_for_devices(node, &["c0", "s0", "p3", "p4"], SOON);
    let mut flow = topology.open_between(2, 3, Proto::Udp, Family::V4, 7002);
    topology.assert_becomes_accelerated(&mut flow);
    bystander.assert_undisturbed(&topology);
}

/// What the agent itself does to the flowtable costs offloaded flows nothing at all. The kernel's own doings come
/// first, while the agent is stopped.
#[test]
fn the_agents_own_changes_cost_no_packet() {
    let topology = four_pods();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    let mut flow = topology.open(Proto::Udp, Family::V4, BYSTANDER);
    topology.assert_becomes_accelerated(&mut flow);
    agent.signal(Signal::SIGSTOP);
    node.ip("link add d0 type dummy\nlink set d0 up\nlink set p3 down\nlink set p4 down\n\
         link set p4 name uplink\nlink set uplink up\n");
    topology.assert_becomes_accelerated(&mut flow);
    let before = topology.forwarded(BYSTANDER);
    let background = flow.in_background();
    agent.signal(Signal::SIGCONT);
    table::wait_for_devices(node, &["c0", "s0", "uplink", "d0"], SOON);
    let (flow, report) = background.stop_intact();
    assert_eq!(topology.forwarded(BYSTANDER), before, "{flow:?}: {report:?}");
}

#[test]
fn chosen_by_globs() {
    let topology = four_pods();
    let node = &topology.node;
    let agent = Agent::start(node, &["--interfaces=c*", "--interfaces=p?", "--exclude-interfaces=*4"]);
    table::wait_for_devices(node, &["c0", "p3"], SOON);
    let mut chosen = topology.open_between(0, 2, Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut chosen);
    // The server's interface is not chosen: whatever goes through it stays on the forward path, and is delivered.
    let mut other = topology.open(Proto::Tcp, Family::V4, 7002);
    assert_eq!(other.rounds(20), 20);
    topology.assert_forwarded(&mut other);
    // A new name may make the difference.
    node.ip("link set p4 down\nlink set p4 name p5\nlink set p5 up\n");
    table::wait_for_devices(node, &["c0", "p3", "p5"], SOON);
    agent.stop();

    let _agent = Agent::start(node, &["--exclude-interfaces=c0"]);
    table::wait_for_devices(node, &["s0", "p3", "p5"], SOON);
}

#[test]
fn up_or_unknown_but_never_down_or_loopback() {
    let topology = Topology::routed();
    let node = &topology.node;
    node.ip("link set lo up\nlink add dummy0 type dummy\nlink set dummy0 up\nlink add wg0 type wireguard\n\
         link set wg0 up\nlink add idle type dummy\nlink add v0 type veth peer name v1\nlink set v0 up\n");
    let agent = Agent::start(node, &[]);
    // v0 is switched on, but its peer is not: no carrier.
    table::wait_for_devices(node, &["c0", "s0", "dummy0", "wg0"], SOON);
    node.ip("link set idle up\nlink set v1 up\n");
    table::wait_for_devices(node, &["c0", "s0", "dummy0", "wg0", "idle", "v0", "v1"], SOON);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    agent.stop();

    // Not even when it is asked for.
    let _agent = Agent::start(node, &["--interfaces=*"]);
    assert!(!table::devices(node).contains("lo"));
}

#[test]
fn tun_without_a_process_is_down_and_with_one_is_in() {
    let topology =
        Topology::build(Layout { attach: fastpath_tests::attach::Attach::Tun, ..Layout::default() });
    let node = &topology.node;
    node.ip("tuntap add dev idle0 mode tun\nlink set idle0 up\n");
    let _agent = Agent::start(node, &[]);
    table::wait_for_devices(node, &["c0", "s0", "tun0"], SOON);
}

/// Many changes at once end in the right state, and with it in few transactions.
#[test]
fn a_storm_of_changes_ends_right() {
    let topology = four_pods();
    let node = &topology.node;
    let mut agent = Agent::start(node, &[]);
    let bystander = Bystander::start(&topology);
    let mut batch = String::new();
    for round in 0..10 {
        for number in 0..10 {
            if round == 0 {
                batch += &format!("link add storm{number} type dummy\n");
            }
            batch += &format!("link set storm{number} up\n");
            if (round + number) % 3 != 0 {
                batch += &format!("link set storm{number} down\n");
            }
            // Gone by the time that the agent's transaction names it, or in the middle of it.
            batch += &format!(
                "link add gone{number} type dummy\nlink set gone{number} up\nlink del gone{number}\n"
            );
        }
    }
    node.ip(&batch);
    // In the last round, 9, those divisible by 3 were left up.
    table::wait_for_devices(
        node,
        &["c0", "s0", "p3", "p4", "storm0", "storm3", "storm6", "storm9"],
        Duration::from_secs(5),
    );
    // The kernel itself forgets its routes with every change of a link: the same storm over a plain flowtable without an
    // agent sent 395 (6.1) and 377 (6.12) packets of this flow through the forward path.
    bystander.assert_undisturbed_but_for(500, &topology);
    assert!(agent.is_running());
}
