//! What the log looks like, by `--log-format`, and that it says each thing once.

use std::{collections::BTreeMap, fs, os::unix::net::UnixDatagram, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    topology::Topology,
    wait_until,
};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

/// What every agent says first.
const FIRST: &str = "fastpath-agent ";

fn spawn(topology: &Topology, flags: &[&str]) -> Agent {
    Agent::spawn(&topology.node, &mut agent::command(&[&["--ebpf=off"], flags].concat()))
}

#[test]
fn json_is_an_object_a_line_and_nothing_is_said_twice() {
    let topology = Topology::routed();
    let mut agent = spawn(&topology, &["--log-format=json", "--hostname-override=n1"]);
    agent.wait_for(FIRST, Duration::from_secs(10));
    // Something happens, and then nothing.
    topology
        .node
        .ip("link add quiet0 type veth peer name quiet1\nlink set quiet0 up\nlink set quiet1 up\nlink del quiet0\n");
    std::thread::sleep(Duration::from_secs(3));
    let lines = agent.stop();
    let objects: Vec<BTreeMap<String, Value>> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}")))
        .collect();
    assert!(objects[0]["message"].as_str().is_some_and(|m| m.starts_with(FIRST)), "{:?}", objects[0]);
    assert_eq!((&objects[0]["node"], &objects[0]["level"]), (&"n1".into(), &"INFO".into()));
    assert!(objects.iter().all(|o| o.contains_key("timestamp")), "{lines:#?}");
    let last = objects.last().expect("lines");
    assert_eq!((&last["message"], &last["signal"]), (&"stopping".into(), &"SIGTERM".into()));
    let mut messages: Vec<_> = objects.iter().map(|o| o["message"].to_string()).collect();
    messages.sort();
    let count = messages.len();
    messages.dedup();
    assert_eq!(messages.len(), count, "said twice: {lines:#?}");
    assert!(count <= 4, "much is said: {lines:#?}");
}

#[test]
fn text_is_the_default_also_in_a_pipe() {
    let topology = Topology::routed();
    let mut agent = spawn(&topology, &[]);
    agent.wait_for(FIRST, Duration::from_secs(10));
    let lines = agent.stop();
    assert!(lines[0].contains(" INFO ") && !lines[0].starts_with('{'), "{lines:#?}");
}

/// Where systemd's journal would listen. The mount is this test's own.
fn journal() -> UnixDatagram {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount over /run");
    fs::create_dir_all("/run/systemd/journal").expect("a directory");
    let socket = UnixDatagram::bind("/run/systemd/journal/socket").expect("listen");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time limit");
    socket
}

/// Fields of one entry: `NAME=value`, or a name, the length (64 bits) and the value (systemd's native protocol).
fn entry(socket: &UnixDatagram) -> BTreeMap<String, String> {
    let mut buffer = vec![0; 65_536];
    let mut length = 0;
    // Before its first entry it asks with an empty one whether anybody is there.
    while length == 0 {
        length = socket.recv(&mut buffer).expect("an entry in the journal");
    }
    let mut rest = &buffer[..length];
    let mut fields = BTreeMap::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        if let Some((name, value)) = name.split_once('=') {
            fields.insert(name.to_owned(), value.to_owned());
            continue;
        }
        let (size, tail) = rest.split_at(8);
        let size = u64::from_le_bytes(size.try_into().expect("eight bytes")) as usize;
        fields.insert(name, String::from_utf8_lossy(&tail[..size]).into_owned());
        rest = &tail[size + 1..];
    }
    fields
}

#[test]
fn under_systemd_the_journal_gets_fields() {
    let topology = Topology::routed();
    let socket = journal();
    // As systemd starts it: the variable names standard error.
    let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /dev/stderr) exec \"$@\"";
    let binary = agent::binary();
    for (flags, found) in
        [(&["--log-format=journald"][..], true), (&[], true), (&["--log-format=text"], false)]
    {
        let mut command = agent::command(&[]);
        let mut shell = std::process::Command::new("sh");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        command = shell;
        command
            .args(["-c", script, "sh", &binary, "run", "--ebpf=off", "--hostname-override=n1"])
            .args(flags);
        let mut agent = Agent::spawn(&topology.node, &mut command);
        if found {
            let first = entry(&socket);
            assert!(first["MESSAGE"].starts_with(FIRST), "{first:#?}");
            for (name, value) in
                [("FASTPATH_NODE", "n1"), ("PRIORITY", "5"), ("SYSLOG_IDENTIFIER", "fastpath-agent")]
            {
                assert_eq!(first.get(name).map(String::as_str), Some(value), "{name} in {first:#?}");
            }
            assert!(agent.is_running());
        } else {
            agent.wait_for(FIRST, Duration::from_secs(10));
        }
        let on_stderr = agent.log();
        assert_eq!(on_stderr.is_empty(), found, "{flags:?}: {on_stderr:#?}");
        drop(agent);
        // What is left of it.
        socket.set_nonblocking(true).expect("a socket");
        let mut more = [0; 65_536];
        wait_until("the end of its entries", Duration::from_secs(5), || socket.recv(&mut more).is_err());
        socket.set_nonblocking(false).expect("a socket");
    }
}

/// A variable inherited from another service isn't about the agent; and without a journal that is one line.
#[test]
fn a_journal_that_is_not_there() {
    let topology = Topology::routed();
    let mut command = agent::command(&["--ebpf=off"]);
    command.env("JOURNAL_STREAM", "1:1");
    let mut agent = Agent::spawn(&topology.node, &mut command);
    agent.wait_for(FIRST, Duration::from_secs(10));
    agent.stop();
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount over /run");
    let output = agent::run(&topology.node, &["--ebpf=off", "--log-format=journald"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: cannot log to the journal") && said.contains("--log-format=text"),
        "{said}"
    );
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
}
