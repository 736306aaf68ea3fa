//! What is written is what docs/metrics.md says: its tables are made here.

use std::fmt::Write;

use fastpath_common::Tally;

use super::*;
use crate::core::threshold::Lengths;

/// 1000 connections of 60 packets.
fn lengths() -> Lengths {
    let mut lengths = Lengths::default();
    (0..2000).for_each(|_| lengths.add(30));
    lengths
}

/// Everything that can be there.
fn full() -> Metrics {
    let tally = |packets, bytes| Tally { packets, bytes };
    Metrics {
        agent: Agent {
            standing: "right",
            ready: true,
            threshold: 20,
            release: "6.12".to_owned(),
            reconcile_seconds: Some(Histogram::new([0.1, 1.0])),
            overruns: [1, 2],
            revalidations: [(("ruleset", "emptied"), 3)].into(),
            not_offloaded: [("one-way", 4)].into(),
            left_out: [("loopback", 1)].into(),
            export: Some(Exported { records: 8, lost: 9, up: true }),
            ..Agent::default()
        },
        kernel: Kernel {
            flows: Some(FlowSums { states: [("offloaded", 5)].into(), ..FlowSums::default() }),
            interfaces: vec![("eth0".to_owned(), Passed { all: tally(100, 9000), fast: tally(90, 8000) })],
            maps: Some(Maps::default()),
            prospect: lengths().prospect(),
            rule_offloads: Some(6),
            untraced: Some(7),
            failed: vec!["maps"],
            usage: Some(Usage { cpu_seconds: 0.25, resident_bytes: 8_000_000 }),
            ..Kernel::default()
        },
    }
}

/// A section of the document and what writes its metrics.
type Section = (&'static str, fn(&mut Page, &Metrics));

const SECTIONS: [Section; 7] = [
    ("agent", |page, metrics| agent(page, &metrics.agent)),
    ("flows", |page, metrics| flows(page, &metrics.agent, &metrics.kernel)),
    ("interfaces", |page, metrics| interfaces(page, &metrics.agent, &metrics.kernel)),
    ("prospect", |page, metrics| prospect(page, metrics.kernel.prospect.as_ref().unwrap())),
    ("export", |page, metrics| export(page, metrics.agent.export.as_ref().unwrap())),
    ("maps", |page, metrics| maps(page, metrics.kernel.maps.as_ref().unwrap())),
    ("process", |page, metrics| process(page, metrics)),
];

/// Labels whose values aren't listed.
const OPEN: [&str; 5] = ["version", "release", "flowtable", "rule", "interface"];

/// Name, labels with their values, help.
type Row = (String, Vec<(String, Vec<String>)>, String);

/// The table of a page: name as in a query, labels with their values, help. Asserts that types follow from names.
fn table(written: &str) -> String {
    let mut rows: Vec<Row> = Vec::new();
    let (mut family, mut kind, mut help) = (String::new(), String::new(), String::new());
    for line in written.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            match rest.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["HELP", name, text] => (family, help) = (name.to_owned(), text.to_owned()),
                ["TYPE", _, of] => of.clone_into(&mut kind),
                _ => {}
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let name = if kind == "histogram" { family.as_str() } else { name };
        let expected = match name {
            "fastpath_reconcile_duration_seconds" => "histogram",
            _ if name.ends_with("_total") => "counter",
            _ if name.ends_with("_info") => "info",
            _ => "gauge",
        };
        assert_eq!(kind, expected, "{name}");
        if rows.last().is_none_or(|row| row.0 != name) {
            rows.push((name.to_owned(), Vec::new(), help.clone()));
        }
        let labels = &mut rows.last_mut().unwrap().1;
        let given =
            line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(all, _)| all);
        for (key, value) in given.split(',').filter_map(|label| label.split_once('=')) {
            if key == "le" {
                continue;
            }
            let value = format!("`{}`", value.trim_matches('"'));
            match labels.iter_mut().find(|label| label.0 == key) {
                Some((_, values)) if values.contains(&value) => {}
                Some((_, values)) => values.push(value),
                None => labels.push((key.to_owned(), vec![value])),
            }
        }
    }
    let mut table = "| Metric | Labels | What it is |\n| --- | --- | --- |\n".to_owned();
    for (name, labels, help) in rows {
        let labels = labels.into_iter().map(|(key, values)| match OPEN.contains(&key.as_str()) {
            true => format!("`{key}`"),
            false => format!("`{key}`: {}", values.join(", ")),
        });
        let labels = labels.collect::<Vec<_>>().join("; ");
        writeln!(table, "| `{name}` | {labels} | {} |", markdown(help.trim_end_matches('.'))).unwrap();
    }
    table
}

/// Flags as code, nothing taken for a mark.
fn markdown(help: &str) -> String {
    let word = |word: &str| {
        let end = word.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(word.len());
        if word.starts_with("--") {
            return format!("`{}`{}", &word[..end], &word[end..]);
        }
        word.replace('_', "\\_")
    };
    help.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// The tables in docs/metrics.md are what the page of metrics says; `FASTPATH_UPDATE_DOCS=1` makes them so.
#[test]
fn the_document_has_every_metric_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let found = std::fs::read_to_string(path).unwrap();
    let mut expected = found.clone();
    let mut families = 0;
    for (section, write) in SECTIONS {
        let mut page = Page::default();
        write(&mut page, &full());
        let mut written = String::new();
        text::encode(&mut written, &page.into_registry()).unwrap();
        families += written.matches("# HELP ").count();
        let (begin, end) =
            (format!("<!-- metrics: {section} -->\n"), format!("<!-- end of metrics: {section} -->\n"));
        let (before, rest) = expected.split_once(&begin).expect("the mark before the table");
        let (_, after) = rest.split_once(&end).expect("the mark after the table");
        expected = format!("{before}{begin}\n{}\n{end}{after}", table(&written));
    }
    assert_eq!(
        families,
        render(&full(), Format::OpenMetrics).matches("# HELP ").count(),
        "a section is missing"
    );
    if found != expected {
        assert!(
            std::env::var_os("FASTPATH_UPDATE_DOCS").is_some(),
            "docs/metrics.md isn't up to date: FASTPATH_UPDATE_DOCS=1 cargo test -p fastpath-agent --lib every_metric"
        );
        std::fs::write(path, expected).unwrap();
    }
}

#[test]
fn both_formats_say_the_same() {
    let samples = |format| -> Vec<String> {
        let page = render(&full(), format);
        // The order within a histogram, and how its bounds are written, isn't the same.
        let lines =
            page.lines().filter(|line| !line.starts_with('#') && !line.contains("_duration_seconds_"));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(samples(Format::OpenMetrics), samples(Format::Text));
    let page = render(&full(), Format::OpenMetrics);
    for line in [
        "fastpath_ready 1",
        "fastpath_threshold_packets 20",
        "fastpath_mode{mode=\"accelerate\"} 1",
        "fastpath_mode{mode=\"watch\"} 0",
        "fastpath_prospect_fast_percent{threshold=\"20\"} 65",
        "fastpath_prospect_fast_percent{threshold=\"200\"} 0",
        "fastpath_prospect_flows 2000",
        "fastpath_ruleset{standing=\"right\"} 1",
        "fastpath_ruleset{standing=\"foreign\"} 0",
        "fastpath_netlink_overruns_total{source=\"ruleset\"} 2",
        "fastpath_revalidations_total{trigger=\"ruleset\",outcome=\"emptied\"} 3",
        "fastpath_flows_not_offloaded_total{cause=\"one-way\"} 4",
        "fastpath_flows_not_offloaded_total{cause=\"ended\"} 0",
        "fastpath_flows{state=\"offloaded\"} 5",
        "fastpath_interface_receive_packets_total{interface=\"eth0\"} 100",
        "fastpath_interface_fast_path_bytes_total{interface=\"eth0\"} 8000",
        "fastpath_rule_offloads_total 6",
        "fastpath_untraced_packets_total 7",
        "fastpath_export_records_total 8",
        "fastpath_export_lost_records_total 9",
        "fastpath_export_up 1",
        "fastpath_scrape_failed{part=\"maps\"} 1",
        "process_cpu_seconds_total 0.25",
        "process_resident_memory_bytes 8000000",
    ] {
        assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn who_asks_for_openmetrics_gets_it() {
    for (accept, format) in [
        (
            &["application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75"]
                [..],
            Format::OpenMetrics,
        ),
        (&["text/html", "application/openmetrics-text"], Format::OpenMetrics),
        (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], Format::Text),
        (&[], Format::Text),
    ] {
        assert_eq!(Format::accepted(accept.iter().copied()), format, "{accept:?}");
    }
}

/// What couldn't be read isn't written as zero.
#[test]
fn what_is_not_known_is_left_out() {
    let page = render(&Metrics::default(), Format::Text);
    for name in
        ["fastpath_flows{", "fastpath_flow_map", "fastpath_rule_offloads", "fastpath_export", "process_cpu"]
    {
        assert!(!page.contains(name), "{name} in\n{page}");
    }
}
