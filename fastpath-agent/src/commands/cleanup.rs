//! `cleanup`: removes everything that the agent ever installed on this node.

use std::process::ExitCode;

use super::{print, running::running_agent_pid};
use crate::{cli::CleanupArgs, daemon::cleanup};

/// Runs it, and warns of an agent that will put it back.
pub(super) fn run(args: &CleanupArgs) -> anyhow::Result<ExitCode> {
    print(&cleanup::cleanup(&args.pin_path, &args.run_dir)?.to_string())?;
    if let Some(pid) = running_agent_pid() {
        eprintln!(
            "warning: an agent runs here (process {pid}) and puts it back: stop it, and clean up again"
        );
    }
    Ok(ExitCode::SUCCESS)
}
