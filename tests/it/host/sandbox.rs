//! What a running agent can no longer do. Each is tried, by a process that has given up what the agent gives up.

use std::{
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    process::Command,
    thread,
    time::Duration,
};

use fastpath_agent::kernel::{
    Ruleset,
    confine::{self, Files, Restriction},
    nft::Nft,
};
use fastpath_tests::{
    agent::{self, Agent},
    emulated, http, map_executable,
    program::{Kind, RETURN_1, load},
    topology::Topology,
    wait_until,
};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Uid, getppid, setuid},
};

const LIMIT: Duration = Duration::from_secs(10);

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_raw(result.expect_err("it is forbidden").raw_os_error().expect("an error of the kernel"))
}

#[test]
fn what_is_forbidden_fails() {
    let kept = tempfile::tempdir().expect("a directory");
    let outside = tempfile::tempdir().expect("a directory").keep();
    confine::before_start().expect("given up");
    let files = Files::of_the_kernel().and_directory(kept.path());
    let (restriction, failures) = confine::when_started(&files);
    assert!(failures.is_empty(), "{failures:?}");

    // No other program, namespace, user or file system.
    assert_eq!(errno(Command::new("/bin/true").spawn()), Errno::ENOSYS);
    assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::ENOSYS));
    assert_eq!(setuid(Uid::from_raw(1)), Err(Errno::ENOSYS));
    let none: Option<&str> = None;
    assert_eq!(mount(none, kept.path(), Some("tmpfs"), MsFlags::empty(), none), Err(Errno::ENOSYS));
    // No signals to other processes.
    assert_eq!(kill(getppid(), Signal::SIGCONT), Err(Errno::ENOSYS));
    // No connection to another machine, and no further port.
    assert_eq!(errno(TcpStream::connect("127.0.0.1:9")), Errno::ENOSYS);
    assert_eq!(errno(TcpListener::bind("127.0.0.1:0")), Errno::ENOSYS);
    assert_eq!(errno(UdpSocket::bind("127.0.0.1:0")), Errno::ENOSYS);
    // No code but its own, in the process and in the kernel.
    assert_eq!(errno(map_executable()), Errno::ENOSYS);
    assert_eq!(errno(load(Kind::Tc, &RETURN_1)), Errno::ENOSYS);
    // No files but its own.
    if restriction.expect("restricted") == Restriction::None {
        assert!(!emulated(), "the guest's kernels have Landlock");
    } else {
        assert_eq!(errno(fs::write(outside.join("file"), "")), Errno::EACCES);
        assert_eq!(errno(File::open("/etc/passwd")), Errno::EACCES);
        assert_eq!(errno(fs::write("/proc/sys/net/ipv4/ip_forward", "0")), Errno::EACCES);
    }

    // What it needs goes on, in new threads too.
    fs::read("/proc/sys/net/ipv4/ip_forward").expect("settings can be read");
    drop(UnixListener::bind(kept.path().join("socket")).expect("a socket"));
    fs::remove_file(kept.path().join("socket")).expect("its own file");
    let observe = || Nft::open().and_then(|mut nft| nft.observe()).map(drop).expect("the ruleset");
    observe();
    thread::spawn(observe).join().expect("a thread");
}

/// TCP to the port of a collector, and to no other.
#[test]
fn only_the_collectors_port_is_open() {
    let topology = Topology::routed();
    http::bring_loopback_up(&topology.node);
    topology.node.run(|| {
        let collector = TcpListener::bind("127.0.0.1:4739").expect("a port");
        let other = TcpListener::bind("127.0.0.1:4740").expect("a port");
        confine::before_start().expect("given up");
        let files = Files::of_the_kernel().and_connections_to(4739);
        let (restriction, failures) = confine::when_started(&files);
        assert!(failures.is_empty(), "{failures:?}");
        drop(TcpStream::connect(collector.local_addr().expect("an address")).expect("allowed"));
        let elsewhere = TcpStream::connect(other.local_addr().expect("an address"));
        match restriction.expect("restricted") {
            // Landlock has rules for ports from Linux 6.7 on.
            Restriction::Full => assert_eq!(errno(elsewhere), Errno::EACCES),
            Restriction::Part | Restriction::None => {}
        }
        assert_eq!(errno(UdpSocket::bind("127.0.0.1:0")), Errno::ENOSYS);
    });
}

/// What `/proc` says of each thread of a process.
fn threads(pid: u32, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let value = |task: io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?.trim();
        Some(value.to_owned())
    };
    tasks.filter_map(value).collect()
}

/// Of all threads, whatever they were started for.
#[test]
fn an_agent_that_runs_holds_cap_net_admin_only() {
    const NET_ADMIN: &str = "0000000000001000";
    const NONE: &str = "0000000000000000";
    let topology = Topology::routed();
    http::bring_loopback_up(&topology.node);
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&[http::SERVE]));
    agent.wait_for("privileges given up", LIMIT);
    agent.wait_for_programs();
    http::get(&topology.node, "/metrics");
    let pid = agent.pid();
    wait_until("no thread with more than it needs", LIMIT, || {
        let all = |field, value: &str| threads(pid, field).iter().all(|has| has == value);
        all("CapEff", NET_ADMIN)
            && all("CapPrm", NET_ADMIN)
            && all("CapInh", NONE)
            && all("CapAmb", NONE)
            && all("NoNewPrivs", "1")
            && all("Seccomp", "2")
    });
    assert!(agent.is_running());
    assert_eq!(agent.count("WARN"), agent.count("nothing is offloaded"), "{:?}", agent.log());
}

/// For who has to debug it.
#[test]
fn off_leaves_everything() {
    let topology = Topology::routed();
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&["--sandbox=off"]));
    agent.wait_for_programs();
    let own = &threads(std::process::id(), "CapEff")[0];
    assert!(threads(agent.pid(), "CapEff").iter().all(|has| has == own));
    assert!(threads(agent.pid(), "Seccomp").iter().all(|mode| mode == "0"));
    assert_eq!(agent.count("privileges given up"), 0);
}

/// A file that only the superuser's rights made readable is said to be out of reach at the start, not at the reload.
#[test]
fn a_file_that_could_not_be_read_again_is_named() {
    use std::os::unix::fs::chown;
    let topology = Topology::routed();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("exclude");
    fs::write(&file, "port/53\n").expect("written");
    let flag = format!("--exclude-file={}", file.display());
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&[&flag]));
    agent.wait_for("privileges given up", LIMIT);
    agent.signal(Signal::SIGHUP);
    agent.wait_for("exclusions read again", LIMIT);
    assert_eq!(agent.count("can't be read again"), 0, "{:?}", agent.log());
    // As `ConfigMap`s and editors do it.
    let new = directory.path().join("new");
    fs::write(&new, "port/53\nport/80\n").expect("written");
    fs::rename(&new, &file).expect("replaced");
    agent.signal(Signal::SIGHUP);
    agent.wait_for("exclusions=2", LIMIT);
    agent.stop();

    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("closed");
    chown(&file, Some(1000), Some(1000)).expect("given away");
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&[&flag]));
    agent.wait_for("exclusions can't be read again", LIMIT);
}

/// Addresses and ports of all flows are in there.
#[test]
fn pins_are_for_root() {
    let topology = Topology::routed();
    let mut agent = Agent::spawn(&topology.node, &mut agent::command(&[]));
    agent.wait_for_programs();
    let mut pins = 0;
    for pin in fs::read_dir("/sys/fs/bpf/fastpath").expect("pins").map(|pin| pin.expect("a pin")) {
        let metadata = pin.metadata().expect("it is there");
        if metadata.is_file() {
            pins += 1;
            assert_eq!(metadata.permissions().mode() & 0o077, 0, "{}", pin.path().display());
        }
    }
    assert!(pins >= 6, "{pins} pins");
    let mut other = Command::new("setpriv");
    other.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    other.args([&agent::binary(), "flows"]);
    let output = topology.node.run(|| other.output()).expect("it runs");
    assert!(!output.status.success(), "{output:?}");
}
