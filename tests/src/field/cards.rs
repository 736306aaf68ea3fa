//! Network cards as QEMU emulates them, with the drivers that drive real ones. The node routes between two cards of a kind. QEMU, or the
//! machine that it runs on, joins each to a card of the same kind, which is moved to the client's or the server's namespace.

use std::{fs, path::PathBuf, time::Duration};

use super::{Node, Trial};
use crate::{
    netns::Netns,
    service::{self, run, sh},
    traffic::{
        Direction, Flow,
        Proto::{Tcp, Udp},
    },
    wait_until,
};

pub(super) const VIRTIO_NET: Trial =
    Trial { name: "virtio-net", run: |node| trial(node, &VIRTIO), ..Trial::PLAIN };
pub(super) const E1000E: Trial = Trial { name: "e1000e", run: |node| trial(node, &INTEL), ..Trial::PLAIN };
pub(super) const VMXNET3: Trial = Trial { name: "vmxnet3", run: |node| trial(node, &VMWARE), ..Trial::PLAIN };

/// A kind of card: what QEMU and the kernel call it, its number in the cards' addresses (xtask/src/guest/cards.rs), and whether its
/// driver has native XDP on Linux 6.1 and on 6.12.
struct Kind {
    name: &'static str,
    number: u8,
    driver: &'static str,
    options: &'static [&'static str],
    queues: usize,
    /// Whether the sender's card cuts large packets into segments.
    senders_tso: bool,
    native_xdp: [bool; 2],
}

const VIRTIO: Kind = Kind {
    name: "virtio-net",
    number: 0,
    driver: "virtio_net",
    options: &[],
    queues: 2,
    senders_tso: true,
    native_xdp: [true, true],
};
// Legacy interrupts: with MSI-X the emulated card raises none when its link changes.
const INTEL: Kind = Kind {
    name: "e1000e",
    number: 1,
    driver: "e1000e",
    options: &["IntMode=0,0,0,0"],
    queues: 1,
    senders_tso: false,
    native_xdp: [false, false],
};
// With TSO at the sender some packets of a transfer took the forward path; why wasn't found out.
const VMWARE: Kind = Kind {
    name: "vmxnet3",
    number: 2,
    driver: "vmxnet3",
    options: &[],
    queues: 1,
    senders_tso: false,
    native_xdp: [false, true],
};

/// The node's cards, to the client and to the server. The other ends are called `card`.
const NEAR: [&str; 2] = ["card0", "card1"];
/// The monitor of this guest's QEMU.
const MONITOR: &str = "/dev/ttyS2";
/// How long a card may take until it is ready.
const READY: Duration = Duration::from_secs(20);
/// What is transferred in each direction.
const BYTES: usize = 2 << 20;
/// Enough flows that some come by each queue.
const FLOWS: usize = 16;
/// Has the service count at XDP.
const DROP_IN: &str = "/run/systemd/system/fastpath-agent.service.d/xdp.conf";

impl Kind {
    /// The kernel's name of a card: end 0 is the node's, 1 the other.
    fn device(&self, link: usize, end: u8) -> String {
        let address = format!("52:54:00:{:02x}:{link:02x}:{end:02x}", self.number);
        let mut found = None;
        wait_until(&format!("a device with address {address}"), READY, || {
            run("udevadm", &["settle"]);
            let links = run("ip", &["-o", "link", "show"]);
            let line = links.lines().find(|line| line.contains(&address));
            let name = line.and_then(|line| line.split_whitespace().nth(1));
            found = name.map(|name| name.trim_end_matches(':').to_owned());
            found.is_some()
        });
        found.expect("it is there")
    }

    /// Sets up the node's card of a link.
    fn set_up_near(&self, link: usize) {
        let (device, name) = (self.device(link, 0), NEAR[link]);
        sh(&format!(
            "[ {device} = {name} ] || {{ ip link set {device} down; ip link set {device} name {name}; }}
             ip address replace 10.{}.0.1/24 dev {name}; ip link set {name} up",
            11 + link
        ));
        if self.queues > 1 {
            // A driver takes no more of them than there are processors, until it is told.
            sh(&format!("ethtool -L {name} combined {}", self.queues));
        }
        wait_for_carrier(link, "1");
    }

    /// Moves the other card of a link into its namespace and sets it up.
    fn set_up_far(&self, link: usize, to: &Netns) {
        let device = self.device(link, 1);
        let tso = if self.senders_tso { "on" } else { "off" };
        sh(&format!(
            "ethtool -K {device} tso {tso}; ip link set {device} down; ip link set {device} name card netns {}",
            to.path()
        ));
        to.ip(&format!("link set lo up\naddress add 10.{}.0.2/24 dev card\n", 11 + link));
        far_up(link, to);
    }

    /// Plugs the cable of the node's card in, or pulls it out.
    fn cable(&self, link: usize, [word, carrier]: [&str; 2]) {
        // The first line ends what the port may have echoed.
        sh(&format!(
            "stty -F {MONITOR} raw -echo; printf '\\nset_link {}-{link}-0 {word}\\n' >{MONITOR}",
            self.name
        ));
        wait_for_carrier(link, carrier);
    }
}

fn wait_for_carrier(link: usize, wanted: &str) {
    let path = format!("/sys/class/net/{}/carrier", NEAR[link]);
    wait_until(&format!("carrier of {} is {wanted}", NEAR[link]), READY, || {
        fs::read_to_string(&path).is_ok_and(|text| text.trim() == wanted)
    });
}

/// Switches the other card of a link on, and gives it its route, which goes when it is switched off.
fn far_up(link: usize, ns: &Netns) {
    let (own, others) = (11 + link, 12 - link);
    ns.ip(&format!("link set card up\nroute replace 10.{others}.0.0/24 via 10.{own}.0.1\n"));
}

/// The device behind a link.
fn behind(link: usize) -> PathBuf {
    fs::canonicalize(format!("/sys/class/net/{}/device", NEAR[link])).expect("a device")
}

/// Writes to a file of sysfs.
fn write(path: PathBuf, text: &str) {
    fs::write(&path, text).unwrap_or_else(|error| panic!("{text} to {}: {error}", path.display()));
}

/// Sends many bytes both ways, which pass the forward path by if there is an agent.
fn transfer(node: &Node, flow: &mut Flow) {
    let before = node.topology.forwarded(flow.port()).total();
    for direction in [Direction::Upload, Direction::Download] {
        flow.transfer(direction, BYTES).unwrap_or_else(|error| panic!("{direction:?}: {error}"));
    }
    let forwarded = node.topology.forwarded(flow.port()).total() - before;
    println!("  {} MiB each way: {forwarded} packets took the forward path", BYTES >> 20);
    if node.with_agent() {
        assert!(forwarded < 10, "{forwarded} packets of a transfer took the forward path");
    }
}

/// How often each queue of a virtio card said that packets had come in: once for each, where they come one by one.
fn received(link: usize) -> Vec<u64> {
    let device = behind(link);
    let queue = format!(" {}-input.", device.file_name().expect("a name").to_string_lossy());
    let text = fs::read_to_string("/proc/interrupts").expect("interrupts");
    let lines = text.lines().filter(|line| line.contains(&queue));
    let count = |line: &str| line.split_whitespace().nth(1).and_then(|count| count.parse().ok());
    lines.map(|line| count(line).unwrap_or_else(|| panic!("no number in {line}"))).collect()
}

/// Shows that flows come in by each queue, and are fast.
fn by_all_queues(node: &mut Node, kind: &Kind, client: &Netns, server: &Netns) {
    let before = [0, 1].map(received);
    for _ in 0..FLOWS {
        let mut flow = node.open(Udp, client, server, "10.12.0.2:7004", "10.12.0.2:7004");
        node.fast("UDP by whatever queue", &mut flow);
    }
    for (link, before) in before.into_iter().enumerate() {
        let name = NEAR[link];
        let packets: Vec<_> =
            received(link).iter().zip(before).map(|(after, before)| after - before).collect();
        println!("  {name}: packets by queue: {packets:?}");
        assert_eq!(packets.len(), kind.queues, "queues of {name}");
        assert!(packets.iter().all(|packets| *packets > 50), "no flow comes by some queue of {name}");
    }
}

/// Where the agent's programs count on the node's cards.
fn hooks() -> Vec<String> {
    let shown = run("bpftool", &["net", "show"]);
    let at = |line: &&str| NEAR.iter().any(|name| line.starts_with(name)) && line.contains("id ");
    shown.lines().filter(at).map(str::to_owned).collect()
}

/// Has the agent count at XDP, natively where the driver can, while the flow runs.
fn at_xdp(node: &mut Node, kind: &Kind, flow: &mut Flow) {
    if node.with_agent() {
        let directory = DROP_IN.trim_end_matches("/xdp.conf");
        sh(&format!(
            "mkdir -p {directory}; printf '[Service]\\nEnvironment=FASTPATH_EBPF=xdp\\n' >{DROP_IN}
             systemctl daemon-reload; systemctl restart {}",
            service::AGENT
        ));
    }
    node.fast("TCP with --ebpf=xdp", flow);
    if node.with_agent() {
        let kernel = run("uname", &["-r"]);
        let native = kind.native_xdp[usize::from(!kernel.starts_with("6.1."))];
        let (hooks, status) = (hooks(), run("fastpath-agent", &["status"]));
        println!("  {}: {hooks:?}", kind.name);
        let driver = hooks.iter().filter(|line| line.contains("driver")).count();
        assert_eq!(driver, if native { NEAR.len() } else { 0 }, "{hooks:?}\n{status}");
        assert_eq!(status.contains("its driver, or this kernel, doesn't support it"), !native, "{status}");
        sh(&format!("rm {DROP_IN}; systemctl daemon-reload; systemctl restart {}", service::AGENT));
    }
}

fn trial(node: &mut Node, kind: &Kind) {
    let (client, server) = (Netns::new("client"), Netns::new("server"));
    node.software(|| {
        run("modprobe", &[&[kind.driver], kind.options].concat());
        for (link, ns) in [&client, &server].into_iter().enumerate() {
            kind.set_up_near(link);
            kind.set_up_far(link, ns);
        }
    });
    let tcp = node.open(Tcp, &client, &server, "10.12.0.2:7001", "10.12.0.2:7001");
    let mut tcp = node.agent(tcp);
    node.fast("TCP between two cards", &mut tcp);
    println!("{}", run("ethtool", &["-i", NEAR[0]]));
    println!(
        "{}",
        sh(
            "ethtool -k card0 | grep -E '^(tcp-seg|generic-(seg|rec)|large-rec|rx-vlan-off|tx-vlan-off)'; ethtool -l card0 || true"
        )
    );
    transfer(node, &mut tcp);
    if kind.queues > 1 {
        by_all_queues(node, kind, &client, &server);
    }
    at_xdp(node, kind, &mut tcp);
    drop(tcp);

    let mut udp = node.open(Udp, &client, &server, "10.12.0.2:7002", "10.12.0.2:7002");
    node.fast("UDP between two cards", &mut udp);
    node.change("the cable is pulled out", &mut udp, || kind.cable(1, ["off", "0"]));
    kind.cable(1, ["on", "1"]);
    node.comes_back(&mut udp);
    node.fast("UDP after it is plugged in", &mut udp);
    node.change("the other end goes down", &mut udp, || server.ip("link set card down\n"));
    far_up(1, &server);
    node.comes_back(&mut udp);
    node.fast("UDP after that end is up", &mut udp);
    node.change("the node's end goes down", &mut udp, || drop(sh("ip link set card1 down")));
    kind.set_up_near(1);
    node.comes_back(&mut udp);
    node.fast("UDP after it is up", &mut udp);

    let (device, driver) = (behind(1), fs::canonicalize(behind(1).join("driver")).expect("a driver"));
    let id = device.file_name().expect("a name").to_string_lossy().into_owned();
    node.change("the driver is unbound", &mut udp, || write(driver.join("unbind"), &id));
    write(driver.join("bind"), &id);
    kind.set_up_near(1);
    node.comes_back(&mut udp);
    node.fast("UDP after it is bound", &mut udp);
    // Of virtio, the device on the bus is one above.
    let device = behind(0);
    let on_bus =
        if device.join("remove").exists() { device } else { device.parent().expect("a bus").to_owned() };
    node.change("the card is taken from its bus", &mut udp, || write(on_bus.join("remove"), "1"));
    write("/sys/bus/pci/rescan".into(), "1");
    kind.set_up_near(0);
    node.comes_back(&mut udp);
    node.fast("UDP after it was found again", &mut udp);
    drop(udp);

    sh(
        "ip link add link card1 name card1.7 type vlan id 7; ip address add 10.13.0.1/24 dev card1.7; ip link set card1.7 up",
    );
    server.ip("link add link card name card.7 type vlan id 7\naddress add 10.13.0.2/24 dev card.7\nlink set card.7 up\n\
               route replace 10.11.0.0/24 via 10.13.0.1\n");
    client.ip("route replace 10.13.0.0/24 via 10.11.0.1\n");
    let mut tcp = node.open(Tcp, &client, &server, "10.13.0.2:7003", "10.13.0.2:7003");
    node.fast("TCP by a VLAN", &mut tcp);
    transfer(node, &mut tcp);
    node.agent_goes(tcp);
    sh(&format!("ip link delete card1.7; modprobe --remove {}", kind.driver));
}
