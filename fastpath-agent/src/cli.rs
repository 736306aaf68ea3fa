//! Flags and subcommands as clap parses them, raw. `config` validates them.

mod values;

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{
    ArgGroup, Args, Parser, Subcommand,
    builder::{BoolishValueParser, OsStringValueParser, PossibleValuesParser},
};
use ipnet::IpNet;

use crate::core::{
    flow::{STATE_NAMES, column::Column, filter::Sort, group::Group},
    model::IfName,
    names::NamesFrom,
};

pub use values::*;

/// Where maps are pinned by default.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/fastpath";

/// Moves established flows of this node to the kernel's fast path (its flowtable), so that their packets bypass the
/// normal path.
#[derive(Debug, Parser)]
#[command(
    name = "fastpath-agent",
    version,
    arg_required_else_help = true,
    after_help = "Examples:
  fastpath-agent run                     accelerate flows of more than 20 packets, on all interfaces
  fastpath-agent render | nft -c -f -    check the ruleset without installing it
  fastpath-agent status                  does it work, what is installed, on which interfaces
  fastpath-agent flows                   flows through this node, and which of them are fast
  fastpath-agent why --top               why the heaviest slow flow isn't fast
  fastpath-agent doctor                  what is wrong with this node, and how to fix it
  fastpath-agent cleanup                 remove everything that the agent installed

Flags of `run` can also be set by environment variables (`run --help` names them), or in the file of
--config. Flags win over the environment, the environment over the file."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// File with settings that neither flags nor environment give, one `FLAG = VALUE` per line (docs/configuration.md)
    #[arg(long, global = true, value_name = "FILE", env = "FASTPATH_CONFIG", value_parser = OsStringValueParser::new())]
    pub config: Option<OsString>,
}

impl Cli {
    /// The agent's flags; `None` for another subcommand.
    pub fn agent(&self) -> Option<&RunArgs> {
        match &self.command {
            Command::Run(run) => Some(run),
            _ => None,
        }
    }
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the agent: accelerate flows until it is stopped, and after that as well (see --cleanup-on-exit)
    #[command(after_help = "Examples:
  fastpath-agent run                                  accelerate flows of more than 20 packets on all interfaces
  fastpath-agent run --fastpath-threshold=6 --v=2     the same from the 7th packet on, with more log
  fastpath-agent run --mode=watch                     only watch, and say what could be accelerated (`flows`, `doctor`)
  fastpath-agent run --exclude-interfaces='docker*'   leave some interfaces out
  fastpath-agent run --exclude=udp/53,10.9.0.0/16     never offload DNS, nor flows of these addresses

When the agent stops, its ruleset stays and goes on accelerating flows (see --cleanup-on-exit).")]
    Run(Box<RunArgs>),
    /// Print the ruleset that would be installed, as input for `nft -f`; changes nothing
    #[command(after_help = "Examples:
  fastpath-agent render --fastpath-threshold=6
  fastpath-agent render | nft -c -f -                 let the kernel check it")]
    Render(RuleArgs),
    /// Show what is installed, interface by interface, and what this kernel can do
    #[command(after_help = "Examples:
  fastpath-agent status
  fastpath-agent status -o json | jq .kernel.flowtable")]
    Status(StatusArgs),
    /// Show the flows through this node: whether each is offloaded, and why not
    #[command(after_help = "Examples:
  fastpath-agent flows                                        every flow, in the kernel's order
  fastpath-agent flows --sort=bytes --limit=20                the largest
  fastpath-agent flows --group=could-be-fast                  what isn't fast and could be, with what to do
  fastpath-agent flows --address=10.1.0.0/16 --port=443 --protocol=tcp
  fastpath-agent flows --watch --sort=recent                  again every 2 seconds
  fastpath-agent flows --follow --state=stalled               what isn't offloaded, as soon as it is known
  fastpath-agent flows -o json | jq '.[] | select(.state == \"offloaded\")'

eBPF programs count packets and bytes at ingress, of offloaded flows too; without pinned maps the counts are 0.
Only --follow needs a running agent.")]
    Flows(FlowsArgs),
    /// Show flows and interfaces with their rates, live and full-screen
    #[command(after_help = "Examples:
  fastpath-agent top
  fastpath-agent top --interval=5

The last line shows the keys, `?` explains them. No agent has to run; without its pinned maps there are no rates.
Set the environment variable NO_COLOR to do without colours.")]
    Top(TopArgs),
    /// Send offloaded flows through the filters again: after a change that the agent can't notice (tc, another program's
    /// eBPF maps), or while no agent runs
    Revalidate,
    /// Take connections off the fast path for good, or end them
    #[command(after_help = "Examples:
  fastpath-agent revoke --address=10.1.2.3                    all its packets pass the filters again
  fastpath-agent revoke --address=10.1.0.0/16 --port=443 --protocol=tcp --kill
  fastpath-agent revoke --all                                 all present connections; new ones are offloaded as before

Only connections that exist now are affected. To keep new ones off the fast path, use --exclude.
With --kill conntrack forgets them: the next packet must be accepted as the first of a new connection.")]
    Revoke(RevokeArgs),
    /// Show whether one flow is accelerated; if not, why not and what to do about it
    #[command(after_help = "Examples:
  fastpath-agent why tcp 10.0.1.2:40000 10.96.0.1:443
  fastpath-agent why udp [fd00:1::2]:40000 [fd00:2::2]:53
  fastpath-agent why --pod web-0                      which flows it has, or why its only one isn't fast
  fastpath-agent why -o json tcp 10.0.1.2:40000 10.96.0.1:443 | jq .verdict

Any tuple of the flow will do: before or after NAT, either direction. The command watches the flow for a second and
changes nothing. No agent has to run. Exit code: 0 if the flow was found, accelerated or not; 1 if it wasn't.")]
    Why(WhyArgs),
    /// Check this node and send a real flow (the canary) through scratch namespaces: what is wrong, and what to do about it
    #[command(after_help = "Examples:
  fastpath-agent doctor                               all checks and the canary
  fastpath-agent doctor --no-canary                   only checks, send nothing
  fastpath-agent doctor --advise                      what this node would gain, by threshold
  fastpath-agent doctor -o json | jq '.findings[] | select(.level != \"green\")'
  fastpath-agent doctor --strict || echo not all green

Green: as it should be. Amber: works, but worse than it could. Red: doesn't work, or may break connections.
Exit code: 0 if nothing is red (with --strict: if all is green), 1 otherwise, 64 for a wrong flag.
The ruleset is compared with the flags of the running agent; if none runs, with the flags given here.")]
    Doctor(DoctorArgs),
    /// Run the canary; `doctor` starts this
    #[command(hide = true, name = "canary")]
    Canary(RuleArgs),
    /// Write man pages and shell completions, for packages
    #[command(hide = true)]
    Pages {
        /// Directory to write to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Print the script that completes flags and subcommands in a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Remove the table, eBPF programs and pinned maps that the agent made, and nothing else
    Cleanup(CleanupArgs),
}

/// Flags that decide what the ruleset looks like.
#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// Offload a flow after this many packets, both directions counted; `auto` chooses by the lengths of this node's
    /// connections (docs/configuration.md#the-threshold-that-pays); 0 switches offloading off
    #[arg(
        long,
        value_name = "PACKETS",
        default_value = "20",
        env = "FASTPATH_THRESHOLD",
        allow_hyphen_values = true
    )]
    pub fastpath_threshold: String,
    /// Manage only interfaces that match this glob (repeatable, commas separate; default: all that are up, without
    /// loopback)
    #[arg(long, value_name = "GLOB", env = "FASTPATH_INTERFACES", value_delimiter = ',')]
    pub interfaces: Vec<String>,
    /// Leave out interfaces that match this glob (repeatable, commas separate; wins over --interfaces)
    #[arg(long, value_name = "GLOB", env = "FASTPATH_EXCLUDE_INTERFACES", value_delimiter = ',')]
    pub exclude_interfaces: Vec<String>,
    /// Never offload flows that match (repeatable, commas separate): an address or network (10.1.0.2, 10.1.0.0/16,
    /// fd00::/8), a port or range (tcp/443, udp/8000-8100, port/53 for both), a protocol (protocol/udp, protocol/47), an
    /// interface (interface/veth*: its flows are still counted, unlike with --exclude-interfaces), or a firewall mark of
    /// the connection or of packets both ways (mark/0x10, mark/0x10/0xff). Either end counts, before and after NAT. Flows
    /// that are offloaded already leave the fast path
    #[arg(long, value_name = "ENTRY", env = "FASTPATH_EXCLUDE", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// File of such entries, one per line, comments after #. Read again on SIGHUP
    #[arg(long, value_name = "FILE", env = "FASTPATH_EXCLUDE_FILE")]
    pub exclude_file: Option<PathBuf>,
    /// Earliest priority of the agent's chain in the forward hook. The chain always comes after other programs' last filter
    /// chain, so that only flows that they accept are offloaded
    #[arg(
        long,
        value_name = "PRIORITY",
        default_value = "300",
        env = "FASTPATH_CHAIN_PRIORITY",
        allow_hyphen_values = true
    )]
    pub chain_priority: String,
    /// Priority of the flowtable in the ingress hook: a number (0 in kindnet's document), or `last`, after other programs'
    /// ingress chains, so that packets of offloaded flows pass these too
    #[arg(
        long,
        value_name = "PRIORITY",
        default_value = "last",
        env = "FASTPATH_FLOWTABLE_PRIORITY",
        allow_hyphen_values = true
    )]
    pub flowtable_priority: String,
    /// Let network cards forward offloaded flows, if all managed interfaces can
    #[arg(long, value_name = "MODE", default_value = "off", env = "FASTPATH_HW_OFFLOAD")]
    pub hw_offload: HwOffload,
    /// Offload flows despite another program's rule, though their packets then bypass it (repeatable, commas separate). Name
    /// the rule by its comment, by `FAMILY TABLE CHAIN` or `FAMILY TABLE handle N`, by what it asks (limit, queue, quota,
    /// header, set, time, legacy …), by class (every-packet, changing), or `all` (docs/policy.md; `status` lists the rules)
    #[arg(long, value_name = "RULE", env = "FASTPATH_IGNORE_RULE", value_delimiter = ',')]
    pub ignore_rule: Vec<String>,
    /// Offload even on a kernel that is known to lose packets of offloaded flows (docs/kernels.md)
    #[arg(long, env = "FASTPATH_IGNORE_KNOWN_BUGS", value_parser = BoolishValueParser::new())]
    pub ignore_known_bugs: bool,
}

/// Flags of the agent itself.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Flags that decide what the ruleset looks like.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Whether flows are offloaded: `accelerate`, `watch` (count every flow, offload none), or the percentage of nodes that
    /// accelerate, as `10%`; which these are follows from the node's name
    #[arg(long, value_name = "MODE", default_value = "accelerate", env = "FASTPATH_MODE")]
    pub mode: String,
    /// File with one such word, which wins over --mode. The agent follows it without a restart; while it is absent --mode
    /// counts (docs/fleet.md#the-kill-switch)
    #[arg(long, value_name = "FILE", env = "FASTPATH_MODE_FILE")]
    pub mode_file: Option<PathBuf>,
    /// Name of this node in logs and status
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub hostname_override: Option<String>,
    /// Hook at which eBPF programs count the packets of flows, on every managed interface (docs/ebpf.md)
    #[arg(long, value_name = "MODE", default_value = "tc", env = "FASTPATH_EBPF")]
    pub ebpf: EbpfMode,
    /// Whether eBPF programs forward packets of offloaded flows between pods by themselves, ahead of the flowtable: `off`,
    /// or `peer`, straight to the other end of a pod's veth. Needs --ebpf=tc and Linux 6.1 (docs/forward.md)
    #[arg(long, value_name = "MODE", default_value = "off", env = "FASTPATH_FORWARD")]
    pub forward: ForwardMode,
    /// Room for this many directions of flows in the map, from 1024 to 4194304; the least recently used are evicted.
    /// After a change of this number, counting starts again at 0
    #[arg(
        long,
        value_name = "N",
        default_value = "65536",
        env = "FASTPATH_MAX_FLOWS",
        allow_hyphen_values = true
    )]
    pub max_flows: String,
    /// Directory for pinned eBPF maps, on a bpf file system
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
    /// Also offload flows that the ruleset alone never takes, once they cross the threshold: connections older than the
    /// ruleset, and one-way streams after their first answer, where no rule could deny another answer. Needs eBPF
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_ASSIST")]
    pub assist: Assist,
    /// Directory of the socket from which `flows --follow` reads; the agent creates it if needed
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Address and port of the HTTP server for /metrics, /healthz and /readyz; empty: no server
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:19080",
        env = "FASTPATH_METRICS_BIND_ADDRESS"
    )]
    pub metrics_bind_address: String,
    /// Who may see the page with this node's flows at that address: clients on this node, `all` that reach it, or nobody
    #[arg(long, value_name = "CLIENTS", default_value = "loopback", env = "FASTPATH_PAGE")]
    pub page: PageFor,
    /// Where that page has names of pods and containers from, over the sockets of this node's runtimes
    #[arg(long, value_name = "FROM", default_value = "auto", env = "FASTPATH_NAMES")]
    pub names: NamesFrom,
    /// Export flow records in IPFIX to this collector: `ipfix://HOST:PORT` (UDP) or `ipfix+tcp://HOST:PORT` (docs/export.md)
    #[arg(long, value_name = "URL", env = "FASTPATH_EXPORT")]
    pub export: Option<String>,
    /// A flow that goes on has a record at least this often, from 1s to 1h
    #[arg(long, value_name = "TIME", default_value = "60s", env = "FASTPATH_EXPORT_ACTIVE_TIMEOUT")]
    pub export_active_timeout: String,
    /// A flow without packets for this long has a record, from 1s to 1h. All flows are read after the shorter of both times
    #[arg(long, value_name = "TIME", default_value = "60s", env = "FASTPATH_EXPORT_INACTIVE_TIMEOUT")]
    pub export_inactive_timeout: String,
    /// Private enterprise number of the elements that only this agent has; the default is for documentation (RFC 5612)
    #[arg(
        long,
        value_name = "NUMBER",
        default_value = "32473",
        env = "FASTPATH_EXPORT_ENTERPRISE_NUMBER",
        allow_hyphen_values = true
    )]
    pub export_enterprise_number: String,
    /// Replace another program's table named kindnet-fastpath
    #[arg(long, env = "FASTPATH_TAKEOVER", value_parser = BoolishValueParser::new())]
    pub takeover: bool,
    /// Revalidate offloaded flows after a change of the ruleset that may concern them: for a packet or two they pass the
    /// filters again
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_REVALIDATE")]
    pub revalidate: OnOff,
    /// Least time between two revalidations (as in 500ms or 2s); the first change takes effect at once
    #[arg(long, value_name = "TIME", default_value = "1s", env = "FASTPATH_REVALIDATE_INTERVAL")]
    pub revalidate_interval: String,
    /// Time within which offloaded flows follow verdicts that the kernel changes without an event (sets with timeouts, times
    /// of day, ipsets, iptables-legacy), from 500ms, or `off`. While there is such a rule, flows are revalidated when its
    /// verdict may change, or at intervals if that moment isn't known
    #[arg(long, value_name = "TIME", default_value = "1500ms", env = "FASTPATH_ENFORCE_WITHIN")]
    pub enforce_within: String,
    /// Install the ruleset, verify it and exit
    #[arg(long, env = "FASTPATH_ONCE", value_parser = BoolishValueParser::new())]
    pub once: bool,
    /// Remove ruleset, eBPF programs and pinned maps when the agent stops
    #[arg(long, env = "FASTPATH_CLEANUP_ON_EXIT", value_parser = BoolishValueParser::new())]
    pub cleanup_on_exit: bool,
    /// Give up privileges that a running agent doesn't need: capabilities except CAP_NET_ADMIN, most system calls, other
    /// programs' files. Off for debugging
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_SANDBOX")]
    pub sandbox: OnOff,
    /// How much to log: 0-1 changes of state, 2-4 also plans, 5-6 also flows, 7 and more also single packets in the eBPF
    /// programs (for debugging: this slows them down)
    #[arg(long, value_name = "N", default_value = "0", env = "FASTPATH_V", allow_hyphen_values = true)]
    pub v: String,
    /// Format of the log
    #[arg(long, value_name = "FORMAT", default_value = "auto", env = "FASTPATH_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Flags of `status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `flows`.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Only flows that this is true of, as in tcpdump: tcp, udp, proto N, [src|dst] host A, net N, port P, an end (10.1.0.2:443,
    /// 10.1.0.0/16, :443), dev NAME, pod NAME, a state, a group; joined by and, or, not and parentheses
    #[arg(value_name = "EXPRESSION", num_args = 0..)]
    pub words: Vec<String>,
    /// Only flows with an end in this network or with this address, before or after NAT (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub address: Vec<IpNet>,
    /// Only flows with this port at one end, before or after NAT (repeatable)
    #[arg(long, value_name = "PORT")]
    pub port: Vec<u16>,
    /// Only flows of this protocol (repeatable)
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Vec<Protocol>,
    /// Only flows whose packets come in on this interface (repeatable)
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub interface: Vec<IfName>,
    /// Only flows in this state (repeatable)
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATE_NAMES))]
    pub state: Vec<String>,
    /// Only flows that are fast, that could be, or that never will be (repeatable)
    #[arg(long, value_name = "GROUP")]
    pub group: Vec<Group>,
    /// Sort by this; without it flows come in the kernel's order, and none is held in memory
    #[arg(long, value_name = "BY")]
    pub sort: Option<Sort>,
    /// Show at most this many flows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Show them again every so many seconds (2 without a number), until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
    /// Show flows as they cross the threshold, offloaded or not, until interrupted. The agent must run; with `-o json` one
    /// line per flow
    #[arg(long, conflicts_with_all = ["watch", "sort"])]
    pub follow: bool,
    /// Directory of the running agent's socket
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Columns of the table, instead of the usual ones
    #[arg(long, value_name = "COLUMN", value_delimiter = ',')]
    pub columns: Vec<Column>,
    /// Exact numbers in the table: packets, bytes, seconds
    #[arg(long)]
    pub raw: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: FlowsOutput,
    /// Where names of pods and containers come from, over the sockets of this node's runtimes
    #[arg(long, value_name = "FROM", default_value = "auto", env = "FASTPATH_NAMES")]
    pub names: NamesFrom,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `revoke`.
#[derive(Clone, Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["address", "port", "protocol", "all"])))]
pub struct RevokeArgs {
    /// Connections with an end in this network or with this address, before or after NAT (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub address: Vec<IpNet>,
    /// Connections with this port at one end, before or after NAT (repeatable)
    #[arg(long, value_name = "PORT")]
    pub port: Vec<u16>,
    /// Connections of this protocol (repeatable)
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Vec<Protocol>,
    /// All connections
    #[arg(long, conflicts_with_all = ["address", "port", "protocol"])]
    pub all: bool,
    /// Delete them from conntrack
    #[arg(long)]
    pub kill: bool,
}

/// Flags of `top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Seconds between two readings
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Where names of pods and containers come from, over the sockets of this node's runtimes
    #[arg(long, value_name = "FROM", default_value = "auto", env = "FASTPATH_NAMES")]
    pub names: NamesFrom,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `why`.
#[derive(Clone, Debug, Args)]
pub struct WhyArgs {
    /// Protocol and both ends, before or after NAT, in either direction; or as much of it as is known, in the words of `flows`:
    /// 10.0.1.2, `[fd00:1::2]:40000`, :443, tcp dst port 443. If several flows match, they are listed
    #[arg(value_name = "EXPRESSION", num_args = 1.., required_unless_present_any = ["top", "pod"])]
    pub words: Vec<String>,
    /// The flows of this pod (`web-0`, `shop/web-0`) or container: the same as the words `pod NAME`
    #[arg(long, value_name = "NAME")]
    pub pod: Option<String>,
    /// The flow with the most packets that isn't accelerated and could be
    #[arg(long, conflicts_with_all = ["words", "pod"])]
    pub top: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Where names of pods and containers come from, over the sockets of this node's runtimes
    #[arg(long, value_name = "FROM", default_value = "auto", env = "FASTPATH_NAMES")]
    pub names: NamesFrom,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// What the ruleset should look like if no agent runs.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Don't send flows through scratch namespaces
    #[arg(long, env = "FASTPATH_NO_CANARY", value_parser = BoolishValueParser::new())]
    pub no_canary: bool,
    /// Instead of checking: what share of this node's packets would be fast, by threshold, from the flows that were seen. The
    /// eBPF programs have to have counted them; `run --mode=watch` does no more than that
    #[arg(long)]
    pub advise: bool,
    /// List what is green too
    #[arg(long)]
    pub all: bool,
    /// Exit with 1 for amber too
    #[arg(long, env = "FASTPATH_STRICT", value_parser = BoolishValueParser::new())]
    pub strict: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Directory of the pinned eBPF maps, if no agent runs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "use an address like 10.1.0.2 or a network like 10.1.0.0/16 or fd00::/8".to_owned())
}

fn interface_name(text: &str) -> Result<IfName, String> {
    IfName::new(text).ok_or_else(|| "use the name of an interface, at most 15 characters".to_owned())
}

/// Flags of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
    /// Directory of the running agent's socket
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
}
