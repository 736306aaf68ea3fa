//! Network namespaces without a name: they live as long as a file descriptor of theirs is open.
//!
//! Only the network namespace is entered, never a mount namespace: `ip netns exec` would hide `/sys/fs/bpf`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    panic,
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace. Clones share it; it goes away with the last one and the last process in it.
#[derive(Clone)]
pub struct Netns {
    name: &'static str,
    file: Arc<File>,
}

impl Netns {
    /// Makes a fresh namespace with loopback up and duplicate address detection off. `name` is for messages only.
    pub fn new(name: &'static str) -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root, to make a network namespace");
            File::open("/proc/thread-self/ns/net").expect("procfs")
        })
        .join()
        .expect("new network namespace");
        let ns = Self { name, file: Arc::new(file) };
        for scope in ["all", "default"] {
            ns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
            ns.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0");
            ns.sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), "0");
        }
        ns
    }

    /// The namespace of process 1, where settings are that all namespaces share.
    pub fn of_process_1() -> Self {
        Self::of_process("of process 1", 1)
    }

    /// The namespace of a process. It stays while the process or the returned value does.
    #[track_caller]
    pub fn of_process(name: &'static str, pid: u32) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).unwrap_or_else(|error| panic!("root, to see {path}: {error}"));
        Self { name, file: Arc::new(file) }
    }

    /// What the namespace is in its topology.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// A path by which `ip link … netns PATH` finds the namespace while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `f` on a thread inside the namespace. Sockets made and processes started there stay inside.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                    f()
                })
                .join()
        });
        result.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// Starts a process inside.
    #[track_caller]
    pub fn spawn(&self, command: &mut Command) -> Child {
        self.run(|| command.spawn())
            .unwrap_or_else(|error| panic!("{}: cannot start {command:?}: {error}", self.name))
    }

    /// Runs a command to its end, whatever that is.
    #[track_caller]
    pub fn try_run<S: AsRef<OsStr>>(&self, program: &str, args: &[S], stdin: &str) -> Output {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command);
        // A child that refuses its input closes the pipe; its exit status says the rest.
        let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
        child.wait_with_output().expect("wait for the child")
    }

    /// Runs a command that must succeed and gives its standard output.
    #[track_caller]
    pub fn output<S: AsRef<OsStr> + std::fmt::Debug>(&self, program: &str, args: &[S]) -> String {
        self.feed(program, args, "")
    }

    /// Runs many `ip` commands (one a line, without the word `ip`) as one process.
    #[track_caller]
    pub fn ip(&self, batch: &str) {
        self.feed("ip", &["-batch", "-"], batch);
    }

    /// Loads a script with `nft -f`, as one transaction.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        self.feed("nft", &["-f", "-"], script);
    }

    /// An interface's Ethernet address.
    #[track_caller]
    pub fn mac(&self, device: &str) -> [u8; 6] {
        let text = self.output("ip", &["-brief", "link", "show", device]);
        let bytes = text.split_whitespace().nth(2).unwrap_or_default().split(':');
        let bytes: Vec<u8> = bytes.filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.try_into().unwrap_or_else(|_| panic!("no Ethernet address in {text}"))
    }

    /// Writes a sysctl, named by its path below `/proc/sys`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/{key}"), value))
            .unwrap_or_else(|error| panic!("{}: sysctl {key} = {value}: {error}", self.name));
    }

    /// Runs a command that must succeed with `stdin` as its input, and gives its standard output.
    #[track_caller]
    pub fn feed<S: AsRef<OsStr> + std::fmt::Debug>(&self, program: &str, args: &[S], stdin: &str) -> String {
        let output = self.try_run(program, args, stdin);
        assert!(
            output.status.success(),
            "{}: {program} {args:?}: {}\n{}{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr),
            if stdin.is_empty() { String::new() } else { format!("input was:\n{stdin}") },
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
