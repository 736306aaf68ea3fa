//! Panels as Grafana lays them out, as specifications of Vega-Lite: title, unit, curves, legend, and lines at what was done. It chooses
//! nothing but what fits: curves that stay at 0 are only counted.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    board::{COLUMNS, Kind, Panel, Unit},
    evaluate::{STEP, Series},
    recording::{Event, Recording},
};
use crate::draw::{SERIES, svg};

/// Of all panels of a row, with the gaps between them.
const WIDTH: u32 = 860;
const GAP: u32 = 24;
/// Room for the numbers of an axis.
const BESIDE: u32 = 46;
const HEIGHT: u32 = 150;
/// The course below a single number.
const LOW: u32 = 40;
/// Of a letter of a legend, and of what is before a name.
const LETTER: u32 = 8;
const SWATCH: u32 = 30;

/// A panel with what it shows.
pub(super) type Shown<'a> = (&'a Panel, Vec<Series>);

pub(super) fn draw_row(panels: &[Shown<'_>], recording: &Recording, path: &Path) -> Result<()> {
    let panels: Vec<_> = panels.iter().map(|(panel, series)| chart(panel, series, recording)).collect();
    let apart = json!({ "scale": { "color": "independent" } });
    svg(json!({ "hconcat": panels, "spacing": GAP, "resolve": apart }), path)
}

fn chart(panel: &Panel, series: &[Series], recording: &Recording) -> Value {
    let is_stat = panel.kind == Kind::Stat;
    let moves = |series: &&Series| is_stat || series.points.iter().any(|(_, value)| *value != 0.0);
    let curves: Vec<&Series> = series.iter().filter(moves).collect();
    let names: Vec<_> = curves.iter().map(|curve| curve.name.as_str()).collect();
    let colours = names.iter().zip(SERIES.iter().cycle());
    let colours: Vec<_> = colours.map(|(name, other)| panel.colour(name).unwrap_or(other)).collect();
    let width = WIDTH * panel.grid_pos.w / COLUMNS - if is_stat { 0 } else { BESIDE } - GAP;
    let longest = names.iter().map(|name| name.chars().count() as u32).max().unwrap_or(0);
    let legend = json!({ "columns": (width / (longest * LETTER + SWATCH)).max(1) });
    let colour = json!({
        "scale": { "domain": names, "range": colours },
        "legend": if is_stat { Value::Null } else { legend },
    });
    let length = recording.length();
    let mut layers = Vec::new();
    if is_stat {
        let numbers = curves.iter().enumerate().flat_map(|(place, curve)| number(panel, curve, place));
        layers.extend(numbers);
    } else {
        layers.extend(events(&recording.events));
    }
    let (stacked, others): (Vec<&Series>, Vec<_>) =
        curves.iter().partition(|curve| panel.stacks(&curve.name));
    layers.extend((!stacked.is_empty()).then(|| area(panel, &stacked, length, &colour)));
    layers.extend(others.into_iter().map(|curve| area(panel, &[curve], length, &colour)));
    let at_zero = series.len() - curves.len();
    let unit = match (curves.len(), at_zero) {
        _ if is_stat => String::new(),
        (_, 0) => panel.unit().name().to_owned(),
        (0, all) => format!("{}; all {all} at 0 throughout", panel.unit().name()),
        (_, some) => format!("{}; {some} more at 0 throughout", panel.unit().name()),
    };
    json!({
        "title": { "text": panel.title, "subtitle": unit, "fontSize": if is_stat { 15 } else { 18 }, "offset": if is_stat { 34 * curves.len() } else { 24 } },
        "width": width,
        "height": if is_stat { LOW } else { HEIGHT },
        "layer": layers,
        "encoding": { "x": time(is_stat, length) },
    })
}

fn time(hidden: bool, length: f64) -> Value {
    let minutes: Vec<u32> = (0..=(length / 60.0) as u32).map(|minute| minute * 60).collect();
    let axis =
        json!({ "values": minutes, "labelExpr": "datum.value / 60 + ':00'", "grid": false, "title": null });
    json!({
        "field": "at",
        "type": "quantitative",
        "scale": { "domain": [0, length], "nice": false },
        "axis": if hidden { Value::Null } else { axis },
    })
}

/// What was done: a line with a letter.
fn events(events: &[Event]) -> [Value; 2] {
    let events: Vec<_> =
        events.iter().zip('a'..).map(|(event, letter)| json!({ "at": event.at, "letter": letter })).collect();
    [
        json!({ "data": { "values": events }, "mark": { "type": "rule", "color": SERIES[2], "opacity": 0.5 } }),
        json!({
            "data": { "values": events },
            "mark": { "type": "text", "y": -10, "fontSize": 13 },
            "encoding": { "text": { "field": "letter" } },
        }),
    ]
}

/// Curves with what is below them: stacked, if they are several. A time without a value divides a curve.
fn area(panel: &Panel, curves: &[&Series], length: f64, colour: &Value) -> Value {
    let steps = (length / f64::from(STEP)) as u32;
    let rows = curves.iter().enumerate().flat_map(|(place, curve)| {
        (0..=steps).map(move |step| {
            let at = step * STEP;
            let here = curve.points.iter().find(|(time, _)| (time - f64::from(at)).abs() < 0.5);
            json!({ "at": at, "value": here.map(|(_, value)| value), "name": curve.name, "place": place })
        })
    });
    let fill = panel.fill(&curves[0].name);
    let mut axis =
        json!({ "title": null, "tickCount": 4, "labelExpr": panel.unit().text("datum.value", false) });
    if panel.unit() == Unit::Number {
        axis["tickMinStep"] = json!(1);
    }
    let mut scale = json!({});
    if let Some(most) = panel.most() {
        scale["domain"] = json!([0, most]);
    }
    let mut colour = colour.clone();
    colour["field"] = json!("name");
    json!({
        "data": { "values": rows.collect::<Vec<_>>() },
        "mark": {
            "type": "area",
            "line": { "strokeWidth": 2 },
            "fillOpacity": fill,
            "invalid": "break-paths-show-domains",
        },
        "encoding": {
            "y": {
                "field": "value",
                "type": "quantitative",
                "stack": if curves.len() > 1 { json!("zero") } else { Value::Null },
                "scale": scale,
                "axis": if panel.kind == Kind::Stat { Value::Null } else { axis },
            },
            "color": colour,
            "order": { "field": "place" },
        },
    })
}

/// The last value in large, as Grafana has it, above its course.
fn number(panel: &Panel, curve: &Series, place: usize) -> [Value; 2] {
    let last = curve.points.last().map(|(_, value)| value);
    let top = -18 - 34 * place as i32;
    let data = json!({ "values": [{ "name": curve.name, "value": last }] });
    [
        json!({
            "data": data,
            "transform": [{ "calculate": panel.unit().text("datum.value", true), "as": "shown" }],
            "mark": { "type": "text", "fontSize": 30, "align": "left", "x": 0, "y": top },
            "encoding": { "x": null, "text": { "field": "shown" } },
        }),
        json!({
            "data": data,
            "mark": { "type": "text", "fontSize": 14, "align": "right", "x": "width", "y": top },
            "encoding": { "x": null, "text": { "field": "name" } },
        }),
    ]
}
