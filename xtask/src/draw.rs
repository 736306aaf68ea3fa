//! What all drawings have in common: colours, letters, round distances. It knows no numbers of its own.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// On white, so that they can be read on a page of any colour.
pub(crate) const INK: RGBColor = RGBColor(31, 35, 40);
pub(crate) const FAINT: RGBColor = RGBColor(208, 215, 222);
/// A colour for each series, the most important first; the first three are apart in grey too.
pub(crate) const SERIES: [RGBColor; 9] = [
    RGBColor(5, 80, 174),
    RGBColor(128, 182, 244),
    RGBColor(110, 119, 129),
    RGBColor(225, 111, 36),
    RGBColor(26, 127, 55),
    RGBColor(130, 80, 223),
    RGBColor(191, 135, 0),
    RGBColor(207, 34, 46),
    RGBColor(27, 124, 131),
];

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Result of drawing.
pub(crate) type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws a file on white.
pub(crate) fn svg(path: &Path, size: (i32, i32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<()> {
    let root = SVGBackend::new(path, (size.0 as u32, size.1 as u32)).into_drawing_area();
    let drawn = root.fill(&WHITE).and_then(|()| draw(&root)).and_then(|()| root.present());
    drawn.map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// Which colour is which kernel's.
pub(crate) fn kernel(root: &Area<'_>, place: usize, left: i32, name: &str) -> Drawn {
    let colour = SERIES[place % SERIES.len()];
    root.draw(&Rectangle::new([(left, 45), (left + 14, 57)], colour.filled()))?;
    write(root, &format!("Linux {name}"), (left + 20, 46), 14, HPos::Left)
}

/// Writes `text`, whose upper edge is at `place`.
pub(crate) fn write(root: &Area<'_>, text: &str, place: (i32, i32), size: i32, anchor: HPos) -> Drawn {
    let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(anchor, VPos::Top));
    root.draw(&Text::new(text, place, style))
}

/// A round distance between marks, so that there are at most so many of them.
pub(crate) fn step(most: f64, marks: u32) -> f64 {
    let rough = most / f64::from(marks);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn marks_are_round() {
        for (most, expected) in [(17_000.0, 5_000.0), (13_000.0, 2_000.0), (60.0, 10.0), (0.9, 0.2)] {
            assert_eq!(step(most, 8), expected, "{most}");
        }
    }
}
