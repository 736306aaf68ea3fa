//! Charts of how something grows with a number of things, both axes logarithmic: what is linear goes up by a decade each
//! decade, what is constant is level. All numbers are the report's.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{prelude::*, style::text_anchor::HPos};

use super::report::{Report, number};
use crate::draw::{FAINT, INK, SERIES, write};

const WIDTH: i32 = 900;
const HEIGHT: i32 = 420;
const LEFT: i32 = 70;
const RIGHT: i32 = 330;
/// Height of a curve's label.
const LABEL: i32 = 16;
const TOP: i32 = 70;
const BOTTOM: i32 = 50;

/// A curve: what it shows, and the row for each number of things.
pub(super) struct Curve {
    pub(super) label: &'static str,
    pub(super) points: &'static [(f64, &'static str)],
}

/// What the agent takes by the number of interfaces.
pub(super) const LINKS: &[Curve] = &[
    Curve {
        label: "start to rules, ms",
        points: &[
            (10.0, "agent/start-10-interfaces/ebpf-tc"),
            (100.0, "agent/start-100-interfaces/ebpf-tc"),
            (1000.0, "agent/start-1000-interfaces/ebpf-tc"),
        ],
    },
    Curve {
        label: "resident memory, MB",
        points: &[
            (10.0, "agent/memory-10-interfaces"),
            (100.0, "agent/memory-100-interfaces"),
            (1000.0, "agent/memory-1000-interfaces"),
        ],
    },
    Curve {
        label: "link-up to flowtable, ms",
        points: &[
            (10.0, "agent/link-up-10-interfaces"),
            (100.0, "agent/link-up-100-interfaces"),
            (1000.0, "agent/link-up-1000-interfaces"),
        ],
    },
    Curve {
        label: "CPU time for a link-up, ms",
        points: &[
            (10.0, "agent/link-up-cost-10-interfaces/ebpf-tc"),
            (100.0, "agent/link-up-cost-100-interfaces/ebpf-tc"),
            (1000.0, "agent/link-up-cost-1000-interfaces/ebpf-tc"),
        ],
    },
];

/// What the agent takes by the number of flows.
pub(super) const FLOWS: &[Curve] = &[
    Curve {
        label: "`flows`: time, ms",
        points: &[
            (1e3, "agent/list-1000-flows/time"),
            (1e4, "agent/list-10000-flows/time"),
            (1e5, "agent/list-100000-flows/time"),
        ],
    },
    Curve {
        label: "`flows`: most memory, MB",
        points: &[
            (1e3, "agent/list-1000-flows/memory"),
            (1e4, "agent/list-10000-flows/memory"),
            (1e5, "agent/list-100000-flows/memory"),
        ],
    },
    Curve {
        label: "agent: memory after crossings, MB",
        points: &[
            (1e3, "agent/memory-1000-flows"),
            (1e4, "agent/memory-10000-flows"),
            (1e5, "agent/memory-100000-flows"),
        ],
    },
];

/// Draws curves, one for each kernel; false, and nothing is drawn, when the report has none of the rows.
pub(super) fn draw(
    report: &Report,
    title: &str,
    things: &str,
    curves: &[Curve],
    path: &Path,
) -> Result<bool> {
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let values = |kernel: &str, curve: &Curve| -> Vec<(f64, f64)> {
        let value = |&(things, row): &(f64, &str)| Some((things, report.value(kernel, row)?));
        curve.points.iter().filter_map(value).collect()
    };
    let all: Vec<(f64, f64)> =
        kernels.iter().flat_map(|kernel| curves.iter().flat_map(|curve| values(kernel, curve))).collect();
    if all.is_empty() {
        return Ok(false);
    }
    let (columns, rows) =
        (decades(all.iter().map(|point| point.0)), decades(all.iter().map(|point| point.1)));
    let across = |value: f64| place(value, columns, (LEFT, WIDTH - RIGHT));
    let up = |value: f64| place(value, rows, (HEIGHT - BOTTOM, TOP));
    let root = SVGBackend::new(path, (WIDTH as u32, HEIGHT as u32)).into_drawing_area();
    let draw = || -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        root.fill(&WHITE)?;
        write(&root, title, (20, 16), 20, HPos::Left)?;
        for power in columns.0..=columns.1 {
            let (value, x) = (10f64.powi(power), across(10f64.powi(power)));
            root.draw(&PathElement::new([(x, TOP), (x, HEIGHT - BOTTOM)], FAINT))?;
            write(&root, &number(value), (x, HEIGHT - BOTTOM + 6), 12, HPos::Center)?;
        }
        for power in rows.0..=rows.1 {
            let (value, y) = (10f64.powi(power), up(10f64.powi(power)));
            root.draw(&PathElement::new([(LEFT, y), (WIDTH - RIGHT, y)], FAINT))?;
            write(&root, &number(value), (LEFT - 8, y - 7), 12, HPos::Right)?;
        }
        write(&root, things, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24), 14, HPos::Center)?;
        let mut labels = Vec::new();
        for (place, kernel) in kernels.iter().enumerate() {
            let colour = SERIES[place % SERIES.len()];
            for curve in curves {
                let points: Vec<(i32, i32)> =
                    values(kernel, curve).iter().map(|&(x, y)| (across(x), up(y))).collect();
                root.draw(&PathElement::new(points.clone(), colour.stroke_width(2)))?;
                for point in &points {
                    root.draw(&Circle::new(*point, 3, colour.filled()))?;
                }
                if let (0, Some(&(x, y))) = (place, points.last()) {
                    labels.push((y - 8, x + 10, curve.label));
                }
            }
            let left = LEFT + 110 * place as i32;
            root.draw(&Rectangle::new([(left, 45), (left + 14, 57)], colour.filled()))?;
            root.draw(&Text::new(
                format!("Linux {kernel}"),
                (left + 20, 46),
                ("sans-serif", 14).into_font().color(&INK),
            ))?;
        }
        labels.sort_unstable();
        let mut free = TOP - LABEL;
        for (y, x, label) in labels {
            free = y.max(free);
            write(&root, label, (x, free), 14, HPos::Left)?;
            free += LABEL;
        }
        root.present()
    };
    draw().map(|()| true).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// The powers of ten below and above all values.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let logs: Vec<f64> = values.filter(|value| *value > 0.0).map(f64::log10).collect();
    let least = logs.iter().copied().fold(f64::INFINITY, f64::min).floor() as i32;
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil() as i32;
    (least, most.max(least + 1))
}

/// Place of a value between two ends that are powers of ten.
fn place(value: f64, (least, most): (i32, i32), (begin, end): (i32, i32)) -> i32 {
    let share = (value.log10() - f64::from(least)) / f64::from(most - least);
    begin + (share * f64::from(end - begin)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_enclose_all_values() {
        assert_eq!(decades([0.5, 99.0, 100.0].into_iter()), (-1, 2));
        assert_eq!(decades([10.0].into_iter()), (1, 2));
    }

    #[test]
    fn places_are_logarithmic() {
        let at = |value| place(value, (0, 2), (100, 300));
        assert_eq!([at(1.0), at(10.0), at(100.0)], [100, 200, 300]);
    }
}
