//! Why the kernel refuses eBPF to this process, so that the error can name the remedy: a missing capability, or a policy
//! that forbids it although the capabilities are there.

use std::{fmt, path::Path};

use crate::{
    core::capability::{BPF, NET_ADMIN, PERFMON, missing},
    kernel::capabilities::capabilities,
};

/// What this process lacks for eBPF. Displays as the end of a sentence that begins with what isn't permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// These capabilities aren't there.
    Without(Vec<&'static str>),
    /// They all are: seccomp, AppArmor or SELinux.
    ByPolicy,
    /// The process's capabilities can't be read.
    Unknown,
}

impl Denied {
    /// Looks at this process.
    pub(super) fn find() -> Self {
        match capabilities(Path::new("/proc/thread-self/status"), "CapEff:") {
            Ok(set) => Self::by(missing(set, &[BPF, PERFMON, NET_ADMIN])),
            Err(_) => Self::Unknown,
        }
    }

    fn by(missing: Vec<&'static str>) -> Self {
        if missing.is_empty() { Self::ByPolicy } else { Self::Without(missing) }
    }

    /// Whether a capability is known to be missing.
    pub(super) fn is_a_capability(&self) -> bool {
        matches!(self, Self::Without(_))
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Without(names) => {
                let names = names.join(" and ");
                write!(f, "without {names}: run the agent as root, or add {names}")
            }
            Self::ByPolicy => f.write_str(
                "although the capabilities are there: a seccomp profile, AppArmor or SELinux forbids it and has to let it",
            ),
            Self::Unknown => {
                write!(
                    f,
                    "here: run the agent as root, or with {}, {} and {}",
                    NET_ADMIN.name, BPF.name, PERFMON.name
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Denied;

    #[test]
    fn the_reason_names_the_remedy() {
        let one = Denied::by(vec!["CAP_BPF"]);
        assert!(one.is_a_capability());
        assert_eq!(one.to_string(), "without CAP_BPF: run the agent as root, or add CAP_BPF");
        let policy = Denied::by(Vec::new());
        assert!(!policy.is_a_capability() && policy.to_string().contains("seccomp"));
        assert!(!one.to_string().contains("seccomp"));
    }
}
