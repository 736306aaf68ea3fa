//! Charts of a report as SVG, for the README and docs/benchmark.md. They choose what to show; all numbers are the report's.

use std::path::Path;

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use super::report::{Report, number};
use crate::draw::{SERIES, svg};

/// Of the longest bar.
const WIDTH: u32 = 520;
/// Room for what bars are called: browsers choose among fonts, so this is for a wide one.
const LABELS: u32 = 260;

/// A line of a bar chart: what it says, and the row of the report that it shows.
pub(super) struct Bar {
    pub(super) label: &'static str,
    pub(super) row: &'static str,
}

/// What packets cost.
pub(super) const PACKETS: &[Bar] = &[
    Bar { label: "dropped on arrival (source and sink)", row: "udp4-64/floor" },
    Bar { label: "routed only", row: "udp4-64/routed" },
    Bar { label: "conntrack + NAT, no fast path", row: "udp4-64/no-fastpath" },
    Bar { label: "NAT + 5,000 services, no fast path", row: "udp4-64-services/no-fastpath" },
    Bar { label: "young flow, kindnet's rules", row: "udp4-64/young/kindnet" },
    Bar { label: "young flow, Fastpath without eBPF", row: "udp4-64/young/ours" },
    Bar { label: "young flow, Fastpath", row: "udp4-64/young/ours-ebpf" },
    Bar { label: "offloaded, kindnet's rules", row: "udp4-64/offloaded/kindnet" },
    Bar { label: "offloaded, Fastpath without eBPF", row: "udp4-64/offloaded/ours" },
    Bar { label: "offloaded, Fastpath", row: "udp4-64/offloaded/ours-ebpf" },
];

/// What a user gains: two bars of one kernel, without what the sender and the receiver take.
pub(super) fn gain(report: &Report, kernel: &str, path: &Path) -> Result<()> {
    let row =
        |name| report.value(kernel, name).ok_or_else(|| anyhow!("the report has no row {name} of {kernel}"));
    let floor = row("udp4-64/floor")?;
    let (without, with) = (row("udp4-64/no-fastpath")? - floor, row("udp4-64/offloaded/ours-ebpf")? - floor);
    let less = format!("{}, {} % less", number(with), number((1.0 - with / without) * 100.0));
    let bars = json!([
        { "label": "without Fastpath", "value": without, "said": number(without), "series": 0 },
        { "label": "with Fastpath, offloaded", "value": with, "said": less, "series": 1 },
    ]);
    let colours = json!({ "scale": { "range": [SERIES[2], SERIES[0]] }, "legend": null });
    let unit = format!("instructions of the kernel, Linux {kernel}; less is better");
    svg(bar_chart(["What a packet costs the node", &unit], bars, (50, 16), Value::Null, colours), path)
}

/// A bar for each row and kernel, the shorter the better.
pub(super) fn bars(report: &Report, title: &str, unit: &str, bars: &[Bar], path: &Path) -> Result<()> {
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let mut values = Vec::new();
    for bar in bars {
        for kernel in &kernels {
            let Some(value) = report.value(kernel, bar.row) else { continue };
            let series = format!("Linux {kernel}");
            values
                .push(json!({ "label": bar.label, "value": value, "said": number(value), "series": series }));
        }
    }
    let colours = json!({ "scale": { "range": SERIES }, "sort": null, "legend": { "orient": "top" } });
    let axis = json!({ "title": null, "format": ",~f", "tickCount": 8 });
    let mut chart = bar_chart([title, unit], json!(values), (40, 12), axis, colours);
    chart["encoding"]["yOffset"] = json!({ "field": "series", "sort": null });
    svg(chart, path)
}

/// Bars with their values behind them, so high each group and letters so large.
fn bar_chart(
    [title, unit]: [&str; 2],
    bars: Value,
    (height, letters): (u32, u32),
    axis: Value,
    mut colours: Value,
) -> Value {
    colours["field"] = json!("series");
    colours["type"] = json!("nominal");
    json!({
        "title": { "text": title, "subtitle": unit, "offset": 16 },
        "data": { "values": bars },
        "width": WIDTH,
        "height": { "step": height, "for": "position" },
        "encoding": {
            "y": { "field": "label", "sort": null, "title": null, "axis": { "labelFontSize": 14, "minExtent": LABELS }, "scale": { "paddingInner": 0.3 } },
            "x": { "field": "value", "type": "quantitative", "axis": axis },
            "color": colours,
        },
        "layer": [
            { "mark": "bar" },
            {
                "mark": { "type": "text", "align": "left", "dx": 5, "fontSize": letters, "color": "#1f2328" },
                "encoding": { "text": { "field": "said" }, "color": null },
            },
        ],
    })
}
