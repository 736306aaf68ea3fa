//! The dashboard as it is in the repository: its panels, what they ask, how they want it shown.

use anyhow::{Context, Result};
use fs_err as fs;
use serde::Deserialize;
use serde_json::Value;

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
    pub(super) y: u32,
    pub(super) w: u32,
}

/// What a panel shows its curves like, and what is otherwise for one of them: Grafana's names and values.
#[derive(Deserialize)]
struct FieldConfig {
    defaults: Defaults,
    overrides: Vec<Value>,
}

#[derive(Deserialize)]
struct Defaults {
    unit: Unit,
    max: Option<f64>,
    #[serde(default)]
    custom: Value,
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) expr: String,
    pub(super) legend_format: String,
}

impl Unit {
    /// The text below a panel's title.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Share => "share",
            Self::Bytes => "bytes a second",
            Self::Size => "bytes",
            Self::Packets => "packets a second",
            Self::PerSecond => "a second",
            Self::Seconds => "seconds",
        }
    }

    /// The expression of Vega's that shows a value, with a digit more or as short as it can be.
    pub(super) fn text(self, value: &str, exact: bool) -> String {
        match self {
            Self::Share => format!("format({value}, '.{}%')", u8::from(exact)),
            Self::Bytes | Self::Size => format!("format({value}, '.3~s') + 'B'"),
            Self::Seconds => format!("format({value}, '.3~s') + 's'"),
            // Not "50m" for 0.05.
            Self::Number | Self::Packets | Self::PerSecond => {
                format!("format({value}, {value} < 10000 ? '.4~r' : '.3~s')")
            }
        }
    }
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
        self.setting(name, "fillOpacity").as_f64().unwrap_or(0.0) / 100.0
    }

    /// Whether a curve of that name is stacked on those before it.
    pub(super) fn stacks(&self, name: &str) -> bool {
        self.setting(name, "stacking")["mode"] == "normal"
    }

    /// The colour of a curve of that name, if it has one of its own: `#rrggbb`.
    pub(super) fn colour(&self, name: &str) -> Option<&str> {
        self.own(name, "color")?["fixedColor"].as_str()
    }

    /// A curve's own setting, or the panel's.
    fn setting(&self, curve: &str, name: &str) -> &Value {
        self.own(curve, &format!("custom.{name}")).unwrap_or(&self.field_config.defaults.custom[name])
    }

    fn own(&self, curve: &str, id: &str) -> Option<&Value> {
        let overrides = self.field_config.overrides.iter();
        let of_it = overrides.filter(|one| one["matcher"]["options"] == curve);
        let mut properties = of_it.flat_map(|one| one["properties"].as_array().into_iter().flatten());
        properties.find(|property| property["id"] == id).map(|property| &property["value"])
    }
}

impl Board {
    pub(super) fn read() -> Result<Self> {
        let text = fs::read_to_string(workspace::root().join(PATH))?;
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
        assert_eq!(panel.colour("offloaded"), Some("#0072b2"));
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
