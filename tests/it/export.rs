//! Flow records as collectors get them: nfcapd, and a parser that others wrote. What they add up to is what conntrack has counted, on
//! the fast path and on the normal path, over restarts and while no collector is there.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, bring_loopback_up},
    topology::{Family, Layout, Nat, Topology},
    traffic::{Flow, Proto},
    wait_until,
};
use netflow_parser::{
    NetflowPacket, NetflowParser,
    variable_versions::{
        field_value::{DataNumber, FieldValue},
        ipfix::{FlowSetBody, lookup::IPFixField},
    },
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
const UDP: &str = "--export=ipfix://127.0.0.1:4739";
const TCP: &str = "--export=ipfix+tcp://127.0.0.1:4739";
/// Waiting takes no time in the guest: two readings, and what they send.
const TWO_READINGS: Duration = Duration::from_millis(2_200);

/// An agent that reads all flows every second.
#[track_caller]
fn start(topology: &Topology, run_dir: &Path, flags: &[&str]) -> Agent {
    let run_dir = format!("--run-dir={}", run_dir.display());
    let often = ["--export-active-timeout=1s", "--export-inactive-timeout=1s", &run_dir];
    let mut agent = Agent::start_with(&topology.node, &[&often[..], flags].concat());
    agent::wait_for_programs(&topology.node, &["c0", "s0"]);
    agent.wait_for("flow records are exported", LIMIT);
    agent
}

/// nfcapd, with the files it writes.
struct Nfcapd {
    child: Child,
    directory: tempfile::TempDir,
}

impl Nfcapd {
    #[track_caller]
    fn start(topology: &Topology) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("nfcapd");
        command.args(["-p", "4739", "-b", "127.0.0.1", "-t", "3600", "-w"]).arg(directory.path());
        let child = topology.node.spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
        wait_until("nfcapd", LIMIT, || topology.node.output("ss", &["-lun"]).contains(":4739"));
        Self { child, directory }
    }

    /// Ends it; all that it wrote comes back.
    #[track_caller]
    fn stop(mut self) -> Vec<Value> {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("it runs");
        self.child.wait().expect("its end");
        let nfdump =
            Command::new("nfdump").arg("-R").arg(self.directory.path()).args(["-o", "json"]).output();
        let text = String::from_utf8(nfdump.expect("nfdump").stdout).expect("UTF-8");
        let records: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
        records.as_array().expect("a list").clone()
    }
}

/// Packets and bytes of both directions of flows to `port`.
fn by_nfdump(records: &[Value], port: u16) -> (u64, u64) {
    let number = |record: &Value, key: &str| record[key].as_u64().unwrap_or(0);
    let of_it =
        |record: &&Value| ["src_port", "dst_port"].iter().any(|end| number(record, end) == u64::from(port));
    let sum = |key| records.iter().filter(of_it).map(|record| number(record, key)).sum();
    (sum("in_packets"), sum("in_bytes"))
}

/// Fields of a record by their names; those of the agent's own as `own1`.
type Record = BTreeMap<String, u64>;

/// A collector in this process.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Record>>>);

impl Collector {
    /// Over UDP.
    #[track_caller]
    fn udp(topology: &Topology) -> Self {
        let collector = Self::default();
        let socket = topology.node.run(|| UdpSocket::bind("127.0.0.1:4739")).expect("a free port");
        let records = collector.clone();
        thread::spawn(move || {
            let mut message = [0; 65_536];
            while let Ok(length) = socket.recv(&mut message) {
                // Each can be read by itself.
                records.read(&mut NetflowParser::default(), &message[..length]);
            }
        });
        collector
    }

    /// Over TCP, one connection.
    #[track_caller]
    fn tcp(topology: &Topology) -> Self {
        let collector = Self::default();
        let listener = topology.node.run(|| TcpListener::bind("127.0.0.1:4739")).expect("a free port");
        let records = collector.clone();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut parser = NetflowParser::default();
            loop {
                let mut message = vec![0; 16];
                if stream.read_exact(&mut message).is_err() {
                    return;
                }
                message.resize(usize::from(u16::from_be_bytes([message[2], message[3]])), 0);
                stream.read_exact(&mut message[16..]).expect("a whole message");
                records.read(&mut parser, &message);
            }
        });
        collector
    }

    fn read(&self, parser: &mut NetflowParser, message: &[u8]) {
        let parsed = parser.parse_bytes(message);
        assert!(parsed.error.is_none() && !parsed.packets.is_empty(), "{parsed:?}");
        for packet in parsed.packets {
            let NetflowPacket::IPFix(packet) = packet else { panic!("{packet:?}") };
            for set in packet.flowsets {
                if let FlowSetBody::Data(data) = set.body {
                    let named = |fields: Vec<(IPFixField, FieldValue)>| {
                        fields
                            .into_iter()
                            .filter_map(|(field, value)| Some((name(field), number(&value)?)))
                            .collect()
                    };
                    self.0.lock().expect("records").extend(data.fields.into_iter().map(named));
                }
            }
        }
    }

    /// Records of flows to `port`, of the original and of the reply direction.
    fn of(&self, port: u16) -> [Vec<Record>; 2] {
        let records = self.0.lock().expect("records");
        ["DestinationTransportPort", "SourceTransportPort"]
            .map(|end| records.iter().filter(|record| record[end] == u64::from(port)).cloned().collect())
    }

    fn sum(&self, port: u16, field: &str) -> u64 {
        self.of(port).iter().flatten().map(|record| record[field]).sum()
    }
}

fn name(field: IPFixField) -> String {
    match field {
        IPFixField::IANA(field) => format!("{field:?}"),
        IPFixField::Enterprise { enterprise_number: 32473, field_number } => format!("own{field_number}"),
        other => format!("{other:?}"),
    }
}

fn number(value: &FieldValue) -> Option<u64> {
    match value {
        FieldValue::DataNumber(DataNumber::U8(number)) => Some(u64::from(*number)),
        FieldValue::DataNumber(DataNumber::U16(number)) => Some(u64::from(*number)),
        FieldValue::DataNumber(DataNumber::U32(number)) => Some(u64::from(*number)),
        FieldValue::DataNumber(DataNumber::U64(number)) => Some(*number),
        FieldValue::Ip4Addr(address) => Some(u64::from(address.to_bits())),
        FieldValue::Vec(bytes) => Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))),
        _ => None,
    }
}

#[track_caller]
fn rounds(flow: &mut Flow, count: usize) {
    assert_eq!(flow.rounds(count), count, "{flow:?}");
}

/// Agents come and go in every way while flows go on, fast and slow ones, and one ends while none runs.
#[test]
fn nfcapd_gets_every_packet_once_over_restarts() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    bring_loopback_up(&topology.node);
    let run_dir = tempfile::tempdir().expect("a directory");
    let nfcapd = Nfcapd::start(&topology);
    let mut agent = start(&topology, run_dir.path(), &[UDP]);
    let mut fast = topology.open(Proto::Udp, Family::V4, 7001);
    let mut stream = topology.open(Proto::Tcp, Family::V6, 7002);
    let mut short = topology.open(Proto::Udp, Family::V6, 7003);
    let mut ending = topology.open(Proto::Udp, Family::V4, 7004);
    rounds(&mut short, 3);
    rounds(&mut ending, 40);
    let mut ended = None;
    for round in 0..2 {
        rounds(&mut fast, 60);
        rounds(&mut stream, 60);
        topology.assert_accelerated(&mut fast);
        thread::sleep(TWO_READINGS);
        match round {
            0 => drop(agent.stop()),
            // A reading may be under way, and records.
            _ => agent.kill(),
        }
        // Nothing counts but the kernel.
        rounds(&mut fast, 50);
        if round == 1 {
            rounds(&mut ending, 25);
            ended = Some(topology.counted(7004));
            topology.node.nft("flush table inet kindnet-fastpath");
            topology.node.output("conntrack", &["-D", "-p", "udp", "--dport", "7004"]);
        }
        // One that no agent knows.
        let mut between = topology.open(Proto::Udp, Family::V4, 7005 + round);
        rounds(&mut between, 5);
        agent = start(&topology, run_dir.path(), &[UDP]);
    }
    let expected: Vec<_> =
        [7001, 7002, 7003, 7005, 7006].map(|port| (port, topology.counted_in_the_end(port))).into();
    thread::sleep(TWO_READINGS);
    assert_eq!(agent.count("WARN"), 0, "{:?}", agent.log());
    agent.stop();
    assert!(run_dir.path().join("export.state").exists());
    agent::output(&topology.node, &["cleanup", &format!("--run-dir={}", run_dir.path().display())]);
    assert!(!run_dir.path().exists(), "nothing is left of it");
    let records = nfcapd.stop();
    for (port, counted) in expected {
        assert_eq!(by_nfdump(&records, port), counted, "port {port}");
    }
    assert_eq!(Some(by_nfdump(&records, 7004)), ended, "it ended while no agent ran");
    let fast: Vec<_> = records.iter().filter(|record| record["dst_port"] == 7001).collect();
    assert!(fast.len() >= 3, "the active time-out: {fast:#?}");
    assert_eq!(fast[0]["src4_addr"], "10.1.0.2");
    assert_eq!(fast[0]["src4_xlt_ip"], "10.2.0.1", "masqueraded");
}

/// Which path, which interfaces, and what the end of a connection says; after a time in which the collector's host refused.
#[test]
fn what_bypassed_is_told_by_the_elements_of_its_own() {
    let topology = Topology::build(Layout { nat: Nat::Masquerade, ..Layout::default() });
    bring_loopback_up(&topology.node);
    let run_dir = tempfile::tempdir().expect("a directory");
    let mut agent = start(&topology, run_dir.path(), &[UDP]);
    rounds(&mut topology.open(Proto::Udp, Family::V4, 7004), 5);
    agent.wait_for("flow records wait", LIMIT);
    let collector = Collector::udp(&topology);
    agent.wait_for("the collector can be reached again", LIMIT);
    assert_eq!(agent.count("WARN"), 1, "{:?}", agent.log());
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    for _ in 0..3 {
        rounds(&mut flow, 100);
        thread::sleep(TWO_READINGS);
    }
    let mut slow = topology.open(Proto::Udp, Family::V4, 7002);
    rounds(&mut slow, 5);
    let mut stream = topology.open(Proto::Tcp, Family::V4, 7003);
    rounds(&mut stream, 100);
    stream.close_gracefully();
    let closed = topology.counted_in_the_end(7003);
    wait_until("all records", LIMIT, || {
        collector.sum(7002, "PacketDeltaCount") == 10 && collector.sum(7003, "PacketDeltaCount") == closed.0
    });
    let (all, forwarded) = (topology.counted_in_the_end(7001).0, topology.forwarded(7001).total());
    assert_eq!(collector.sum(7001, "PacketDeltaCount"), all);
    assert_eq!(collector.sum(7001, "own2"), all - forwarded, "{forwarded} of {all} were forwarded");
    assert!(forwarded < 30);
    let bytes = collector.sum(7001, "OctetDeltaCount");
    assert_eq!(collector.sum(7001, "own1"), bytes / all * (all - forwarded), "all packets are of one size");
    assert_eq!(collector.sum(7002, "own2"), 0);
    let stream_fast = collector.sum(7003, "own2");
    let stream_slow = topology.forwarded(7003).total();
    assert!(
        stream_fast.abs_diff(closed.0 - stream_slow) <= 4,
        "{stream_fast}, {stream_slow} of {}",
        closed.0
    );
    let index = |name| {
        topology
            .node
            .output("ip", &["-o", "link", "show", name])
            .split(':')
            .next()
            .and_then(|n| n.parse::<u64>().ok())
    };
    let (c0, s0) = (index("c0").expect("c0"), index("s0").expect("s0"));
    let [original, reply] = collector.of(7001);
    for (records, ways) in [(&original, (c0, s0, 1)), (&reply, (s0, c0, 2))] {
        for record in records {
            let found = (record["IngressInterface"], record["EgressInterface"], record["BiflowDirection"]);
            assert_eq!(found, ways, "{record:?}");
        }
    }
    assert_eq!(original[0]["PostNatsourceIpv4address"], 0x0a02_0001, "{:?}", original[0]);
}

/// Over TCP nothing is lost for that; the log says it once, and the agent rests.
#[test]
fn a_collector_that_is_away_costs_nothing_and_gets_all_later() {
    let topology = Topology::routed();
    bring_loopback_up(&topology.node);
    let run_dir = tempfile::tempdir().expect("a directory");
    let mut agent = start(&topology, run_dir.path(), &[TCP, http::SERVE]);
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    agent.wait_for("flow records wait", LIMIT);
    let mut ended = topology.open(Proto::Udp, Family::V4, 7002);
    rounds(&mut ended, 5);
    topology.node.output("conntrack", &["-D", "-p", "udp", "--dport", "7002"]);
    topology.assert_accelerated(&mut flow);
    thread::sleep(TWO_READINGS);
    assert_eq!(agent.count("WARN"), 1, "{:?}", agent.log());
    let page = http::get(&topology.node, "/metrics").body;
    for line in
        ["fastpath_export_records_total 0", "fastpath_export_lost_records_total 0", "fastpath_export_up 0"]
    {
        assert!(page.contains(line), "{line} in {page}");
    }
    // Records that wait go on with the next agent.
    agent.kill();
    let collector = Collector::tcp(&topology);
    let mut agent = start(&topology, run_dir.path(), &[TCP, http::SERVE]);
    rounds(&mut flow, 10);
    let counted = topology.counted_in_the_end(7001);
    wait_until("all records", LIMIT, || {
        collector.sum(7001, "PacketDeltaCount") == counted.0 && collector.sum(7002, "PacketDeltaCount") == 10
    });
    assert_eq!(collector.sum(7001, "OctetDeltaCount"), counted.1);
    assert!(http::get(&topology.node, "/metrics").body.contains("fastpath_export_up 1"));
    assert!(agent.is_running());
    thread::sleep(TWO_READINGS);
    assert_eq!(collector.sum(7001, "PacketDeltaCount"), counted.0, "once");
}

/// Nothing counts at ingress then: conntrack does, and what isn't known isn't written.
#[test]
fn without_ebpf_conntrack_counts() {
    let topology = Topology::routed();
    bring_loopback_up(&topology.node);
    let run_dir = tempfile::tempdir().expect("a directory");
    let collector = Collector::udp(&topology);
    let run_dir = format!("--run-dir={}", run_dir.path().display());
    let times = ["--export-active-timeout=1s", "--export-inactive-timeout=1s"];
    let _agent = Agent::start(&topology.node, &[&times[..], &[UDP, &run_dir]].concat());
    thread::sleep(TWO_READINGS);
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let counted = topology.counted_in_the_end(7001);
    wait_until("all records", LIMIT, || collector.sum(7001, "PacketDeltaCount") == counted.0);
    assert_eq!(collector.sum(7001, "OctetDeltaCount"), counted.1);
    let [original, _] = collector.of(7001);
    assert!(
        original
            .iter()
            .all(|record| !record.contains_key("own1") && !record.contains_key("IngressInterface"))
    );
}
