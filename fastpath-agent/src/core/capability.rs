//! The capabilities that the agent uses, and which of them a process lacks. Reads nothing: the set is given.

/// A bit of a process's capability set, with its name (linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    bit: u32,
    /// `CAP_…`
    pub name: &'static str,
}

/// Reading and writing the ruleset, links and conntrack; attaching programs.
pub const NET_ADMIN: Capability = Capability { bit: 12, name: "CAP_NET_ADMIN" };
/// Includes the two below.
const SYS_ADMIN: Capability = Capability { bit: 21, name: "CAP_SYS_ADMIN" };
/// What the verifier allows programs.
pub const PERFMON: Capability = Capability { bit: 38, name: "CAP_PERFMON" };
/// Maps and programs of eBPF.
pub const BPF: Capability = Capability { bit: 39, name: "CAP_BPF" };

/// Whether the set, as `/proc/PID/status` has it, is good for what that capability allows.
pub fn has(set: u64, capability: Capability) -> bool {
    let bit = |capability: Capability| set >> capability.bit & 1 == 1;
    bit(capability) || (capability != NET_ADMIN && bit(SYS_ADMIN))
}

/// The names of those that aren't in the set.
pub fn missing(set: u64, wanted: &[Capability]) -> Vec<&'static str> {
    wanted.iter().filter(|capability| !has(set, **capability)).map(|capability| capability.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing() {
        let all = [BPF, PERFMON, NET_ADMIN];
        assert_eq!(missing(u64::MAX, &all), Vec::<&str>::new());
        assert_eq!(missing(0, &all), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"]);
        assert_eq!(missing(1 << 39 | 1 << 12, &all), ["CAP_PERFMON"]);
        assert_eq!(missing(1 << 38 | 1 << 12, &all), ["CAP_BPF"]);
        // CAP_SYS_ADMIN is as good as the two that were split off it, and no more.
        assert_eq!(missing(1 << 21, &all), ["CAP_NET_ADMIN"]);
    }
}
