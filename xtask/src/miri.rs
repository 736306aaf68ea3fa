//! The pure core's and the parsers' unit tests under Miri, which finds undefined behaviour. Part of `--tier=fuzz`.

use anyhow::Result;

use crate::{process, toolchain, workspace};

/// Modules whose tests do without system calls and foreign functions, and are done in half a minute. What isn't here: tests of
/// `kernel` that open sockets or write by libnftnl, all of `daemon`, `report` and `core` whose tests draw thousands of cases.
const MODULES: &[&str] = &[
    "kernel::netlink::attribute",
    "kernel::netlink::message",
    "kernel::netlink::dump",
    "kernel::links",
    "kernel::route_rules",
    "kernel::netconf",
    "kernel::xfrm",
    "kernel::ipvs",
    "kernel::bpf::layout",
    "kernel::fuzz",
    "kernel::nft::marker",
    "core::model",
    "core::pace",
    "core::recurring",
    "core::known_bugs",
    "core::link::table",
    "core::policy::ignore",
    "core::policy::rule",
    "core::flow::trace",
    "core::flow::path",
    "core::flow::connection",
    "core::why::flow_spec",
    "core::printable",
];

/// Runs them.
pub(crate) fn run() -> Result<()> {
    let compiler = toolchain::nightly()?;
    let mut command = compiler.command(compiler.sysroot.join("bin/cargo-miri"))?;
    command.args(["miri", "test", "--quiet", "--package", "fastpath-agent", "--lib", "--"]).args(MODULES);
    command
        // Miri is a compiler of its own.
        .env_remove("RUSTC")
        .env("CARGO_TARGET_DIR", workspace::target().join("miri"))
        // Seeds are files; so few cases, since each takes a thousand times as long.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .env("PROPTEST_CASES", "4")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .current_dir(workspace::root());
    process::run(&mut command)
}
