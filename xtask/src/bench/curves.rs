//! Charts of how something grows with a number of things, both axes logarithmic: what is linear goes up by a decade each
//! decade, what is constant is level. All numbers are the report's.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::report::Report;
use crate::draw::{SERIES, svg};

/// What grows, by the number of which things, and its curves: a label, and the row's name, in which `{}` is the number.
pub(super) struct Growth {
    pub(super) title: &'static str,
    things: &'static str,
    numbers: [u32; 3],
    curves: &'static [(&'static str, &'static str)],
    /// The drawing, in docs.
    pub(super) file: &'static str,
}

pub(super) const ALL: [Growth; 2] = [
    Growth {
        title: "What the agent takes by the number of interfaces",
        things: "interfaces",
        numbers: [10, 100, 1000],
        curves: &[
            ("start to rules, ms", "agent/start-{}-interfaces/ebpf-tc"),
            ("resident memory, MB", "agent/memory-{}-interfaces"),
            ("link-up to flowtable, ms", "agent/link-up-{}-interfaces"),
            ("CPU time for a link-up, ms", "agent/link-up-cost-{}-interfaces/ebpf-tc"),
        ],
        file: "bench-links.svg",
    },
    Growth {
        title: "What flows take by their number",
        things: "flows",
        numbers: [1000, 10_000, 100_000],
        curves: &[
            ("`flows`: time, ms", "agent/list-{}-flows/time"),
            ("`flows`: most memory, MB", "agent/list-{}-flows/memory"),
            ("agent: memory after crossings, MB", "agent/memory-{}-flows"),
        ],
        file: "bench-flows.svg",
    },
];

/// Draws curves, one for each kernel; false, and nothing is drawn, when the report has none of the rows.
pub(super) fn draw(report: &Report, growth: &Growth, docs: &Path) -> Result<bool> {
    let Growth { title, things, numbers, curves, file } = growth;
    let mut points = Vec::new();
    for kernel in report.kernels.keys().rev() {
        for (label, row) in *curves {
            for number in numbers {
                let value = report.value(kernel, &row.replace("{}", &number.to_string()));
                let kernel = format!("Linux {kernel}");
                points.extend(value.map(
                    |value| json!({ "number": number, "value": value, "kernel": kernel, "label": label }),
                ));
            }
        }
    }
    if points.is_empty() {
        return Ok(false);
    }
    let axis = json!({ "grid": true, "format": ",", "labelFontSize": 12, "titleFontSize": 14 });
    let logarithmic = |field: &str, title: &str, values: Option<&[u32]>| {
        let mut axis = axis.clone();
        axis["values"] = values.map_or(json!([0.01, 0.1, 1, 10, 100, 1000, 10_000]), |values| json!(values));
        axis["title"] = json!((!title.is_empty()).then_some(title));
        json!({ "field": field, "type": "quantitative", "scale": { "type": "log" }, "axis": axis })
    };
    let spec = json!({
        "title": title,
        "data": { "values": points },
        "width": 500,
        "height": 300,
        "encoding": {
            "x": logarithmic("number", things, Some(numbers)),
            "y": logarithmic("value", "", None),
            "detail": { "field": "label" },
            "color": { "field": "kernel", "sort": null, "scale": { "range": SERIES } },
        },
        "layer": [
            { "mark": "line" },
            {
                "mark": { "type": "point", "filled": true, "size": 70, "opacity": 1 },
                "encoding": {
                    "shape": { "field": "label", "sort": null, "legend": { "orient": "right", "symbolType": null } },
                },
            },
        ],
    });
    svg(spec, &docs.join(file))?;
    Ok(true)
}
