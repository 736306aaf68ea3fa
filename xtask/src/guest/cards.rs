//! Network cards of a guest: two links of each kind, whose two ends are cards of the guest, joined by a hub of QEMU's. The guest has
//! QEMU's monitor as its third serial port, to pull cables out. What is tried with them is in tests/src/field/cards.rs.

use std::path::Path;

/// What the trials and QEMU call them.
const KINDS: [(&str, &str); 3] =
    [("virtio-net", "virtio-net-pci"), ("e1000e", "e1000e"), ("vmxnet3", "vmxnet3")];

/// Their drivers, which only a trial loads: what manages interfaces would take the cards in every other one.
pub(crate) const NOT_BY_THEMSELVES: &str = "blacklist virtio_net\nblacklist e1000e\nblacklist vmxnet3\n";

/// Where the kernel has drivers that other guests have no use for.
pub(crate) const MODULES: &[&str] = &["kernel/drivers/net/ethernet/intel/e1000e"];

/// Whether a trial of that name needs cards.
pub(crate) fn are_tried_by(trial: &str) -> bool {
    KINDS.iter().any(|(name, _)| *name == trial)
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
    for (number, (name, device)) in KINDS.iter().enumerate() {
        for link in 0..2 {
            for end in 0..2 {
                let id = format!("{name}-{link}-{end}");
                let mac = format!("52:54:00:{number:02x}:{link:02x}:{end:02x}");
                words.push("-netdev".to_owned());
                words.push(format!("hubport,id=hub-{id},hubid={}", 2 * number + link));
                words.push("-device".to_owned());
                words.push(format!("{device},id={id},netdev=hub-{id},mac={mac},romfile="));
            }
        }
    }
    words
}
