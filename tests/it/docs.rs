//! Commands in the documents: each is run on a node with an agent and traffic, ends as its page says, and prints the lines that
//! the page shows, whatever the numbers in them are.
//!
//! Text behind `$ ` in blocks of language `console` is run, if it is a program of [`PROGRAMS`]. Commands of other
//! programs (kubectl, docker, cargo) can't run in the guest.

use std::{env, fs, os::unix::fs::symlink, process::Command, time::Duration};

use fastpath_tests::{
    agent::{self, Agent},
    document::{self, Documented},
    netns::Netns,
    terminal::Terminal,
    topology::{Family, Layout, Nat, Topology},
    traffic::{Background, Flow, Proto},
};

/// What can be run in the guest.
const PROGRAMS: [&str; 8] = ["fastpath-agent", "nft", "conntrack", "bpftool", "ip", "tc", "ls", "sysctl"];

/// How long a command may take.
const LIMIT: &str = "25";
/// How long one that would go on for ever is watched.
const WATCHED: &str = "2";

/// Time between two rounds of a flow: `why` sees some in its second, and the emulated processor has time for the commands.
const PAUSE: Duration = Duration::from_millis(50);

/// A test for each page with commands: a node of its own, since commands change it.
macro_rules! pages {
    ($($name:ident: $path:literal),+ $(,)?) => {
        /// All of them, with their text.
        const PAGES: &[(&str, &str)] = &[$(($path, include_str!(concat!("../../", $path)))),+];
        $(
            #[test]
            fn $name() {
                Node::new().run_page($path);
            }
        )+
    };
}

// fastpath-agent/tests/documents.rs sees to it that every page with such commands is here.
pages! {
    readme: "README.md",
    doctor: "docs/doctor.md",
    flows: "docs/flows.md",
    overview: "docs/overview.md",
    policy: "docs/policy.md",
    quickstart: "docs/quickstart.md",
    security: "docs/security.md",
    top: "docs/top.md",
    troubleshooting: "docs/troubleshooting.md",
    upgrade: "docs/upgrade.md",
    why: "docs/why.md",
}

/// The node that the pages speak of: 10.1.0.2 has a TCP connection to the service 10.96.0.1:443, which is 10.2.0.2, and
/// fd00:1::2 sends UDP to [fd00:96::1]:53 and has answers; both are offloaded. 10.1.0.2:40002 sends to 10.2.0.2:514 and has none.
struct Node {
    agent: Option<Agent>,
    /// A path by which `fastpath-agent` is found.
    path: String,
    _flows: Vec<Background>,
    _one_way: Flow,
    topology: Topology,
}

impl Node {
    fn new() -> Self {
        let topology = Topology::build(Layout { nat: Nat::Service, ..Layout::default() });
        topology.node.ip("link set lo up\n");
        let agent = Agent::start_with(&topology.node, &[]);
        agent::wait_for_programs(&topology.node, &["c0", "s0"]);
        let flow = |proto, from: &str, dial, listen| {
            let (client, server) = (&topology.client().ns, &topology.server().ns);
            Flow::open_from(proto, client, from.parse().expect("address"), server, dial, listen)
        };
        let (v4, v6) = (Family::V4, Family::V6);
        let mut flows = [
            flow(Proto::Tcp, "10.1.0.2:40000", topology.service_at(v4, 443), topology.server_at(v4, 443)),
            flow(Proto::Udp, "[fd00:1::2]:40000", topology.service_at(v6, 53), topology.server_at(v6, 53)),
        ];
        for flow in &mut flows {
            assert_eq!(flow.rounds(50), 50, "{flow:?}");
            assert!(
                topology.marked_offloaded(flow.port()),
                "{flow:?}: {:?}",
                topology.conntrack(flow.port())
            );
        }
        let mut one_way =
            flow(Proto::Udp, "10.1.0.2:40002", topology.server_at(v4, 514), topology.server_at(v4, 514));
        for _ in 0..30 {
            assert!(one_way.request());
        }
        topology.client().ns.output("ping", &["-c", "2", "-i", "0.2", "10.2.0.2"]);
        Self {
            agent: Some(agent),
            path: path_with_the_agent(),
            _flows: flows.map(|flow| flow.in_background_every(PAUSE)).into(),
            _one_way: one_way,
            topology,
        }
    }

    fn ns(&self) -> &Netns {
        &self.topology.node
    }

    /// Runs the commands of a page, but those that an earlier page has too and that show no output.
    #[track_caller]
    fn run_page(mut self, path: &str) {
        let place = PAGES.iter().position(|(name, _)| *name == path).expect("one of the pages");
        let earlier: Vec<Documented> = PAGES[..place].iter().flat_map(|(_, text)| to_run(text)).collect();
        for command in to_run(PAGES[place].1) {
            if command.output.iter().all(|line| line.is_empty())
                && earlier.iter().any(|other| bare(other) == bare(&command))
            {
                continue;
            }
            if let Err(wrong) = self.run(&command) {
                panic!("{path}:{}: $ {}\n{wrong}", command.line, command.text);
            }
        }
    }

    fn run(&mut self, command: &Documented) -> Result<(), String> {
        let calls = command.calls("fastpath-agent");
        if let [words] = calls.as_slice() {
            let has = |word: &str| {
                words.iter().any(|found| found == word || found.starts_with(&format!("{word}=")))
            };
            if words.first().is_some_and(|word| word == "run") && !["--help", "--once"].iter().any(|w| has(w))
            {
                return self.replace_agent(&command.text);
            }
            if words[0] == "top" {
                return self.look_at_top(words);
            }
            if has("--watch") || has("--follow") && !has("--limit") {
                return self.shell(&command.text, WATCHED, 124, &command.output);
            }
        }
        self.shell(&command.text, LIMIT, command.exit_code(), &command.output)
    }

    fn shell(&self, text: &str, limit: &str, code: i32, shown: &[String]) -> Result<(), String> {
        let mut command = Command::new("timeout");
        command.args(["--signal=INT", "--kill-after=5", limit, "bash", "-o", "pipefail", "-c", text]);
        command.env("PATH", &self.path);
        let output = self.ns().run(|| command.output()).map_err(|error| error.to_string())?;
        let printed =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.code() != Some(code) {
            return Err(format!(
                "exit code {code} was promised, it ended with {}:\n{printed}",
                output.status
            ));
        }
        let mut lines = printed.lines().map(shape);
        for line in shown.iter().map(|line| shape(line)).filter(|line| !line.is_empty() && line != "…") {
            let is = |found: String| match line.strip_suffix('…') {
                Some(start) => found.starts_with(start),
                None => found == line,
            };
            if !lines.any(is) {
                return Err(format!("the page shows\n{line}\nwhich isn't (or not there) in\n{printed}"));
            }
        }
        Ok(())
    }

    /// The agent with other flags: in place of the one that runs.
    fn replace_agent(&mut self, text: &str) -> Result<(), String> {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec {text}")]).env("PATH", &self.path);
        let mut agent = Agent::spawn(self.ns(), &mut command);
        agent.wait_for("ruleset verified", Duration::from_secs(20));
        if !text.contains("--ebpf=off") {
            agent.wait_for_programs();
        }
        self.agent = Some(agent);
        Ok(())
    }

    fn look_at_top(&self, words: &[String]) -> Result<(), String> {
        let binary = agent::binary();
        let program: Vec<&str> =
            [binary.as_str()].into_iter().chain(words.iter().map(String::as_str)).collect();
        let mut terminal = Terminal::run(self.ns(), &program, 24, 80);
        terminal.wait_for("the flow on the screen", Duration::from_secs(15), |lines| {
            lines.iter().any(|line| line.contains("10.1.0.2:40000"))
        });
        terminal.press("q");
        let status = terminal.wait_exit(Duration::from_secs(10));
        if status.success() { Ok(()) } else { Err(status.to_string()) }
    }
}

/// The commands of a page that can be run here.
fn to_run(text: &str) -> Vec<Documented> {
    let all = document::commands(text, &PROGRAMS);
    let found: Vec<Documented> =
        all.into_iter().filter(|command| command.runs && PROGRAMS.contains(&command.program())).collect();
    assert!(!found.is_empty(), "a page without commands");
    found
}

/// A command without its comment.
fn bare(command: &Documented) -> &str {
    command.text.split("  #").next().unwrap_or_default().trim_end()
}

/// `PATH` with a directory in front in which the agent has its name.
fn path_with_the_agent() -> String {
    let directory = env::temp_dir().join(format!("docs-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    symlink(agent::binary(), directory.join("fastpath-agent")).expect("a link");
    format!("{}:{}", directory.display(), env::var("PATH").unwrap_or_default())
}

/// A line without what differs from run to run: each number is `#`, any space is one blank.
fn shape(line: &str) -> String {
    let mut shape = String::new();
    let mut number = false;
    for word in line.split_whitespace() {
        if !shape.is_empty() {
            shape.push(' ');
            number = false;
        }
        for c in word.chars() {
            if c.is_ascii_digit() || number && matches!(c, '.' | ',') {
                if !number {
                    shape.push('#');
                }
                number = true;
            } else {
                number = false;
                shape.push(c);
            }
        }
    }
    shape
}
