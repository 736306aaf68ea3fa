//! The first line of `status`: the agent, and whether it is as it should be.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use humantime::{format_duration, format_rfc3339_seconds};
use serde::{Deserialize, Serialize};

use crate::{
    commands::{
        running::{self, Running},
        units,
    },
    config::Config,
};

/// The agent of this network namespace.
#[derive(Debug, Serialize)]
pub struct Agent {
    /// What it does.
    pub standing: Standing,
    /// Why it is degraded or not running, and what to do about it.
    pub reason: Option<String>,
    /// The process.
    pub pid: Option<u32>,
    /// Since when it runs: RFC 3339, UTC.
    pub since: Option<String>,
    /// For how long it has run, in s.
    pub seconds: Option<u64>,
    /// Its version; none if that is another build than this command's.
    pub version: Option<&'static str>,
    /// What passed in the last minute; none if the agent doesn't tell (`--page`, `--metrics-bind-address`).
    pub last_minute: Option<Passed>,
}

/// Packets at ingress, and those of them that bypassed the forward path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// All of them.
    pub packets: u64,
    /// On the fast path.
    pub fast: u64,
    /// The time in which they came, in ms: a minute, or since the agent began to count.
    pub milliseconds: u64,
}

/// An answer at `/api/history` (docs/page.md), as far as it is needed.
#[derive(Deserialize)]
struct History {
    /// Number, known part in ms, and packets, bytes, and both on the fast path.
    steps: Vec<(u64, u64, [u64; 4])>,
    step_ms: u64,
    /// Whether packets are counted.
    watches: bool,
}

impl History {
    /// The last whole minute and what has begun since.
    fn last_minute(&self) -> Passed {
        let newest = self.steps.iter().map(|(number, ..)| *number).max().unwrap_or(0);
        let steps = 60_000 / self.step_ms.max(1);
        let recent = self.steps.iter().filter(|(number, ..)| number + steps >= newest);
        recent.fold(
            Passed { packets: 0, fast: 0, milliseconds: 0 },
            |sum, (_, covered_ms, [packets, _, fast, _])| Passed {
                packets: sum.packets + packets,
                fast: sum.fast + fast,
                milliseconds: sum.milliseconds + covered_ms,
            },
        )
    }
}

/// As systemctl and the LSB have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// It runs, and the node is as its flags want it.
    Ready,
    /// It runs, and something is amiss.
    Degraded,
    /// No agent runs here.
    NotRunning,
}

impl Standing {
    /// 0, 1 or 3, as `systemctl status` has them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ready => 0,
            Self::Degraded => 1,
            Self::NotRunning => 3,
        }
    }
}

impl Agent {
    /// Asks the process, and its HTTP port. `amiss`: what the kernel says of the ruleset, if that isn't as it should be.
    pub(super) fn ask(amiss: impl FnOnce(&Config) -> Option<String>) -> (Self, Option<Config>) {
        let (process, config) = match running::find() {
            Running::Known(process, config, _) => (process, *config),
            Running::Unread(process, error) => {
                let reason = Some(format!("its flags can't be read: {error}"));
                return (Self { reason, ..Self::of(process.pid, Standing::Degraded) }, None);
            }
            Running::None => {
                let reason =
                    "`fastpath-agent run` starts one; what was installed before goes on accelerating flows"
                        .to_owned();
                let none = Self {
                    standing: Standing::NotRunning,
                    reason: Some(reason),
                    pid: None,
                    since: None,
                    seconds: None,
                    version: None,
                    last_minute: None,
                };
                return (none, None);
            }
        };
        let reason = match config.metrics_bind_address.map(is_ready) {
            Some(Ok(answer)) => answer.err(),
            Some(Err(error)) => Some(format!("it doesn't answer at its HTTP port: {error}")),
            None => None,
        };
        let reason = reason.or_else(|| amiss(&config));
        let standing = if reason.is_some() { Standing::Degraded } else { Standing::Ready };
        let last_minute = config.metrics_bind_address.filter(|_| reason.is_none()).and_then(last_minute);
        (Self { reason, last_minute, ..Self::of(process.pid, standing) }, Some(config))
    }

    fn of(pid: u32, standing: Standing) -> Self {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let began = fs::metadata(&process).and_then(|process| process.modified()).ok();
        let file = |path: PathBuf| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let own = file("/proc/self/exe".into());
        Self {
            standing,
            reason: None,
            pid: Some(pid),
            since: began.map(|began| format_rfc3339_seconds(began).to_string()),
            seconds: began
                .and_then(|began| SystemTime::now().duration_since(began).ok())
                .map(|for_| for_.as_secs()),
            last_minute: None,
            version: (own.is_some() && file(process.join("exe")) == own).then_some(env!("CARGO_PKG_VERSION")),
        }
    }
}

/// What the agent says of itself at `/readyz`.
fn is_ready(address: SocketAddr) -> io::Result<Result<(), String>> {
    let (is_ok, body) = get(address, "/readyz")?;
    Ok(if is_ok { Ok(()) } else { Err(body.trim().to_owned()) })
}

fn last_minute(address: SocketAddr) -> Option<Passed> {
    let (is_ok, body) = get(address, "/api/history").ok()?;
    serde_json::from_str::<History>(&body)
        .ok()
        .filter(|history| is_ok && history.watches)
        .map(|history| history.last_minute())
}

/// Whether the answer is 200, and its body.
fn get(address: SocketAddr, path: &str) -> io::Result<(bool, String)> {
    const LIMIT: Duration = Duration::from_secs(6);
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok((head.split(' ').nth(1) == Some("200"), body.to_owned()))
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, fast, milliseconds } = *self;
        if packets == 0 {
            return f.write_str("none in the last minute");
        }
        let (share, rate) =
            (fast as f64 / packets as f64, packets as f64 * 1000.0 / milliseconds.max(1) as f64);
        write!(
            f,
            "{} on the fast path in the last minute, {} packets/s in all",
            units::percent(Some(share)),
            units::short(rate)
        )
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.standing {
            Standing::Ready => "ready",
            Standing::Degraded => "DEGRADED",
            Standing::NotRunning => "NOT RUNNING",
        })?;
        if let Some(reason) = &self.reason {
            write!(f, ": {reason}")?;
        }
        let Some(pid) = self.pid else { return Ok(()) };
        f.write_str(if self.reason.is_some() { " (" } else { ", " })?;
        if let (Some(since), Some(seconds)) = (&self.since, self.seconds) {
            write!(f, "running since {since}, for {}, ", format_duration(Duration::from_secs(seconds)))?;
        }
        write!(
            f,
            "process {pid}, {}",
            self.version
                .map_or("another build than this command".to_owned(), |version| format!("version {version}"))
        )?;
        f.write_str(if self.reason.is_some() { ")" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_minute_is_made_of_whole_steps() {
        let step = |number, packets, fast| (number, 10_000, [packets, 100 * packets, fast, 100 * fast]);
        let steps = vec![step(3, 1000, 0), step(93, 30, 10), step(99, 30, 30), step(98, 40, 30)];
        let history = History { steps, step_ms: 10_000, watches: true };
        let passed = history.last_minute();
        assert_eq!(passed, Passed { packets: 100, fast: 70, milliseconds: 30_000 });
        assert_eq!(passed.to_string(), "70% on the fast path in the last minute, 3.3 packets/s in all");
        let none = History { steps: Vec::new(), step_ms: 0, watches: true }.last_minute();
        assert_eq!(none.to_string(), "none in the last minute");
    }
}
