//! `cargo xtask run`: the agent on this node, or, where this kernel has no flowtable, the demonstration in the guest.

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    build::{self, Binaries},
    guest::{
        self,
        initramfs::Archive,
        kernels,
        qemu::{Machine, Processor},
        verdict::End,
    },
    process,
    setup::{self, Need},
};

/// What `cargo xtask run` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the agent on this node, also if its kernel has no flowtable.
    #[arg(long, conflicts_with = "guest")]
    host: bool,
    /// Show the demonstration in the test guest, also if this kernel has a flowtable.
    #[arg(long)]
    guest: bool,
    /// Which kernel the guest boots (see tests/kernels.toml); the newest if none is named.
    #[arg(long)]
    kernel: Option<String>,
    /// Run the guest with KVM instead of software emulation.
    #[arg(long)]
    kvm: bool,
    /// Flags for the agent.
    #[arg(last = true)]
    agent_flags: Vec<String>,
}

/// Booting not included.
const DEMONSTRATION_LIMIT: Duration = Duration::from_secs(300);

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(&[Need::Build])?;
    let binaries = build::with_program("demo")?;
    let agent = &binaries["fastpath-agent"];
    if options.host {
        return on_this_node(agent, &options.agent_flags);
    }
    if !options.guest && options.kernel.is_none() {
        let Some(reason) = lacks_flowtable(agent)? else {
            return on_this_node(agent, &options.agent_flags);
        };
        eprintln!("no flow can be offloaded on this node: {reason}");
        eprintln!("so this shows it in the test guest (`--host` runs the agent here anyway)");
    }
    in_guest(options, &binaries)
}

/// The agent in the foreground, as root.
fn on_this_node(agent: &Path, flags: &[String]) -> Result<ExitCode> {
    let mut command = as_root(agent)?;
    command.arg("run").args(flags);
    eprintln!("running {} (Ctrl-C ends it)", process::shown(&command));
    let status = command.status().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    // Ended by Ctrl-C: as the user wished.
    Ok(code.map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn as_root(program: &Path) -> Result<Command> {
    process::as_root(program)?.context(
        "the agent needs root, and sudo wants a password here: run `sudo -v` first, or use `--guest`",
    )
}

/// Why this kernel can't offload flows, if so: as the agent says it.
pub(crate) fn lacks_flowtable(agent: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Status {
        kernel: Kernel,
    }
    #[derive(Deserialize)]
    struct Kernel {
        nf_tables: Support,
        ct: Support,
        flowtable: Support,
        flow_offload: Support,
    }
    #[derive(Deserialize)]
    struct Support {
        /// None: it couldn't be told, and is worth trying.
        supported: Option<bool>,
        reason: Option<String>,
    }
    let mut command = as_root(agent)?;
    command.args(["status", "-o", "json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    // Its exit code says whether an agent runs here.
    let printed =
        command.output().with_context(|| format!("cannot run `{}`", process::shown(&command)))?.stdout;
    let Kernel { nf_tables, ct, flowtable, flow_offload } =
        serde_json::from_slice::<Status>(&printed).context("cannot read the agent's status")?.kernel;
    let missing = [nf_tables, ct, flowtable, flow_offload].into_iter().find(|it| it.supported == Some(false));
    Ok(missing.map(|it| it.reason.unwrap_or_else(|| "its kernel can't".to_owned())))
}

/// The demonstration, whose output is this program's.
fn in_guest(options: &Options, binaries: &Binaries) -> Result<ExitCode> {
    let wanted = guest::newest(options.kernel.as_deref())?;
    setup::ensure(&[Need::Guest(std::slice::from_ref(&wanted))])?;
    let kernel = kernels::cached(&wanted)?.context("set-up has fetched the kernel")?;
    let own = guest::own_directory(&kernel)?;
    let mut command = vec!["demo".to_owned()];
    command.extend(options.agent_flags.iter().cloned());
    let initramfs =
        guest::with_command(&kernel, &own.0, binaries, Archive::default(), &command, DEMONSTRATION_LIMIT)?;
    let log = guest::new_log(&format!("run-{}.log", kernel.name))?;
    let machine = Machine::new(&kernel, &initramfs, log, Processor::virtualised(options.kvm));
    eprintln!("booting Linux {} in QEMU (about 10 seconds)", kernel.release);
    match guest::execute(&machine, DEMONSTRATION_LIMIT)? {
        End::Exit(0) => Ok(ExitCode::SUCCESS),
        end => bail!("the demonstration failed: {end}; see {}", machine.log.display()),
    }
}
