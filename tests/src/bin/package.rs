//! Tries the Debian package on a system with systemd: `package OLD.deb NEW.deb [BEFORE.deb]`. Runs in the guest, as root, and takes
//! the guest's own network namespace for the node; `cargo xtask test --tier=package` starts it. Ends at the first thing
//! that isn't as it should be.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use fastpath_tests::{
    netns::Netns,
    path::{self, STRAYS},
    service::{self, AGENT as SERVICE, run, said},
    table,
    topology::{Family, Layout, Topology},
    traffic::{Direction, Flow, Proto},
    wait_until,
};

const PORT: u16 = 7001;
const PINS: &str = "/sys/fs/bpf/fastpath";
const CONFIG: &str = "/etc/fastpath/agent.toml";
/// The page with the drop-in.
const FORWARDING: &str = include_str!("../../../docs/forward.md");
const EXCLUDED: &str = "/etc/fastpath/exclude";
/// What is left to an agent that runs: NET_ADMIN.
const CAPABILITIES: u64 = 1 << 12;
/// What the unit lets it start with: PERFMON and BPF too.
const TO_START: u64 = CAPABILITIES | 1 << 38 | 1 << 39;
/// What `systemd-analyze security` may say, of 10.
const MOST_EXPOSURE: f64 = 2.0;

/// As Debian ships it, with a chain that lets everything pass.
const FIREWALL: &str = "#!/usr/sbin/nft -f
flush ruleset
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy accept;
    }
}
";

/// One of the things that are tried.
type Step = (&'static str, fn(&mut Trial));

const STEPS: &[Step] = &[
    ("install", Trial::install),
    ("sandbox", Trial::sandbox),
    ("offload", Trial::offload),
    ("nftables.service", Trial::firewall),
    ("configure", Trial::configure),
    ("reload", Trial::reload),
    ("wrong configuration", Trial::wrong_configuration),
    ("stop and start", Trial::stop_and_start),
    ("watchdog", Trial::watchdog),
    ("forward in eBPF", Trial::forward),
    ("upgrade", Trial::upgrade),
    ("remove", Trial::remove),
    ("upgrade from an earlier commit's package", Trial::upgrade_from_before),
    ("install again, and purge", Trial::purge),
];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut package = || arguments.next().expect("package OLD.deb NEW.deb [BEFORE.deb]");
    let (old, new) = (package(), package());
    let before = arguments.next();
    // What failed is seldom clear without what the service said.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        hook(panic);
        println!("{}", service::described(SERVICE));
    }));
    let topology = Topology::build_around(Netns::of_process_1(), Layout::default());
    let mut trial = Trial { topology, old, new, before, flow: None };
    for (name, step) in STEPS {
        let began = Instant::now();
        step(&mut trial);
        println!("{name} ({:.1} s)", began.elapsed().as_secs_f64());
    }
}

struct Trial {
    topology: Topology,
    old: String,
    new: String,
    /// Of an earlier commit.
    before: Option<String>,
    /// One that is offloaded, from the step that opens it to the end.
    flow: Option<Flow>,
}

impl Trial {
    fn install(&mut self) {
        run("dpkg", &["-i", &self.old]);
        self.wait_until_it_offloads();
        assert_eq!(run("systemctl", &["is-enabled", SERVICE]).trim(), "enabled");
        let files = run("dpkg", &["-L", "fastpath-agent"]);
        for file in [
            "/usr/share/man/man8/fastpath-agent.8.gz",
            "/usr/share/man/man8/fastpath-agent-status.8.gz",
            "/usr/share/bash-completion/completions/fastpath-agent",
            "/usr/share/zsh/vendor-completions/_fastpath-agent",
            "/usr/share/fish/vendor_completions.d/fastpath-agent.fish",
        ] {
            assert!(files.lines().any(|line| line == file), "{file} isn't in the package:\n{files}");
        }
        assert!(!files.contains("canary"), "a hidden subcommand has a page:\n{files}");
    }

    /// What the service may do, as the kernel says and as systemd judges it.
    fn sandbox(&mut self) {
        let status = fs::read_to_string(format!("/proc/{}/status", main_pid())).expect("the service runs");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        let mask = |name| u64::from_str_radix(&field(name), 16).expect("a mask");
        assert_eq!((mask("CapBnd:"), mask("CapPrm:")), (TO_START, CAPABILITIES));
        assert!(said("journalctl", &["-o", "cat", "-u", SERVICE]).contains("privileges given up"));
        assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
        // Pins are for all processes, not only for the service's own view of the file system.
        assert!(fs::read_dir(PINS).is_ok_and(|entries| entries.count() > 0), "nothing is pinned in {PINS}");
        assert!(Path::new("/run/fastpath/events.sock").exists(), "no socket");
        let unit = unit_file();
        run("systemd-analyze", &["verify", "--man=no", &unit]);
        let verdict = run("systemd-analyze", &["security", "--offline=true", "--no-pager", &unit]);
        let exposure = verdict.lines().rev().find_map(|line| line.split_once("exposure level for "));
        let number = exposure.and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<f64>().ok());
        let number = number.unwrap_or_else(|| panic!("no verdict in {verdict}"));
        assert!(number <= MOST_EXPOSURE, "systemd-analyze security says {number}");
        println!("  systemd-analyze security: {number}");
        // The agent has systemd's priorities for its own in the journal.
        let warnings = said("journalctl", &["--no-pager", "-o", "cat", "-p", "warning", "-u", SERVICE]);
        let warnings = warnings.replace("-- No entries --", "");
        assert_eq!(warnings.trim(), "", "something isn't as it should be");
    }

    fn offload(&mut self) {
        let mut flow = self.topology.open(Proto::Tcp, Family::V4, PORT);
        self.topology.assert_becomes_accelerated(&mut flow);
        let seen = run("fastpath-agent", &["flows", "-o", "json", "--state=offloaded"]);
        assert!(seen.contains(&PORT.to_string()), "flows doesn't know the flow: {seen}");
        self.flow = Some(flow);
    }

    /// Debian's nftables.service flushes the whole ruleset whenever it starts, reloads or stops: the agent's table too.
    fn firewall(&mut self) {
        fs::write("/etc/nftables.conf", FIREWALL).expect("root");
        for action in ["start", "reload", "stop"] {
            let background = self.flow.take().expect("an offloaded flow").in_background();
            run("systemctl", &[action, "nftables"]);
            path::install(&self.topology.node, ""); // what counts went too
            // Changes of the ruleset are answered for the last time a second later.
            thread::sleep(Duration::from_secs(3));
            let (mut flow, report) = background.stop_intact();
            // It comes back when the kernel has freed what it was in the flowtable.
            wait_until("the flow is offloaded again", Duration::from_secs(10), || {
                assert_eq!(flow.rounds(10), 10);
                self.topology.marked_offloaded(PORT)
            });
            self.topology.assert_accelerated(&mut flow);
            println!("  {action}: {report:?}, and fast again");
            self.flow = Some(flow);
        }
        let repairs = journal().matches("putting it back").count();
        assert!(repairs >= 3, "the log doesn't say that the table was put back:\n{}", journal());
    }

    /// The file counts, and a restart leaves the flow alone.
    fn configure(&mut self) {
        fs::write(EXCLUDED, "").expect("root");
        fs::write(CONFIG, format!("fastpath-threshold = 6\nexclude-file = '{EXCLUDED}'\n")).expect("root");
        let before = main_pid();
        self.keeps_its_path(|| run("systemctl", &["restart", SERVICE]));
        assert_ne!(main_pid(), before);
        let rules = self.topology.node.output("nft", &["list", "table", "inet", table::TABLE]);
        // Traces of a direction are left one packet earlier.
        assert!(rules.contains("ct packets > 5 "), "{rules}");
        assert!(status_text().contains("more than 6 packets"), "{}", status_text());
        // The environment wins.
        fs::write("/etc/default/fastpath-agent", "FASTPATH_THRESHOLD=7\n").expect("root");
        self.keeps_its_path(|| run("systemctl", &["restart", SERVICE]));
        assert!(status_text().contains("more than 7 packets"), "{}", status_text());
    }

    fn reload(&mut self) {
        let before = main_pid();
        fs::write(EXCLUDED, "10.99.0.0/16\n").expect("root");
        // A new exclusion has all flows pass the rules again, for a packet or two each way: that is how those that are
        // excluded now leave the flowtable. Until the kernel has freed a flow it doesn't come back (11 packets were seen
        // on a machine with a load of 8).
        let flow = self.flow.take().expect("an offloaded flow");
        let forwarded = self.topology.forwarded(PORT).total();
        let background = flow.in_background();
        run("systemctl", &["reload", SERVICE]);
        wait_until("the exclusion is in the ruleset", Duration::from_secs(20), || {
            let rules = self.topology.node.output("nft", &["list", "table", "inet", table::TABLE]);
            rules.contains("10.99.0.0") && property("ActiveState") == "active"
        });
        let (mut flow, report) = background.stop_intact();
        let strayed = self.topology.forwarded(PORT).total() - forwarded;
        assert!(strayed <= 50, "{strayed} packets took the forward path, of {report:?}");
        self.topology.assert_accelerated(&mut flow);
        self.flow = Some(flow);
        assert_eq!(main_pid(), before);
    }

    fn wrong_configuration(&mut self) {
        let good = fs::read_to_string(CONFIG).expect("root");
        fs::write(CONFIG, format!("{good}fastpath-treshold = 5\n")).expect("root");
        let flow_kept = |trial: &mut Self| {
            trial.keeps_its_path(|| {
                let restart =
                    Command::new("systemctl").args(["restart", SERVICE]).output().expect("systemctl");
                assert!(!restart.status.success(), "it started");
                String::new()
            });
        };
        flow_kept(self);
        assert_eq!((property("ActiveState").as_str(), property("ExecMainStatus").as_str()), ("failed", "64"));
        let log = journal();
        let line =
            format!("{CONFIG}:3: there is no key 'fastpath-treshold' (is 'fastpath-threshold' meant?)");
        assert!(log.contains(&line), "no {line:?} in the log:\n{log}");
        fs::write(CONFIG, good).expect("root");
        run("systemctl", &["start", SERVICE]);
        self.wait_until_it_offloads();
    }

    fn stop_and_start(&mut self) {
        let listing = table::listing(&self.topology.node);
        assert!(listing.is_some());
        self.keeps_its_path(|| run("systemctl", &["stop", SERVICE]));
        assert_eq!((property("ActiveState").as_str(), property("Result").as_str()), ("inactive", "success"));
        assert_eq!(table::listing(&self.topology.node), listing, "stopping changed the table");
        self.keeps_its_path(|| run("systemctl", &["start", SERVICE]));
        assert_eq!(table::listing(&self.topology.node), listing, "starting changed the table");
    }

    /// An agent that hangs is ended and started again; one that doesn't isn't.
    fn watchdog(&mut self) {
        let directory = format!("/etc/systemd/system/{SERVICE}.d");
        fs::create_dir_all(&directory).expect("root");
        fs::write(format!("{directory}/test.conf"), "[Service]\nWatchdogSec=10s\nRestartSec=100ms\n")
            .expect("root");
        run("systemctl", &["daemon-reload"]);
        self.keeps_its_path(|| {
            run("systemctl", &["restart", SERVICE]);
            let pid = main_pid();
            thread::sleep(Duration::from_secs(12));
            assert_eq!((main_pid(), property("NRestarts").as_str()), (pid, "0"));
            String::new()
        });
        let pid = main_pid();
        self.keeps_its_path(|| {
            run("kill", &["-STOP", &pid]);
            wait_until("the agent that hung is replaced", Duration::from_secs(60), || {
                main_pid() != pid && property("ActiveState") == "active"
            });
            String::new()
        });
        assert_eq!(property("NRestarts"), "1");
        fs::remove_dir_all(directory).expect("root");
        run("systemctl", &["daemon-reload"]);
    }

    /// With the drop-in that the page shows, the agent starts in its sandbox and programs forward.
    fn forward(&mut self) {
        let lines = FORWARDING.split_once("```ini\n").and_then(|(_, rest)| rest.split_once("```"));
        let (lines, _) = lines.expect("the page shows a drop-in");
        let directory = format!("/etc/systemd/system/{SERVICE}.d");
        fs::create_dir_all(&directory).expect("root");
        fs::write(format!("{directory}/override.conf"), lines).expect("root");
        run("systemctl", &["daemon-reload"]);
        self.keeps_its_path(|| run("systemctl", &["restart", SERVICE]));
        let mut flow = self.flow.take().expect("an offloaded flow");
        let forwarded = || {
            let flows = run("fastpath-agent", &["flows", "-o", "json", "--state=offloaded"]);
            let flows: serde_json::Value = serde_json::from_str(&flows).expect("JSON");
            flows[0]["forwarded"].as_u64().unwrap_or_default()
        };
        wait_until("packets are forwarded in eBPF", Duration::from_secs(20), || {
            flow.transfer(Direction::Upload, 100_000).expect("it arrives");
            forwarded() > 0
        });
        self.flow = Some(flow);
        fs::remove_dir_all(directory).expect("root");
        run("systemctl", &["daemon-reload"]);
        self.keeps_its_path(|| run("systemctl", &["restart", SERVICE]));
        let before = forwarded();
        self.flow.as_mut().expect("a flow").transfer(Direction::Upload, 100_000).expect("it arrives");
        assert_eq!(forwarded(), before, "packets are still forwarded");
    }

    fn upgrade(&mut self) {
        let before = main_pid();
        let flow = self.flow.take().expect("an offloaded flow");
        let forwarded = self.topology.forwarded(PORT);
        let background = flow.in_background();
        // Both configuration files were changed by their owner, and stay as they are without a question.
        run("dpkg", &["-i", &self.new]);
        let (mut flow, report) = background.stop_intact();
        let after = self.topology.forwarded(PORT);
        assert!(
            after.total() - forwarded.total() <= STRAYS,
            "packets took the forward path: {forwarded:?}, then {after:?}, of {report:?}"
        );
        println!(
            "  upgraded under traffic: {report:?}, on the forward path before {forwarded:?}, after {after:?}"
        );
        assert!(run("dpkg", &["-s", "fastpath-agent"]).lines().any(|line| line.ends_with("-2")));
        assert_ne!(main_pid(), before, "the old agent still runs");
        self.topology.assert_accelerated(&mut flow);
        self.flow = Some(flow);
        self.wait_until_it_offloads();
        assert!(status_text().contains("more than 7 packets"), "{}", status_text());
    }

    fn remove(&mut self) {
        run("dpkg", &["-r", "fastpath-agent"]);
        assert_eq!(table::listing(&self.topology.node), None, "the table is still there");
        assert!(!Path::new(PINS).exists(), "{PINS} is still there");
        assert!(!Path::new("/usr/bin/fastpath-agent").exists());
        assert!(Path::new(CONFIG).exists(), "its configuration is the owner's");
        let programs = self.topology.node.output("bpftool", &["net", "show"]);
        assert!(!programs.contains("fastpath"), "{programs}");
        // Slower is allowed, broken is not.
        let mut flow = self.flow.take().expect("an offloaded flow");
        self.topology.assert_forwarded(&mut flow);
    }

    /// Whatever that agent was, its flows stay where they are.
    fn upgrade_from_before(&mut self) {
        let Some(before) = self.before.clone() else {
            return println!("  none has passed on this machine: this one is kept for the next commit");
        };
        run("dpkg", &["-i", &before]);
        self.wait_until_it_offloads();
        let mut flow = self.topology.open(Proto::Tcp, Family::V4, PORT + 1);
        assert_eq!(flow.rounds(20), 20); // the configuration that stayed has another threshold
        self.topology.assert_accelerated(&mut flow);
        let forwarded = self.topology.forwarded(PORT + 1);
        let background = flow.in_background();
        run("dpkg", &["-i", &self.new]);
        let (mut flow, report) = background.stop_intact();
        let after = self.topology.forwarded(PORT + 1);
        println!("  {report:?}, on the forward path before {forwarded:?}, after {after:?}");
        assert!(after.total() - forwarded.total() <= STRAYS, "packets took the forward path");
        self.topology.assert_accelerated(&mut flow);
        self.wait_until_it_offloads();
        run("dpkg", &["-r", "fastpath-agent"]);
        assert_eq!(table::listing(&self.topology.node), None, "the table is still there");
    }

    fn purge(&mut self) {
        run("dpkg", &["-i", &self.old]);
        self.wait_until_it_offloads();
        fs::remove_file(EXCLUDED).expect("root");
        run("dpkg", &["-P", "fastpath-agent"]);
        assert_eq!(table::listing(&self.topology.node), None);
        assert!(!Path::new(PINS).exists());
        let places = ["/etc", "/usr", "/var/lib/systemd", "/var/lib/dpkg/info"];
        let left = run("find", &[&places[..], &["-name", "*fastpath*"]].concat());
        assert_eq!(left, "", "a purge left something");
        assert!(!Path::new("/run/fastpath").exists());
    }

    /// Does something while the flow sends, and shows that none of its packets took the forward path.
    #[track_caller]
    fn keeps_its_path(&mut self, action: impl FnOnce() -> String) {
        let flow = self.flow.take().expect("an offloaded flow");
        let before = self.topology.forwarded(PORT);
        let background = flow.in_background();
        action();
        let (mut flow, report) = background.stop_intact();
        let after = self.topology.forwarded(PORT);
        assert!(
            after.total() - before.total() <= STRAYS,
            "packets took the forward path: {before:?}, then {after:?}, of {report:?}"
        );
        self.topology.assert_accelerated(&mut flow);
        self.flow = Some(flow);
    }

    /// Started means verified: the very moment that systemd calls the service active.
    #[track_caller]
    fn wait_until_it_offloads(&self) {
        wait_until("the service is active", Duration::from_secs(60), || property("ActiveState") == "active");
        assert!(table::listing(&self.topology.node).is_some(), "active, and no table");
        let devices = table::devices(&self.topology.node);
        assert!(["c0", "s0"].iter().all(|name| devices.contains(*name)), "{devices:?}");
        assert!(status_text().starts_with("offloading flows of more than "), "{}", status_text());
    }
}

fn property(name: &str) -> String {
    service::property(SERVICE, name)
}

fn main_pid() -> String {
    property("MainPID")
}

fn status_text() -> String {
    property("StatusText")
}

fn unit_file() -> String {
    property("FragmentPath")
}

/// What the service and systemd said about it.
fn journal() -> String {
    service::journal(SERVICE)
}
