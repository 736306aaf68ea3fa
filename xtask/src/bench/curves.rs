//! Charts of how something grows with a number of things, both axes logarithmic: what is linear goes up by a decade each
//! decade, what is constant is level. All numbers are the report's.

use std::path::Path;

use anyhow::Result;
use plotters::{prelude::*, style::text_anchor::HPos};

use super::report::{Report, number};
use crate::draw::{self, FAINT, SERIES, svg, write};

const WIDTH: i32 = 900;
const HEIGHT: i32 = 420;
const LEFT: i32 = 70;
const RIGHT: i32 = 330;
/// Height of a curve's label.
const LABEL: i32 = 16;
const TOP: i32 = 70;
const BOTTOM: i32 = 50;

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
    let path = docs.join(file);
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let values = |kernel: &str, row: &str| -> Vec<(f64, f64)> {
        let value = |&number: &u32| {
            Some((f64::from(number), report.value(kernel, &row.replace("{}", &number.to_string()))?))
        };
        numbers.iter().filter_map(value).collect()
    };
    let all: Vec<(f64, f64)> =
        kernels.iter().flat_map(|kernel| curves.iter().flat_map(|(_, row)| values(kernel, row))).collect();
    if all.is_empty() {
        return Ok(false);
    }
    let (columns, rows) =
        (decades(all.iter().map(|point| point.0)), decades(all.iter().map(|point| point.1)));
    let across = |value: f64| place(value, columns, (LEFT, WIDTH - RIGHT));
    let up = |value: f64| place(value, rows, (HEIGHT - BOTTOM, TOP));
    svg(&path, (WIDTH, HEIGHT), |root| {
        write(root, title, (20, 16), 20, HPos::Left)?;
        for power in columns.0..=columns.1 {
            let (value, x) = (10f64.powi(power), across(10f64.powi(power)));
            root.draw(&PathElement::new([(x, TOP), (x, HEIGHT - BOTTOM)], FAINT))?;
            write(root, &number(value), (x, HEIGHT - BOTTOM + 6), 12, HPos::Center)?;
        }
        for power in rows.0..=rows.1 {
            let (value, y) = (10f64.powi(power), up(10f64.powi(power)));
            root.draw(&PathElement::new([(LEFT, y), (WIDTH - RIGHT, y)], FAINT))?;
            write(root, &number(value), (LEFT - 8, y - 7), 12, HPos::Right)?;
        }
        write(root, things, ((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 24), 14, HPos::Center)?;
        let mut labels = Vec::new();
        for (place, kernel) in kernels.iter().enumerate() {
            let colour = SERIES[place % SERIES.len()];
            for (label, row) in *curves {
                let points: Vec<(i32, i32)> =
                    values(kernel, row).iter().map(|&(x, y)| (across(x), up(y))).collect();
                root.draw(&PathElement::new(points.clone(), colour.stroke_width(2)))?;
                for point in &points {
                    root.draw(&Circle::new(*point, 3, colour.filled()))?;
                }
                if let (0, Some(&(x, y))) = (place, points.last()) {
                    labels.push((y - 8, x + 10, *label));
                }
            }
            draw::kernel(root, place, LEFT + 110 * place as i32, kernel)?;
        }
        labels.sort_unstable();
        let mut free = TOP - LABEL;
        for (y, x, label) in labels {
            free = y.max(free);
            write(root, label, (x, free), 14, HPos::Left)?;
            free += LABEL;
        }
        Ok(())
    })?;
    Ok(true)
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
