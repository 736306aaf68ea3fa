//! Numbers and times as people read them on a panel.

use super::board::Unit;

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

    /// A value of an axis or a panel whose smallest difference is `step`.
    pub(super) fn shown(self, value: f64, step: f64) -> String {
        if value == 0.0 && self != Self::Share {
            return "0".to_owned();
        }
        let scales: &[(f64, &str)] = match self {
            Self::Share => &[(0.01, " %")],
            Self::Bytes | Self::Size => &[(1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B")],
            Self::Seconds => &[(1.0, " s"), (1e-3, " ms"), (1e-6, " µs")],
            Self::Number | Self::Packets | Self::PerSecond => {
                &[(1e9, " G"), (1e6, " M"), (1e4, " k"), (1.0, "")]
            }
        };
        let fits = |&&(from, _): &&(f64, &str)| value.abs() >= from;
        let (mut scale, suffix) = scales.iter().find(fits).or(scales.last()).copied().unwrap_or((1.0, ""));
        if scale == 1e4 {
            scale = 1e3;
        }
        let decimals = (-(step / scale).log10()).ceil().clamp(0.0, 3.0) as usize;
        format!("{:.decimals$}{suffix}", value / scale)
    }
}

/// Minutes and seconds of so many seconds.
pub(super) fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        for (unit, value, step, text) in [
            (Unit::Share, 0.0, 0.2, "0 %"),
            (Unit::Share, 0.6, 0.2, "60 %"),
            (Unit::Share, 0.975, 0.001, "97.5 %"),
            (Unit::Bytes, 1_500_000.0, 500_000.0, "1.5 MB"),
            (Unit::Bytes, 200_000.0, 200_000.0, "200 kB"),
            (Unit::Packets, 1_500.0, 500.0, "1500"),
            (Unit::Packets, 15_000.0, 5_000.0, "15 k"),
            (Unit::PerSecond, 0.05, 0.05, "0.05"),
            (Unit::Number, 3.0, 1.0, "3"),
            (Unit::Seconds, 0.005, 0.005, "5 ms"),
            (Unit::Seconds, 0.0, 0.005, "0"),
        ] {
            assert_eq!(unit.shown(value, step), text, "{unit:?} {value}");
        }
    }

    #[test]
    fn times_are_minutes_and_seconds() {
        assert_eq!([clock(0.0), clock(65.4), clock(600.0)], ["0:00", "1:05", "10:00"]);
    }
}
