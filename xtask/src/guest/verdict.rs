//! Understands what comes back from the guest: lines of its second serial port, its kernel's console, and from both
//! whether a test passed. Pure: no I/O.

use std::{fmt, time::Duration};

/// A line of the port to PID 1 (see `tests/src/bin/init.rs`).
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    /// PID 1 takes requests.
    Ready,
    /// The job printed this.
    Output(&'a str),
    /// The job ended.
    End(End, Duration),
    /// Nothing that PID 1 says: firmware, a kernel without its console.
    Noise(&'a str),
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
    TimeLimit,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::TimeLimit => write!(f, "time limit reached"),
        }
    }
}

/// Reads one line of the port, without its end.
pub(crate) fn line(line: &str) -> Line<'_> {
    if let Some(output) = line.strip_prefix("| ") {
        return Line::Output(output);
    }
    if line == "@@READY" {
        return Line::Ready;
    }
    end(line).unwrap_or(Line::Noise(line))
}

fn end(line: &str) -> Option<Line<'_>> {
    let mut words = line.strip_prefix("@@END ")?.split(' ');
    let (word, number, seconds) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let end = match word {
        "exit" => End::Exit(number),
        "signal" => End::Signal(number),
        "time-limit" => End::TimeLimit,
        _ => return None,
    };
    Some(Line::End(end, Duration::try_from_secs_f64(seconds).ok()?))
}

/// What the kernel says on its console when it is broken, and what that means.
const ALARMS: &[(&str, &str)] = &[
    ("Kernel panic - not syncing", "kernel panic"),
    ("kernel BUG at", "kernel bug"),
    ("BUG: unable to handle", "kernel oops"),
    ("BUG: kernel NULL pointer", "kernel oops"),
    ("BUG: KASAN", "kernel memory error"),
    ("BUG: scheduling while atomic", "kernel bug"),
    ("BUG: sleeping function", "kernel bug"),
    ("Oops: ", "kernel oops"),
    ("general protection fault", "kernel oops"),
    ("soft lockup - CPU", "soft lockup"),
    ("self-detected stall", "RCU stall"),
    ("detected stalls on CPUs", "RCU stall"),
    ("detected expedited stalls", "RCU stall"),
    ("blocked for more than", "hung task"),
    ("WARNING: CPU: ", "kernel warning"),
    ("Out of memory: Killed process", "out of memory"),
    ("unregister_netdevice: waiting for", "network device never released"),
];

/// Whether this console line says that the kernel is broken.
pub(crate) fn alarm(console_line: &str) -> Option<&'static str> {
    ALARMS.iter().find(|(text, _)| console_line.contains(text)).map(|(_, meaning)| *meaning)
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Passed,
    Failed(String),
    /// The test itself says that this kernel is too old for what it tests, and why.
    NotApplicable(String),
}

/// A test that ran by itself to this end, and printed this.
pub(crate) fn judge<'a>(end: End, output: impl IntoIterator<Item = &'a str>) -> Verdict {
    if end != End::Exit(0) {
        return Verdict::Failed(end.to_string());
    }
    let mut not_applicable = None;
    let mut counted = false;
    for line in output {
        // Behind libtest's "test NAME ... " when it is the first line.
        if let Some((_, reason)) = line.split_once("SKIP-KERNEL: ") {
            not_applicable = Some(reason.trim().to_owned());
        }
        counted |= line.starts_with("test result: ok. 1 passed;");
    }
    match not_applicable {
        _ if !counted => Verdict::Failed("the test binary ran no test of this name".to_owned()),
        Some(reason) => Verdict::NotApplicable(reason),
        None => Verdict::Passed,
    }
}

/// What a test printed itself, without what libtest says of it.
pub(crate) fn told<'a>(output: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let of_libtest =
        |line: &str| ["running ", "test result: ", "ok"].iter().any(|word| line.starts_with(word));
    output
        .map(|line| line.split_once(" ... ").map_or(line, |(_, said)| said).trim())
        .filter(move |line| !line.is_empty() && !of_libtest(line))
}

/// The report on a test: one line, and what it printed if it failed.
pub(crate) fn shown<'a>(
    verdict: &Verdict,
    place: &str,
    name: &str,
    took: Duration,
    output: impl IntoIterator<Item = &'a str>,
) -> String {
    let seconds = took.as_secs_f64();
    match verdict {
        Verdict::Passed => format!("ok      {place:<5} {name} ({seconds:.1} s)\n"),
        Verdict::NotApplicable(reason) => format!("n/a     {place:<5} {name}: {reason}\n"),
        Verdict::Failed(reason) => {
            let output: String = output.into_iter().map(|line| format!("    {line}\n")).collect();
            format!("FAILED  {place:<5} {name}: {reason} ({seconds:.1} s)\n{output}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_lines() {
        for (text, expected) in [
            ("@@READY", Line::Ready),
            ("| hello", Line::Output("hello")),
            ("| @@READY", Line::Output("@@READY")),
            ("| ", Line::Output("")),
            ("@@END exit 101 3.250", Line::End(End::Exit(101), Duration::from_millis(3250))),
            ("@@END signal 9 0.001", Line::End(End::Signal(9), Duration::from_millis(1))),
            ("@@END time-limit 0 60.000", Line::End(End::TimeLimit, Duration::from_secs(60))),
            ("@@END exit", Line::Noise("@@END exit")),
            ("@@END exit 0 -1", Line::Noise("@@END exit 0 -1")),
            ("SeaBIOS", Line::Noise("SeaBIOS")),
        ] {
            assert_eq!(line(text), expected, "{text}");
        }
    }

    const PANIC: &str = "\
[    9.1] nft_flow_offload: loaded
[   12.345678] BUG: kernel NULL pointer dereference, address: 0000000000000010
[   12.345679] #PF: supervisor read access in kernel mode
[   12.345680] Oops: 0000 [#1] PREEMPT SMP NOPTI
[   12.345690] Kernel panic - not syncing: Fatal exception in interrupt";

    #[test]
    fn broken_kernels_are_recognised() {
        let alarms: Vec<_> = PANIC.lines().filter_map(alarm).collect();
        assert_eq!(alarms, ["kernel oops", "kernel oops", "kernel panic"]);
        for (text, expected) in [
            ("watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [iperf3:211]", Some("soft lockup")),
            ("rcu: INFO: rcu_preempt self-detected stall on CPU", Some("RCU stall")),
            ("INFO: task nft:99 blocked for more than 120 seconds.", Some("hung task")),
            (
                "unregister_netdevice: waiting for veth0 to become free. Usage count = 2",
                Some("network device never released"),
            ),
            ("Debug: sleeping", None),
            ("nf_conntrack: table full, dropping packet", None),
        ] {
            assert_eq!(alarm(text), expected, "{text}");
        }
    }

    #[test]
    fn a_pass_must_be_seen() {
        let passed = ["running 1 test", "test a::b ... ok", "test result: ok. 1 passed; 0 failed; 0 ignored"];
        assert_eq!(judge(End::Exit(0), passed), Verdict::Passed);
        assert_eq!(judge(End::Exit(101), passed), Verdict::Failed("exit status 101".into()));
        assert_eq!(judge(End::TimeLimit, passed), Verdict::Failed("time limit reached".into()));
        let none = ["running 0 tests", "test result: ok. 0 passed; 0 failed; 0 ignored"];
        assert!(matches!(judge(End::Exit(0), none), Verdict::Failed(_)));
        let too_old = [
            "test a::b ... SKIP-KERNEL: dynamic keys need 6.4",
            "ok",
            "test result: ok. 1 passed; 0 failed; 0 ignored",
        ];
        assert_eq!(judge(End::Exit(0), too_old), Verdict::NotApplicable("dynamic keys need 6.4".into()));
        assert!(matches!(judge(End::Exit(1), too_old), Verdict::Failed(_)));
    }
}
