//! `canary`, which `doctor` starts in a process of its own: flows through scratch namespaces, an outcome a line.

use std::process::ExitCode;

use super::{print, runtime};
use crate::{
    cli::RuleArgs,
    config::Rules,
    kernel::{canary, probe},
};

/// Runs it.
pub(super) fn run(args: &RuleArgs) -> anyhow::Result<ExitCode> {
    let kernel = probe::probe();
    let rules = Rules::try_from(args)?;
    let policy = rules.policy(kernel.flowtable_counter.is_supported(), kernel.rt_ipsec.is_supported());
    let mut outcome = Ok(());
    runtime()?.block_on(canary::run(&policy, |flow| {
        if outcome.is_ok() {
            outcome = serde_json::to_string(&flow)
                .map_err(Into::into)
                .and_then(|line| print(&(line + "\n")).map(drop));
        }
    }))?;
    outcome.map(|()| ExitCode::SUCCESS)
}
