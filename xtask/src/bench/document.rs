//! Writes what a report says into docs/benchmark.md and the charts, so that no number there is typed by hand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{
    break_even, chart, curves,
    report::{Report, number},
    targets,
};
use crate::{document, workspace};

/// The command that writes this part of the document.
const WRITER: &str = "cargo xtask bench --render";

/// Writes the document's numbers and the charts again.
pub(super) fn render(report: &Report) -> Result<()> {
    let docs = workspace::root().join("docs");
    chart::bars(
        report,
        "What a packet costs on the node",
        "instructions a packet, source and sink included; UDP, IPv4, 64 bytes; less is better",
        chart::PACKETS,
        &docs.join("bench-packets.svg"),
    )?;
    chart::gain(report, "6.12", &docs.join("gain.svg"))?;
    let mut images = String::new();
    for growth in &curves::ALL {
        if curves::draw(report, growth, &docs)? {
            images += &format!("\n![{}]({})\n", growth.title, growth.file);
        }
    }
    document::write_part(&docs.join("benchmark.md"), WRITER, &section(report, &images))?;
    document::write_part(&workspace::root().join("bench/rows.md"), WRITER, &rows(report))
}

fn section(report: &Report, images: &str) -> String {
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let mut text = format!("\nMeasured with {}", report.emulator);
    for kernel in &kernels {
        text += &format!(", Linux {}", report.kernels[*kernel].release);
    }
    text += ".\n\n## Targets\n\n| | kernel | measured | at most | |\n| --- | --- | ---: | ---: | --- |\n";
    for outcome in targets::outcomes(report) {
        let (value, at_most) = outcome.numbers();
        let word = if outcome.met() { "met" } else { "**missed**" };
        let word = word.to_owned() + if outcome.earlier { ", in part measured earlier" } else { "" };
        text += &format!(
            "| {}, {} | {} | {value} | {at_most} | {word} |\n",
            outcome.what, outcome.unit, outcome.kernel
        );
    }
    let lines = break_even::lines(report);
    if !lines.is_empty() {
        text += "\n## From which length on a connection gains\n\n";
        text += &lines.iter().map(|line| format!("- {line}\n")).collect::<String>();
    }
    if !images.is_empty() {
        text += "\n## How it grows\n";
        text += images;
    }
    text + "\n"
}

/// All numbers.
fn rows(report: &Report) -> String {
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let mut text = String::new();
    let rows = report.kernels.values().flat_map(|kernel| &kernel.rows);
    let states: BTreeSet<&str> = rows.filter_map(|row| row.earlier.as_deref()).collect();
    // The sign behind numbers of a state.
    let earlier: BTreeMap<&str, String> =
        states.into_iter().zip(1..).map(|(state, number)| (state, format!("<sup>{number}</sup>"))).collect();
    if !earlier.is_empty() {
        text += "\nWhat has a sign was measured earlier; targets, lengths and charts rest on such numbers, too:\n\n";
        text += &earlier.iter().map(|(state, sign)| format!("- {sign} {state}\n")).collect::<String>();
    }
    let mut last_unit = "";
    for (name, unit) in report.names() {
        if unit != last_unit {
            let heads: String = kernels.iter().map(|kernel| format!(" {kernel} |")).collect();
            let rules = " ---: |".repeat(kernels.len());
            text += &format!("\n| {unit} |{heads} spread |\n| --- |{rules} ---: |\n");
            last_unit = unit;
        }
        text += &format!("| `{name}` |");
        let mut spread: f64 = 0.0;
        for kernel in &kernels {
            let row = report.row(kernel, name);
            spread = row.map_or(spread, |row| spread.max(row.spread));
            text += &row.map_or_else(
                || " – |".to_owned(),
                |row| {
                    let sign = row.earlier.as_deref().and_then(|state| earlier.get(state));
                    format!(" {}{} |", number(row.value), sign.map_or("", String::as_str))
                },
            );
        }
        text += &format!(" {spread:.2} % |\n");
    }
    text + "\n"
}
