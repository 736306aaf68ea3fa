//! Drawings for the documents: a Vega-Lite specification becomes an SVG file. It knows no numbers of its own.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use fs_err as fs;
use serde_json::{Value, json};

use crate::{setup, wheel::VL_CONVERT};

/// A colour for each series, the most important first; the first three are apart in grey too.
pub(crate) const SERIES: [&str; 9] =
    ["#0550ae", "#80b6f4", "#6e7781", "#e16f24", "#1a7f37", "#8250df", "#bf8700", "#cf222e", "#1b7c83"];
/// Reads a specification, and prints the drawing.
const PROGRAM: &str = "\
import sys, vl_convert
print(vl_convert.vegalite_to_svg(sys.stdin.read(), vl_version='5.21'))";

/// Draws a file. On white, so that it can be read on a page of any colour.
pub(crate) fn svg(mut spec: Value, path: &Path) -> Result<()> {
    setup::ensure(&[setup::Need::Drawings])?;
    spec["background"] = json!("white");
    spec["padding"] = json!({ "left": 16, "top": 16, "right": 40, "bottom": 16 });
    spec["config"] = json!({
        "font": "sans-serif",
        "view": { "stroke": null },
        "axis": {
            "domain": false,
            "ticks": false,
            "gridColor": "#d0d7de",
            "labelColor": "#1f2328",
            "labelFontSize": 12,
            "labelLimit": 400,
            "titleColor": "#1f2328",
            "titleFontWeight": "normal",
        },
        "title": {
            "anchor": "start",
            "frame": "group",
            "fontWeight": "normal",
            "fontSize": 18,
            "subtitleFontSize": 14,
            "subtitlePadding": 6,
        },
        "legend": {
            "orient": "bottom",
            "labelFontSize": 13,
            "labelLimit": 400,
            "symbolType": "square",
            "columnPadding": 16,
            "title": null,
        },
    });
    let modules = VL_CONVERT.directory()?;
    let mut python = Command::new("python3")
        .args(["-c", PROGRAM])
        .env("PYTHONPATH", modules.parent().context("it is in the cache")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run python3")?;
    // It reads all before it prints.
    python.stdin.take().context("a pipe")?.write_all(spec.to_string().as_bytes())?;
    let output = python.wait_with_output()?;
    if !output.status.success() {
        bail!("cannot draw {}: vl-convert failed ({})", path.display(), output.status);
    }
    Ok(fs::write(path, output.stdout)?)
}
