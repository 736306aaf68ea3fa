//! Nothing reads the log any more. The agent doesn't wait for a reader, says afterwards how much is missing, and ends when told to.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use fastpath_tests::{
    agent, table,
    topology::{Family, Topology},
    traffic::Proto,
    wait_until,
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LOST: &str = "log lines were dropped here";

/// An agent whose standard error is this, with its ruleset in place.
fn start(topology: &Topology, stderr: OwnedFd, format: &str) -> Child {
    let mut command = agent::command(&["--ebpf=off", "--v=5", format]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    let child = topology.node.spawn(&mut command);
    wait_until("its table", Duration::from_secs(10), || !table::devices(&topology.node).is_empty());
    // What it says of that is written by then.
    thread::sleep(Duration::from_millis(300));
    child
}

/// Links that come are served, traffic goes on, and the agent ends at once when it is told to, though `stalled`.
fn assert_goes_on(topology: &Topology, links: &[&str]) {
    let node = &topology.node;
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    topology.assert_becomes_accelerated(&mut flow);
    let background = flow.in_background();
    let mut expected = vec!["c0", "s0"];
    for link in links {
        node.ip(&format!("link add {link} type dummy\nlink set {link} up\n"));
        expected.push(link);
        table::wait_for_devices(node, &expected, Duration::from_secs(1));
    }
    let (mut flow, _) = background.stop_intact();
    topology.assert_accelerated(&mut flow);
}

fn assert_ends(mut child: Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
    let mut status = None;
    wait_until("its end", Duration::from_secs(1), || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

/// Writes until nothing fits any more.
fn fill(mut writer: impl Write) -> usize {
    let (mut filled, junk) = (0, [b'x'; 4096]);
    for size in [junk.len(), 1] {
        while let Ok(written) = writer.write(&junk[..size]) {
            filled += written;
        }
    }
    filled
}

/// A stream of each kind: the end that is read, the one that is written, and one more to fill it with.
fn assert_not_waited_for(
    reader: impl Read + Send,
    writer: OwnedFd,
    filler: OwnedFd,
    fill: impl Fn(OwnedFd) -> usize,
) {
    let topology = Topology::routed();
    let child = start(&topology, writer, "--log-format=text");
    let filled = fill(filler);
    assert!(filled > 1000, "{filled} bytes fitted in");
    assert_goes_on(&topology, &["d0", "d1"]);
    // It is read again.
    let mut reader = io::BufReader::new(reader);
    let mut junk = vec![0; filled];
    let (before, text) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            reader.read_exact(&mut junk[..1]).expect("what was said first");
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("the rest");
            let after = text.rfind("xxxx").map_or(0, |at| at + 4);
            (after, text)
        });
        thread::sleep(Duration::from_millis(200));
        topology.node.ip("link add d2 type dummy\nlink set d2 up\n");
        table::wait_for_devices(&topology.node, &["c0", "d0", "d1", "d2", "s0"], Duration::from_secs(1));
        assert_ends(child);
        reader.join().expect("the reader")
    });
    let lines: Vec<_> = text[before..].lines().map(|line| line.trim_start_matches('x')).collect();
    assert!(lines[0].contains(" WARN ") && lines[0].contains(LOST), "{lines:#?}");
    assert!(lines.last().is_some_and(|line| line.contains("stopping")), "the last word: {lines:#?}");
    assert_eq!(lines.iter().filter(|line| line.contains(LOST)).count(), 1, "{lines:#?}");
}

#[test]
fn a_pipe() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let filler = writer.try_clone().expect("a descriptor").into();
    assert_not_waited_for(reader, writer.into(), filler, |filler| {
        // Opened again: the agent's descriptor has to be one that waits.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&filler));
        let flags = nix::libc::O_NONBLOCK;
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
        fill(options.append(true).open(path).expect("the pipe"))
    });
}

#[test]
fn a_socket() {
    let (reader, writer) = UnixStream::pair().expect("sockets");
    let filler = writer.try_clone().expect("a descriptor").into();
    assert_not_waited_for(reader, writer.into(), filler, |filler: OwnedFd| {
        let filler = UnixStream::from(filler);
        filler.set_nonblocking(true).expect("a socket");
        let filled = fill(&filler);
        // It is the agent's too.
        filler.set_nonblocking(false).expect("a socket");
        filled
    });
}

/// systemd's journal holds its socket open while it is stopped, restarted, or waits for its disk.
#[test]
fn the_journal() {
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("mount over /run");
    fs::create_dir_all("/run/systemd/journal").expect("a directory");
    let path = "/run/systemd/journal/socket";
    let journal = UnixDatagram::bind(path).expect("listen");
    let topology = Topology::routed();
    let (_reader, writer) = io::pipe().expect("a pipe");
    let reading = journal.try_clone().expect("a socket");
    reading.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let child = thread::scope(|scope| {
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let mut entry = [0; 4096];
            while is_done.try_recv().is_err() {
                // Time limits included.
                let _ = reading.recv(&mut entry);
            }
        });
        let child = start(&topology, writer.into(), "--log-format=journald");
        done.send(()).expect("the reader");
        child
    });
    let filler = UnixDatagram::unbound().expect("a socket");
    filler.set_nonblocking(true).expect("a socket");
    let filled = (0..10_000).take_while(|_| filler.send_to(b"x", path).is_ok()).count();
    assert!((1..10_000).contains(&filled), "{filled}");
    assert_goes_on(&topology, &["d0", "d1"]);
    assert_ends(child);
}
