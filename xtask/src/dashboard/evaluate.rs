//! A Prometheus that has read the recording, and answers what panels ask. It listens on loopback, at a port of its own, and ends with
//! the command.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde::Deserialize;

use super::{board::Panel, recording::Recording};
use crate::{guest::RemoveLater, process, prometheus, workspace};

#[path = "../../../tests/src/dashboard.rs"]
#[expect(unreachable_pub, reason = "the harness of the tests is its other user")]
mod queries;

/// Seconds that `$__rate_interval` is, as in the tests: pages are read a second apart.
pub(super) const RATE_INTERVAL: u32 = 10;
/// Seconds from one point of a drawing to the next.
pub(super) const STEP: u32 = 2;
/// When the recording is taken to have begun, in seconds since 1970: any full day, so that all of it is in one block.
const EPOCH: f64 = 1_767_225_600.0;
/// How long a value holds that no page repeats. Prometheus would learn of a page that can't be read; an import doesn't tell it.
const LOOKBACK: &str = "3s";
/// How long a Prometheus may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A curve of a panel.
#[derive(Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// Seconds since the recording began, and the value. Times without a value are left out.
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) struct Prometheus {
    child: Child,
    server: String,
    length: f64,
    _directory: RemoveLater,
}

impl Prometheus {
    pub(super) fn start(recording: &Recording) -> Result<Self> {
        let directory = RemoveLater(workspace::target().join(format!("dashboard-{}", std::process::id())));
        let path = |name: &str| -> PathBuf { directory.0.join(name) };
        fs::create_dir_all(path("data"))?;
        fs::write(path("samples"), recording.open_metrics("fastpath", EPOCH))?;
        fs::write(path("prometheus.yml"), "")?;
        let mut import = tool()?;
        import.args(["tsdb", "create-blocks-from", "openmetrics"]).args([path("samples"), path("data")]);
        process::output(&mut import)?;
        // Free now; who takes it meanwhile makes this fail, and nothing worse.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let log = fs::File::create(path("log"))?.into_file();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(prometheus::directory()?.join("prometheus"))
            .arg(format!("--config.file={}", path("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", path("data").display()))
            .args(["--storage.tsdb.retention.time=100y", &format!("--query.lookback-delta={LOOKBACK}")])
            .args([&format!("--web.listen-address={address}"), "--log.level=warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot run prometheus")?;
        let server = format!("http://{address}");
        let mut this = Self { child, server, length: recording.length(), _directory: directory };
        let began = Instant::now();
        while let Err(error) = this.query("vector(1)") {
            if this.child.try_wait()?.is_some() || began.elapsed() > START_LIMIT {
                let log = fs::read_to_string(this._directory.0.join("log")).unwrap_or_default();
                bail!("{error:#}\n{log}");
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }

    /// What a panel shows.
    pub(super) fn series(&self, panel: &Panel) -> Result<Vec<Series>> {
        let mut found = Vec::new();
        for target in &panel.targets {
            let query = queries::filled_in(&target.expr, &format!("{RATE_INTERVAL}s"));
            let answers = self.query(&query)?;
            if answers.is_empty() {
                bail!("{}: no data for {query}", panel.title);
            }
            found.extend(answers.into_iter().map(|answer| answer.series(&target.legend_format)));
        }
        Ok(found)
    }

    fn query(&self, query: &str) -> Result<Vec<Answer>> {
        let mut command = tool()?;
        command.args(["query", "range", "--format=json", &format!("--step={STEP}s")]);
        command.args([format!("--start={EPOCH}"), format!("--end={:.0}", EPOCH + self.length)]);
        let text = process::output(command.args([&self.server, query]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("cannot understand what Prometheus answers to {query}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tool() -> Result<Command> {
    Ok(Command::new(prometheus::directory()?.join("promtool")))
}

#[derive(Deserialize)]
struct Answer {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Answer {
    fn series(self, legend: &str) -> Series {
        let label =
            |text: String, (name, value): (&String, &String)| text.replace(&format!("{{{{{name}}}}}"), value);
        let name = self.metric.iter().fold(legend.to_owned(), label);
        let point = |(time, value): &(f64, String)| Some((time - EPOCH, value.parse().ok()?));
        let points = self.values.iter().filter_map(point).filter(|(_, value): &(f64, f64)| value.is_finite());
        Series { name, points: points.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_becomes_a_curve() {
        let text = r#"{"metric":{"state":"offloaded"},"values":[[1767225602,"1.5"],[1767225604,"NaN"]]}"#;
        let answer: Answer = serde_json::from_str(text).expect("an answer");
        let series = answer.series("{{state}} flows");
        assert_eq!((series.name.as_str(), series.points.as_slice()), ("offloaded flows", &[(2.0, 1.5)][..]));
    }
}
