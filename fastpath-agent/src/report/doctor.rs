//! `doctor`: has the facts read and judged, runs the canary, and prints the findings. Changes nothing on the node.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, CommandFactory, FromArgMatches, builder::Resettable};
use serde::Serialize;

use crate::{
    cli::{Cli, DoctorArgs, EbpfMode},
    config::{Config, Rules},
    core::doctor::{
        Finding, Level, examine,
        facts::{Canary, CanaryFlow},
        worst,
    },
    kernel::{
        canary,
        facts::{self, AgentProcess, Given, KernelName},
        links::LinkError,
        probe,
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
        unknown: None,
    };
    let (agent, mut flags) = running_agent(own);
    let ignores_known_bugs = flags.rules.ignore_known_bugs;
    // As the agent does it.
    flags.rules.heed(&KernelName::read().names());
    let (counter, ipsec) = (kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
    let given = Given {
        policy: flags.rules.policy(counter, ipsec),
        ignores_known_bugs,
        without_ebpf: flags.without_ebpf,
        pin_path: flags.pin_path,
        flags_unknown: flags.unknown,
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
    /// Why an agent's flags couldn't be had.
    unknown: Option<String>,
}

/// The configuration of the agent that runs here; `None` if none runs, or its flags can't be read.
pub(super) fn running_config() -> Option<Config> {
    facts::agent_processes().iter().find_map(|process| {
        let (arguments, environment) = process.started_with.as_ref().ok()?;
        let Cli { command: None, run } = parse(arguments, environment)? else { return None };
        Config::new(&run, String::new()).ok()
    })
}

/// The agent that runs here, and its flags; else doctor's own.
fn running_agent(own: Flags) -> (Option<AgentProcess>, Flags) {
    for process in facts::agent_processes() {
        let (arguments, environment) = match &process.started_with {
            Ok(words) => words,
            Err(error) => {
                let unknown = Some(error.to_string());
                return (Some(process), Flags { unknown, ..own });
            }
        };
        // Another subcommand, or one that is about to end since its flags are wrong.
        let Some(Cli { command: None, run }) = parse(arguments, environment) else { continue };
        let Ok(config) = Config::new(&run, own.node.clone()) else { continue };
        let flags = Flags {
            without_ebpf: config.ebpf == EbpfMode::Off,
            rules: config.rules,
            node: config.node,
            pin_path: config.pin_path,
            unknown: None,
        };
        return (Some(process), flags);
    }
    (None, own)
}

/// The flags that a process was started with: its command line, and its environment for what that doesn't say. This
/// process's own environment is of no account.
fn parse(arguments: &[String], environment: &[String]) -> Option<Cli> {
    let command = Cli::command();
    let mut arguments = arguments.to_vec();
    for argument in command.get_arguments() {
        let (Some(variable), Some(long)) = (argument.get_env(), argument.get_long()) else { continue };
        let flag = format!("--{long}");
        let given = arguments.iter().any(|word| {
            word.strip_prefix(&flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        });
        let variable = format!("{}=", variable.to_str()?);
        let Some(value) = environment.iter().find_map(|entry| entry.strip_prefix(&variable)) else {
            continue;
        };
        match argument.get_action() {
            _ if given => {}
            // Switches take no value on the command line; what clap's boolish parser takes for no isn't given.
            ArgAction::SetTrue => {
                let no = ["", "n", "no", "f", "false", "off", "0"];
                if !no.iter().any(|no| value.eq_ignore_ascii_case(no)) {
                    arguments.push(flag);
                }
            }
            _ => arguments.push(format!("{flag}={value}")),
        }
    }
    let matches =
        command.mut_args(|argument| argument.env(Resettable::Reset)).try_get_matches_from(arguments).ok()?;
    Cli::from_arg_matches(&matches).ok()
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

    fn flags(arguments: &[&str], environment: &[&str]) -> Option<Cli> {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        parse(&owned(arguments), &owned(environment))
    }

    #[test]
    fn flags_of_a_process_are_its_command_line_and_then_its_environment() {
        let environment = [
            "PATH=/bin",
            "FASTPATH_THRESHOLD=9",
            "FASTPATH_EBPF=off",
            "FASTPATH_INTERFACES=a*,b*",
            "FASTPATH_TAKEOVER=true",
        ];
        let cli = flags(&["fastpath-agent", "--fastpath-threshold=6"], &environment).expect("valid");
        assert!(cli.command.is_none());
        assert_eq!(cli.run.rules.fastpath_threshold, "6");
        assert_eq!(cli.run.rules.interfaces, ["a*", "b*"]);
        assert_eq!(cli.run.ebpf, EbpfMode::Off);
        assert!(cli.run.takeover);
        assert!(!flags(&["fastpath-agent"], &["FASTPATH_TAKEOVER=No"]).expect("valid").run.takeover);
        let cli = flags(&["fastpath-agent", "--fastpath-threshold", "7"], &environment).expect("valid");
        assert_eq!(cli.run.rules.fastpath_threshold, "7");
        assert!(flags(&["fastpath-agent", "status"], &[]).expect("valid").command.is_some());
        assert!(flags(&["fastpath-agent", "--no-such-flag"], &[]).is_none());
    }

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
