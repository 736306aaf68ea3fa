//! The agent that runs in this network namespace, and the flags that it was started with.

use super::hostname;
use crate::{
    cli::{Cli, EbpfMode, RunArgs},
    config::{Config, Rules},
    core::{doctor::facts::Unread, flow::Node},
    invocation::{Invocation, InvocationError},
    kernel::{
        facts::{self, AgentProcess},
        flows::{self, FlowsError},
        why,
    },
};
use std::path::{Path, PathBuf};

/// What the flags say.
pub(super) struct Flags {
    pub(super) rules: Rules,
    pub(super) node: String,
    pub(super) without_ebpf: bool,
    pub(super) forward: bool,
    pub(super) pin_path: PathBuf,
    /// The part of an agent's flags that couldn't be read.
    pub(super) unread: Option<Unread>,
}

/// What flows are judged by, on this node and by the flags of the agent that runs here.
pub(super) async fn node(pin_path: &Path) -> Result<Node, FlowsError> {
    let config = running_config();
    flows::node(pin_path, config.as_ref().map(|config| &config.rules.selection)).await
}

/// The agent that runs in this network namespace.
pub(super) enum Running {
    /// With its configuration, and what of it couldn't be read.
    Known(AgentProcess, Box<Config>, Option<Unread>),
    /// With the reason why its flags can't be read.
    Unread(AgentProcess, String),
    /// There is none.
    None,
}

/// Looks for it.
pub(super) fn find() -> Running {
    for process in facts::agent_processes() {
        match started_with(&process) {
            Some(Ok(cli)) => {
                if let Some((config, unread)) = cli.agent().and_then(|run| checked(run.clone(), hostname())) {
                    return Running::Known(process, Box::new(config), unread);
                }
            }
            Some(Err(error)) => return Running::Unread(process, error),
            // It is about to end since its flags are wrong.
            None => {}
        }
    }
    Running::None
}

/// The configuration of the agent that runs here; `None` if none runs, or its flags can't be read.
pub(super) fn running_config() -> Option<Config> {
    match find() {
        Running::Known(_, config, _) => Some(*config),
        Running::Unread(..) | Running::None => None,
    }
}

/// What it was told of interfaces and rules.
pub(super) fn told(config: &Config) -> why::Flags<'_> {
    why::Flags {
        selection: &config.rules.selection,
        exclusions: &config.rules.exclusions,
        ignored: &config.rules.ignored,
        confined: false,
    }
}

/// The configuration of flags that an agent runs with, and what of it couldn't be read; `None` where it can't run with them.
fn checked(mut run: RunArgs, node: String) -> Option<(Config, Option<Unread>)> {
    // A mode that can't be read, or is wrong by now, isn't the one that it has: the flag is the next best.
    if run.mode_file.is_some() && Config::new(&run, node.clone()).is_err_and(|bad| bad.flag() == "mode-file")
    {
        run.mode_file = None;
    }
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
pub(super) fn running_agent_pid() -> Option<u32> {
    match find() {
        Running::Known(process, ..) | Running::Unread(process, _) => Some(process.pid),
        Running::None => None,
    }
}

/// The agent that runs here, and its flags; else doctor's own.
pub(super) fn running_agent(own: Flags) -> (Option<AgentProcess>, Flags) {
    match find() {
        Running::Known(process, config, unread) => {
            let flags = Flags {
                without_ebpf: config.ebpf == EbpfMode::Off,
                forward: config.forward,
                rules: config.rules,
                node: config.node,
                pin_path: config.pin_path,
                unread,
            };
            (Some(process), flags)
        }
        Running::Unread(process, error) => {
            (Some(process), Flags { unread: Some(Unread::Flags(error)), ..own })
        }
        Running::None => (None, own),
    }
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
