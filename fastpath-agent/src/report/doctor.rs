//! `doctor`: has the facts read and judged, runs the canary, and prints the findings. Changes nothing on the node.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use serde::Serialize;

use super::rules::Bypassed;
use crate::{
    cli::{Cli, DoctorArgs, EbpfMode, RunArgs},
    config::{Config, Rules},
    core::doctor::{
        Finding, Level, examine,
        facts::{Canary, CanaryFlow, Unread},
        worst,
    },
    invocation::{Invocation, InvocationError},
    kernel::{
        canary,
        facts::{self, AgentProcess, Given, KernelName},
        links::{LinkError, Links},
        probe,
        surroundings::read_once,
    },
};

/// How long the canary may take; it is done in less than a second on real hardware.
const CANARY_LIMIT: Duration = Duration::from_secs(20);

/// What `doctor -o json` prints; fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of this node.
    pub node: String,
    /// Version of this program.
    pub version: &'static str,
    /// Release of the kernel.
    pub kernel: String,
    /// The worst of the findings.
    pub level: Level,
    /// What each check found.
    pub findings: Vec<Finding>,
    /// Rules of others that offloaded packets don't pass and that ask more than headers and connection.
    pub rules: Bypassed,
    /// The canary's flows, with their numbers; empty if none was sent.
    pub canary: Vec<CanaryFlow>,
}

/// Examines this node. `own` is what doctor's own flags say of the ruleset.
pub async fn report(args: &DoctorArgs, own: Rules, hostname: String) -> Result<Report, LinkError> {
    let kernel = probe::probe();
    let own = Flags {
        rules: own,
        node: hostname,
        without_ebpf: false,
        pin_path: args.pin_path.clone(),
        unread: None,
    };
    let (agent, mut flags) = running_agent(own);
    let ignores_known_bugs = flags.rules.ignore_known_bugs;
    // As the agent does it.
    flags.rules.heed(&KernelName::read().names());
    let (counter, ipsec) = (kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
    let mut policy = flags.rules.policy(counter, ipsec);
    let links = Links::open()?.list()?.into_iter().collect();
    policy.surroundings = read_once(&links, &flags.pin_path).0.surroundings(&flags.rules.ignored);
    let rules = Bypassed::of(policy.surroundings.rules.clone());
    let given = Given {
        policy,
        ignores_known_bugs,
        chooses_threshold: flags.rules.threshold_auto,
        without_ebpf: flags.without_ebpf,
        pin_path: flags.pin_path,
        unread: flags.unread,
        agent,
    };
    let facts = facts::gather(given, &kernel).await?;
    let canary = if args.no_canary {
        Canary::NotWanted
    } else if let Some(reason) = kernel.lacks_flowtable() {
        Canary::Failed(reason.to_owned())
    } else {
        send_canary()
    };
    let findings = examine(&facts, &canary);
    Ok(Report {
        node: flags.node,
        version: env!("CARGO_PKG_VERSION"),
        kernel: facts.kernel.release,
        level: worst(&findings),
        findings,
        rules,
        canary: match canary {
            Canary::Flows(flows) => flows,
            Canary::NotWanted | Canary::Failed(_) => Vec::new(),
        },
    })
}

fn send_canary() -> Canary {
    // Nobody has to wonder what takes so long; scripts want no chatter.
    let progress = |text: &str| {
        if io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "{text}");
        }
    };
    progress("canary: flows through scratch namespaces on this kernel:");
    let outcome =
        canary::run_in_child(CANARY_LIMIT, |flow| progress(&format!(" {}/{}", flow.protocol, flow.family)));
    progress(if outcome.is_ok() { ", done\n" } else { " failed\n" });
    match outcome {
        Ok(flows) => Canary::Flows(flows),
        Err(why) => Canary::Failed(why),
    }
}

/// What the flags say.
struct Flags {
    rules: Rules,
    node: String,
    without_ebpf: bool,
    pin_path: PathBuf,
    /// What of an agent's flags couldn't be had.
    unread: Option<Unread>,
}

/// The configuration of the agent that runs here; `None` if none runs, or its flags can't be read.
pub(super) fn running_config() -> Option<Config> {
    facts::agent_processes().iter().find_map(|process| {
        let Cli { command: None, run, .. } = started_with(process)?.ok()? else { return None };
        checked(run, String::new()).map(|(config, _)| config)
    })
}

/// The configuration of flags that an agent runs with, and what of it couldn't be read; `None` where it can't run with them.
fn checked(mut run: RunArgs, node: String) -> Option<(Config, Option<Unread>)> {
    match Config::new(&run, node.clone()) {
        Ok(config) => Some((config, None)),
        // It was right at the start.
        Err(bad) if run.rules.exclude_file.take().is_some() => {
            Some((Config::new(&run, node).ok()?, Some(Unread::Exclusions(bad.to_string()))))
        }
        Err(_) => None,
    }
}

/// The process of the agent that runs here.
pub fn running_agent_pid() -> Option<u32> {
    let is_agent = |process: &AgentProcess| match started_with(process) {
        Some(Ok(cli)) => cli.command.is_none(),
        Some(Err(_)) => true,
        None => false,
    };
    facts::agent_processes().into_iter().find(is_agent).map(|process| process.pid)
}

/// The agent that runs here, and its flags; else doctor's own.
fn running_agent(own: Flags) -> (Option<AgentProcess>, Flags) {
    for process in facts::agent_processes() {
        let run = match started_with(&process) {
            Some(Ok(Cli { command: None, run, .. })) => run,
            Some(Err(error)) => {
                return (Some(process), Flags { unread: Some(Unread::Flags(error)), ..own });
            }
            // Another subcommand, or one that is about to end since its flags are wrong.
            Some(Ok(_)) | None => continue,
        };
        let Some((config, unread)) = checked(run, own.node.clone()) else { continue };
        let flags = Flags {
            without_ebpf: config.ebpf == EbpfMode::Off,
            rules: config.rules,
            node: config.node,
            pin_path: config.pin_path,
            unread,
        };
        return (Some(process), flags);
    }
    (None, own)
}

/// The flags that a process was started with, or why they can't be read; `None` where they are wrong.
fn started_with(process: &AgentProcess) -> Option<Result<Cli, String>> {
    let (arguments, environment) = match &process.started_with {
        Ok(words) => words,
        Err(error) => return Some(Err(error.to_string())),
    };
    match Invocation::of_another(arguments, environment, &|path| process.path(path)) {
        Ok(invocation) => Some(Ok(invocation.cli)),
        Err(InvocationError::File(error)) => Some(Err(error.to_string())),
        Err(InvocationError::CommandLine(_)) => None,
    }
}

/// The report as text.
pub struct Text<'r> {
    /// What is printed.
    pub report: &'r Report,
    /// With colours.
    pub colour: bool,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { node, version, kernel, level, findings, .. } = self.report;
        writeln!(f, "{node}: Linux {kernel}, fastpath-agent {version}\n")?;
        let check_width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        for finding in findings {
            let subject = finding.subject.as_ref().map(|subject| format!("{subject}: ")).unwrap_or_default();
            let check = finding.check;
            writeln!(f, "{}  {check:check_width$}  {subject}{}", self.mark(finding.level), finding.found)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "{:7}{:check_width$}  -> {remedy}", "", "")?;
            }
        }
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (red, amber, green) = (count(Level::Red), count(Level::Amber), count(Level::Green));
        writeln!(f, "\n{}  {red} red, {amber} amber, {green} green", self.mark(*level))
    }
}

impl Text<'_> {
    /// The level's name, which says it without colours too.
    fn mark(&self, level: Level) -> String {
        let name = format!("{:5}", level.name());
        let colour = match level {
            Level::Green => "32",
            Level::Amber => "33",
            Level::Red => "1;31",
        };
        if self.colour { format!("\x1b[{colour}m{name}\x1b[0m") } else { name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_levels_with_and_without_colours() {
        let finding = |level, remedy: Option<&str>| Finding {
            check: "forwarding",
            subject: Some("ipv4".to_owned()),
            level,
            found: "off".to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let report = Report {
            rules: Bypassed::of(Vec::new()),
            node: "n1".to_owned(),
            version: "0",
            kernel: "6.12".to_owned(),
            level: Level::Red,
            findings: vec![finding(Level::Green, None), finding(Level::Red, Some("switch it on"))],
            canary: Vec::new(),
        };
        assert_eq!(
            Text { report: &report, colour: false }.to_string(),
            "n1: Linux 6.12, fastpath-agent 0\n\n\
             green  forwarding  ipv4: off\n\
             red    forwarding  ipv4: off\n                   -> switch it on\n\n\
             red    1 red, 0 amber, 1 green\n"
        );
        let coloured = Text { report: &report, colour: true }.to_string();
        assert!(
            coloured.contains("\x1b[1;31mred  \x1b[0m") && coloured.contains("\x1b[32mgreen\x1b[0m"),
            "{coloured}"
        );
    }
}
