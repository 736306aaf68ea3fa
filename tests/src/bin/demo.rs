//! The demonstration that `cargo xtask run` shows in the test guest: the same transfer through a node without and with
//! the agent, and what the kernel says about it. `demo [AGENT FLAGS]`. It measures and prints; it judges nothing.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use fastpath_tests::{
    agent::Agent,
    attach::Attach,
    topology::{Family, Layout, Nat, Topology},
    wait_until,
};
use serde_json::Value;

/// One of the ports whose packets are counted late in the forward hook.
const PORT: u16 = 7001;
const SECONDS: u64 = 8;
/// When the node is looked at: late enough for the flow to be offloaded, early enough for a slow machine.
const LOOK_AT: Duration = Duration::from_secs(3);

/// Result of one transfer.
struct Transfer {
    bits_per_second: f64,
    /// Packets that reached the node, both directions; a packet of many segments is one.
    arrived: u64,
    /// Those that went through its forward hook.
    forwarded: u64,
}

impl Transfer {
    fn bypassed(&self) -> u64 {
        self.arrived.saturating_sub(self.forwarded)
    }

    fn share(&self) -> f64 {
        if self.arrived == 0 { 0.0 } else { 100.0 * self.bypassed() as f64 / self.arrived as f64 }
    }
}

fn main() -> Result<()> {
    let flags: Vec<String> = std::env::args().skip(1).collect();
    let topology = Topology::build(Layout { attach: Attach::Veth, pods: 2, nat: Nat::Masquerade });
    let server = topology.server_at(Family::V4, PORT);
    // Packets as they are on a wire: with segments of 64 KiB the two ends would be all that is measured.
    for end in [topology.client(), topology.server()] {
        end.ns.output("ethtool", &["-K", "eth0", "tso", "off", "gso", "off", "gro", "off"]);
    }
    println!(
        "client {} -> node, which masquerades -> server {}: iperf3, TCP over IPv4, {SECONDS} s each",
        topology.client().address(Family::V4),
        server.ip()
    );
    let mut iperf = serve(&topology)?;
    let (without, _) = transfer(&topology)?;

    let mut words = vec!["--hostname-override=node"];
    words.extend(flags.iter().map(String::as_str));
    let agent = Agent::start_with(&topology.node, &words);
    println!("fastpath-agent run {}", words.join(" "));
    let (with, seen) = transfer(&topology)?;
    for line in agent.stop().iter().take(20) {
        println!("  {line}");
    }
    iperf.kill()?;
    iperf.wait()?;

    println!();
    row("", "without", "with", "");
    row(
        "throughput, Mbit/s",
        &format!("{:.0}", without.bits_per_second / 1e6),
        &format!("{:.0}", with.bits_per_second / 1e6),
        &format!("x {:.2}", with.bits_per_second / without.bits_per_second),
    );
    row("packets that reached the node", &without.arrived.to_string(), &with.arrived.to_string(), "");
    row(
        "  of them through its forward path",
        &without.forwarded.to_string(),
        &with.forwarded.to_string(),
        "",
    );
    row("  of them offloaded, past it", &without.bypassed().to_string(), &with.bypassed().to_string(), "");
    let share = |transfer: &Transfer| format!("{:.2} %", transfer.share());
    row("share offloaded", &share(&without), &share(&with), "");
    println!("\n{seen}");
    Ok(())
}

fn row(what: &str, without: &str, with: &str, more: &str) {
    println!("{}", format!("{what:<36}{without:>12}{with:>12}   {more}").trim_end());
}

/// iperf3's server, listening.
fn serve(topology: &Topology) -> Result<Child> {
    let port = PORT.to_string();
    let mut command = Command::new("iperf3");
    command.args(["--server", "--port", &port]).stdout(Stdio::null());
    let child = topology.server().ns.spawn(&mut command);
    wait_until("iperf3 listens", Duration::from_secs(10), || {
        topology.server().ns.output("ss", &["-Hltn", "sport", "=", &format!(":{PORT}")]).contains("LISTEN")
    });
    Ok(child)
}

/// One transfer, and what was seen of it on the node meanwhile: always looked, since looking costs time too.
fn transfer(topology: &Topology) -> Result<(Transfer, String)> {
    let before = (arrived(topology)?, topology.forwarded(PORT).total());
    let (port, seconds) = (PORT.to_string(), SECONDS.to_string());
    let server = topology.server_at(Family::V4, PORT).ip().to_string();
    let mut command = Command::new("iperf3");
    command.args(["--client", &server, "--port", &port, "--time", &seconds, "--json"]).stdout(Stdio::piped());
    let client = topology.client().ns.spawn(&mut command);
    thread::sleep(LOOK_AT);
    let seen = look(topology);
    let output = client.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("iperf3 prints JSON")?;
    ensure!(output.status.success(), "iperf3: {}", report["error"]);
    let bits_per_second =
        report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3's result")?;
    let transfer = Transfer {
        bits_per_second,
        arrived: arrived(topology)? - before.0,
        forwarded: topology.forwarded(PORT).total() - before.1,
    };
    Ok((transfer, seen))
}

/// Packets that reached the node from the client and the server so far.
fn arrived(topology: &Topology) -> Result<u64> {
    let listing = topology.node.output("ip", &["-j", "-s", "link", "show"]);
    let links: Value = serde_json::from_str(&listing).context("ip prints JSON")?;
    let devices = [&topology.client().node_dev, &topology.server().node_dev];
    let packets = links.as_array().into_iter().flatten().filter_map(|link| {
        let wanted = devices.iter().any(|device| link["ifname"] == **device);
        wanted.then(|| link["stats64"]["rx"]["packets"].as_u64()).flatten()
    });
    Ok(packets.sum())
}

/// What the kernel shows while the flow runs.
fn look(topology: &Topology) -> String {
    let mut text = format!("conntrack, on {}:\n", kernel());
    let lines = topology.conntrack(PORT);
    // Beside it there is iperf3's own, nearly idle connection, and that of the transfer before.
    let offloaded: Vec<_> = lines.iter().filter(|line| line.contains("OFFLOAD]")).collect();
    let shown = if offloaded.is_empty() { lines.iter().collect() } else { offloaded };
    for line in shown {
        text += &format!("  {line}\n");
    }
    text += "\nnft list table inet kindnet-fastpath:\n";
    let listing = topology.node.try_run("nft", &["list", "table", "inet", "kindnet-fastpath"], "");
    let listing = if listing.status.success() { listing.stdout } else { listing.stderr };
    for line in String::from_utf8_lossy(&listing).lines() {
        text += &format!("  {line}\n");
    }
    text
}

fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", release.trim())
}
