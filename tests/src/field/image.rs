//! The image for two processors, as a release has it: each engine loads the archive and runs this processor's agent. What the image
//! has for the other processor is no program.

use super::{Node, Order, Trial};
use crate::service::{self, run, sh};

pub(super) const TRIAL: Trial = Trial {
    name: "image",
    packages: &["podman", "containerd"],
    orders: &[Order::Without],
    run: trial,
    ..Trial::PLAIN
};

/// Where the tier puts it.
const ARCHIVE: &str = "/job/image.tar";
const NAME: &str = concat!("docker.io/library/fastpath-agent:", env!("CARGO_PKG_VERSION"));

fn trial(_: &mut Node) {
    let version = concat!("fastpath-agent ", env!("CARGO_PKG_VERSION"));
    print!("{}", run("podman", &["load", "--input", ARCHIVE]));
    let said = run("podman", &["run", "--rm", "--network", "none", NAME, "--version"]);
    assert_eq!(said.trim(), version, "podman");
    run("podman", &["image", "rm", NAME]);

    service::start("containerd");
    print!("{}", run("ctr", &["images", "import", ARCHIVE]));
    let listed = run("ctr", &["images", "list", &format!("name=={NAME}")]);
    assert!(listed.contains("linux/amd64") && listed.contains("linux/arm64"), "{listed}");
    let said = run("ctr", &["run", "--rm", NAME, "image", "fastpath-agent", "--version"]);
    assert_eq!(said.trim(), version, "containerd");
    sh(&format!("ctr images rm {NAME}; systemctl stop containerd"));
}
