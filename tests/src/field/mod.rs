//! The agent beside real software: a Debian system with systemd is the node, packages of the distribution run on it in their
//! default configuration, and the agent is the service of its own package. `cargo xtask test --tier=field` starts it.
//!
//! Most trials are run three times: without the agent, with the software first, with the agent first. What it notes must be the same.

mod cards;
mod cni;
mod container;
mod docker;
mod firewalld;
mod frr;
mod hours;
mod image;
mod ipvs;
mod libvirt;
mod networkd;
mod networkmanager;
mod node;
mod openvswitch;
mod podman;
mod portal;
mod pppoe;
mod processors;
mod quickstart;
mod strongswan;
mod suricata;
mod surroundings;
mod ufw;
mod wireguard;

use std::time::Instant;

pub use node::Node;

use crate::{
    netns::Netns,
    path, service,
    topology::{Layout, Topology},
};

/// Software, and what is done with it.
pub struct Trial {
    /// One word.
    pub name: &'static str,
    /// The packages that it tries, whose versions are printed.
    pub packages: &'static [&'static str],
    /// Commands that start the software again or have it read its configuration again. A flow must go on beside each.
    pub again: &'static [&'static str],
    /// What the agent says about the software that runs beside it: a command, or what is searched for on its page, and words
    /// that it must print.
    pub told: &'static [(&'static str, &'static str)],
    /// How often it is run, and how.
    pub orders: &'static [Order],
    /// Starts the software, uses it, and takes it away again.
    pub run: fn(&mut Node),
}

impl Trial {
    /// What most of them have in common.
    const PLAIN: Self = Self {
        name: "",
        packages: &[],
        again: &[],
        told: &[],
        orders: &[Order::Without, Order::SoftwareFirst, Order::AgentFirst],
        run: |_| {},
    };
}

/// In the order in which they run in one boot.
pub const TRIALS: &[Trial] = &[
    docker::TRIAL,
    podman::TRIAL,
    image::TRIAL,
    cni::TRIAL,
    libvirt::TRIAL,
    firewalld::TRIAL,
    ufw::TRIAL,
    portal::TRIAL,
    hours::TRIAL,
    suricata::TRIAL,
    ipvs::TRIAL,
    wireguard::TRIAL,
    strongswan::TRIAL,
    pppoe::TRIAL,
    openvswitch::TRIAL,
    networkd::TRIAL,
    networkmanager::TRIAL,
    frr::TRIAL,
    quickstart::TRIAL,
    cards::VIRTIO_NET,
    cards::E1000E,
    cards::VMXNET3,
    processors::TRIAL,
];

/// Whether the agent is there, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It isn't: what is seen now is what must be seen with it.
    Without,
    /// The software runs already, with its flows.
    SoftwareFirst,
    /// The software starts beside it.
    AgentFirst,
}

/// Runs a trial; panics when something isn't as it should be.
pub fn run(trial: &'static Trial) {
    install_agent();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        println!("{}", service::described(service::AGENT));
    }));
    for package in trial.packages {
        println!("{}", service::run("dpkg-query", &["-W", package]).trim());
    }
    let topology = Topology::build_around(Netns::of_process_1(), Layout::default());
    let mut node = Node::new(topology, trial);
    let mut reference = None;
    for &order in trial.orders {
        let began = Instant::now();
        node.reset(order);
        (trial.run)(&mut node);
        node.assert_agent_gone();
        println!("{order:?} ({:.0} s)", began.elapsed().as_secs_f64());
        let seen = node.seen();
        let reference = reference.get_or_insert_with(|| seen.clone());
        assert_eq!(seen, *reference, "{order:?} isn't what it was without the agent");
    }
    node.topology.node.output("nft", &["delete", "table", "inet", path::TABLE]);
    // Daemons that are slow to end may hold client and server.
    node.topology.node.ip("link delete c0\nlink delete s0\n");
}

/// Installs the package, once in a boot, and leaves the service stopped and nothing of it in the kernel.
fn install_agent() {
    if !std::path::Path::new("/usr/bin/fastpath-agent").exists() {
        service::run("dpkg", &["-i", "/job/fastpath-agent.deb"]);
    }
    service::run("systemctl", &["stop", service::AGENT]);
    service::run("fastpath-agent", &["cleanup"]);
}
