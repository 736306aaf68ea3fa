//! Flags and subcommands as clap parses them, raw. Validation is `config`'s.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, builder::BoolishValueParser};

/// Moves established flows of this node onto the kernel's flowtable, so that their packets bypass the normal
/// forwarding path.
#[derive(Debug, Parser)]
#[command(
    name = "fastpath-agent",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  fastpath-agent                                      accelerate flows of more than 20 packets on all interfaces
  fastpath-agent --fastpath-threshold=6 --v=2         the same from the 7th packet on, with more log
  fastpath-agent --exclude-interfaces='docker*'       leave some interfaces out
  fastpath-agent render | nft -c -f -                 see and check the ruleset without installing it
  fastpath-agent status                               what is installed, on which interfaces, and why not on others
  fastpath-agent cleanup                              remove all that the agent ever installed

Every flag can be set by the environment variable that its help names; flags win.
The ruleset stays when the agent stops, and acceleration with it (see --cleanup-on-exit)."
)]
pub struct Cli {
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of the agent itself.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the ruleset that would be installed, as `nft -f` takes it; touches nothing
    #[command(after_help = "Examples:
  fastpath-agent render --fastpath-threshold=6
  fastpath-agent render | nft -c -f -                 have the kernel check it")]
    Render(RuleArgs),
    /// Show what is installed, interface by interface, and what this kernel can do
    #[command(after_help = "Examples:
  fastpath-agent status
  fastpath-agent status -o json | jq .kernel.flowtable")]
    Status(StatusArgs),
    /// Remove the table, the eBPF programs and the pinned maps that the agent made, and nothing else
    Cleanup(CleanupArgs),
}

/// Flags that decide what the ruleset looks like.
#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// Offload a flow once more than this many of its packets were seen, both directions counted; 0 switches
    /// offloading off
    #[arg(
        long,
        value_name = "PACKETS",
        default_value = "20",
        env = "FASTPATH_THRESHOLD",
        allow_hyphen_values = true
    )]
    pub fastpath_threshold: String,
    /// Take only interfaces that match this glob (repeatable, commas separate; the default is all that are up, without
    /// loopback)
    #[arg(long, value_name = "GLOB", env = "FASTPATH_INTERFACES", value_delimiter = ',')]
    pub interfaces: Vec<String>,
    /// Leave out interfaces that match this glob (repeatable, commas separate; wins over --interfaces)
    #[arg(long, value_name = "GLOB", env = "FASTPATH_EXCLUDE_INTERFACES", value_delimiter = ',')]
    pub exclude_interfaces: Vec<String>,
    /// Priority of the chain in the forward hook. The default comes after the node's filter chains, so that only what
    /// they accept is offloaded; -110 is where kindnet's document has it, before them
    #[arg(
        long,
        value_name = "PRIORITY",
        default_value = "300",
        env = "FASTPATH_CHAIN_PRIORITY",
        allow_hyphen_values = true
    )]
    pub chain_priority: String,
    /// Let network cards forward offloaded flows themselves, if all managed interfaces can
    #[arg(long, value_name = "MODE", default_value = "off", env = "FASTPATH_HW_OFFLOAD")]
    pub hw_offload: HwOffload,
}

/// Flags of the agent itself.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Flags that decide what the ruleset looks like.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Name of this node in logs and status
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub hostname_override: Option<String>,
    /// How packets of flows are watched: tc attaches an eBPF program to every managed interface, off does without
    #[arg(long, value_name = "MODE", default_value = "tc", env = "FASTPATH_EBPF")]
    pub ebpf: EbpfMode,
    /// Directory for pinned eBPF maps, on a bpf file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fastpath", env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
    /// Replace a table named kindnet-fastpath that this agent did not make
    #[arg(long, env = "FASTPATH_TAKEOVER", value_parser = BoolishValueParser::new())]
    pub takeover: bool,
    /// Install the ruleset, verify it and exit
    #[arg(long, env = "FASTPATH_ONCE", value_parser = BoolishValueParser::new())]
    pub once: bool,
    /// Remove ruleset, programs and pinned maps when the agent is told to stop
    #[arg(long, env = "FASTPATH_CLEANUP_ON_EXIT", value_parser = BoolishValueParser::new())]
    pub cleanup_on_exit: bool,
    /// How much to log: 0-1 changes of state, 2-4 also plans, 5 and more also flows
    #[arg(long, value_name = "N", default_value = "0", env = "FASTPATH_V", allow_hyphen_values = true)]
    pub v: String,
}

/// Flags of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fastpath", env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/fastpath", env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Modes of `--hw-offload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HwOffload {
    /// The kernel's software path only
    Off,
    /// Hardware, if every managed interface takes it; software otherwise
    Auto,
}

/// Modes of `--ebpf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EbpfMode {
    /// A TC program at ingress of every managed interface
    Tc,
    /// No eBPF
    Off,
}
