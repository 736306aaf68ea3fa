//! A real Prometheus reads a real agent: the format, every query of the dashboard, every alert.

use std::{path::PathBuf, thread};

use fastpath_tests::{
    agent::{self, Agent},
    dashboard,
    http::{self, SERVE, bring_loopback_up},
    prometheus::{Prometheus, SCRAPE_INTERVAL, promtool},
    topology::{Family, Topology},
    traffic::Proto,
};
use serde_json::Value;

use crate::host::ebpf::setup::Bpffs;

const DASHBOARD: &str = include_str!("../../../deploy/monitoring/dashboard.json");

fn monitoring(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring").join(file)
}

/// Queries of the dashboard with a title each.
fn queries() -> Vec<(String, String)> {
    let board: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut found = Vec::new();
    for panel in board["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().expect("targets") {
            let query = dashboard::filled_in(target["expr"].as_str().expect("a query"), "10s");
            found.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    found
}

/// The parts of an alert's expression that aren't comparisons with numbers: names of metrics with their label matchers.
fn selectors(expression: &str) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (start, _) in expression.match_indices("fastpath_").chain(expression.match_indices("up{")) {
        if expression[..start].ends_with(is_name) {
            continue;
        }
        let rest = &expression[start..];
        let name = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let end = if rest[name..].starts_with('{') {
            name + rest[name..].find('}').expect("closed") + 1
        } else {
            name
        };
        found.push(rest[..end].to_owned());
    }
    found
}

/// An agent whose programs count.
fn started() -> (Topology, Bpffs, Agent) {
    let topology = Topology::routed();
    let node = &topology.node;
    bring_loopback_up(node);
    let bpffs = Bpffs::mount();
    let pin_path = format!("--pin-path={}", bpffs.pin_path().display());
    let agent = Agent::spawn(node, &mut agent::command(&[SERVE, &pin_path]));
    agent::wait_for_programs_at(node, &["c0", "s0"], &bpffs.pin_path());
    (topology, bpffs, agent)
}

#[test]
fn prometheus_reads_what_the_dashboard_and_the_alerts_ask_for() {
    let (topology, _bpffs, agent) = started();
    let node = &topology.node;
    let prometheus = Prometheus::start(node, &monitoring("alerts.yaml"));
    let mut flow = topology.open(Proto::Udp, Family::V4, 7001);
    let rounds = 100;
    for _ in 0..5 {
        assert_eq!(flow.rounds(rounds), rounds);
        thread::sleep(SCRAPE_INTERVAL);
    }
    thread::sleep(SCRAPE_INTERVAL);
    // It read the numbers as they are.
    let received = |interface| {
        prometheus.number(&format!("fastpath_interface_receive_packets_total{{interface=\"{interface}\"}}"))
    };
    assert_eq!([received("c0"), received("s0")], [5.0 * rounds as f64; 2]);
    for (title, query) in queries() {
        assert!(!prometheus.query(&query).is_empty(), "{title}: no data for {query}");
    }
    let rules = prometheus.get("/api/v1/rules").expect("rules");
    let rules: Vec<Value> = rules["data"]["groups"][0]["rules"].as_array().expect("rules").clone();
    assert!(rules.len() > 10, "{rules:?}");
    for rule in rules {
        let (name, expression) = (&rule["name"], rule["query"].as_str().expect("a query"));
        assert_eq!(rule["health"], "ok", "{rule:#}");
        prometheus.query(expression);
        let selectors = selectors(expression);
        assert!(!selectors.is_empty(), "{name}: {expression}");
        for selector in selectors {
            assert!(!prometheus.query(&selector).is_empty(), "{name}: no series for {selector}");
        }
    }
    agent.stop();
}

#[test]
fn promtool_accepts_the_page_and_the_rules() {
    let (topology, _bpffs, agent) = started();
    let node = &topology.node;
    assert_eq!(topology.open(Proto::Tcp, Family::V4, 7001).rounds(50), 50);
    let page = http::get(node, "/metrics");
    assert_eq!(page.status, 200);
    assert!(page.head.contains("text/plain; version=0.0.4"), "{}", page.head);
    promtool(node, &["check", "metrics"], &page.body);
    let open = http::try_get(node, "/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n")
        .expect("page");
    assert!(open.head.contains("application/openmetrics-text; version=1.0.0"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    agent.stop();
    promtool(node, &["check", "rules", &monitoring("alerts.yaml").display().to_string()], "");
    promtool(node, &["test", "rules", &monitoring("alerts.test.yaml").display().to_string()], "");
}

/// Each alert has a test in which it fires, one in which it doesn't, and says what to do.
#[test]
fn every_alert_is_tested_and_explained() {
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (rules, tests) = (read(monitoring("alerts.yaml")), read(monitoring("alerts.test.yaml")));
    let docs = read(monitoring("../../docs/alerts.md"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        assert!(docs.contains(&format!("\n## {alert}\n")), "docs/alerts.md has nothing on {alert}");
        assert!(
            rules.contains(&format!("docs/alerts.md#{}\n", alert.to_lowercase())),
            "{alert} doesn't point there"
        );
        let asked = format!("expr: ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        let answers: Vec<_> =
            tests.split(&asked).skip(1).map(|rest| rest.lines().nth(1).unwrap_or_default().trim()).collect();
        let quiet = answers.iter().filter(|answer| **answer == "exp_samples: []").count();
        assert!(quiet >= 1 && answers.len() > quiet, "{alert}: {answers:?}");
    }
    let explained = docs.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(explained, alerts.len(), "docs/alerts.md explains an alert that there isn't");
}
