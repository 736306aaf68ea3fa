//! Charts of a report as SVG, for the README and docs/benchmark.md. They choose what to show; all numbers are the report's.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{prelude::*, style::text_anchor::HPos};

use super::report::{Report, number};
use crate::draw::{self, FAINT, SERIES, step, svg, write};

const WIDTH: i32 = 900;
const LABELS: i32 = 300;
const VALUES: i32 = 70;
const TOP: i32 = 84;
const BAR: i32 = 13;
const GAP: i32 = 14;

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
    let less = format!("{} % less", number((1.0 - with / without) * 100.0));
    const HEIGHT: i32 = 190;
    svg(path, (WIDTH, HEIGHT), |root| {
        write(root, "What a packet costs the node", (20, 16), 20, HPos::Left)?;
        let unit = format!("instructions of the kernel, Linux {kernel}; less is better");
        write(root, &unit, (20, 46), 14, HPos::Left)?;
        let bars = [
            ("without Fastpath", without, SERIES[2], number(without)),
            ("with Fastpath, offloaded", with, SERIES[0], format!("{}, {less}", number(with))),
        ];
        for (place, (label, value, colour, said)) in bars.into_iter().enumerate() {
            let top = 80 + 50 * place as i32;
            let end = LABELS - 60 + (value / without * f64::from(WIDTH - LABELS - VALUES)) as i32;
            write(root, label, (LABELS - 70, top + 9), 16, HPos::Right)?;
            root.draw(&Rectangle::new([(LABELS - 60, top), (end, top + 36)], colour.filled()))?;
            write(root, &said, (end + 8, top + 9), 16, HPos::Left)?;
        }
        Ok(())
    })
}

/// A bar for each row and kernel, the shorter the better.
pub(super) fn bars(report: &Report, title: &str, unit: &str, bars: &[Bar], path: &Path) -> Result<()> {
    let kernels: Vec<&str> = report.kernels.keys().rev().map(String::as_str).collect();
    let of_bar = BAR * kernels.len() as i32 + GAP;
    let height = TOP + of_bar * bars.len() as i32 + 34;
    let most = bars.iter().flat_map(|bar| kernels.iter().filter_map(|k| report.value(k, bar.row)));
    let most = most.fold(0.0, f64::max);
    let step = step(most, 8);
    let scale = f64::from(WIDTH - LABELS - VALUES) / most;
    let x = |value: f64| LABELS + (value * scale) as i32;
    svg(path, (WIDTH, height), |root| {
        write(root, title, (20, 16), 20, HPos::Left)?;
        write(root, unit, (20, 46), 14, HPos::Left)?;
        for (number, kernel) in kernels.iter().enumerate() {
            draw::kernel(root, number, WIDTH - 20 - 110 * (kernels.len() - number) as i32, kernel)?;
        }
        let bottom = height - 30;
        let mut mark = 0.0;
        while mark <= most {
            root.draw(&PathElement::new([(x(mark), TOP - 4), (x(mark), bottom)], FAINT))?;
            write(root, &super::report::number(mark), (x(mark), bottom + 6), 12, HPos::Center)?;
            mark += step;
        }
        for (place, bar) in bars.iter().enumerate() {
            let top = TOP + of_bar * place as i32;
            let middle = top + BAR * kernels.len() as i32 / 2 - 8;
            write(root, bar.label, (LABELS - 10, middle), 14, HPos::Right)?;
            for (place, kernel) in kernels.iter().enumerate() {
                let Some(value) = report.value(kernel, bar.row) else { continue };
                let top = top + BAR * place as i32;
                let colour = SERIES[place % SERIES.len()];
                root.draw(&Rectangle::new([(x(0.0), top), (x(value), top + BAR - 1)], colour.filled()))?;
                write(root, &number(value), (x(value) + 5, top - 1), 12, HPos::Left)?;
            }
        }
        Ok(())
    })
}
