//! Two namespaces on a veth pair, a bpf file system of the test's own, and a way to send raw frames.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use fastpath_agent::{
    core::model::{IfIndex, IfName, Link, OperState},
    kernel::bpf::{Chatter, FlowEyes, Hook, LoadConfig, Mechanism, Pinned, Programs, load},
};
use fastpath_common::{FlowCounters, FlowKey, PacketStats};
use fastpath_tests::{netns::Netns, wait_until};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    mount::{MntFlags, MsFlags, mount, umount2},
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, send, socket},
};

/// Where the programs count; in the driver and after it XDP's program is the same.
pub(crate) const HOOKS: [Hook; 2] = [Hook::Tc, Hook::Xdp];

/// How long counters may take to become what they must be.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A bpf file system on a directory of its own: its pins concern no other test, and go with it.
pub(crate) struct Bpffs {
    directory: tempfile::TempDir,
}

impl Bpffs {
    pub(crate) fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("mount a bpf file system");
        Self { directory }
    }

    /// Where the programs' maps are to be pinned; doesn't exist yet.
    pub(crate) fn pin_path(&self) -> PathBuf {
        self.directory.path().join("fastpath")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        umount2(self.directory.path(), MntFlags::MNT_DETACH).expect("unmount the bpf file system");
    }
}

/// `tx0` in `sender` is the other end of `rx0` in `node`. Only the test sends anything on it.
pub(crate) struct Pair {
    pub(crate) sender: Netns,
    pub(crate) node: Netns,
    pub(crate) bpffs: Bpffs,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (sender, node) = (Netns::new("sender"), Netns::new("node"));
        for (ns, dev) in [(&sender, "tx0"), (&node, "rx0")] {
            ns.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
            let peer = if dev == "tx0" {
                format!("link add tx0 type veth peer name rx0 netns {}\n", node.path())
            } else {
                String::new()
            };
            ns.ip(&peer);
        }
        sender.ip("link set tx0 up\n");
        node.ip("link set rx0 up\n");
        let pair = Self { sender, node, bpffs: Bpffs::mount() };
        pair.wait_for_carrier();
        pair
    }

    /// What is sent before the kernel has noticed that the other end is up is silently dropped.
    pub(crate) fn wait_for_carrier(&self) {
        wait_until("carrier", LIMIT, || {
            self.sender.output("ip", &["-br", "link", "show", "dev", "tx0"]).contains(" UP ")
        });
    }

    /// With addresses of both families on both ends: sender 10.0.0.1, fd00::1; node 10.0.0.2, fd00::2.
    pub(crate) fn with_addresses() -> Self {
        let pair = Self::new();
        for (ns, dev, host) in [(&pair.sender, "tx0", 1), (&pair.node, "rx0", 2)] {
            ns.sysctl(&format!("net/ipv6/conf/{dev}/disable_ipv6"), "0");
            ns.ip(&format!(
                "addr add 10.0.0.{host}/24 dev {dev}\naddr add fd00::{host}/64 dev {dev} nodad\n"
            ));
        }
        pair
    }

    /// Loads the programs with a threshold and room for `max_flows`.
    pub(crate) fn load(&self, threshold: u32, max_flows: u32) -> Programs {
        self.load_at(Hook::Tc, threshold, max_flows)
    }

    /// The same at another place in the kernel.
    pub(crate) fn load_at(&self, hook: Hook, threshold: u32, max_flows: u32) -> Programs {
        load(&LoadConfig {
            pin_path: self.bpffs.pin_path(),
            max_flows,
            threshold,
            hook,
            forward: false,
            chatter: Chatter::Silent,
        })
        .unwrap_or_else(|e| panic!("{e}"))
    }

    /// Loads the programs and attaches to `rx0`, just there.
    pub(crate) fn attach_at(&self, hook: Hook, threshold: u32, max_flows: u32) -> Programs {
        let mut programs = self.load_at(hook, threshold, max_flows);
        let mechanism = self.node.run(|| programs.attach(&self.rx0()).unwrap().mechanism);
        let at = match mechanism {
            Mechanism::Xdp => Hook::Xdp,
            Mechanism::XdpGeneric => Hook::XdpGeneric,
            Mechanism::Tcx | Mechanism::Clsact { .. } => Hook::Tc,
        };
        assert_eq!(at, hook);
        programs
    }

    /// The link `rx0` as rtnetlink would describe it.
    pub(crate) fn rx0(&self) -> Link {
        self.node.run(|| ethernet_link("rx0"))
    }

    pub(crate) fn pinned(&self) -> Pinned {
        Pinned::open(&self.bpffs.pin_path()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits for as many packets as were sent, and gives the statistics.
    #[track_caller]
    pub(crate) fn stats_of(&self, packets: u64) -> PacketStats {
        let pinned = self.pinned();
        wait_until(&format!("{packets} packets seen"), LIMIT, || seen(&pinned.stats().unwrap()) >= packets);
        // What comes in excess comes right after.
        std::thread::sleep(Duration::from_millis(20));
        let stats = pinned.stats().unwrap();
        assert_eq!(seen(&stats), packets, "{stats:?}");
        stats
    }

    pub(crate) fn flows(&self) -> BTreeMap<FlowKey, FlowCounters> {
        self.pinned().flows().unwrap().collect::<Result<_, _>>().unwrap()
    }
}

/// All packets that the programs have seen.
pub(crate) fn seen(stats: &PacketStats) -> u64 {
    let PacketStats {
        counted,
        not_ip,
        malformed,
        later_fragment,
        other_protocol,
        too_many_headers,
        no_room,
        ..
    } = stats;
    [counted, not_ip, malformed, later_fragment, other_protocol, too_many_headers, no_room]
        .iter()
        .map(|tally| tally.packets)
        .sum()
}

/// A link of the current namespace, with an Ethernet header.
pub(crate) fn ethernet_link(name: &str) -> Link {
    Link {
        index: IfIndex(if_nametoindex(name).unwrap()),
        name: IfName::new(name).unwrap(),
        admin_up: true,
        oper_state: OperState::Up,
        loopback: false,
        kind: None,
        master: None,
        lower: None,
        address: None,
        mtu: 1500,
        ethernet: true,
    }
}

/// Sends frames on an interface as they are.
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    pub(crate) fn open(ns: &Netns, dev: &str) -> Self {
        ns.run(|| {
            let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None::<SockProtocol>)
                .expect("a packet socket");
            let address = getifaddrs()
                .unwrap()
                .filter(|i| i.interface_name == dev)
                .find_map(|i| i.address?.as_link_addr().copied())
                .expect("the interface");
            bind(fd.as_raw_fd(), &address).expect("bind to the interface");
            Self(fd)
        })
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                // The other end polls, as veth does with XDP, and hasn't come round to it: the frame was dropped.
                Err(Errno::ENOBUFS) => std::thread::yield_now(),
                sent => return assert_eq!(sent.expect("send a frame"), frame.len()),
            }
        }
    }
}

/// Names of what is in a directory, sorted.
pub(crate) fn entries(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
