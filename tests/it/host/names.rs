//! Names of devices, tables, chains and comments of nearly any bytes, as the kernel allows them: nothing that is printed can do
//! anything to a terminal, forge a line or a label, or stop being JSON.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    time::Duration,
};

use fastpath_tests::{
    agent::{self, Agent},
    http::{self, SERVE, bring_loopback_up},
    netns::Netns,
    terminal::Terminal,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};
use serde_json::Value;

use super::ebpf::setup::Bpffs;

/// Of devices: what turns the screen red, a control of eight bits, one of Unicode's, and a mark that turns the direction of writing.
const DEVICES: [(&[u8], &str); 5] = [
    (b"\x1b[31mred", r"\x1b[31mred"),
    (b"a\"}\\b", r"a\x22}\\b"),
    (b"c1\xc2\x9b2J", r"c1\u{9b}2J"),
    (b"not\xff\x9btext", r"not\xff\x9btext"),
    (b"bi\xe2\x80\xaedi", r"bi\u{202e}di"),
];
/// Of a table, a chain, another one, and a comment: also ends of lines.
const TABLE: &[u8] = b"t\nFORGED 1\r\x1b]0;owned\x07";
const CHAIN: &[u8] = b"c\xff\"}\n# FORGED \\";
const LED_TO: &[u8] = b"c\xfe\"}\n# FORGED \\";
const COMMENT: &[u8] = b"say \"hi\"\nlevel=FORGED \x1b[2J\xe2\x80\xae\xff";

/// One message of nfnetlink.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    const REQUEST_ACK: u16 = 1 | 4;
    let length = 20 + attributes.len() as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend([kind, REQUEST_ACK | flags].map(u16::to_ne_bytes).concat());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn named(kind: u16, name: &[u8]) -> Vec<u8> {
    attribute(kind, &[name, &[0]].concat())
}

fn list(kind: u16, inside: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | 0x8000, &inside.concat())
}

/// An instruction in a rule's list (`NFTA_LIST_ELEM`): its name and its data.
fn instruction(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    list(1, &[named(1, name.as_bytes()), list(2, data)])
}

/// Makes the table, which `nft` couldn't: a rule with a limit in a chain of the forward hook, with the comment, and one that jumps
/// to the other chain, which has another such rule.
fn add_table(node: &Netns) {
    const INET: u8 = 1;
    const CREATE: u16 = 0x400;
    let number = |kind: u16, value: u32| attribute(kind, &value.to_be_bytes());
    let table = named(1, TABLE);
    let new =
        |kind: u16, attributes: &[Vec<u8>]| message(10 << 8 | kind, CREATE, INET, 0, &attributes.concat());
    // Over a million packets a second, which no test sends.
    let [rate, second] = [1_000_000_u64, 1].map(u64::to_be_bytes);
    let limit = instruction("limit", &[attribute(1, &rate), attribute(2, &second), number(5, 1)]);
    let verdict =
        |verdict: &[Vec<u8>]| instruction("immediate", &[number(1, 0), list(2, &[list(2, verdict)])]);
    let jump = verdict(&[number(1, -3_i32 as u32), named(2, LED_TO)]);
    let comment = [&[0, COMMENT.len() as u8 + 1], COMMENT, &[0]].concat();
    let rule = |chain: &[u8], instructions: &[Vec<u8>]| {
        new(6, &[table.clone(), named(2, chain), list(4, instructions), attribute(7, &comment)])
    };
    let hook = list(4, &[number(1, 2), number(2, 0)]);
    transaction(
        node,
        &[
            new(0, std::slice::from_ref(&table)),
            new(3, &[table.clone(), named(3, CHAIN), hook, named(7, b"filter")]),
            new(3, &[table.clone(), named(3, LED_TO)]),
            rule(CHAIN, &[limit.clone(), jump]),
            rule(LED_TO, &[limit, verdict(&[number(1, 0)])]),
        ],
    );
}

/// Makes a table of that name with a flowtable of this name and with these devices: a kernel with flowtables is needed.
pub(crate) fn add_flowtable(node: &Netns, name: &[u8], devices: &[&[u8]]) {
    let new = |kind: u16, attributes: &[Vec<u8>]| message(10 << 8 | kind, 0x400, 1, 0, &attributes.concat());
    let devices: Vec<_> = devices.iter().map(|device| named(1, device)).collect();
    let zero = |kind: u16| attribute(kind, &0_u32.to_be_bytes());
    let hook = list(3, &[zero(1), zero(2), list(3, &devices)]);
    let table = named(1, TABLE);
    transaction(node, &[new(0, std::slice::from_ref(&table)), new(22, &[table, named(2, name), hook])]);
}

/// Sends changes of the ruleset, each of which must be acknowledged.
fn transaction(node: &Netns, changes: &[Vec<u8>]) {
    let batch = [&[message(0x10, 0, 0, 10, &[])], changes, &[message(0x11, 0, 0, 10, &[])]].concat();
    node.run(|| {
        let kind = SockProtocol::NetlinkNetFilter;
        let socket: OwnedFd =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kind).expect("a socket");
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("to the kernel");
        send(socket.as_raw_fd(), &batch.concat(), MsgFlags::empty()).expect("a batch");
        let mut answer = [0; 4096];
        let mut answers = 0;
        while let Ok(length @ 20..) = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
            assert_eq!(errno, 0, "answer {answers} of {length} bytes");
            answers += 1;
        }
        assert!(answers >= changes.len(), "each is acknowledged");
    });
}

fn add_devices(node: &Netns) {
    for (number, (name, _)) in DEVICES.iter().enumerate() {
        let peer = format!("peer{number}");
        let words = ["link", "add", "name"].map(OsStr::new).into_iter().chain([OsStr::from_bytes(name)]);
        let words: Vec<&OsStr> =
            words.chain(["type", "veth", "peer", "name", &peer].map(OsStr::new)).collect();
        node.output("ip", &words);
        for end in [OsStr::from_bytes(name), OsStr::new(&peer)] {
            node.output("ip", &[OsStr::new("link"), OsStr::new("set"), end, OsStr::new("up")]);
        }
    }
}

/// No raw control, of either kind, nothing that isn't text, and no line or label of another's making.
#[track_caller]
pub(crate) fn harmless<'a>(what: &str, output: &'a [u8]) -> &'a str {
    let text = str::from_utf8(output).unwrap_or_else(|e| panic!("{what}: {e}: {}", output.escape_ascii()));
    let bad = |c: &char| {
        c.is_control() && !matches!(c, '\n' | '\t')
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}'..='\u{200f}')
    };
    if let Some(found) = text.chars().find(bad) {
        panic!("{what} has {found:?}:\n{}", output.escape_ascii());
    }
    for line in text.lines() {
        let start = line.trim_start_matches(['#', ' ', '\t']);
        assert!(!start.starts_with("FORGED") && !start.starts_with("level=FORGED"), "{what}: {line}");
    }
    text
}

/// The view of interfaces of `top`, on a terminal, has this name as text, and the terminal got none of the sequences that are names.
#[track_caller]
pub(crate) fn assert_harmless_on_a_terminal(node: &Netns, arguments: &[&str], shown: &str) {
    let program = agent::binary();
    let mut top = Terminal::run(node, &[&[program.as_str()], arguments].concat(), 40, 120);
    top.wait_for("top", Duration::from_secs(10), |lines| lines[0].starts_with("fastpath "));
    top.press("\t");
    top.wait_for("the interfaces", Duration::from_secs(10), |lines| {
        lines.iter().any(|line| line.contains(shown))
    });
    top.press("q");
    top.wait_exit(Duration::from_secs(5));
    let written = top.written();
    let has = |sequence: &[u8]| written.windows(sequence.len()).any(|window| window == sequence);
    for (name, _) in DEVICES {
        // Escape sequences are whole in what the terminal gets, however little else of a line is drawn again.
        let start = name.iter().position(|byte| *byte == 0x1b || *byte >= 0x80);
        let sequence = start.map_or(name, |start| &name[start..]);
        assert!(!has(sequence), "the terminal got {}", sequence.escape_ascii());
    }
    assert!(!has(b"\x1b]") && !has(b"\xc2\x9b") && !has(b"\xe2\x80\xae"), "{}", written.escape_ascii());
}

#[test]
fn hostile_names_do_nothing_to_whoever_reads_them() {
    let topology = Topology::routed();
    let node = &topology.node;
    let bpffs = Bpffs::mount();
    bring_loopback_up(node);
    add_devices(node);
    add_table(node);
    let pin_path = format!("--pin-path={}", bpffs.pin_path().display());
    let flags = [SERVE, &pin_path, "--fastpath-threshold=0", "--v=5"];
    let agent = Agent::spawn(node, &mut agent::command(&flags));
    wait_until("the port", Duration::from_secs(15), || http::try_get(node, "/healthz", "").is_ok());
    // One that comes while the agent runs, and changes of the ruleset by others.
    node.output("ip", &["link", "add", "name", "late\u{9b}2J", "type", "veth", "peer", "name", "late"]);
    node.nft("table ip quiet { chain c { type filter hook forward priority 5; }; }");
    let mut flow = topology.open(Proto::Tcp, Family::V4, 7000);
    flow.rounds(30);
    let words = flow.words();

    let mut told = String::new();
    let commands: [&[&str]; 9] = [
        &["status", &pin_path],
        &["status", &pin_path, "-o", "json"],
        &["doctor", &pin_path],
        &["doctor", &pin_path, "-o", "json"],
        &["flows", &pin_path],
        &["flows", &pin_path, "-o", "json"],
        &["render"],
        &["why", &words[0], &words[1], &words[2]],
        &["why", &words[0], &words[1], &words[2], "-o", "json"],
    ];
    for command in commands {
        let output = agent::run(node, command);
        let what = command.join(" ");
        harmless(&what, &output.stderr);
        let text = harmless(&what, &output.stdout);
        assert!(!text.is_empty(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        if command.contains(&"json") {
            for line in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
                line.unwrap_or_else(|error| panic!("{what}: {error}\n{text}"));
            }
        }
        told.push_str(text);
    }
    assert_harmless_on_a_terminal(node, &["top", &pin_path], r"\x1b[31mred");
    for format in ["", "Accept: application/openmetrics-text\r\n"] {
        let page = http::try_get(node, "/metrics", format).expect("metrics");
        for line in harmless("/metrics", page.body.as_bytes()).lines() {
            assert!(
                line.starts_with("# ") || line.starts_with("fastpath_") || line.starts_with("process_"),
                "{line}"
            );
        }
    }
    let log = agent.stop();
    harmless("the log", log.join("\n").as_bytes());
    assert!(log.len() < 200, "much is said: {log:#?}");

    // And yet they are told, each as another one.
    for (name, shown) in DEVICES {
        assert!(told.contains(shown), "{}: nothing tells of {shown}:\n{told}", name.escape_ascii());
    }
    for shown in
        [r"t\x0aFORGED 1\x0d\x1b]0;owned\x07", r"c\xff\x22}\x0a# FORGED \\", r"c\xfe\x22}\x0a# FORGED \\"]
    {
        assert!(told.contains(shown), "nothing tells of {shown}:\n{told}");
    }
    assert!(told.contains(r"say \x22hi\x22\x0alevel=FORGED \x1b[2J\u{202e}\xff"), "{told}");
}

/// Such a comment, and such a chain, can be named: as they are shown, or as they are.
#[test]
fn rules_with_hostile_names_can_be_ignored() {
    let topology = Topology::routed();
    let node = &topology.node;
    add_table(node);
    let followed = |flags: &[&str]| {
        let output = agent::run(node, &[&["doctor", "-o", "json", "--no-canary"], flags].concat());
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report.to_string()
    };
    let by_comment = r"--ignore-rule=say \x22hi\x22\x0alevel=FORGED \x1b[2J\u{202e}\xff";
    assert_ne!(followed(&[]), followed(&[by_comment]));
    assert_eq!(followed(&["--ignore-rule=all"]), followed(&[by_comment]));
}
