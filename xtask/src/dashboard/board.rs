//! The dashboard as it is in the repository: its panels, what they ask, how they want it shown.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::workspace;

const PATH: &str = "deploy/monitoring/dashboard.json";

/// Columns of Grafana's grid.
pub(super) const COLUMNS: u32 = 24;

#[derive(Deserialize)]
pub(super) struct Board {
    pub(super) panels: Vec<Panel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Panel {
    #[serde(rename = "type")]
    pub(super) kind: Kind,
    pub(super) title: String,
    pub(super) grid_pos: Place,
    field_config: FieldConfig,
    pub(super) targets: Vec<Target>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// One number, with its course behind it.
    Stat,
    TimeSeries,
}

/// In Grafana's grid.
#[derive(Deserialize)]
pub(super) struct Place {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) w: u32,
}

#[derive(Deserialize)]
struct FieldConfig {
    defaults: Defaults,
    overrides: Vec<Override>,
}

/// What is otherwise for one curve.
#[derive(Deserialize)]
struct Override {
    matcher: Matcher,
    properties: Vec<Property>,
}

#[derive(Deserialize)]
#[serde(tag = "id", content = "options", rename_all = "camelCase")]
enum Matcher {
    ByName(String),
}

#[derive(Deserialize)]
#[serde(tag = "id", content = "value")]
enum Property {
    #[serde(rename = "custom.stacking")]
    Stacking(Stacking),
    #[serde(rename = "custom.fillOpacity")]
    FillOpacity(f64),
    #[serde(rename = "color")]
    Colour(Colour),
}

/// One that is the same whatever else the panel shows.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Colour {
    /// As in `#0072b2`.
    fixed_color: String,
}

#[derive(Deserialize)]
struct Defaults {
    unit: Unit,
    max: Option<f64>,
    #[serde(default)]
    custom: Custom,
}

/// The units that the dashboard uses, by Grafana's names.
#[derive(Deserialize, Clone, Copy, PartialEq, Debug)]
pub(super) enum Unit {
    #[serde(rename = "short")]
    Number,
    #[serde(rename = "percentunit")]
    Share,
    #[serde(rename = "Bps")]
    Bytes,
    #[serde(rename = "bytes")]
    Size,
    #[serde(rename = "pps")]
    Packets,
    #[serde(rename = "cps")]
    PerSecond,
    #[serde(rename = "s")]
    Seconds,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Custom {
    fill_opacity: f64,
    stacking: Stacking,
}

#[derive(Deserialize, Default)]
struct Stacking {
    mode: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) expr: String,
    pub(super) legend_format: String,
}

impl Panel {
    pub(super) fn unit(&self) -> Unit {
        self.field_config.defaults.unit
    }

    /// Where the axis ends, if that is fixed.
    pub(super) fn most(&self) -> Option<f64> {
        self.field_config.defaults.max
    }

    /// How much of what is below a curve of that name is covered, 0 to 1.
    pub(super) fn fill(&self, name: &str) -> f64 {
        if self.kind == Kind::Stat {
            return 0.2;
        }
        let other = self.overrides(name).find_map(|property| match property {
            Property::FillOpacity(percent) => Some(*percent),
            _ => None,
        });
        other.unwrap_or(self.field_config.defaults.custom.fill_opacity) / 100.0
    }

    /// Whether a curve of that name is stacked on those before it.
    pub(super) fn stacks(&self, name: &str) -> bool {
        let other = self.overrides(name).find_map(|property| match property {
            Property::Stacking(stacking) => Some(stacking),
            _ => None,
        });
        other.unwrap_or(&self.field_config.defaults.custom.stacking).mode == "normal"
    }

    /// The colour of a curve of that name, if it has one of its own: red, green, blue.
    pub(super) fn colour(&self, name: &str) -> Option<[u8; 3]> {
        self.overrides(name).find_map(|property| match property {
            Property::Colour(colour) => {
                let number = u32::from_str_radix(colour.fixed_color.strip_prefix('#')?, 16).ok()?;
                let [_, rgb @ ..] = number.to_be_bytes();
                Some(rgb)
            }
            _ => None,
        })
    }

    fn overrides(&self, name: &str) -> impl Iterator<Item = &Property> {
        let of_it = move |one: &&Override| matches!(&one.matcher, Matcher::ByName(wanted) if wanted == name);
        self.field_config.overrides.iter().filter(of_it).flat_map(|one| &one.properties)
    }
}

impl Board {
    pub(super) fn read() -> Result<Self> {
        let text = fs::read_to_string(workspace::root().join(PATH))
            .with_context(|| format!("cannot read {PATH}"))?;
        serde_json::from_str(&text).with_context(|| format!("cannot understand {PATH}"))
    }

    /// Panels side by side, from the top down.
    pub(super) fn rows(&self) -> Vec<Vec<&Panel>> {
        self.panels
            .chunk_by(|one, next| one.grid_pos.y == next.grid_pos.y)
            .map(|row| row.iter().collect())
            .collect()
    }

    /// Whether a panel asks for this metric.
    pub(super) fn asks_for(&self, metric: &str) -> bool {
        let asks = |target: &Target| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            target.expr.split(|c| !is_name(c)).any(|word| word == metric)
        };
        self.panels.iter().any(|panel| panel.targets.iter().any(asks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_may_be_otherwise_than_its_panel() {
        let board = Board::read().expect("the dashboard");
        let panel =
            board.panels.iter().find(|panel| panel.title == "Connections, by state").expect("the panel");
        let look = |name| (panel.stacks(name), panel.fill(name));
        assert_eq!(look("offloaded"), (true, 0.4));
        assert_eq!(look("offloaded, but slow"), (false, 0.0));
        assert_eq!(panel.colour("offloaded"), Some([0, 0x72, 0xb2]));
        assert_eq!(panel.colour("stalled"), None);
    }

    #[test]
    fn metrics_are_known_by_their_whole_name() {
        let board = Board::read().expect("the dashboard");
        assert!(
            board.asks_for("fastpath_flows") && board.asks_for("fastpath_reconcile_duration_seconds_bucket")
        );
        assert!(!board.asks_for("fastpath_flow"));
    }
}
