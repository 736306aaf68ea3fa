//! `doctor`: has the facts read and judged, runs the canary, and prints the findings. Changes nothing on the node.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use serde::Serialize;

use super::rules::Bypassed;
use crate::{
    cli::{DoctorArgs, Output},
    commands::{
        hostname, print, print_json,
        running::{Flags, running_agent, running_config},
        runtime,
    },
    config::Rules,
    core::{
        doctor::{
            Finding, Level, examine,
            facts::{Canary, CanaryFlow},
            worst,
        },
        peer,
    },
    kernel::{
        canary,
        facts::{self, Given, KernelName},
        lengths,
        links::{LinkError, Links},
        probe,
        surroundings::read_once,
    },
};

/// Runs `doctor`; fails quietly if a finding is red, or amber with `--strict`.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if args.advise {
        // Links are read within a runtime.
        return runtime()?.block_on(async { advise(args) });
    }
    let report = runtime()?.block_on(report(args, Rules::try_from(&args.rules)?, hostname()))?;
    match args.output {
        Output::Text => {
            let colour =
                io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            print(&Text { report: &report, colour, all: args.all }.to_string())?;
        }
        Output::Json => drop(print_json(&report)?),
    }
    let good = report.level <= if args.strict { Level::Green } else { Level::Amber };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

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
    /// Other programs' rules that offloaded packets bypass and that check more than headers and connection.
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
        forward: false,
        pin_path: args.pin_path.clone(),
        unread: None,
    };
    let (agent, mut flags) = running_agent(own);
    let ignores_known_bugs = flags.rules.ignore_known_bugs;
    // As the agent does it.
    flags.rules.avoid_known_bugs(&KernelName::read().names());
    let (counter, ipsec) = (kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
    let mut policy = flags.rules.policy(counter, ipsec);
    let links = Links::open()?.list()?.into_iter().collect();
    let known = read_once(&links, &flags.pin_path).0;
    policy.surroundings = known.surroundings(&flags.rules.ignored);
    let rules = Bypassed::of(policy.surroundings.rules.clone());
    let given = Given {
        policy,
        ignores_known_bugs,
        chooses_threshold: flags.rules.threshold_auto,
        without_ebpf: flags.without_ebpf,
        forward: flags.forward.then(|| peer::chains(&known)),
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

/// What this node would gain.
fn advise(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    const REMEDY: &str = "no flows were counted here: let `fastpath-agent run --mode=watch` watch them for a while (it \
                          offloads nothing)";
    let config = running_config();
    let pin_path = config.as_ref().map_or(&args.pin_path, |config| &config.pin_path);
    let addresses = Links::open()?.addresses()?;
    let lengths = lengths::read(pin_path, &addresses).context(REMEDY)?;
    let prospect = lengths.prospect().context(REMEDY)?;
    match args.output {
        Output::Text => print(&prospect.to_string()),
        Output::Json => print_json(&prospect),
    }
}

fn send_canary() -> Canary {
    // A user sees what takes so long; scripts get no chatter.
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

/// The report as text.
pub struct Text<'r> {
    /// What is printed.
    pub report: &'r Report,
    /// With colours.
    pub colour: bool,
    /// With what is green.
    pub all: bool,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { node, version, kernel, level, findings, .. } = self.report;
        writeln!(f, "{node}: Linux {kernel}, fastpath-agent {version}\n")?;
        let check_width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
        let shown = |level| findings.iter().filter(move |finding| finding.level == level);
        let green = if self.all { None } else { Some(Level::Green) };
        let listed =
            [Level::Red, Level::Amber, Level::Green].into_iter().filter(|level| Some(*level) != green);
        for finding in listed.flat_map(shown) {
            let subject = finding.subject.as_ref().map(|subject| format!("{subject}: ")).unwrap_or_default();
            let check = finding.check;
            writeln!(f, "{}  {check:check_width$}  {subject}{}", self.mark(finding.level), finding.found)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "{:7}{:check_width$}  -> {remedy}", "", "")?;
            }
        }
        if green.is_some() {
            let mut fine: Vec<&str> = shown(Level::Green).map(|finding| finding.check).collect();
            fine.dedup();
            if !fine.is_empty() {
                writeln!(
                    f,
                    "{}  {:check_width$}  {} (--all says more)",
                    self.mark(Level::Green),
                    "fine",
                    fine.join(", ")
                )?;
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
            Text { report: &report, colour: false, all: true }.to_string(),
            "n1: Linux 6.12, fastpath-agent 0\n\n\
             red    forwarding  ipv4: off\n                   -> switch it on\n\
             green  forwarding  ipv4: off\n\n\
             red    1 red, 0 amber, 1 green\n"
        );
        let short = Text { report: &report, colour: false, all: false }.to_string();
        assert!(short.contains("\ngreen  fine        forwarding (--all says more)\n"), "{short}");
        let coloured = Text { report: &report, colour: true, all: true }.to_string();
        assert!(
            coloured.contains("\x1b[1;31mred  \x1b[0m") && coloured.contains("\x1b[32mgreen\x1b[0m"),
            "{coloured}"
        );
    }
}
