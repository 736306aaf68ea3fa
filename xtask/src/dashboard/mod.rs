//! `cargo xtask dashboard`: the panels of the Grafana dashboard, drawn from a recorded run for docs/dashboard.md. Agents in the test guest
//! are recorded, a Prometheus on this machine answers the dashboard's own queries, and what it answers is drawn.

mod board;
mod evaluate;
mod panel;
mod recording;
mod run;

use anyhow::{Context, Result};

use self::{evaluate::Prometheus, recording::Recording};
use crate::{
    build, document,
    guest::{self, kernels},
    setup::{self, Need},
    workspace,
};

/// What `cargo xtask dashboard` was asked for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which kernel the guest boots (see tests/kernels.toml); the newest if none is named.
    #[arg(long)]
    kernel: Option<String>,
    /// Record nothing; draw from the recording in the repository (some seconds).
    #[arg(long, exclusive = true)]
    render: bool,
}

/// The recorded run in the repository, below its top directory.
const RECORDING: &str = "bench/dashboard.jsonl";
/// The command that writes the drawings and a part of the page.
const WRITER: &str = "cargo xtask dashboard --render";

pub(crate) fn run(options: &Options) -> Result<()> {
    let path = workspace::root().join(RECORDING);
    let board = board::Board::read()?;
    let recording = if options.render {
        setup::ensure(&[Need::Prometheus])?;
        Recording::read(&path)?
    } else {
        let wanted = guest::newest(options.kernel.as_deref())?;
        setup::ensure(&[Need::Build, Need::Prometheus, Need::Guest(std::slice::from_ref(&wanted))])?;
        let kernel = kernels::cached(&wanted)?.context("set-up has fetched the kernel")?;
        let binaries = build::with_program("record")?;
        let mut recording = run::record(&kernel, &binaries)?;
        recording.retain(|metric| board.asks_for(metric));
        recording.write(&path)?;
        eprintln!("recorded in {RECORDING}");
        recording
    };
    draw(&board, &recording)
}

fn draw(board: &board::Board, recording: &Recording) -> Result<()> {
    let docs = workspace::root().join("docs");
    eprintln!("asking Prometheus what {} panels ask", board.panels.len());
    let prometheus = Prometheus::start(recording)?;
    for (number, row) in board.rows().iter().enumerate() {
        let mut panels = Vec::new();
        for panel in row {
            panels.push((*panel, prometheus.series(panel)?));
        }
        let file = file_of(number);
        panel::draw_row(&panels, recording, &docs.join(&file))?;
        eprintln!("drawn in docs/{file}");
    }
    document::write_part(&docs.join("dashboard.md"), WRITER, &section(recording))
}

/// Where a row of panels is drawn, in docs.
fn file_of(row: usize) -> String {
    format!("dashboard-{}.svg", row + 1)
}

/// What the page says of the run.
fn section(recording: &Recording) -> String {
    let mut text = format!(
        "\nRecorded with {}, Linux {}, a page of metrics a second; rates are over {} s.\n\n| | at | |\n| --- | ---: | --- |\n",
        recording.emulator,
        recording.kernel,
        evaluate::RATE_INTERVAL
    );
    for (event, letter) in recording.events.iter().zip('a'..) {
        text += &format!("| {letter} | {} | {} |\n", clock(event.at), event.what);
    }
    text + "\n"
}

/// Minutes and seconds of so many seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    fn read(path: impl AsRef<Path>) -> String {
        let path = workspace::root().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn every_panel_is_on_the_page_and_drawn() {
        let board = board::Board::read().expect("the dashboard");
        assert!(board.panels.len() > 10);
        let page = read("docs/dashboard.md");
        let mut on_the_page = 0;
        for (number, row) in board.rows().iter().enumerate() {
            let file = file_of(number);
            assert!(page.contains(&format!("]({file})")), "the page doesn't show {file}");
            let drawing = read(format!("docs/{file}"));
            for panel in row {
                let title = &panel.title;
                assert!(
                    page.contains(&format!("\n| {title} | ")),
                    "docs/dashboard.md has no line for {title:?}"
                );
                on_the_page += 1;
                assert!(
                    drawing.contains(&format!(">{title}<")),
                    "{title:?} isn't in docs/{file}: run `{WRITER}`"
                );
            }
        }
        assert_eq!(on_the_page, board.panels.len());
    }

    #[test]
    fn the_page_tells_of_the_run_that_is_drawn() {
        let recording = Recording::read(&workspace::root().join(RECORDING)).expect("the recording");
        assert!(read("docs/dashboard.md").contains(&section(&recording)), "run `{WRITER}`");
    }
}
