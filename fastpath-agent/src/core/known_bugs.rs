//! Kernels that are known to lose packets of offloaded flows, as data, and which of them a release string names.
//!
//! Only what a public source supports is listed (docs/kernels.md has them, with the reasoning). Where a release doesn't
//! tell how far a distribution has gone with its fixes, nothing is claimed: the canary finds out by trying.

/// A kernel's version, as far as it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelVersion {
    /// Major and minor number.
    pub series: (u32, u32),
    /// The stable release of that series that it is based on; `None` where a distribution counts for itself.
    pub patch: Option<u32>,
}

/// What `uname` and procfs say about the running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelNames<'a> {
    /// `uname -r`: "6.12.117+deb12-cloud-amd64", "5.15.0-119-generic".
    pub release: &'a str,
    /// `uname -v`: "#1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)". Debian's has the version that the release lacks.
    pub version: &'a str,
    /// `/proc/version_signature`: "Ubuntu 5.15.0-119.129-generic 5.15.160". Ubuntu only; its last word is the version.
    pub signature: Option<&'a str>,
}

impl KernelVersion {
    /// Reads the version out of the names; `None` if they don't begin with one.
    pub fn of(names: &KernelNames<'_>) -> Option<Self> {
        let (series, patch) = numbers(names.release)?;
        let suffix = names.release.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        // These name the stable release that they are based on.
        let told = names
            .signature
            .and_then(|signature| signature.split_whitespace().last())
            .or_else(|| names.version.split("Debian ").nth(1))
            .and_then(numbers);
        if let Some((told, patch)) = told
            && told == series
        {
            return Some(Self { series, patch });
        }
        let known = patch.filter(|&patch| !counts_for_itself(patch, suffix));
        Some(Self { series, patch: known })
    }
}

impl KernelVersion {
    /// Whether packets with FIN or RST surely leave the flowtable, with their flow. Since Linux 6.14 they pass it, as the last ones
    /// (fdbaf5163331, "netfilter: flowtable: add CLOSING state"); a distribution that counts for itself may have that, too.
    pub fn ends_leave_flowtable(&self) -> bool {
        self.series < (6, 14) && self.patch.is_some()
    }
}

/// Series and patch number at the start of a version.
fn numbers(version: &str) -> Option<((u32, u32), Option<u32>)> {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let mut numbers = version[..end].split('.').map(str::parse);
    let series = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    // A release candidate has no patch number yet: what goes for x.y.0 doesn't go for it.
    if version[end..].starts_with("-rc") {
        return Some((series, None));
    }
    Some((series, Some(numbers.next().and_then(Result::ok).unwrap_or(0))))
}

/// Whether the patch number isn't that of a stable release but where the distribution began: Red Hat
/// ("5.14.0-503.el9.x86_64"), Ubuntu and older Debian ("5.15.0-119-generic", "6.1.0-41-amd64"), Oracle's UEK, SUSE's
/// enterprise kernels ("5.14.21-150500.55.7-default").
fn counts_for_itself(patch: u32, suffix: &str) -> bool {
    let number = suffix.strip_prefix('-').map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        rest[..end].len()
    });
    let enterprise = number.is_some_and(|digits| digits >= 6) || suffix.contains(".el");
    enterprise || (patch == 0 && number.is_some_and(|digits| digits > 0))
}

/// A bug of the flowtable that loses packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownBug {
    /// Short name, as in docs/kernels.md.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    /// Which kernel to use instead.
    pub fixed_in: &'static str,
    /// First version that has it, and first that doesn't any more, both `(major, minor, patch)`.
    affected: &'static [(Triple, Triple)],
}

type Triple = (u32, u32, u32);

/// All that are known. Sources: docs/kernels.md.
pub const KNOWN_BUGS: [KnownBug; 2] = [
    KnownBug {
        name: "stale-route",
        what: "offloaded flows, above all of IPv6, now and then lose packets when their cached route goes stale",
        fixed_in: "5.15.42, 5.17.10 or 5.18",
        affected: &[((5, 13, 0), (5, 15, 42)), ((5, 16, 0), (5, 17, 10))],
    },
    KnownBug {
        name: "incomplete-path",
        what: "packets of an offloaded flow are dropped when the device that they leave through isn't in the flowtable, as ports of bridges aren't",
        fixed_in: "7.2",
        affected: &[((6, 18, 45), (7, 2, 0))],
    },
];

/// The bugs that this kernel is known to have.
pub fn bugs_of(version: KernelVersion) -> impl Iterator<Item = &'static KnownBug> {
    KNOWN_BUGS.iter().filter(move |bug| {
        let (major, minor) = version.series;
        version.patch.is_some_and(|patch| {
            let version = (major, minor, patch);
            bug.affected.iter().any(|(from, until)| *from <= version && version < *until)
        })
    })
}

/// The bug for which flows aren't offloaded on this kernel; `None` if there is none.
pub fn forbids_offload(names: &KernelNames<'_>) -> Option<&'static KnownBug> {
    bugs_of(KernelVersion::of(names)?).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(release: &str, version: &str, signature: Option<&str>) -> Option<(u32, u32, Option<u32>)> {
        let version = KernelVersion::of(&KernelNames { release, version, signature })?;
        Some((version.series.0, version.series.1, version.patch))
    }

    #[test]
    fn ends_leave_the_flowtable_before_they_close_flows() {
        for (release, signature, expected) in [
            ("6.1.102-111.187.amzn2023.x86_64", None, true),
            ("6.12.117+deb12-cloud-amd64", None, true),
            ("6.13.12", None, true),
            ("6.14.0", None, false),
            ("7.0.1", None, false),
            ("6.12.0-55.9.1.el10_0.x86_64", None, false),
            ("6.8.0-31-generic", Some("Ubuntu 6.8.0-31.31-generic 6.8.1"), true),
        ] {
            let version = KernelVersion::of(&KernelNames { release, version: "", signature }).unwrap();
            assert_eq!(version.ends_leave_flowtable(), expected, "{release}");
        }
    }

    #[test]
    fn versions_behind_the_suffixes_of_distributions() {
        for (release, uname_v, signature, expected) in [
            // kernel.org, Arch, Fedora, Amazon, Talos, Flatcar, COS, WSL, OpenWrt, Raspberry Pi
            ("6.18.45", "#1 SMP", None, (6, 18, Some(45))),
            ("6.18.45-arch1-1", "#1 SMP PREEMPT_DYNAMIC", None, (6, 18, Some(45))),
            ("6.18.45-200.fc43.x86_64", "#1 SMP", None, (6, 18, Some(45))),
            ("6.1.102-111.187.amzn2023.x86_64", "#1 SMP", None, (6, 1, Some(102))),
            ("6.6.58-talos", "#1 SMP", None, (6, 6, Some(58))),
            ("6.1.100+", "#1 SMP", None, (6, 1, Some(100))),
            ("5.15.42-microsoft-standard-WSL2", "#1 SMP", None, (5, 15, Some(42))),
            ("6.6.51+rpt-rpi-v8", "#1 SMP PREEMPT Debian 1:6.6.51-1+rpt3", None, (6, 6, Some(51))),
            ("7.1.2-1-default", "#1 SMP", None, (7, 1, Some(2))),
            ("6.19", "", None, (6, 19, Some(0))),
            // Debian: new and old scheme
            (
                "6.12.117+deb12-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~bpo12+1",
                None,
                (6, 12, Some(117)),
            ),
            (
                "6.1.0-41-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.158-1 (2025-11-09)",
                None,
                (6, 1, Some(158)),
            ),
            ("6.1.0-41-cloud-amd64", "", None, (6, 1, None)),
            // Ubuntu
            (
                "5.15.0-119-generic",
                "#129-Ubuntu SMP",
                Some("Ubuntu 5.15.0-119.129-generic 5.15.160\n"),
                (5, 15, Some(160)),
            ),
            ("5.15.0-119-generic", "#129-Ubuntu SMP", None, (5, 15, None)),
            // Those that mend for themselves
            ("5.14.0-503.11.1.el9_5.x86_64", "#1 SMP PREEMPT_DYNAMIC", None, (5, 14, None)),
            ("4.18.0-553.el8_10.x86_64", "#1 SMP", None, (4, 18, None)),
            ("5.15.0-209.161.7.2.el9uek.x86_64", "#2 SMP", None, (5, 15, None)),
            ("5.14.21-150500.55.7-default", "#1 SMP", None, (5, 14, None)),
            ("6.4.0-150600.23.25-default", "#1 SMP", None, (6, 4, None)),
            // Before the release
            ("6.19.0-rc1", "#1 SMP", None, (6, 19, None)),
            ("6.19-rc1", "#1 SMP", None, (6, 19, None)),
            ("7.2.0-rc3-00017-gabcdef", "#1 SMP", None, (7, 2, None)),
        ] {
            assert_eq!(version(release, uname_v, signature), Some(expected), "{release}");
        }
        for nonsense in ["", "unknown", "6", "x.y.z"] {
            assert_eq!(version(nonsense, "", None), None, "{nonsense}");
        }
    }

    #[test]
    fn bugs_begin_and_end_where_the_sources_say() {
        let bug = |release: &str| {
            forbids_offload(&KernelNames { release, ..KernelNames::default() }).map(|bug| bug.name)
        };
        for (release, expected) in [
            ("5.10.200", None),
            ("5.12.19", None),
            ("5.13.0", Some("stale-route")),
            ("5.15.41", Some("stale-route")),
            ("5.15.42", None),
            ("5.16.20", Some("stale-route")),
            ("5.17.9", Some("stale-route")),
            ("5.17.10", None),
            ("5.18.0", None),
            ("6.1.158", None),
            ("6.12.117+deb12-cloud-amd64", None),
            ("6.18.44", None),
            ("6.18.45", Some("incomplete-path")),
            ("6.19.2-arch1-1", Some("incomplete-path")),
            ("7.1.9", Some("incomplete-path")),
            ("7.2.0", None),
            // What can't be told is no ground to refuse.
            ("5.14.0-503.11.1.el9_5.x86_64", None),
            ("5.15.0-119-generic", None),
            ("nonsense", None),
        ] {
            assert_eq!(bug(release), expected, "{release}");
        }
    }

    #[test]
    fn every_bug_is_documented() {
        let page = include_str!("../../../docs/kernels.md");
        for bug in KNOWN_BUGS {
            assert!(page.contains(&format!("`{}`", bug.name)), "{} is not in docs/kernels.md", bug.name);
            assert!(page.contains(bug.fixed_in), "{} has another end in docs/kernels.md", bug.name);
        }
    }
}
