//! The agent as a process in the node's namespace: its log, its signals, its exit.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Netns, wait_until};

/// How long the agent may take to its first reconcile, in the emulator with its eBPF side.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running agent. Killed when dropped.
pub struct Agent {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

/// The agent's binary: `FASTPATH_AGENT`, or where the test guest has it.
pub fn binary() -> String {
    std::env::var("FASTPATH_AGENT").unwrap_or_else(|_| "/usr/bin/fastpath-agent".to_owned())
}

/// An agent whose maps have another layout, where the test guest has it.
pub const OTHER_MAPS: &str = "/usr/bin/fastpath-agent-other-maps";

/// The agent as a command, with nothing of this process's settings in its environment. It serves no metrics unless `args`
/// say so: loopback is down in most namespaces.
pub fn command(args: &[&str]) -> Command {
    command_of(&binary(), args)
}

/// The same of this agent. Without a subcommand the words are flags of `run`.
pub fn command_of(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    if args.first().is_none_or(|word| word.starts_with("--")) {
        command.arg("run");
    }
    command.args(args);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FASTPATH_") || name == "NODE_NAME")
    {
        command.env_remove(name);
    }
    command.env("FASTPATH_METRICS_BIND_ADDRESS", "");
    command
}

/// Runs the agent, or a subcommand of it, to its end.
#[track_caller]
pub fn run(node: &Netns, args: &[&str]) -> Output {
    run_of(&binary(), node, args)
}

fn run_of(program: &str, node: &Netns, args: &[&str]) -> Output {
    let mut command = command_of(program, args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    node.spawn(&mut command).wait_with_output().expect("wait for the agent")
}

/// Runs a subcommand that must succeed and gives its standard output.
#[track_caller]
pub fn output(node: &Netns, args: &[&str]) -> String {
    output_of(&binary(), node, args)
}

/// The same of this agent. `status` may end with 1 or 3: where the agent is degraded or doesn't run.
#[track_caller]
pub fn output_of(program: &str, node: &Netns, args: &[&str]) -> String {
    let output = run_of(program, node, args);
    let errors = String::from_utf8_lossy(&output.stderr);
    let allowed: &[i32] = if args.first() == Some(&"status") { &[0, 1, 3] } else { &[0] };
    let has_worked = output.status.code().is_some_and(|code| allowed.contains(&code));
    assert!(has_worked, "{program} {args:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Waits until these interfaces, and no others, have a program of the agent's.
#[track_caller]
pub fn wait_for_programs(node: &Netns, expected: &[&str]) {
    wait_for_programs_of(&binary(), node, expected);
}

/// The same by the word of this agent: those of other versions don't read its maps.
#[track_caller]
pub fn wait_for_programs_of(program: &str, node: &Netns, expected: &[&str]) {
    programs(program, node, expected, "/sys/fs/bpf/fastpath");
}

/// The same of an agent with pins of its own.
#[track_caller]
pub fn wait_for_programs_at(node: &Netns, expected: &[&str], pin_path: &std::path::Path) {
    programs(&binary(), node, expected, &pin_path.display().to_string());
}

#[track_caller]
fn programs(program: &str, node: &Netns, expected: &[&str], pin_path: &str) {
    let pin_path = format!("--pin-path={pin_path}");
    let expected: BTreeSet<String> = expected.iter().map(|&device| device.to_owned()).collect();
    wait_until(&format!("programs on just {expected:?}"), Duration::from_secs(15), || {
        let status = output_of(program, node, &["status", "-o", "json", &pin_path]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("the agent prints JSON");
        let attachments = status["ebpf"]["attachments"].as_array().into_iter().flatten();
        expected == attachments.filter_map(|a| a["name"].as_str().map(str::to_owned)).collect()
    });
}

impl Agent {
    /// Starts the agent without its eBPF side and waits until the ruleset is installed.
    #[track_caller]
    pub fn start(node: &Netns, args: &[&str]) -> Self {
        let mut all = vec!["--ebpf=off"];
        all.extend(args);
        Self::start_with(node, &all)
    }

    /// Starts the agent with just these arguments and waits until the ruleset is installed, and until the programs are loaded or
    /// the agent has said that they can't be.
    #[track_caller]
    pub fn start_with(node: &Netns, args: &[&str]) -> Self {
        Self::start_of(&binary(), node, args)
    }

    /// The same of this agent.
    #[track_caller]
    pub fn start_of(program: &str, node: &Netns, args: &[&str]) -> Self {
        let mut agent = Self::spawn(node, &mut command_of(program, args));
        agent.wait_for_ruleset();
        if !args.contains(&"--ebpf=off") {
            agent.wait_for_programs();
        }
        agent
    }

    /// Waits until the first reconcile is done.
    #[track_caller]
    pub fn wait_for_ruleset(&mut self) {
        self.wait_for("ruleset verified", START_LIMIT);
    }

    /// Waits until the programs are on all links, or the agent has said that they can't be. Before Linux 6.6 a link may lose packets
    /// while it gets its first.
    #[track_caller]
    pub fn wait_for_programs(&mut self) {
        wait_until("the programs", START_LIMIT, || {
            assert!(self.is_running(), "{}", self.log().join("\n"));
            self.count("flows are watched") + self.count("flows are not watched") > 0
        });
    }

    /// Whether it hasn't ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for the agent").is_none()
    }

    /// Starts it and waits for nothing.
    #[track_caller]
    pub fn spawn(node: &Netns, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = node.spawn(command);
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().expect("log").push(line);
            }
        });
        Self { child, log }
    }

    /// All lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("log").clone()
    }

    /// Number of lines so far that have `text` in them.
    pub fn count(&self, text: &str) -> usize {
        self.log.lock().expect("log").iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for a line with `text` in it; says how long it took.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Duration {
        self.wait_for_count(text, 1, limit)
    }

    /// Waits for the `count`-th line with `text` in it.
    #[track_caller]
    pub fn wait_for_count(&mut self, text: &str, count: usize, limit: Duration) -> Duration {
        let start = Instant::now();
        while self.count(text) < count {
            let ended = self.child.try_wait().expect("wait for the agent");
            assert!(
                start.elapsed() < limit && ended.is_none(),
                "no {text:?} in the agent's log within {limit:?} ({}):\n{}",
                ended.map_or("still running".to_owned(), |status| status.to_string()),
                self.log().join("\n"),
            );
            thread::sleep(Duration::from_millis(10));
        }
        start.elapsed()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the agent runs");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the agent's exit", limit, || {
            status = self.child.try_wait().expect("wait for the agent");
            status.is_some()
        });
        status.expect("waited for")
    }

    /// Stops it with SIGTERM, which must take less than a second.
    #[track_caller]
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit(Duration::from_secs(1));
        assert!(status.success(), "{status} on SIGTERM:\n{}", self.log().join("\n"));
        self.log()
    }

    /// Kills it with SIGKILL.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().expect("wait for the agent");
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "it ended before the signal");
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that its threads have used so far, to the nanosecond.
    pub fn cpu_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the agent runs");
        let used = |thread: std::io::Result<std::fs::DirEntry>| {
            // One that has ended meanwhile has none.
            let stat = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            stat.split_whitespace().next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(threads.filter_map(used).sum())
    }

    /// How often it went to sleep so far, which is how often it was woken.
    pub fn wake_ups(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the agent runs");
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        switches.expect("proc(5)").trim().parse().expect("a number")
    }
}

impl Agent {
    /// Waits until it uses no processor time for half a second.
    #[track_caller]
    pub fn wait_until_idle(&self) {
        let mut before = Duration::MAX;
        wait_until("the agent at rest", Duration::from_secs(15), || {
            thread::sleep(Duration::from_millis(500));
            std::mem::replace(&mut before, self.cpu_time()) == self.cpu_time()
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the agent's log\n{}", self.log().join("\n"));
        }
    }
}
