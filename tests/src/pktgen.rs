//! The kernel's packet generator (pktgen), which sends UDP from a device without a socket, and says how long that took.
//!
//! It knows nothing of what becomes of the packets; the counters of the devices do.

use std::{fmt::Write as _, fs, net::IpAddr, ops::RangeInclusive, time::Duration};

use crate::netns::Netns;

/// What to send. Ports are gone through in step, one packet each: with ranges of lengths that have no common divisor
/// that makes as many flows as the product of the lengths.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The sending device.
    pub device: &'static str,
    /// Hardware address of the next hop.
    pub next_hop: String,
    /// Addresses, of one family.
    pub from: IpAddr,
    /// See `from`.
    pub to: IpAddr,
    /// Source ports.
    pub from_ports: RangeInclusive<u16>,
    /// Destination ports.
    pub to_ports: RangeInclusive<u16>,
    /// Length of the frame without its checksum.
    pub frame_bytes: u16,
    /// The device receives the packets, as a card does that has them from its wire.
    pub received: bool,
}

/// Loads the module. Namespaces made before have no packet generator.
#[track_caller]
pub fn load(node: &Netns) {
    node.output("modprobe", &["pktgen"]);
    // Before 6.4, once this thread is runnable no one else receives packets until it has run. The generator would go on
    // meanwhile, and overrun the queue. As a real-time thread it runs at once.
    let thread = node.output("pgrep", &["-x", "ksoftirqd/0"]);
    node.output("chrt", &["--fifo", "--pid", "50", thread.trim()]);
}

impl Stream {
    /// How many flows it has.
    #[must_use]
    pub fn flows(&self) -> u64 {
        [&self.from_ports, &self.to_ports].map(|ports| ports.len() as u64).iter().product()
    }

    /// Sends `packets` from `ns` and says how many nanoseconds of the guest's clock a packet took.
    ///
    /// Panics when the device refuses any of them.
    #[track_caller]
    pub fn send(&self, ns: &Netns, packets: u64) -> f64 {
        self.send_every(ns, packets, Duration::ZERO)
    }

    /// The same with a packet every `gap`, if the kernel can send that many.
    #[track_caller]
    pub fn send_every(&self, ns: &Netns, packets: u64, gap: Duration) -> f64 {
        let device = self.device;
        let (to, from) = if self.to.is_ipv4() { ("dst", "src_min") } else { ("dst6", "src6") };
        let mut settings = format!(
            "count {packets}\ndelay {}\nclone_skb 0\npkt_size {}\n",
            gap.as_nanos(),
            self.frame_bytes
        );
        // Without a checksum, address translation would have less to do than for what applications send.
        settings += "flag UDPCSUM\n";
        write!(settings, "dst_mac {}\n{to} {}\n{from} {}\n", self.next_hop, self.to, self.from)
            .expect("string");
        if self.received {
            settings += "xmit_mode netif_receive\n";
        }
        if self.to.is_ipv4() {
            writeln!(settings, "src_max {}", self.from).expect("string");
        }
        for (what, ports) in [("udp_src", &self.from_ports), ("udp_dst", &self.to_ports)] {
            // pktgen's upper end is the first port that it doesn't use, unless both are the same.
            let end = ports.end() + u16::from(ports.end() != ports.start());
            write!(settings, "{what}_min {}\n{what}_max {end}\n", ports.start()).expect("string");
        }
        let result = ns.run(|| {
            let file = |name: &str| format!("/proc/thread-self/net/pktgen/{name}");
            let tell = |name: &str, line: &str| {
                fs::write(file(name), format!("{line}\n"))
                    .unwrap_or_else(|error| panic!("pktgen {name}: {line}: {error}"));
            };
            tell("kpktgend_0", "rem_device_all");
            tell("kpktgend_0", &format!("add_device {device}"));
            for line in settings.lines() {
                tell(device, line);
            }
            tell("pgctrl", "start");
            fs::read_to_string(file(device)).expect("pktgen's result")
        });
        let (took_us, sent) =
            parse(&result, self.received).unwrap_or_else(|| panic!("pktgen failed:\n{result}"));
        assert_eq!(sent, packets, "{result}");
        took_us as f64 * 1000.0 / packets as f64
    }
}

/// Microseconds and packets of "Result: OK: 22012(c22012+d0) usec, 20000 (60byte,0frags)"; none if there were errors. Of what a
/// device received all that a hook took counts as one.
fn parse(result: &str, received: bool) -> Option<(u64, u64)> {
    let line = result.lines().find_map(|line| line.strip_prefix("Result: OK: "))?;
    let took = line.split('(').next()?.parse().ok()?;
    let sent = line.split("usec, ").nth(1)?.split(' ').next()?.parse().ok()?;
    let errors = result.lines().find_map(|line| line.trim().rsplit_once("errors: "))?.1;
    (received || errors.trim() == "0").then_some((took, sent))
}
