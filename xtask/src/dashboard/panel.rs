//! Draws panels as Grafana lays them out: title, unit, curves, legend, and lines at what was done. It chooses nothing but what fits:
//! curves that stay at 0 are only counted.

use std::path::Path;

use anyhow::Result;
use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    board::{COLUMNS, Kind, Panel, Unit},
    evaluate::{STEP, Series},
    recording::{Event, Recording},
    units,
};
use crate::draw::{Area, Drawn, FAINT, SERIES, step, svg, write};

const WIDTH: i32 = 900;
/// Letters' sizes.
const TITLE: i32 = 19;
const SMALL: i32 = 15;
const MARGIN: i32 = 16;
/// Between panels.
const GAP: i32 = 28;
/// Room for the numbers of an axis.
const AXIS: i32 = 56;
/// Where curves begin: below title, unit and the letters of events.
const TOP: i32 = 78;
const HEIGHT: i32 = 150;
/// From the end of the curves to the legend: the times are between.
const TIMES: i32 = 28;
const LINE: i32 = 19;
/// Of a letter, at the size of a legend; browsers choose among fonts, so this is a wide one's.
const LETTER: f64 = 7.4;
const SWATCH: i32 = 20;
/// A panel with one number.
const STAT_HEIGHT: i32 = 134;
/// Marks on an axis.
const MARKS: u32 = 4;

/// A panel with what it shows.
pub(super) type Shown<'a> = (&'a Panel, Vec<Series>);

pub(super) fn draw_row(panels: &[Shown<'_>], recording: &Recording, path: &Path) -> Result<()> {
    let charts: Vec<Chart<'_>> = panels.iter().map(|shown| Chart::new(shown, recording)).collect();
    let height = charts.iter().map(Chart::height).max().unwrap_or(0);
    svg(path, (WIDTH, height), |root| charts.iter().try_for_each(|chart| chart.draw(root)))
}

/// A panel, laid out.
struct Chart<'a> {
    panel: &'a Panel,
    events: &'a [Event],
    left: i32,
    right: i32,
    /// Seconds.
    length: f64,
    curves: Vec<Curve>,
    legend: Legend,
}

/// Values at each step; none where there was no value.
struct Curve {
    name: String,
    colour: RGBColor,
    values: Vec<Option<f64>>,
}

impl<'a> Chart<'a> {
    fn new((panel, series): &'a Shown<'a>, recording: &'a Recording) -> Self {
        let length = recording.length();
        let whole = WIDTH - 2 * MARGIN + GAP;
        let column = |number: u32| MARGIN + whole * number as i32 / COLUMNS as i32;
        let (left, right) = (column(panel.grid_pos.x), column(panel.grid_pos.x + panel.grid_pos.w) - GAP);
        let moves = |series: &&Series| {
            panel.kind == Kind::Stat || series.points.iter().any(|(_, value)| *value != 0.0)
        };
        let curve = |(number, series): (usize, &Series)| {
            let own = panel.colour(&series.name).map(|[red, green, blue]| RGBColor(red, green, blue));
            Curve::new(series, length, own.unwrap_or(SERIES[number % SERIES.len()]))
        };
        let curves: Vec<Curve> = series.iter().filter(moves).enumerate().map(curve).collect();
        let names: Vec<_> = curves.iter().map(|curve| (curve.name.as_str(), curve.colour)).collect();
        let legend = Legend::new(&names, series.len() - curves.len(), right - left);
        Self { panel, events: &recording.events, left, right, length, curves, legend }
    }

    fn height(&self) -> i32 {
        match self.panel.kind {
            Kind::Stat => STAT_HEIGHT,
            Kind::TimeSeries => TOP + HEIGHT + TIMES + self.legend.lines * LINE + 8,
        }
    }

    fn draw(&self, root: &Area<'_>) -> Drawn {
        let unit = self.panel.unit();
        write(root, &self.panel.title, (self.left, 12), TITLE, HPos::Left)?;
        if self.panel.kind == Kind::Stat {
            return self.draw_stat(root, unit);
        }
        write(root, unit.name(), (self.left, 36), SMALL, HPos::Left)?;
        let sums = self.sums();
        let most = self.panel.most().unwrap_or_else(|| greatest(&sums));
        let least_step = if unit == Unit::Number && most >= 1.0 { 1.0 } else { 0.0 };
        let step = step(most, MARKS).max(least_step);
        let marks = (most / step - 1e-9).ceil();
        let frame = Frame {
            left: self.left + AXIS,
            right: self.right,
            top: TOP,
            bottom: TOP + HEIGHT,
            most: marks * step,
            length: self.length,
        };
        for mark in 0..=marks as u32 {
            let value = f64::from(mark) * step;
            let y = frame.y(value);
            root.draw(&PathElement::new([(frame.left, y), (frame.right, y)], FAINT))?;
            write(root, &unit.shown(value, step), (frame.left - 8, y - 7), SMALL, HPos::Right)?;
        }
        for minute in 0..=(self.length / 60.0) as u32 {
            let seconds = f64::from(minute) * 60.0;
            write(root, &units::clock(seconds), (frame.x(seconds), frame.bottom + 6), SMALL, HPos::Center)?;
        }
        self.draw_events(root, &frame)?;
        self.draw_curves(root, &frame, &sums)?;
        self.legend.draw(root, (self.left, frame.bottom + TIMES))
    }

    /// The curve that this one is stacked on.
    fn below(&self, number: usize) -> Option<usize> {
        let stacks = |number: &usize| self.panel.stacks(&self.curves[*number].name);
        (0..number).rfind(stacks).filter(|_| stacks(&number))
    }

    /// What each curve's line shows: its values, or with those of the curves below it.
    fn sums(&self) -> Vec<Vec<Option<f64>>> {
        let mut sums: Vec<Vec<Option<f64>>> = Vec::new();
        for (number, curve) in self.curves.iter().enumerate() {
            let below = self.below(number).map(|below| &sums[below]);
            let sum = |(at, value): (usize, &Option<f64>)| match (below.and_then(|below| below[at]), value) {
                (None, value) => *value,
                (Some(below), value) => Some(below + value.unwrap_or(0.0)),
            };
            let next = curve.values.iter().enumerate().map(sum).collect();
            sums.push(next);
        }
        sums
    }

    fn draw_events(&self, root: &Area<'_>, frame: &Frame) -> Drawn {
        for (event, letter) in self.events.iter().zip('a'..) {
            let x = frame.x(event.at);
            root.draw(&PathElement::new([(x, frame.top), (x, frame.bottom)], SERIES[2].mix(0.5)))?;
            write(root, &letter.to_string(), (x, frame.top - 17), SMALL, HPos::Center)?;
        }
        Ok(())
    }

    fn draw_curves(&self, root: &Area<'_>, frame: &Frame, sums: &[Vec<Option<f64>>]) -> Drawn {
        for (number, sums_here) in sums.iter().enumerate() {
            let colour = self.curves[number].colour;
            let fill = self.panel.fill(&self.curves[number].name);
            let below = self.below(number).map(|below| &sums[below]);
            for run in runs(sums_here) {
                let top = run.iter().map(|&at| frame.point(at, sums_here[at].unwrap_or(0.0)));
                let base = |&at: &usize| frame.point(at, below.and_then(|below| below[at]).unwrap_or(0.0));
                let area: Vec<(i32, i32)> = top.clone().chain(run.iter().rev().map(base)).collect();
                root.draw(&Polygon::new(area, colour.mix(fill)))?;
                root.draw(&PathElement::new(top.collect::<Vec<_>>(), colour.stroke_width(2)))?;
            }
        }
        Ok(())
    }

    /// The last value in large, as Grafana has it, above its course.
    fn draw_stat(&self, root: &Area<'_>, unit: Unit) -> Drawn {
        let step = if unit == Unit::Share { 0.001 } else { 1.0 };
        let last = |curve: &Curve| curve.values.iter().rev().find_map(|value| *value);
        for (number, curve) in self.curves.iter().enumerate() {
            let top = 36 + 30 * number as i32;
            let Some(value) = last(curve) else { continue };
            write(root, &unit.shown(value, step), (self.left, top), 34, HPos::Left)?;
            write(root, &curve.name, (self.right, top + 14), SMALL, HPos::Right)?;
        }
        let sums = self.sums();
        let most = self.panel.most().unwrap_or_else(|| greatest(&sums));
        let frame = Frame {
            left: self.left,
            right: self.right,
            top: STAT_HEIGHT - 52,
            bottom: STAT_HEIGHT - 12,
            most,
            length: self.length,
        };
        root.draw(&PathElement::new([(frame.left, frame.bottom), (frame.right, frame.bottom)], FAINT))?;
        self.draw_curves(root, &frame, &sums)
    }
}

impl Curve {
    fn new(series: &Series, length: f64, colour: RGBColor) -> Self {
        let mut values = vec![None; (length / f64::from(STEP)) as usize + 1];
        for (time, value) in &series.points {
            if let Some(place) = values.get_mut((time / f64::from(STEP)).round() as usize) {
                *place = Some(*value);
            }
        }
        Self { name: series.name.clone(), colour, values }
    }
}

/// Where curves are drawn, and the values at its edges.
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    most: f64,
    length: f64,
}

impl Frame {
    fn x(&self, seconds: f64) -> i32 {
        self.left + (f64::from(self.right - self.left) * seconds / self.length).round() as i32
    }

    fn y(&self, value: f64) -> i32 {
        self.bottom - (f64::from(self.bottom - self.top) * (value / self.most).min(1.0)).round() as i32
    }

    fn point(&self, step: usize, value: f64) -> (i32, i32) {
        (self.x(step as f64 * f64::from(STEP)), self.y(value))
    }
}

/// The greatest value, or 1 if there is none above 0.
fn greatest(curves: &[Vec<Option<f64>>]) -> f64 {
    let most = curves.iter().flatten().flatten().copied().fold(0.0, f64::max);
    if most > 0.0 { most } else { 1.0 }
}

/// Steps that follow each other and have values.
fn runs(values: &[Option<f64>]) -> Vec<Vec<usize>> {
    let steps: Vec<usize> = (0..values.len()).collect();
    let parts = steps.split(|&step| values[step].is_none());
    parts.filter(|run| !run.is_empty()).map(<[usize]>::to_vec).collect()
}

/// Names with the colours of their curves, in lines.
struct Legend {
    /// Text, place from the left, line; the curve's colour, or none.
    entries: Vec<(String, i32, i32, Option<RGBColor>)>,
    lines: i32,
}

impl Legend {
    fn new(names: &[(&str, RGBColor)], at_zero: usize, width: i32) -> Self {
        let mut entries = Vec::new();
        let (mut x, mut line) = (0, 0);
        let more = match (names.len(), at_zero) {
            (_, 0) => None,
            (0, all) => Some(format!("all {all} at 0 throughout")),
            (_, some) => Some(format!("{some} more at 0 throughout")),
        };
        let named = names.iter().map(|(name, colour)| ((*name).to_owned(), Some(*colour)));
        for (text, colour) in named.chain(more.map(|text| (text, None))) {
            let swatch = if colour.is_some() { SWATCH } else { 0 };
            let long = swatch + (text.chars().count() as f64 * LETTER) as i32;
            if x > 0 && x + long > width {
                (x, line) = (0, line + 1);
            }
            entries.push((text, x, line, colour));
            x += long + 12;
        }
        Self { entries, lines: line + 1 }
    }

    fn draw(&self, root: &Area<'_>, (left, top): (i32, i32)) -> Drawn {
        for (text, x, line, colour) in &self.entries {
            let (x, y) = (left + x, top + line * LINE);
            let mut text_at = x;
            if let Some(colour) = colour {
                root.draw(&Rectangle::new([(x, y + 2), (x + 13, y + 12)], colour.filled()))?;
                text_at += SWATCH;
            }
            write(root, text, (text_at, y), SMALL, HPos::Left)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_divides_a_curve() {
        let values = [None, Some(1.0), Some(2.0), None, None, Some(3.0)];
        assert_eq!(runs(&values), [vec![1, 2], vec![5]]);
    }

    #[test]
    fn legends_are_broken_into_lines_that_fit() {
        let long = "x".repeat(20);
        let names = [(long.as_str(), RED), ("y", BLUE), (long.as_str(), GREEN)];
        let legend = Legend::new(&names, 2, 220);
        let places: Vec<_> = legend.entries.iter().map(|entry| (entry.2, entry.3)).collect();
        assert_eq!(places, [(0, Some(RED)), (0, Some(BLUE)), (1, Some(GREEN)), (2, None)]);
        assert_eq!(legend.lines, 3);
        assert_eq!(Legend::new(&[], 3, 200).entries[0].0, "all 3 at 0 throughout");
    }
}
