//! A real Prometheus in the node's namespace, which reads the agent's metrics; and promtool.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{http, netns::Netns, wait_until};

/// Where it listens, in the node's namespace.
const LISTEN: &str = "127.0.0.1:19090";
/// Time from one scrape to the next.
pub const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// A running Prometheus. Killed when dropped.
pub struct Prometheus {
    child: Child,
    node: Netns,
    directory: tempfile::TempDir,
}

/// One of Prometheus' programs: in the directory `FASTPATH_PROMETHEUS`.
fn program(name: &str) -> PathBuf {
    let directory =
        std::env::var("FASTPATH_PROMETHEUS").expect("FASTPATH_PROMETHEUS, the directory of prometheus");
    Path::new(&directory).join(name)
}

/// Runs promtool in `directory` and gives what it said; panics unless it is content.
#[track_caller]
pub fn promtool(node: &Netns, args: &[&str], stdin: &str) -> String {
    let tool = program("promtool");
    let output = node.try_run(&tool.display().to_string(), args, stdin);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}: {}\n{said}", output.status);
    said
}

impl Prometheus {
    /// Starts it with these rules, and waits until it has read the agent of this node.
    #[track_caller]
    pub fn start(node: &Netns, rules: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let interval = SCRAPE_INTERVAL.as_millis();
        let config = format!(
            "global: {{ scrape_interval: {interval}ms, scrape_timeout: {interval}ms, evaluation_interval: {interval}ms }}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n  - job_name: fastpath\n    static_configs: [{{ targets: ['{}'] }}]\n",
            rules.display(),
            http::ADDRESS,
        );
        let path = directory.path().join("prometheus.yml");
        fs::write(&path, config).expect("write the configuration");
        let mut command = Command::new(program("prometheus"));
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={LISTEN}"))
            .arg("--log.level=warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).expect("a log"));
        let child = node.spawn(&mut command);
        let this = Self { child, node: node.clone(), directory };
        wait_until("a scrape by Prometheus", Duration::from_secs(30), || {
            this.try_query("up{job=\"fastpath\"} == 1").is_ok_and(|found| !found.is_empty())
        });
        this
    }

    /// What a query returns at this moment: the series.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        self.try_query(expression).unwrap_or_else(|error| panic!("{expression}: {error}\n{}", self.log()))
    }

    /// The one number that a query returns.
    #[track_caller]
    pub fn number(&self, expression: &str) -> f64 {
        let found = self.query(expression);
        assert_eq!(found.len(), 1, "{expression}: {found:?}");
        found[0]["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number")
    }

    fn try_query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        match (answer["status"].as_str(), answer["data"]["result"].as_array()) {
            (Some("success"), Some(found)) => Ok(found.clone()),
            _ => Err(answer.to_string()),
        }
    }

    /// GETs from its HTTP API.
    pub fn get(&self, path: &str) -> Result<Value, String> {
        let request = format!("GET {path} HTTP/1.0\r\nHost: node\r\n\r\n");
        let answer = http::request_at(&self.node, LISTEN, &request).map_err(|error| error.to_string())?;
        serde_json::from_str(&answer.body).map_err(|error| format!("{error} in {}", answer.body))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- Prometheus' log\n{}", self.log());
        }
    }
}
