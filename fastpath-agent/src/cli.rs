//! Flags and subcommands as clap parses them, raw. Validation is `config`'s.

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use clap::{
    ArgGroup, Args, Parser, Subcommand, ValueEnum,
    builder::{BoolishValueParser, OsStringValueParser, PossibleValuesParser},
};
use ipnet::IpNet;

use crate::core::{
    flow::{
        STATE_NAMES,
        connection::{TCP, UDP},
        filter::Sort,
    },
    model::IfName,
};

/// Where maps are pinned if nothing else is asked for.
pub const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/fastpath";

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
  fastpath-agent --exclude=udp/53,10.9.0.0/16         never offload DNS, nor flows of these addresses
  fastpath-agent render | nft -c -f -                 see and check the ruleset without installing it
  fastpath-agent status                               what is installed, on which interfaces, and why not on others
  fastpath-agent doctor                               what is wrong with this node, and what to do about it
  fastpath-agent cleanup                              remove all that the agent ever installed

Every flag can be set by the environment variable that its help names, and in the file of --config; flags win over the
environment, and the environment over the file.
The ruleset stays when the agent stops, and acceleration with it (see --cleanup-on-exit)."
)]
pub struct Cli {
    /// What to do instead of running the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Read what neither flags nor environment say from this file: a line `FLAG = VALUE` for each (docs/configuration.md)
    #[arg(long, global = true, value_name = "FILE", env = "FASTPATH_CONFIG", value_parser = OsStringValueParser::new())]
    pub config: Option<OsString>,
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
    /// Show the flows that pass this node, offloaded or not, with what became of each and why
    #[command(after_help = "Examples:
  fastpath-agent flows                                        every flow, as it comes
  fastpath-agent flows --sort=bytes --limit=20                the largest
  fastpath-agent flows --state=stalled                        what should be offloaded and isn't, with the cause
  fastpath-agent flows --address=10.1.0.0/16 --port=443 --protocol=tcp
  fastpath-agent flows --watch --sort=recent                  again every 2 seconds
  fastpath-agent flows --follow --state=stalled               what isn't offloaded, the moment that it is known
  fastpath-agent flows -o json | jq '.[] | select(.state == \"offloaded\")'

Packets and bytes are counted by eBPF at ingress and go on for offloaded flows; without pinned maps they are 0.
The agent doesn't have to run, but for --follow.")]
    Flows(FlowsArgs),
    /// Show flows and interfaces with their rates, full-screen and live
    #[command(after_help = "Examples:
  fastpath-agent top
  fastpath-agent top --interval=5

Keys are shown in the last line and by `?`. The agent doesn't have to run; without its pinned maps there are no rates.
Colours are left out where the environment variable NO_COLOR is set.")]
    Top(TopArgs),
    /// Have offloaded flows pass the filters again, after changes that a running agent doesn't find out by itself (tc, eBPF
    /// maps of others), or while none runs
    Revalidate,
    /// End the acceleration of connections for good, or the connections themselves
    #[command(after_help = "Examples:
  fastpath-agent revoke --address=10.1.2.3                    its packets pass the filters again, all of them
  fastpath-agent revoke --address=10.1.0.0/16 --port=443 --protocol=tcp --kill
  fastpath-agent revoke --all                                 all that are there now; new connections are offloaded as before

It is about connections that are there now. To keep new ones from being offloaded too, exclude them.
With --kill conntrack forgets them, and a next packet has to be accepted as the first of a new connection.")]
    Revoke(RevokeArgs),
    /// Follow one flow: whether it is accelerated, and if not, why not and what to do about it
    #[command(after_help = "Examples:
  fastpath-agent why tcp 10.0.1.2:40000 10.96.0.1:443
  fastpath-agent why udp [fd00:1::2]:40000 [fd00:2::2]:53
  fastpath-agent why -o json tcp 10.0.1.2:40000 10.96.0.1:443 | jq .verdict

Any tuple of the flow will do: before or after NAT, either direction. It looks for a second and changes nothing.
The agent doesn't have to run. Exit code 0: the flow was found, whatever became of it; 1: it wasn't.")]
    Why(WhyArgs),
    /// Check this node, say what is wrong and what to do about it, and send a real flow through scratch namespaces
    #[command(after_help = "Examples:
  fastpath-agent doctor                               every check, and the canary
  fastpath-agent doctor --no-canary                   checks only, nothing is sent
  fastpath-agent doctor -o json | jq '.findings[] | select(.level != \"green\")'
  fastpath-agent doctor --strict || echo not all green

Green is as it should be; amber works, but worse than it could; red doesn't work, or may break connections.
Exit code: 0 where nothing is red (with --strict: where all is green), 1 otherwise, 64 for a wrong flag.
The ruleset is compared with what the flags of the running agent want; where none runs, with doctor's own.")]
    Doctor(DoctorArgs),
    /// The canary itself; `doctor` starts it
    #[command(hide = true, name = "canary")]
    Canary(RuleArgs),
    /// Write man pages and shell completions, for those who make packages
    #[command(hide = true)]
    Pages {
        /// Where to
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Remove the table, the eBPF programs and the pinned maps that the agent made, and nothing else
    Cleanup(CleanupArgs),
}

/// Flags that decide what the ruleset looks like.
#[derive(Clone, Debug, Args)]
pub struct RuleArgs {
    /// Offload a flow once more than this many of its packets were seen, both directions counted; `auto` takes what pays by the
    /// lengths of this node's connections (docs/configuration.md#the-threshold-that-pays); 0 switches offloading off
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
    /// Never offload flows like this (repeatable, commas separate): an address or network (10.1.0.2, 10.1.0.0/16,
    /// fd00::/8), a port or range (tcp/443, udp/8000-8100, port/53 for both), a protocol (protocol/udp, protocol/47), an
    /// interface (interface/veth*: still watched, unlike with --exclude-interfaces), or a firewall mark of the connection
    /// or of packets both ways (mark/0x10, mark/0x10/0xff). Either end counts, before and after NAT. Offloaded flows leave
    #[arg(long, value_name = "ENTRY", env = "FASTPATH_EXCLUDE", value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// The same from a file: an entry a line, comments after #. Read again on SIGHUP
    #[arg(long, value_name = "FILE", env = "FASTPATH_EXCLUDE_FILE")]
    pub exclude_file: Option<PathBuf>,
    /// Earliest priority of the chain in the forward hook; it always comes after the last filter chain of others, so that
    /// only what they accept is offloaded
    #[arg(
        long,
        value_name = "PRIORITY",
        default_value = "300",
        env = "FASTPATH_CHAIN_PRIORITY",
        allow_hyphen_values = true
    )]
    pub chain_priority: String,
    /// Priority of the flowtable in the ingress hook: `last`, so that packets of offloaded flows pass the ingress chains of
    /// others too, or a number; 0 is where kindnet's document has it
    #[arg(
        long,
        value_name = "PRIORITY",
        default_value = "last",
        env = "FASTPATH_FLOWTABLE_PRIORITY",
        allow_hyphen_values = true
    )]
    pub flowtable_priority: String,
    /// Let network cards forward offloaded flows themselves, if all managed interfaces can
    #[arg(long, value_name = "MODE", default_value = "off", env = "FASTPATH_HW_OFFLOAD")]
    pub hw_offload: HwOffload,
    /// Don't respect a rule of others that offloaded packets don't pass, on purpose (repeatable, commas separate): by its comment, by
    /// `FAMILY TABLE CHAIN` or `FAMILY TABLE handle N`, by what it asks (limit, queue, quota, header, set, time, legacy …), by class
    /// (every-packet, changing), or `all` (docs/policy.md; `status` lists them)
    #[arg(long, value_name = "RULE", env = "FASTPATH_IGNORE_RULE", value_delimiter = ',')]
    pub ignore_rule: Vec<String>,
    /// Offload also on a kernel that is known to lose packets of offloaded flows (docs/kernels.md)
    #[arg(long, env = "FASTPATH_IGNORE_KNOWN_BUGS", value_parser = BoolishValueParser::new())]
    pub ignore_known_bugs: bool,
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
    /// Where eBPF programs count the packets of flows, on every managed interface; see docs/ebpf.md for what differs
    #[arg(long, value_name = "MODE", default_value = "tc", env = "FASTPATH_EBPF")]
    pub ebpf: EbpfMode,
    /// Directions of flows that the map has room for, from 1024 to 4194304; the least recently used go first. With
    /// another number than before, counting starts again at 0
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
    /// Help connections that are older than the ruleset, and which it never takes, into the flowtable once they cross the
    /// threshold; likewise streams that go one way after their first answer, where nobody could deny another. Needs eBPF
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_ASSIST")]
    pub assist: Assist,
    /// Directory for the socket at which `flows --follow` hears what becomes of flows; made if it doesn't exist
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Address and port for /metrics, /healthz and /readyz over HTTP; empty: none
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:19080",
        env = "FASTPATH_METRICS_BIND_ADDRESS"
    )]
    pub metrics_bind_address: String,
    /// Replace a table named kindnet-fastpath that this agent did not make
    #[arg(long, env = "FASTPATH_TAKEOVER", value_parser = BoolishValueParser::new())]
    pub takeover: bool,
    /// Have the kernel judge offloaded flows anew when somebody changes the ruleset so that it may concern them: they pass
    /// the filters again for a packet or two
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_REVALIDATE")]
    pub revalidate: OnOff,
    /// Least time from one such revalidation to the next (as in 500ms or 2s); the first change is answered at once
    #[arg(long, value_name = "TIME", default_value = "1s", env = "FASTPATH_REVALIDATE_INTERVAL")]
    pub revalidate_interval: String,
    /// Within which time offloaded flows feel verdicts that change without an announcement (sets with timeouts, times of day,
    /// ipsets, iptables-legacy), from 500ms, or `off`. While there is such a rule, flows are judged anew when its
    /// verdict may change, or every so often where that isn't known
    #[arg(long, value_name = "TIME", default_value = "1500ms", env = "FASTPATH_ENFORCE_WITHIN")]
    pub enforce_within: String,
    /// Install the ruleset, verify it and exit
    #[arg(long, env = "FASTPATH_ONCE", value_parser = BoolishValueParser::new())]
    pub once: bool,
    /// Remove ruleset, programs and pinned maps when the agent is told to stop
    #[arg(long, env = "FASTPATH_CLEANUP_ON_EXIT", value_parser = BoolishValueParser::new())]
    pub cleanup_on_exit: bool,
    /// Give up all privileges that a running agent doesn't need: capabilities but CAP_NET_ADMIN, most system calls, files of
    /// others. Off for debugging
    #[arg(long, value_name = "MODE", default_value = "on", env = "FASTPATH_SANDBOX")]
    pub sandbox: OnOff,
    /// How much to log: 0-1 changes of state, 2-4 also plans, 5 and more also flows, 7 and more what the eBPF programs
    /// do with single packets (for debugging: they get slower)
    #[arg(long, value_name = "N", default_value = "0", env = "FASTPATH_V", allow_hyphen_values = true)]
    pub v: String,
    /// What the log looks like
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
    /// Only flows with an end in this network or with this address, before or after NAT (repeatable)
    #[arg(long, value_name = "CIDR", value_parser = network)]
    pub address: Vec<IpNet>,
    /// Only flows with this port at one end, before or after NAT (repeatable)
    #[arg(long, value_name = "PORT")]
    pub port: Vec<u16>,
    /// Only flows of this protocol (repeatable)
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Vec<Protocol>,
    /// Only flows with packets that come in on this interface (repeatable)
    #[arg(long, value_name = "NAME", value_parser = interface_name)]
    pub interface: Vec<IfName>,
    /// Only flows in this state (repeatable)
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(STATE_NAMES))]
    pub state: Vec<String>,
    /// Order; without it flows come as the kernel lists them, and none is held in memory
    #[arg(long, value_name = "BY")]
    pub sort: Option<Sort>,
    /// Show this many flows at most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Show them again every so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
    pub watch: Option<u64>,
    /// Show flows as they cross the threshold, with what became of each, until interrupted. The agent must run; with
    /// `-o json` a line for each
    #[arg(long, conflicts_with_all = ["watch", "sort"])]
    pub follow: bool,
    /// Directory of the socket at which a running agent publishes what becomes of flows
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
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
    /// Seconds from one reading to the next
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `why`.
#[derive(Clone, Debug, Args)]
pub struct WhyArgs {
    /// tcp, udp, or another protocol's name or number
    pub protocol: String,
    /// Address and port, as in 10.0.1.2:40000; of IPv6 in brackets; without a port where the protocol has none
    pub source: String,
    /// The same of the other end
    pub destination: String,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Flags of `doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// What the ruleset should look like, where no agent runs whose flags say it.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Don't send flows through scratch namespaces
    #[arg(long, env = "FASTPATH_NO_CANARY", value_parser = BoolishValueParser::new())]
    pub no_canary: bool,
    /// Exit with 1 for amber too
    #[arg(long, env = "FASTPATH_STRICT", value_parser = BoolishValueParser::new())]
    pub strict: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text", env = "FASTPATH_OUTPUT")]
    pub output: Output,
    /// Directory of the pinned eBPF maps, where no agent runs whose flags say it
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
}

/// Protocols whose flows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// Its IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    text.parse()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "it takes an address like 10.1.0.2 or a network like 10.1.0.0/16 or fd00::/8".to_owned())
}

fn interface_name(text: &str) -> Result<IfName, String> {
    IfName::new(text).ok_or_else(|| "it takes the name of an interface, at most 15 characters".to_owned())
}

/// Flags of `cleanup`.
#[derive(Clone, Debug, Args)]
pub struct CleanupArgs {
    /// Directory of the pinned eBPF maps
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, env = "FASTPATH_PIN_PATH")]
    pub pin_path: PathBuf,
    /// Directory of the socket at which a running agent publishes what becomes of flows
    #[arg(long, value_name = "DIR", default_value = "/run/fastpath", env = "FASTPATH_RUN_DIR")]
    pub run_dir: PathBuf,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Something that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// Do it
    On,
    /// Don't
    Off,
}

/// Formats of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Fields in the journal where systemd has connected it, text elsewhere
    Auto,
    /// Lines for people, to standard error
    Text,
    /// A JSON object a line, to standard error
    Json,
    /// Fields in systemd's journal
    Journald,
}

/// Modes of `--assist`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Assist {
    /// They are offloaded like any other
    On,
    /// They stay on the normal path until they end
    Off,
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
    /// At ingress of traffic control
    Tc,
    /// At XDP, in the driver; at TC where the interface can't
    Xdp,
    /// At XDP, after the driver (slower than tc); at TC where the interface can't
    XdpGeneric,
    /// No eBPF
    Off,
}
