//! Where the agent's log goes and what a line of it looks like. Decides nothing about the messages, and never waits for a
//! reader.

use std::{
    io::{self, IsTerminal, Write},
    sync::Mutex,
};

use nix::sys::stat::fstat;
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    fmt::{
        self,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

use crate::{
    cli::LogFormat,
    kernel::log_output::{LogOutput, unwaiting},
};

/// Before the names of our fields in the journal.
const FIELD_PREFIX: &str = "FASTPATH";

/// There would be no log.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot log to the journal: {0}; does systemd-journald run here? --log-format=text logs to standard error"
)]
pub struct LogError(#[source] io::Error);

/// Begins to log. `verbosity` is as in klog: 0–1 changes of state, 2–4 also plans, 5 and more also flows.
pub fn start(format: LogFormat, verbosity: u8) -> Result<(), LogError> {
    let level = match verbosity {
        0..=1 => LevelFilter::INFO,
        2..=4 => LevelFilter::DEBUG,
        5.. => LevelFilter::TRACE,
    };
    registry().with(layer(format)?.with_filter(level)).init();
    Ok(())
}

fn layer<S>(format: LogFormat) -> Result<Box<dyn Layer<S> + Send + Sync>, LogError>
where
    S: tracing::Subscriber + for<'a> registry::LookupSpan<'a>,
{
    let to = |lost_line| {
        let output = Mutex::new(LogOutput::stderr(lost_line));
        fmt::layer().with_writer(output).with_ansi(io::stderr().is_terminal()).with_target(false)
    };
    let text = || to(lost_as_text);
    Ok(match format {
        LogFormat::Text => text().boxed(),
        LogFormat::Json => to(lost_as_json).json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Journald => journal().map_err(LogError)?.boxed(),
        LogFormat::Auto if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) => match journal() {
            Ok(journal) => journal.boxed(),
            // systemd takes lines of text there, too.
            Err(_) => text().boxed(),
        },
        LogFormat::Auto => text().boxed(),
    })
}

fn journal() -> io::Result<tracing_journald::Layer> {
    let layer = unwaiting(tracing_journald::layer)?;
    Ok(layer
        .with_field_prefix(Some(FIELD_PREFIX.to_owned()))
        .with_syslog_identifier("fastpath-agent".to_owned()))
}

const LOST: &str = "log lines were dropped here: the reader is too slow";

fn now() -> String {
    let mut now = String::new();
    // A clock that can't be read is no reason to say nothing.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    now
}

fn lost_as_text(lines: u64) -> String {
    format!("{}  WARN {LOST} lines={lines}\n", now())
}

fn lost_as_json(lines: u64) -> String {
    let object = serde_json::json!({ "timestamp": now(), "level": "WARN", "message": LOST, "lines": lines });
    format!("{object}\n")
}

/// A last line, beside the log.
pub fn say(line: &str) {
    let _ = LogOutput::stderr(lost_as_text).write_all(line.as_bytes());
}

/// Whether systemd has connected our standard error to its journal: it says which file that is (systemd.exec(5)), and a
/// process further down may have another one.
fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    fstat(io::stderr())
        .is_ok_and(|file| device == file.st_dev.to_string() && inode == file.st_ino.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_from_other_files() {
        let file = fstat(io::stderr()).unwrap();
        assert!(is_journal(Some(&format!("{}:{}", file.st_dev, file.st_ino))));
        for other in [None, Some(""), Some("1"), Some("0:0"), Some("a:b")] {
            assert!(!is_journal(other), "{other:?}");
        }
        assert!(!is_journal(Some(&format!("{}:{}", file.st_dev, file.st_ino + 1))));
    }
}
