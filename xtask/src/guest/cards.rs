//! Network cards of a guest: two links of each kind, whose two ends are cards of the guest. The guest has QEMU's monitor as its third
//! serial port, to pull cables out. What is tried with them is in tests/src/field/cards.rs.

use std::{fmt::Write, path::Path};

/// How QEMU joins the two ends of a link.
#[derive(Clone, Copy, PartialEq)]
enum Joint {
    /// By a hub of its own, which has one queue.
    Hub,
    /// By taps with so many queues at a bridge, in a network namespace that QEMU has to itself.
    Taps { queues: u32 },
}

/// What the trials and QEMU call them.
const KINDS: [(&str, &str, Joint); 3] = [
    ("virtio-net", "virtio-net-pci", Joint::Taps { queues: 2 }),
    ("e1000e", "e1000e", Joint::Hub),
    ("vmxnet3", "vmxnet3", Joint::Hub),
];

/// Their drivers, which only a trial loads: what manages interfaces would take the cards in every other one.
pub(crate) const NOT_BY_THEMSELVES: &str = "blacklist virtio_net\nblacklist e1000e\nblacklist vmxnet3\n";

/// Where the kernel has drivers that other guests have no use for.
pub(crate) const MODULES: &[&str] = &["kernel/drivers/net/ethernet/intel/e1000e"];

/// Whether a trial of that name needs cards.
pub(crate) fn are_tried_by(trial: &str) -> bool {
    KINDS.iter().any(|(name, ..)| *name == trial)
}

/// All ends of links: kind, link and end by number.
fn ends() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..KINDS.len()).flat_map(|kind| (0..2).flat_map(move |link| (0..2).map(move |end| (kind, link, end))))
}

/// Words before QEMU's own: it runs in a network namespace of its own, which holds the taps.
pub(crate) fn surroundings() -> Vec<String> {
    let mut script = String::from("set -e\n");
    for (kind, link, end) in ends().filter(|(kind, ..)| KINDS[*kind].2 != Joint::Hub) {
        let (bridge, tap) = (format!("link{kind}{link}"), format!("tap{kind}{link}{end}"));
        if end == 0 {
            let _ = writeln!(script, "ip link add {bridge} up type bridge mcast_snooping 0");
        }
        let _ = writeln!(script, "ip tuntap add {tap} mode tap multi_queue vnet_hdr");
        let _ = writeln!(script, "ip link set {tap} master {bridge} up");
    }
    script += "exec \"$@\"";
    ["unshare", "--map-root-user", "--net", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
}

/// Words for QEMU's command line; `monitor` is the name of a socket.
pub(crate) fn arguments(monitor: &Path) -> Vec<String> {
    let path = monitor.display();
    let mut words = vec![
        "-chardev".to_owned(),
        format!("socket,id=monitor,path={path},server=on,wait=off"),
        "-mon".to_owned(),
        "chardev=monitor,mode=readline".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=commands,path={path}"),
        "-serial".to_owned(),
        "chardev:commands".to_owned(),
    ];
    for (kind, link, end) in ends() {
        let (name, device, joint) = KINDS[kind];
        let id = format!("{name}-{link}-{end}");
        let (netdev, more) = match joint {
            Joint::Hub => (format!("hubport,id=net-{id},hubid={}", 2 * kind + link), String::new()),
            Joint::Taps { queues } => (
                format!(
                    "tap,id=net-{id},ifname=tap{kind}{link}{end},script=no,downscript=no,vhost=off,queues={queues}"
                ),
                // For each queue one to receive and one to send, for changes of the card, and for its commands.
                format!(",mq=on,vectors={}", 2 * queues + 2),
            ),
        };
        let mac = format!("52:54:00:{kind:02x}:{link:02x}:{end:02x}");
        words.extend(["-netdev".to_owned(), netdev, "-device".to_owned()]);
        words.push(format!("{device},id={id},netdev=net-{id},mac={mac},romfile={more}"));
    }
    words
}
