//! What this kernel can do, with three answers: yes, no and why, couldn't tell and why. Found out by trying, never
//! by version, and without a trace.

use std::{fmt, fs, io, io::Read, path::Path};

use flate2::read::GzDecoder;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::nft::{
    Nft, NftError,
    trial::{Trial, Verdict},
};

/// An answer. In JSON `{"supported": true|false|null, "reason": "…"}`, the reason only where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// The kernel does it.
    Yes,
    /// It doesn't.
    No {
        /// What is missing and what to do about it, one line.
        reason: String,
    },
    /// It couldn't be found out.
    Unknown {
        /// Why, one line.
        reason: String,
    },
}

impl Support {
    /// `Some` if it is known.
    pub fn known(&self) -> Option<bool> {
        match self {
            Self::Yes => Some(true),
            Self::No { .. } => Some(false),
            Self::Unknown { .. } => None,
        }
    }

    /// It is there, or it couldn't be told: worth trying.
    pub fn is_supported(&self) -> bool {
        self.known() != Some(false)
    }

    /// Why it isn't yes.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Yes => None,
            Self::No { reason } | Self::Unknown { reason } => Some(reason),
        }
    }
}

impl Serialize for Support {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let reason = self.reason();
        let mut object = serializer.serialize_struct("Support", 1 + usize::from(reason.is_some()))?;
        object.serialize_field("supported", &self.known())?;
        if let Some(reason) = reason {
            object.serialize_field("reason", reason)?;
        }
        object.end()
    }
}

/// What the running kernel has of what we use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Release as `uname -r` prints it.
    pub release: String,
    /// nf_tables with tables of the inet family.
    pub nf_tables: Support,
    /// The instruction `ct` (all kernels that have it count packets).
    pub ct: Support,
    /// Flowtables of the inet family.
    pub flowtable: Support,
    /// Flowtables that update the packet counters of conntrack (Linux 5.7).
    pub flowtable_counter: Support,
    /// The instruction `flow add`.
    pub flow_offload: Support,
    /// The instruction `fib`.
    pub fib: Support,
    /// The key `rt ipsec`: kernels without IPsec don't have it, and don't need it.
    pub rt_ipsec: Support,
}

impl Kernel {
    /// Why flows can't be offloaded here; `None` if they can, or if it couldn't be told.
    pub fn lacks_flowtable(&self) -> Option<&str> {
        [&self.nf_tables, &self.flowtable, &self.ct, &self.flow_offload, &self.fib]
            .into_iter()
            .find(|support| !support.is_supported())
            .and_then(Support::reason)
    }
}

/// Release and, where there is something to say, the most important thing that is missing.
impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)?;
        let parts = [
            &self.nf_tables,
            &self.flowtable,
            &self.ct,
            &self.flow_offload,
            &self.fib,
            &self.flowtable_counter,
        ];
        match parts.into_iter().find_map(Support::reason) {
            Some(reason) => write!(f, ": {reason}"),
            None => f.write_str(", flowtables with counters"),
        }
    }
}

/// Tries everything out in the calling thread's network namespace.
pub fn probe() -> Kernel {
    let host = Host::look();
    let answers = Nft::open().and_then(|mut nft| nft.try_out(&TRIALS.map(|(trial, _)| trial)));
    let mut answers = TRIALS.iter().enumerate().map(|(number, (_, part))| match &answers {
        Err(error @ NftError::Unsupported { .. }) => Support::No { reason: error.to_string() },
        Err(error) => Support::Unknown { reason: error.to_string() },
        Ok(verdicts) => match verdicts[number] {
            Verdict::Accepted => Support::Yes,
            Verdict::Unknown { errno } => Support::No { reason: host.why_not(part, errno) },
            Verdict::Refused { errno } => {
                let error = io::Error::from_raw_os_error(errno);
                Support::Unknown { reason: format!("the kernel refused to try {}: {error}", part.what) }
            }
        },
    });
    let mut next = || answers.next().expect("an answer to each trial");
    let (nf_tables, ct, flowtable, with_counter) = (next(), next(), next(), next());
    let flowtable_counter = if flowtable == Support::Yes { with_counter } else { flowtable.clone() };
    let (rt_ipsec, flow_offload, fib) = (next(), next(), next());
    Kernel { nf_tables, ct, flowtable, flowtable_counter, rt_ipsec, flow_offload, fib, release: host.release }
}

/// What is tried, in this order.
const TRIALS: [(Trial, &Part); 7] = [
    (Trial::Table, &NF_TABLES),
    (Trial::Instruction("ct"), &CT),
    (Trial::Flowtable { counter: false }, &FLOWTABLE),
    (Trial::Flowtable { counter: true }, &FLOWTABLE_COUNTER),
    (Trial::RtIpsec, &RT_IPSEC),
    (Trial::Instruction("flow_offload"), &FLOW_OFFLOAD),
    (Trial::Instruction("fib"), &FIB),
];

/// A part of the kernel that may be left out when it is built, or not be loaded.
struct Part {
    what: &'static str,
    /// Options that it takes, the most general first.
    options: &'static [&'static str],
    /// Its module, if it is built as one.
    module: &'static str,
    /// What loads all that the agent needs.
    modprobe: &'static str,
}

const MODPROBE: &str = "modprobe -a nft_ct nft_fib_inet nf_flow_table_inet nft_flow_offload";
const NF_TABLES: Part = Part {
    what: "nf_tables",
    options: &["CONFIG_NF_TABLES", "CONFIG_NF_TABLES_INET"],
    module: "nf_tables",
    modprobe: "modprobe nf_tables",
};
const CT: Part = Part {
    what: "`ct` in nftables rules",
    options: &["CONFIG_NF_CONNTRACK", "CONFIG_NFT_CT"],
    module: "nft_ct",
    modprobe: MODPROBE,
};
const FLOWTABLE: Part = Part {
    what: "flowtables",
    options: &["CONFIG_NF_FLOW_TABLE", "CONFIG_NF_FLOW_TABLE_INET"],
    module: "nf_flow_table_inet",
    modprobe: MODPROBE,
};
const FLOWTABLE_COUNTER: Part = Part {
    what: "flowtables with counters (Linux 5.7)",
    options: &[],
    module: "nf_flow_table",
    modprobe: MODPROBE,
};
const FLOW_OFFLOAD: Part = Part {
    what: "`flow add` in nftables rules",
    options: &["CONFIG_NF_FLOW_TABLE", "CONFIG_NFT_FLOW_OFFLOAD"],
    module: "nft_flow_offload",
    modprobe: MODPROBE,
};

const FIB: Part = Part {
    what: "`fib` in nftables rules",
    options: &["CONFIG_NFT_FIB_INET"],
    module: "nft_fib_inet",
    modprobe: MODPROBE,
};

const RT_IPSEC: Part = Part {
    what: "`rt ipsec` in nftables rules",
    options: &["CONFIG_XFRM"],
    module: "nf_tables",
    modprobe: "modprobe nf_tables",
};

/// What this machine says about how its kernel was built.
struct Host {
    release: String,
    /// The kernel's configuration, if it can be found.
    config: Option<String>,
    /// List of installed modules, if it can be found (a container usually has none).
    installed: Option<String>,
    /// `/proc/modules`.
    loaded: Option<String>,
}

impl Host {
    fn look() -> Self {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let unzip = |path: &str| {
            let mut text = String::new();
            GzDecoder::new(fs::File::open(path).ok()?).read_to_string(&mut text).ok()?;
            Some(text)
        };
        let modules = Path::new("/lib/modules").join(&release);
        let config = unzip("/proc/config.gz")
            .or_else(|| fs::read_to_string(format!("/boot/config-{release}")).ok())
            .or_else(|| fs::read_to_string(modules.join("config")).ok());
        Self {
            config,
            installed: fs::read_to_string(modules.join("modules.dep")).ok(),
            loaded: fs::read_to_string("/proc/modules").ok(),
            release,
        }
    }

    /// Why the kernel doesn't know a part, as well as this machine lets one say.
    fn why_not(&self, part: &Part, errno: i32) -> String {
        let Part { what, options, module, modprobe } = part;
        let missing = |option: &&&str| self.option(option) == Some(Built::Out);
        if let Some(option) = options.iter().find(missing) {
            return format!("this kernel has no {what}: {option} is not set in {}", self.release);
        }
        if self.loaded.as_deref().is_some_and(|loaded| is_loaded(loaded, module)) || options.is_empty() {
            let error = io::Error::from_raw_os_error(errno);
            return format!("this kernel has no {what}: {error}");
        }
        let as_module = options.iter().any(|option| self.option(option) == Some(Built::AsModule));
        match &self.installed {
            Some(installed) if is_installed(installed, module) => format!(
                "this kernel has no {what} yet: module {module} isn't loaded and can't be loaded from here: run `{modprobe}` on the host, then restart the agent"
            ),
            Some(_) if as_module => format!(
                "this kernel has no {what}: module {module} isn't installed for {}: install the package with the rest of this kernel's modules",
                self.release
            ),
            _ if as_module => format!(
                "this kernel has no {what} yet: module {module} isn't loaded: run `{modprobe}` on the host, then restart the agent"
            ),
            _ => {
                let error = io::Error::from_raw_os_error(errno);
                format!(
                    "this kernel has no {what} ({error}): try `{modprobe}` on the host, then restart the agent; or use a kernel with {}",
                    options.join(" and ")
                )
            }
        }
    }

    fn option(&self, option: &str) -> Option<Built> {
        let value =
            self.config.as_deref()?.lines().find_map(|line| line.strip_prefix(option)?.strip_prefix('='));
        Some(match value {
            Some("y") => Built::In,
            Some("m") => Built::AsModule,
            _ => Built::Out,
        })
    }
}

#[derive(PartialEq, Eq)]
enum Built {
    In,
    AsModule,
    Out,
}

/// `/proc/modules` begins its lines with names.
fn is_loaded(modules: &str, name: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some(name))
}

/// `modules.dep` begins its lines with paths; file names may have `-` for `_` and end in `.ko`, `.ko.xz` ….
fn is_installed(modules_dep: &str, name: &str) -> bool {
    modules_dep.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_") == name
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(config: Option<&str>, installed: Option<&str>, loaded: Option<&str>) -> Host {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let release = "6.1.0-1-test".to_owned();
        Host { release, config: own(config), installed: own(installed), loaded: own(loaded) }
    }

    #[test]
    fn the_reason_names_what_is_missing_and_the_remedy() {
        let as_modules = "CONFIG_NF_FLOW_TABLE=m\nCONFIG_NF_FLOW_TABLE_INET=m\n";
        let dep = "kernel/net/netfilter/nf_flow_table.ko.xz:\nkernel/net/netfilter/nf_flow_table_inet.ko.xz: kernel/a.ko\n";
        let cases = [
            (
                host(Some("# CONFIG_NF_FLOW_TABLE is not set\n"), None, None),
                "CONFIG_NF_FLOW_TABLE is not set in 6.1.0-1-test",
            ),
            (
                host(Some("CONFIG_NF_FLOW_TABLE=y\n"), None, None),
                "CONFIG_NF_FLOW_TABLE_INET is not set in 6.1.0-1-test",
            ),
            (
                host(Some(as_modules), Some(dep), Some("nf_flow_table 1 0 - Live 0x0\n")),
                "module nf_flow_table_inet isn't loaded and can't be loaded from here: run `modprobe -a nft_ct nft_fib_inet nf_flow_table_inet nft_flow_offload` on the host",
            ),
            (
                host(Some(as_modules), Some("kernel/net/netfilter/nf_flow_table.ko:\n"), Some("")),
                "module nf_flow_table_inet isn't installed for 6.1.0-1-test",
            ),
            (host(Some(as_modules), None, Some("")), "module nf_flow_table_inet isn't loaded: run `modprobe"),
            (host(None, Some(dep), None), "can't be loaded from here"),
            (
                host(None, None, None),
                "or use a kernel with CONFIG_NF_FLOW_TABLE and CONFIG_NF_FLOW_TABLE_INET",
            ),
            (
                host(Some(as_modules), Some(dep), Some("nf_flow_table_inet 16384 0 - Live 0x0\n")),
                "this kernel has no flowtables: No such file or directory",
            ),
        ];
        for (host, expected) in cases {
            let reason = host.why_not(&FLOWTABLE, libc::ENOENT);
            assert!(reason.contains(expected), "{reason}");
            assert!(!reason.contains('\n'));
        }
    }

    #[test]
    fn answers_in_json() {
        let json = |support: Support| serde_json::to_string(&support).expect("json");
        assert_eq!(json(Support::Yes), r#"{"supported":true}"#);
        assert_eq!(json(Support::No { reason: "r".into() }), r#"{"supported":false,"reason":"r"}"#);
        assert_eq!(json(Support::Unknown { reason: "r".into() }), r#"{"supported":null,"reason":"r"}"#);
    }
}
