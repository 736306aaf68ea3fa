//! What is written is what docs/metrics.md says, name by name, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use fastpath_common::Tally;

use super::*;
use crate::core::{threshold::Lengths, why_not::WhyNot};

const DOCS: &str = include_str!("../../../docs/metrics.md");

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

/// Type, unit and names of labels.
type Shape = (String, String, BTreeSet<String>);

/// By the name that a query has.
fn written() -> BTreeMap<String, Shape> {
    let mut shapes: BTreeMap<String, Shape> = BTreeMap::new();
    let (mut family, mut kind, mut unit) = (String::new(), String::new(), String::new());
    for line in render(&full(), Format::OpenMetrics).lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("TYPE"), Some(name), Some(of)) => {
                    (family, kind, unit) = (name.to_owned(), of.to_owned(), String::new())
                }
                (Some("UNIT"), Some(_), Some(of)) => of.clone_into(&mut unit),
                _ => {}
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let name = if kind == "histogram" { family.as_str() } else { name };
        let shape =
            shapes.entry(name.to_owned()).or_insert_with(|| (kind.clone(), unit.clone(), BTreeSet::new()));
        let labels =
            line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
        let keys = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        shape.2.extend(keys.filter(|key| key != "le"));
    }
    shapes
}

/// The same from the tables of the document: name, type, unit, labels, meaning.
fn documented() -> BTreeMap<String, Shape> {
    let rows =
        DOCS.lines().filter(|line| line.starts_with("| `fastpath_") || line.starts_with("| `process_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 5 && cells[4].len() > 10, "not five cells, or no meaning: {row}");
        let labels = cells[3].split(", ").filter(|l| !l.is_empty()).map(|l| l.trim_matches('`').to_owned());
        (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), cells[2].to_owned(), labels.collect()))
    })
    .collect()
}

#[test]
fn the_document_has_every_metric_and_no_other() {
    assert_eq!(written(), documented());
}

#[test]
fn the_document_names_every_value_of_a_bounded_label() {
    let lists = [&COUNTED_STATES[..], &STANDINGS, &REVALIDATION_OUTCOMES, &PARTS];
    let triggers = Trigger::ALL.map(|trigger| trigger.to_string());
    let names = lists.into_iter().flatten().copied().chain(triggers.iter().map(String::as_str));
    let reasons: Vec<_> = WhyNot::of_flows().map(WhyNot::name).chain(Unmanaged::names()).collect();
    let names = names.chain(reasons.iter().copied());
    for name in names.chain([ENDED, BELOW_THRESHOLD]) {
        assert!(DOCS.contains(&format!("`{name}`")), "docs/metrics.md doesn't name the value {name}");
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
