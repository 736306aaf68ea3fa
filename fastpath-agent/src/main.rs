//! Entry point of the agent: parses, dispatches, and turns errors into one line and an exit code.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use fastpath_agent::{
    cli::{
        CleanupArgs, Cli, Command, DEFAULT_PIN_PATH, DoctorArgs, FlowsArgs, Output, RevokeArgs, RuleArgs,
        StatusArgs, TopArgs, WhyArgs,
    },
    config::{BadValue, Config, Rules},
    core::{
        doctor::Level,
        link::table::LinkTable,
        printable::printable,
        ruleset::desired::{self, Policy},
        why::{BadFlow, FlowSpec},
    },
    daemon,
    invocation::{Invocation, InvocationError},
    kernel::{self, links::Links},
    logging, pages, report,
};

/// Exit code for a wrong flag or value (`EX_USAGE`, sysexits.h).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(InvocationError::CommandLine(error)) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
        Err(InvocationError::File(error)) => {
            eprintln!("error: {error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    let cli = &invocation.cli;
    let result = match &cli.command {
        None => run(cli),
        Some(Command::Render(args)) => render(args),
        Some(Command::Status(args)) => status(args),
        Some(Command::Flows(args)) => flows(args),
        Some(Command::Top(args)) => top(args),
        Some(Command::Revalidate) => revalidate(),
        Some(Command::Revoke(args)) => revoke(args),
        Some(Command::Why(args)) => match why(args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Some(Command::Doctor(args)) => match doctor(args) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
        Some(Command::Canary(args)) => canary(args),
        Some(Command::Pages { directory }) => pages::write(directory)
            .with_context(|| format!("cannot write man pages to {}", directory.display())),
        Some(Command::Cleanup(args)) => cleanup(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let place = error.downcast_ref().and_then(|bad| invocation.place(bad));
            let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
            logging::say(&format!("error: {place}{}\n", one_line(&error)));
            if error.is::<BadValue>() || error.is::<BadFlow>() {
                eprintln!("\nFor more information, try '--help'.");
                return ExitCode::from(EX_USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; a cause that the error's own text has already isn't said again.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |line, cause| {
        if line.contains(&cause) { line } else { format!("{line}: {cause}") }
    })
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let config = Config::new(&cli.run, hostname())?;
    logging::start(config.log_format, config.verbosity)?;
    let kernel = kernel::probe::probe();
    runtime()?.block_on(daemon::run(config, &kernel))?;
    Ok(())
}

fn render(args: &RuleArgs) -> anyhow::Result<()> {
    let rules = Rules::try_from(args)?;
    let links: LinkTable = runtime()?.block_on(async { Links::open()?.list() })?.into_iter().collect();
    let (known, report) = kernel::surroundings::read_once(&links, Path::new(DEFAULT_PIN_PATH));
    for failure in report.failures {
        eprintln!("warning: {failure}");
    }
    let surroundings = known.surroundings(&rules.ignored);
    let policy = Policy { surroundings, ..rules.policy(true, true) };
    print(&report::render::ruleset(&desired::desired(&policy, links.iter(), &Default::default())))
}

fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let status = runtime()?.block_on(report::status::gather(hostname(), &args.pin_path))?;
    match args.output {
        Output::Text => print(&status.to_string()),
        Output::Json => print(&(serde_json::to_string_pretty(&status)? + "\n")),
    }
}

fn flows(args: &FlowsArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let shown = if args.follow {
        report::follow::follow(args, &mut out)
    } else {
        runtime()?.block_on(report::flows::show(args, &mut out))
    };
    shown.or_else(|error| match error {
        report::flows::ShowError::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Err(other.into()),
    })
}

fn top(args: &TopArgs) -> anyhow::Result<()> {
    runtime()?.block_on(report::top::show(args, &hostname()))?;
    Ok(())
}

fn revalidate() -> anyhow::Result<()> {
    print(&daemon::revalidate::by_hand()?.to_string())
}

fn revoke(args: &RevokeArgs) -> anyhow::Result<()> {
    print(&daemon::revoke::revoke(args)?.to_string())
}

/// Whether the flow was found.
fn why(args: &WhyArgs) -> anyhow::Result<bool> {
    let flow = FlowSpec::parse(&args.protocol, &args.source, &args.destination)?;
    let (text, found) = runtime()?.block_on(report::why::show(args, &flow))?;
    print(&text).map(|()| found)
}

/// Prints the report; whether it is good enough.
fn doctor(args: &DoctorArgs) -> anyhow::Result<bool> {
    let report =
        runtime()?.block_on(report::doctor::report(args, Rules::try_from(&args.rules)?, hostname()))?;
    match args.output {
        Output::Text => {
            let colour =
                io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            print(&report::doctor::Text { report: &report, colour }.to_string())?;
        }
        Output::Json => print(&(serde_json::to_string_pretty(&report)? + "\n"))?,
    }
    Ok(report.level <= if args.strict { Level::Green } else { Level::Amber })
}

/// Prints an outcome a line.
fn canary(args: &RuleArgs) -> anyhow::Result<()> {
    let kernel = kernel::probe::probe();
    let rules = Rules::try_from(args)?;
    let policy = rules.policy(kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
    let mut outcome = Ok(());
    runtime()?.block_on(kernel::canary::run(&policy, |flow| {
        if outcome.is_ok() {
            outcome = serde_json::to_string(&flow).map_err(Into::into).and_then(|line| print(&(line + "\n")));
        }
    }))?;
    outcome
}

fn cleanup(args: &CleanupArgs) -> anyhow::Result<()> {
    print(&daemon::cleanup::cleanup(&args.pin_path, &args.run_dir)?.to_string())?;
    if let Some(pid) = report::doctor::running_agent_pid() {
        eprintln!(
            "warning: an agent runs here (process {pid}) and puts it back: stop it, and clean up again"
        );
    }
    Ok(())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Metrics are read beside the loop; nothing is left of that a moment later.
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .context("cannot start the event loop")
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .map(|name| printable(name.as_encoded_bytes()).into_owned())
        .unwrap_or_else(|_| "localhost".to_owned())
}

/// Prints to standard output; a reader that has gone away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
