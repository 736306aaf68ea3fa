//! `doctor`: all green on a good node, and what is broken on purpose is found, with the remedy. The canary shows
//! acceleration, touches nothing of the node, and leaves nothing behind.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    monitor::Monitor,
    netns::Netns,
    reference, table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// What doctor found, and its exit code.
struct Examined {
    report: Value,
    code: Option<i32>,
}

fn parse(output: &Output) -> Examined {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}{errors}"));
    Examined { report, code: output.status.code() }
}

#[track_caller]
fn examine(node: &Netns, args: &[&str]) -> Examined {
    parse(&agent::run(node, &[&["doctor", "-o", "json"], args].concat()))
}

impl Examined {
    fn findings(&self) -> &[Value] {
        self.report["findings"].as_array().expect("a list")
    }

    /// Those that aren't green: level, check and subject.
    fn wrong(&self) -> Vec<String> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let wrong = self.findings().iter().filter(|finding| finding["level"] != "green");
        wrong
            .map(|f| {
                [text(&f["level"]), text(&f["check"]), text(&f["subject"])].join(" ").trim_end().to_owned()
            })
            .collect()
    }

    /// The one finding of a check (and subject) that isn't green: level, what was found, and the remedy.
    #[track_caller]
    fn fault(&self, check: &str, subject: Option<&str>) -> (&str, &str, &str) {
        let is_it =
            |f: &&Value| f["check"] == check && f["level"] != "green" && f["subject"].as_str() == subject;
        let mut found = self.findings().iter().filter(is_it);
        let (Some(fault), None) = (found.next(), found.next()) else {
            panic!("not just one fault of {check} {subject:?} in {:#}", self.report)
        };
        let text = |name: &str| fault[name].as_str().unwrap_or_else(|| panic!("no {name} in {fault:#}"));
        (text("level"), text("found"), text("remedy"))
    }
}

fn node_with_agent(flags: &[&str]) -> (Topology, Agent) {
    let topology = Topology::routed();
    let agent = Agent::start_with(&topology.node, flags);
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    (topology, agent)
}

#[test]
fn a_good_node_is_green_and_the_canary_touches_nothing() {
    // The flags are found out from the running agent.
    let (topology, _agent) = node_with_agent(&["--fastpath-threshold=6"]);
    let node = &topology.node;
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    assert_eq!(flow.rounds(20), 20);
    topology.assert_accelerated(&mut flow);
    // Not the sets: elements of the meter expire.
    let nft = |what: &str| node.output("nft", &["-s", "list", what]);
    let state = || (nft("chains"), nft("flowtables"), node.output("ip", &["address"]));
    let before = (state(), topology.forwarded(7001));
    let background = flow.in_background();
    let mut monitor = Monitor::start(node);

    let examined = examine(node, &["--strict"]);
    assert_eq!(examined.wrong(), Vec::<String>::new(), "{:#}", examined.report);
    assert_eq!((examined.code, &examined.report["level"]), (Some(0), &"green".into()));
    let flows = examined.report["canary"].as_array().expect("a list");
    let names: Vec<_> = flows.iter().map(|flow| format!("{}/{}", flow["protocol"], flow["family"])).collect();
    assert_eq!(names.join(" ").replace('"', ""), "tcp/ipv4 tcp/ipv6 udp/ipv4 udp/ipv6");
    for flow in flows {
        let number = |name: &str| flow[name].as_u64().expect("a number");
        assert_eq!((number("rounds"), number("intact")), (50, 50), "{flow:#}");
        assert!(number("ingress") >= 100 && number("forwarded") <= 2, "{flow:#}");
    }

    assert_eq!(monitor.commits_of_agent(), 0, "{:#?}", monitor.lines());
    // Before the flow ends: its last packets take the forward path.
    assert_eq!((state(), topology.forwarded(7001)), before);
    background.stop_intact();
    let text = agent::output(node, &["doctor", "--no-canary", "--all"]);
    for words in [
        "green  ruleset",
        "threshold 6",
        "c0: managed (veth, MTU 1500)",
        "lo: not managed: loopback",
        "0 red, 0 amber",
    ] {
        assert!(text.contains(words), "no {words:?} in:\n{text}");
    }
    assert!(!text.contains('\x1b') && !text.contains("canary"), "{text}");
}

#[test]
fn forwarding_off() {
    let (topology, _agent) = node_with_agent(&[]);
    let node = &topology.node;
    node.sysctl("net/ipv4/ip_forward", "0");
    node.sysctl("net/ipv6/conf/all/forwarding", "0");
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red forwarding ipv4", "amber forwarding ipv6"]);
    assert!(examined.fault("forwarding", Some("ipv4")).2.contains("sysctl -w net.ipv4.ip_forward=1"));
    assert_eq!(examined.code, Some(1));
    // The remedies are right, and amber is no failure unless it is asked to be.
    node.output("sysctl", &["-w", "net.ipv4.ip_forward=1"]);
    let examined = examine(node, &["--no-canary"]);
    assert_eq!((examined.wrong(), examined.code), (vec!["amber forwarding ipv6".to_owned()], Some(0)));
    assert_eq!(examine(node, &["--no-canary", "--strict"]).code, Some(1));
    node.sysctl("net/ipv4/conf/c0/forwarding", "0");
    let examined = examine(node, &["--no-canary"]);
    let (level, found, remedy) = examined.fault("forwarding", Some("ipv4"));
    assert!(
        level == "amber" && found.contains("c0") && remedy.contains("net.ipv4.conf.c0.forwarding=1"),
        "{found}"
    );
}

#[test]
fn flowtables_and_tables_of_others() {
    let (topology, agent) = node_with_agent(&[]);
    let node = &topology.node;
    node.nft(
        "table inet firewalld {
            flowtable fastpath { hook ingress priority filter; devices = { c0 }; }
        }
        table ip nat { chain DOCKER {}; chain KUBE-SERVICES {}; }",
    );
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["amber other-flowtables inet firewalld fastpath"]);
    let (_, found, remedy) = examined.fault("other-flowtables", Some("inet firewalld fastpath"));
    assert!(
        found.contains("c0") && !found.contains("s0") && remedy.contains("NftablesFlowtable"),
        "{found} {remedy}"
    );
    let found = |check: &str| {
        let finding =
            examined.findings().iter().find(|finding| finding["check"] == check).expect("each check");
        finding["found"].as_str().expect("text").to_owned()
    };
    assert!(found("other-owners").contains("firewalld, Docker"), "{}", found("other-owners"));
    assert!(found("kube-proxy").starts_with("iptables mode"), "{}", found("kube-proxy"));

    agent.stop();
    node.nft(&reference::kindnet(&["c0", "s0"]));
    let examined = examine(node, &["--no-canary"]);
    let (level, found, remedy) = examined.fault("ruleset", None);
    assert!(
        level == "red" && found.contains("kindnetd") && remedy.contains("--takeover"),
        "{found} {remedy}"
    );
    assert_eq!(examined.code, Some(1));
}

/// The kernel's limit is the first namespace's.
fn set_conntrack_max(value: &str) {
    let args = ["--net=/proc/1/ns/net", "sysctl", "-w", &format!("net.netfilter.nf_conntrack_max={value}")];
    let output = Command::new("nsenter").args(args).output().expect("run nsenter");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn conntrack_nearly_full_and_timeouts() {
    let (topology, _agent) = node_with_agent(&[]);
    let node = &topology.node;
    let read = |name: &str| {
        node.run(|| fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")))
            .expect("procfs")
            .trim()
            .to_owned()
    };
    for port in [7001, 7002, 7003, 7004] {
        assert_eq!(topology.open(Proto::Udp, Family::V4, port).rounds(2), 2);
    }
    let before = read("nf_conntrack_max");
    let count: u64 = read("nf_conntrack_count").parse().expect("a number");
    assert!(count >= 4, "{count}");
    set_conntrack_max(&count.to_string());
    let full = examine(node, &["--no-canary"]);
    set_conntrack_max(&before);
    assert_eq!(full.wrong(), ["red conntrack table"]);
    let (_, found, remedy) = full.fault("conntrack", Some("table"));
    assert!(found.contains("(100 %)") && remedy.contains("nf_conntrack_max"), "{found} {remedy}");

    node.sysctl("net/netfilter/nf_conntrack_acct", "0");
    node.sysctl("net/netfilter/nf_flowtable_udp_timeout", &read("nf_conntrack_udp_timeout_stream"));
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red conntrack accounting", "red conntrack udp-timeout"]);
    assert!(examined.fault("conntrack", Some("accounting")).2.contains("nf_conntrack_acct=1"));
}

#[test]
fn a_ruleset_that_is_gone_or_wrong() {
    let (topology, mut agent) = node_with_agent(&[]);
    let node = &topology.node;
    // It can't put it back meanwhile.
    agent.signal(Signal::SIGSTOP);
    node.nft("flush chain inet kindnet-fastpath kindnet-fastpath-chain");
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red ruleset"]);
    assert!(examined.fault("ruleset", None).1.contains("add rule"), "{:?}", examined.fault("ruleset", None));
    node.nft("delete table inet kindnet-fastpath");
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red ruleset"]);
    agent.signal(Signal::SIGCONT);
    agent.wait_for("putting it back", SOON);
    assert_eq!(examine(node, &["--no-canary"]).wrong(), Vec::<String>::new());

    // Without an agent doctor's own flags count, and what is there goes on working.
    agent.stop();
    assert_eq!(examine(node, &["--no-canary"]).wrong(), ["amber agent"]);
    let examined = examine(node, &["--no-canary", "--fastpath-threshold=6"]);
    assert_eq!(examined.wrong(), ["amber agent", "amber ruleset"]);
    // An interface that came since.
    node.ip("link add d0 type dummy\nlink set d0 up\n");
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["amber agent", "amber interface d0", "amber ebpf"]);
    agent::output(node, &["cleanup"]);
    assert_eq!(examine(node, &["--no-canary"]).wrong(), ["amber agent", "amber ruleset", "amber ebpf"]);
}

/// A filter that comes while the agent can't follow.
#[test]
fn the_chain_before_a_filter() {
    let (topology, agent) = node_with_agent(&["--chain-priority=-110"]);
    assert_eq!(examine(&topology.node, &["--no-canary"]).wrong(), Vec::<String>::new());
    agent.signal(Signal::SIGSTOP);
    topology.node.nft(
        "table inet late { chain c { type filter hook forward priority 900; policy accept; tcp dport 9 drop; }; }",
    );
    let examined = examine(&topology.node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red ruleset", "amber chain-priority"]);
    agent.signal(Signal::SIGCONT);
}

/// Other programs' settings that offloading would change.
#[test]
fn chains_at_ingress_and_timeouts_of_others() {
    let (topology, _agent) = node_with_agent(&["--flowtable-priority=0"]);
    topology.node.nft(
        "table netdev edge { chain in { type filter hook ingress device c0 priority 10; }; }
         table inet voip { ct timeout long { protocol udp; l3proto ip; policy = { replied : 600 }; }; }",
    );
    let examined = examine(&topology.node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["amber ingress-chains", "amber flow-timeouts"]);
    let (_, found, _) = examined.fault("ingress-chains", None);
    assert!(found.contains("netdev edge in on c0 (priority 10)"), "{found}");
    // Before the flowtable: reported anyway.
    let (topology, _agent) = node_with_agent(&[]);
    topology.node.nft("table netdev edge { chain in { type filter hook ingress device c0 priority 10; }; }");
    let examined = examine(&topology.node, &["--no-canary"]);
    assert_eq!(examined.wrong(), Vec::<String>::new());
    let text = examined.report.to_string();
    assert!(text.contains("offloaded packets pass them too: netdev edge in on c0 (priority 10)"), "{text}");
}

/// As root, but without some capabilities.
fn examine_without(node: &Netns, capabilities: &str, args: &[&str]) -> Examined {
    let mut command = Command::new("setpriv");
    command.args([format!("--bounding-set={capabilities}"), format!("--inh-caps={capabilities}")]);
    command.arg(agent::binary()).args(["doctor", "-o", "json"]).args(args);
    parse(&node.run(|| command.output()).expect("run setpriv"))
}

#[test]
fn capabilities_dropped() {
    let topology = Topology::routed();
    let node = &topology.node;
    let examined = examine_without(node, "-net_admin", &["--no-canary"]);
    let (level, found, remedy) = examined.fault("capabilities", None);
    assert!(level == "red" && found.contains("CAP_NET_ADMIN") && remedy.contains("CAP_NET_ADMIN"), "{found}");
    assert_eq!(examined.code, Some(1));
    let examined = examine_without(node, "-sys_admin,-bpf,-perfmon", &["--no-canary"]);
    let (level, found, _) = examined.fault("capabilities", None);
    assert!(level == "amber" && found.contains("CAP_BPF and no CAP_PERFMON"), "{found}");
    // The canary makes itself a user namespace.
    let examined = examine_without(node, "-sys_admin", &[]);
    let canary = examined.findings().iter().filter(|f| f["check"] == "canary" && f["level"] == "green");
    assert_eq!(canary.count(), 4, "{:#}", examined.report);
}

#[test]
fn no_bpf_file_system() {
    let topology = Topology::routed();
    let node = &topology.node;
    assert!(Command::new("umount").arg("/sys/fs/bpf").status().expect("run umount").success());
    let _agent = Agent::start_with(node, &[]);
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["amber bpffs", "amber ebpf"]);
    assert!(examined.fault("bpffs", None).2.contains("mount -t bpf bpf /sys/fs/bpf"));
}

/// Rules mark packets, and traffic control gives marked ones a class of their own: offloaded packets don't pass the rules.
#[test]
fn marks_that_traffic_control_asks_for() {
    let (topology, _agent) = node_with_agent(&[]);
    let node = &topology.node;
    node.nft(
        "table inet qos {
            chain forward {
                type filter hook forward priority mangle
                udp dport 5060 meta mark set 7
            }
        }",
    );
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), [""; 0], "nothing asks for the mark");
    assert!(examined.report.to_string().contains("only log or mark"), "{:#}", examined.report);
    node.output("tc", &["qdisc", "add", "dev", "s0", "root", "handle", "1:", "prio"]);
    let filter = ["filter", "add", "dev", "s0", "parent", "1:", "protocol", "all", "handle", "7"];
    node.output("tc", &[&filter[..], &["fw", "classid", "1:1"]].concat());
    let examined = examine(node, &["--no-canary"]);
    let wrong = examined.wrong();
    assert!(wrong.len() == 1 && wrong[0].starts_with("amber rules inet qos forward handle"), "{wrong:?}");
    assert!(examined.report.to_string().contains("fw at s0"), "{:#}", examined.report);
}

#[test]
fn programs_of_others_at_ingress() {
    let (topology, _agent) = node_with_agent(&[]);
    let node = &topology.node;
    // "Go on": before the agent's on 6.1, where both are filters; after the agent's TCX program on newer kernels.
    let bytecode = "1,6 0 0 4294967295";
    node.try_run("tc", &["qdisc", "add", "dev", "c0", "clsact"], "");
    node.output(
        "tc",
        &[
            "filter",
            "add",
            "dev",
            "c0",
            "ingress",
            "pref",
            "1",
            "protocol",
            "all",
            "bpf",
            "bytecode",
            bytecode,
            "direct-action",
        ],
    );
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["amber ebpf-order c0"]);
    let (_, found, remedy) = examined.fault("ebpf-order", Some("c0"));
    assert!(
        found.contains("before") && found.contains("flowtable") && remedy.contains("--exclude-interfaces"),
        "{found}"
    );
    let status: Value = serde_json::from_str(&agent::output(node, &["status", "-o", "json"])).expect("JSON");
    let tcx = status["ebpf"]["attachments"].to_string().contains("tcx");
    assert_eq!(found.contains("after the agent's counters"), tcx, "{found}");
}

/// Has this test's processes read another release of the kernel.
fn pretend_release(release: &str) {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    fs::write(file.path(), format!("{release}\n")).expect("write");
    let mounted =
        Command::new("mount").arg("--bind").arg(file.path()).arg("/proc/sys/kernel/osrelease").status();
    assert!(mounted.expect("run mount").success());
}

#[test]
fn a_kernel_with_a_known_bug() {
    let topology = Topology::routed();
    let node = &topology.node;
    let agent = Agent::start(node, &[]);
    agent.stop();
    pretend_release("5.15.40");
    let mut agent = Agent::spawn(node, &mut agent::command(&["--ebpf=off"]));
    agent.wait_for("nothing is offloaded", SOON);
    let said = agent.log().join("\n");
    assert!(said.contains("stale-route") && said.contains("--ignore-known-bugs"), "{said}");
    assert_eq!(table::listing(node), None, "what an earlier one left is removed");
    topology.assert_forwarded(&mut topology.open(Proto::Tcp, Family::V4, 7001));
    let examined = examine(node, &["--no-canary"]);
    assert_eq!(examined.wrong(), ["red known-bugs", "amber ruleset"]);
    agent.stop();

    let _agent = Agent::start(node, &["--ignore-known-bugs"]);
    topology.assert_becomes_accelerated(&mut topology.open(Proto::Tcp, Family::V4, 7002));
    assert_eq!(examine(node, &["--no-canary"]).wrong(), ["red known-bugs"]);
}

#[test]
fn nothing_of_the_canary_stays_when_doctor_is_killed() {
    let topology = Topology::routed();
    let node = &topology.node;
    let canaries = || -> Vec<Pid> {
        let processes = fs::read_dir("/proc").expect("procfs").flatten();
        processes
            .filter(|entry| {
                fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains("\0canary\0"))
            })
            .filter_map(|entry| Some(Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)))
            .collect()
    };
    let links = || node.output("ip", &["-o", "link"]);
    let before = links();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut command = agent::command(&["doctor"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut doctor = node.spawn(&mut command);
        // Stopped, so that it can't end by itself.
        wait_until("the canary", SOON, || canaries().iter().any(|pid| kill(*pid, Signal::SIGSTOP).is_ok()));
        kill(Pid::from_raw(doctor.id() as i32), signal).expect("it runs");
        doctor.wait().expect("wait for doctor");
        wait_until("the end of the canary", SOON, || canaries().is_empty());
        assert_eq!(links(), before);
    }
}
