//! Flags, and the file that one of them names, made into a configuration: every value checked before anything is touched.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use fastpath_common::limits::{MAX_FLOWS, MIN_FLOWS};

use crate::{
    cli::{Assist, EbpfMode, ForwardMode, HwOffload, LogFormat, OnOff, PageFor, RuleArgs, RunArgs},
    core::{
        export::{
            accounts::Timeouts,
            target::{self, Target},
        },
        known_bugs::{KernelNames, KnownBug, forbids_offload},
        link::select::Selection,
        mode::Mode,
        names::NamesFrom,
        policy::ignore::Ignore,
        ruleset::{diff::ForeignTable, exclude::Exclusions, wanted::Policy},
        surroundings::Surroundings,
        threshold,
    },
};

/// What the agent runs with.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the table looks like.
    pub rules: Rules,
    /// Whether flows are offloaded, and where that is said.
    pub mode: ModeSource,
    /// Name of this node.
    pub node: String,
    /// Whether and how packets are watched.
    pub ebpf: EbpfMode,
    /// Whether programs forward packets between pods.
    pub forward: bool,
    /// Entries of the flows map.
    pub max_flows: u32,
    /// Where maps are pinned.
    pub pin_path: PathBuf,
    /// Whether connections that are older than the ruleset are helped into the flowtable.
    pub assist: bool,
    /// Where it publishes flows that cross the threshold.
    pub run_dir: PathBuf,
    /// Where metrics and the node's health can be read over HTTP.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Who may see the page of flows there.
    pub page: PageFor,
    /// Where that page has names of addresses from.
    pub names: NamesFrom,
    /// Where flow records are exported to, if anywhere.
    pub export: Option<Export>,
    /// What to do about another program's table of our name.
    pub foreign: ForeignTable,
    /// Whether offloaded flows are revalidated after changes of the ruleset.
    pub revalidate: OnOff,
    /// Least time in ms from one such revalidation to the next.
    pub revalidate_interval_ms: u64,
    /// Time in ms within which offloaded flows follow verdicts that change without an event; `None`: they needn't.
    pub enforce_within_ms: Option<u64>,
    /// Stop after the first verified reconcile.
    pub once: bool,
    /// Remove everything at exit.
    pub cleanup_on_exit: bool,
    /// Whether the agent gives up what it doesn't need once it runs.
    pub sandbox: OnOff,
    /// Verbosity, as in klog.
    pub verbosity: u8,
    /// What the log looks like.
    pub log_format: LogFormat,
}

/// How flow records are exported.
#[derive(Clone, Debug)]
pub struct Export {
    /// To whom.
    pub target: Target,
    /// When.
    pub timeouts: Timeouts,
    /// Of the project's own elements.
    pub enterprise: u32,
}

/// The part of the configuration that the ruleset comes from, before the kernel was asked what it can do.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The threshold, given or chosen. What is in force is [`Self::threshold_in_force`].
    pub threshold: u32,
    /// Whether flows are offloaded at all, by [`ModeSource`].
    pub offloads: bool,
    /// Whether the agent chooses it by what pays.
    pub threshold_auto: bool,
    /// See [`Policy::chain_priority`].
    pub chain_priority: i32,
    /// See [`Policy::flowtable_priority`].
    pub flowtable_priority: i32,
    /// Whether hardware offload is wanted.
    pub hw_offload: HwOffload,
    /// Which interfaces.
    pub selection: Selection,
    /// Offload whatever is known of the kernel.
    pub ignore_known_bugs: bool,
    /// Flows that are never offloaded, as they were at the start.
    pub exclusions: Arc<Exclusions>,
    /// Where they come from.
    pub exclude: ExcludeSource,
    /// Other programs' rules that offloaded packets may bypass.
    pub ignored: Arc<[Ignore]>,
}

/// Where exclusions come from.
#[derive(Clone, Debug)]
pub struct ExcludeSource {
    /// Values of `--exclude`.
    pub entries: Vec<String>,
    /// Value of `--exclude-file`.
    pub file: Option<PathBuf>,
}

/// Where the mode comes from.
#[derive(Clone, Debug)]
pub struct ModeSource {
    /// Value of `--mode`.
    pub flag: Mode,
    /// Value of `--mode-file`.
    pub file: Option<PathBuf>,
}

/// A flag with a value that it can't have.
#[derive(Debug, thiserror::Error)]
#[error("invalid value '{value}' for '--{flag}': {allowed}")]
pub struct BadValue {
    flag: &'static str,
    value: String,
    allowed: String,
}

impl BadValue {
    /// The flag's name, without dashes.
    pub fn flag(&self) -> &'static str {
        self.flag
    }
}

impl Rules {
    /// See [`Policy::threshold`].
    pub fn threshold_in_force(&self) -> u32 {
        if self.offloads { self.threshold } else { 0 }
    }

    /// Switches offloading off if this kernel is known to lose packets of offloaded flows; then with which bug.
    pub fn avoid_known_bugs(&mut self, kernel: &KernelNames<'_>) -> Option<&'static KnownBug> {
        if self.ignore_known_bugs || self.threshold == 0 {
            return None;
        }
        let bug = forbids_offload(kernel)?;
        self.threshold = 0;
        Some(bug)
    }

    /// The policy for a kernel whose flowtables can (`counter`) or can't count, with (`spare_ipsec`) or without IPsec.
    pub fn policy(&self, counter: bool, spare_ipsec: bool) -> Policy {
        Policy {
            threshold: self.threshold_in_force(),
            chain_priority: self.chain_priority,
            flowtable_priority: self.flowtable_priority,
            counter,
            hw_offload: self.hw_offload == HwOffload::Auto,
            spare_ipsec,
            assist: false,
            selection: self.selection.clone(),
            exclusions: Arc::clone(&self.exclusions),
            surroundings: Surroundings::default(),
        }
    }
}

impl ModeSource {
    /// Whether the file is there and empty, as one that is being written.
    pub fn is_blank(&self) -> bool {
        self.file.as_ref().and_then(|file| fs::metadata(file).ok()).is_some_and(|file| file.len() == 0)
    }

    /// Reads the file, if there is one.
    pub fn load(&self) -> Result<Mode, BadValue> {
        let Some(path) = &self.file else { return Ok(self.flag) };
        let bad = |allowed| BadValue { flag: "mode-file", value: path.display().to_string(), allowed };
        match fs::read_to_string(path) {
            Ok(text) => text.parse().map_err(|allowed| bad(format!("it says '{}'; {allowed}", text.trim()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(self.flag),
            Err(error) => Err(bad(error.to_string())),
        }
    }
}

impl ExcludeSource {
    /// Reads the file, if there is one, and checks all entries.
    pub fn load(&self) -> Result<Exclusions, BadValue> {
        let bad_file = |path: &PathBuf, reason: String| BadValue {
            flag: "exclude-file",
            value: path.display().to_string(),
            allowed: reason,
        };
        let text = match &self.file {
            Some(path) => fs::read_to_string(path).map_err(|error| bad_file(path, error.to_string()))?,
            None => String::new(),
        };
        Exclusions::new(&self.entries, &text).map_err(|error| match (&error.line, &self.file) {
            (Some(_), Some(path)) => bad_file(path, error.to_string()),
            _ => BadValue { flag: "exclude", value: error.entry, allowed: error.reason },
        })
    }
}

impl TryFrom<&RuleArgs> for Rules {
    type Error = BadValue;

    fn try_from(args: &RuleArgs) -> Result<Self, BadValue> {
        for (flag, globs) in
            [("interfaces", &args.interfaces), ("exclude-interfaces", &args.exclude_interfaces)]
        {
            for glob in globs {
                Selection::new(std::slice::from_ref(glob), &[]).map_err(|e| BadValue {
                    flag,
                    value: glob.clone(),
                    allowed: format!("not a glob like 'eth*' or 'veth[0-9]?' ({e})"),
                })?;
            }
        }
        let auto = args.fastpath_threshold.trim() == "auto";
        let exclude = ExcludeSource { entries: args.exclude.clone(), file: args.exclude_file.clone() };
        Ok(Self {
            exclusions: Arc::new(exclude.load()?),
            exclude,
            ignored: args.ignore_rule.iter().map(|text| Ignore::parse(text)).collect(),
            threshold_auto: auto,
            offloads: true,
            threshold: if auto { threshold::DEFAULT } else { threshold(&args.fastpath_threshold)? },
            chain_priority: number(
                "chain-priority",
                &args.chain_priority,
                "a priority in the forward hook, from -2147483648 to 2147483647",
            )?,
            flowtable_priority: match args.flowtable_priority.trim() {
                "last" => i32::MAX,
                value => number(
                    "flowtable-priority",
                    value,
                    "`last`, or a priority in the ingress hook, from -2147483648 to 2147483647",
                )?,
            },
            hw_offload: args.hw_offload,
            ignore_known_bugs: args.ignore_known_bugs,
            selection: Selection::new(&args.interfaces, &args.exclude_interfaces).map_err(|e| BadValue {
                flag: "interfaces",
                value: args.interfaces.join(","),
                allowed: e.to_string(),
            })?,
        })
    }
}

impl Config {
    /// Checks `args`; `hostname` is the name that the kernel has for this node.
    pub fn new(args: &RunArgs, hostname: String) -> Result<Self, BadValue> {
        if !args.pin_path.is_absolute() {
            return Err(BadValue {
                flag: "pin-path",
                value: args.pin_path.display().to_string(),
                allowed: "use an absolute path on a bpf file system, as /sys/fs/bpf/fastpath".to_owned(),
            });
        }
        let room = MIN_FLOWS..=MAX_FLOWS;
        let allowed = format!("a number of flow directions from {MIN_FLOWS} to {MAX_FLOWS}");
        let max_flows = number("max-flows", &args.max_flows, &allowed)?;
        if !room.contains(&max_flows) {
            let allowed = format!("use {allowed}");
            return Err(BadValue { flag: "max-flows", value: args.max_flows.clone(), allowed });
        }
        let mut rules = Rules::try_from(&args.rules)?;
        let node = args.hostname_override.clone().filter(|name| !name.is_empty()).unwrap_or(hostname);
        let flag = args.mode.parse().map_err(|allowed: &str| BadValue {
            flag: "mode",
            value: args.mode.clone(),
            allowed: allowed.to_owned(),
        })?;
        let mode = ModeSource { flag, file: args.mode_file.clone() };
        rules.offloads = mode.load()?.offloads(&node);
        if rules.threshold_auto && args.ebpf == EbpfMode::Off {
            return Err(BadValue {
                flag: "fastpath-threshold",
                value: "auto".to_owned(),
                allowed: "`auto` needs the eBPF programs: use --ebpf=tc, or a number of packets".to_owned(),
            });
        }
        if args.forward == ForwardMode::Peer && args.ebpf != EbpfMode::Tc {
            return Err(BadValue {
                flag: "forward",
                value: "peer".to_owned(),
                allowed: "`peer` needs --ebpf=tc: packets are forwarded behind the hook of XDP".to_owned(),
            });
        }
        Ok(Self {
            rules,
            mode,
            node,
            ebpf: args.ebpf,
            forward: args.forward == ForwardMode::Peer,
            max_flows,
            pin_path: args.pin_path.clone(),
            assist: args.assist == Assist::On,
            run_dir: args.run_dir.clone(),
            metrics_bind_address: bind_address(&args.metrics_bind_address)?,
            page: args.page,
            names: args.names,
            export: export(args)?,
            foreign: if args.takeover { ForeignTable::TakeOver } else { ForeignTable::Refuse },
            revalidate: args.revalidate,
            revalidate_interval_ms: interval_ms("revalidate-interval", &args.revalidate_interval)?,
            enforce_within_ms: enforce_within_ms(&args.enforce_within)?,
            once: args.once,
            cleanup_on_exit: args.cleanup_on_exit,
            sandbox: args.sandbox,
            log_format: args.log_format,
            verbosity: number("v", &args.v, "a number from 0 to 255")?,
        })
    }
}

/// A threshold that the operator has chosen.
fn threshold(value: &str) -> Result<u32, BadValue> {
    let allowed = "a number of packets from 1 to 4294967295, `auto`, or 0 to switch offloading off";
    number("fastpath-threshold", value, allowed)
}

/// Where to listen; `None` if it is empty.
fn bind_address(value: &str) -> Result<Option<SocketAddr>, BadValue> {
    let value = value.trim();
    if value.is_empty() {
        return Ok(None);
    }
    value.parse().map(Some).map_err(|_| BadValue {
        flag: "metrics-bind-address",
        value: value.to_owned(),
        allowed: "use an address and a port, as 127.0.0.1:19080 or [::]:19080; empty: no server".to_owned(),
    })
}

/// Where flow records go; `None` if it is empty.
fn export(args: &RunArgs) -> Result<Option<Export>, BadValue> {
    let timeout_ns = |flag, value| seconds(flag, value).map(|seconds| seconds * 1_000_000_000);
    let timeouts = Timeouts {
        active_ns: timeout_ns("export-active-timeout", &args.export_active_timeout)?,
        inactive_ns: timeout_ns("export-inactive-timeout", &args.export_inactive_timeout)?,
    };
    let allowed = "a private enterprise number, from 1 to 4294967295";
    let enterprise = number("export-enterprise-number", &args.export_enterprise_number, allowed)?;
    let Some(text) = args.export.as_deref().map(str::trim).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let target = Target::parse(text).ok_or_else(|| BadValue {
        flag: "export",
        value: text.to_owned(),
        allowed: target::ALLOWED.to_owned(),
    })?;
    Ok(Some(Export { target, timeouts, enterprise }))
}

/// A time from a second to an hour, in whole seconds.
fn seconds(flag: &'static str, value: &str) -> Result<u64, BadValue> {
    let parsed = humantime::parse_duration(value.trim()).ok().map(|time| time.as_secs());
    parsed.filter(|seconds| (1..=3600).contains(seconds)).ok_or_else(|| BadValue {
        flag,
        value: value.to_owned(),
        allowed: "use a time from 1s to 1h with its unit, as 30s or 5min".to_owned(),
    })
}

/// A time from 100 ms to an hour.
fn interval_ms(flag: &'static str, value: &str) -> Result<u64, BadValue> {
    let parsed = humantime::parse_duration(value.trim()).ok().map(|time| time.as_millis());
    parsed.and_then(|ms| u64::try_from(ms).ok()).filter(|ms| (100..=3_600_000).contains(ms)).ok_or_else(
        || BadValue {
            flag,
            value: value.to_owned(),
            allowed: "use a time from 100ms to 1h with its unit, as 500ms or 2s".to_owned(),
        },
    )
}

/// A time from 500 ms to an hour, or off.
fn enforce_within_ms(value: &str) -> Result<Option<u64>, BadValue> {
    let value = value.trim();
    if value == "off" {
        return Ok(None);
    }
    let parsed = humantime::parse_duration(value).ok().and_then(|time| u64::try_from(time.as_millis()).ok());
    parsed.filter(|ms| (500..=3_600_000).contains(ms)).map(Some).ok_or_else(|| BadValue {
        flag: "enforce-within",
        value: value.to_owned(),
        allowed: "use a time from 500ms to 1h with its unit, as 1500ms or 3s, or `off`".to_owned(),
    })
}

fn number<T: std::str::FromStr>(flag: &'static str, value: &str, allowed: &str) -> Result<T, BadValue> {
    value.trim().parse().map_err(|_| BadValue {
        flag,
        value: value.to_owned(),
        allowed: format!("use {allowed}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{cli::Cli, core::model::test_link as link};

    fn config(args: &[&str]) -> Result<Config, BadValue> {
        let cli = Cli::try_parse_from([&["fastpath-agent", "run"], args].concat()).unwrap();
        Config::new(cli.agent().unwrap(), "node-1".to_owned())
    }

    #[test]
    fn the_seeds_arguments_work() {
        let config = config(&["--hostname-override=worker", "--fastpath-threshold=6", "--v=2"]).unwrap();
        assert_eq!((config.node.as_str(), config.rules.threshold, config.verbosity), ("worker", 6, 2));
    }

    #[test]
    fn defaults() {
        let config = config(&[]).unwrap();
        assert_eq!((config.rules.threshold, config.rules.chain_priority), (20, 300));
        assert_eq!(config.rules.flowtable_priority, i32::MAX);
        assert_eq!(config.node, "node-1");
        assert_eq!(config.foreign, ForeignTable::Refuse);
        assert_eq!((config.revalidate, config.revalidate_interval_ms), (OnOff::On, 1000));
        assert_eq!(config.enforce_within_ms, Some(1500));
        assert_eq!(config.max_flows, fastpath_common::limits::DEFAULT_MAX_FLOWS);
        assert_eq!(config.metrics_bind_address, Some("127.0.0.1:19080".parse().unwrap()));
    }

    #[test]
    fn a_wrong_value_names_flag_value_and_what_is_allowed() {
        for (args, words) in [
            (["--fastpath-threshold=-1"], ["--fastpath-threshold", "'-1'", "0 to switch"]),
            (["--fastpath-threshold=many"], ["--fastpath-threshold", "'many'", "1 to 4294967295"]),
            (["--fastpath-threshold=4294967296"], ["--fastpath-threshold", "4294967296", "1 to 4294967295"]),
            (["--chain-priority=late"], ["--chain-priority", "'late'", "-2147483648"]),
            (["--flowtable-priority=first"], ["--flowtable-priority", "'first'", "`last`"]),
            (["--interfaces=eth["], ["--interfaces", "'eth['", "eth*"]),
            (["--exclude-interfaces=a,{"], ["--exclude-interfaces", "'{'", "eth*"]),
            (["--exclude=10.1/33"], ["--exclude", "'10.1/33'", "10.1.0.0/16"]),
            (["--exclude=tcp/99999"], ["--exclude", "'tcp/99999'", "65535"]),
            (["--exclude-file=/no/such"], ["--exclude-file", "'/no/such'", "No such file"]),
            (["--metrics-bind-address=19080"], ["--metrics-bind-address", "'19080'", "127.0.0.1:19080"]),
            (
                ["--metrics-bind-address=localhost:1"],
                ["--metrics-bind-address", "'localhost:1'", "[::]:19080"],
            ),
            (["--v=loud"], ["--v", "'loud'", "0 to 255"]),
            (["--enforce-within=400ms"], ["--enforce-within", "'400ms'", "500ms to 1h"]),
            (["--revalidate-interval=1"], ["--revalidate-interval", "'1'", "500ms"]),
            (["--revalidate-interval=10ms"], ["--revalidate-interval", "'10ms'", "100ms to 1h"]),
            (["--export=collector:4739"], ["--export'", "'collector:4739'", "ipfix://HOST"]),
            (["--export-active-timeout=60"], ["--export-active-timeout", "'60'", "1s to 1h"]),
            (["--export-inactive-timeout=2h"], ["--export-inactive-timeout", "'2h'", "1s to 1h"]),
            (["--export-enterprise-number=x"], ["--export-enterprise-number", "'x'", "4294967295"]),
            (["--mode=off"], ["--mode'", "'off'", "accelerate, watch"]),
            (["--mode-file=/"], ["--mode-file'", "'/'", "directory"]),
            (["--pin-path=maps"], ["--pin-path", "'maps'", "absolute"]),
            (["--max-flows=1023"], ["--max-flows", "'1023'", "1024 to 4194304"]),
            (["--max-flows=4194305"], ["--max-flows", "'4194305'", "1024 to 4194304"]),
            (["--max-flows=-1"], ["--max-flows", "'-1'", "1024 to 4194304"]),
        ] {
            let error = config(&args).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{error:?} lacks {word:?}");
            }
        }
    }

    #[test]
    fn a_known_bug_switches_offloading_off_unless_it_is_ignored() {
        let release = "5.15.40";
        let kernel = KernelNames { release, ..KernelNames::default() };
        for (args, bug, threshold) in [
            (&[][..], Some("stale-route"), 0),
            (&["--ignore-known-bugs"], None, 20),
            (&["--fastpath-threshold=0"], None, 0),
        ] {
            let mut rules = config(args).unwrap().rules;
            assert_eq!(
                (rules.avoid_known_bugs(&kernel).map(|bug| bug.name), rules.threshold),
                (bug, threshold),
                "{args:?}"
            );
        }
    }

    #[test]
    fn an_empty_address_switches_the_metrics_off() {
        assert_eq!(config(&["--metrics-bind-address="]).unwrap().metrics_bind_address, None);
    }

    #[test]
    fn the_flow_map_can_have_its_smallest_and_largest_size() {
        for (args, expected) in [(["--max-flows=1024"], 1024), (["--max-flows=4194304"], 4_194_304)] {
            assert_eq!(config(&args).unwrap().max_flows, expected);
        }
    }

    #[test]
    fn the_mode_file_wins_over_the_flag_while_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mode");
        let flag = format!("--mode-file={}", file.display());
        let threshold = |mode| config(&[mode, &flag]).map(|config| config.rules.threshold_in_force());
        assert_eq!(threshold("--mode=watch").unwrap(), 0);
        assert_eq!(threshold("--mode=accelerate").unwrap(), 20);
        fs::write(&file, "watch\n").unwrap();
        assert_eq!(threshold("--mode=accelerate").unwrap(), 0);
        fs::write(&file, "100%").unwrap();
        assert_eq!(threshold("--mode=watch").unwrap(), 20);
        fs::write(&file, "of").unwrap();
        let error = threshold("--mode=watch").unwrap_err().to_string();
        assert!(error.contains("--mode-file") && error.contains("it says 'of'; use accelerate"), "{error}");
    }

    #[test]
    fn globs_are_repeatable() {
        let config =
            config(&["--interfaces=eth*", "--interfaces=veth*", "--exclude-interfaces=eth1"]).unwrap();
        let taken: Vec<_> = ["eth0", "eth1", "veth7", "wg0"]
            .into_iter()
            .filter(|name| config.rules.selection.reject(&link(name)).is_none())
            .collect();
        assert_eq!(taken, ["eth0", "veth7"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
