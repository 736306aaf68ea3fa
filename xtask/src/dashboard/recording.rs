//! A recorded run: pages of metrics with the time of each, and what was done meanwhile. In the file a line for each thing, as JSON, as
//! the guest's recorder says them; of each series only its changes.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// Changes of a series: from which page on it had which value, or was gone.
type Changes = Vec<(usize, Option<Number>)>;

#[derive(Default)]
pub(super) struct Recording {
    pub(super) emulator: String,
    /// As `uname -r` says it.
    pub(super) kernel: String,
    pub(super) events: Vec<Event>,
    nodes: BTreeMap<String, Node>,
}

/// Something that was done.
#[derive(Serialize, Deserialize, Clone)]
pub(super) struct Event {
    /// Seconds since the recording began.
    pub(super) at: f64,
    pub(super) what: String,
}

#[derive(Default)]
struct Node {
    /// Of each page, in seconds since the recording began.
    times: Vec<f64>,
    /// By name and labels.
    series: BTreeMap<String, Changes>,
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line {
    Run { emulator: String, kernel: String },
    Event(Event),
    Times { node: String, times: Vec<f64> },
    Series { node: String, name: String, values: Changes },
}

impl Recording {
    pub(super) fn add(&mut self, line: Line) {
        match line {
            Line::Run { emulator, kernel } => (self.emulator, self.kernel) = (emulator, kernel),
            Line::Event(event) => self.events.push(event),
            Line::Times { node, times } => self.nodes.entry(node).or_default().times = times,
            Line::Series { node, name, values } => {
                self.nodes.entry(node).or_default().series.insert(name, values);
            }
        }
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let mut recording = Self::default();
        for line in text.lines() {
            recording.add(serde_json::from_str(line).with_context(|| format!("cannot understand {line}"))?);
        }
        Ok(recording)
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let mut lines = vec![Line::Run { emulator: self.emulator.clone(), kernel: self.kernel.clone() }];
        lines.extend(self.events.iter().cloned().map(Line::Event));
        for (name, node) in &self.nodes {
            lines.push(Line::Times { node: name.clone(), times: node.times.clone() });
            lines.extend(node.series.iter().map(|(series, values)| Line::Series {
                node: name.clone(),
                name: series.clone(),
                values: values.clone(),
            }));
        }
        let mut text = String::new();
        for line in lines {
            writeln!(text, "{}", serde_json::to_string(&line)?)?;
        }
        Ok(fs::write(path, text)?)
    }

    /// Keeps those series whose metric is wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        for node in self.nodes.values_mut() {
            node.series.retain(|name, _| wanted(name.split('{').next().unwrap_or_default()));
        }
    }

    /// Seconds from the first page to the last.
    pub(super) fn length(&self) -> f64 {
        self.nodes.values().filter_map(|node| node.times.last()).copied().fold(0.0, f64::max)
    }

    /// All samples as OpenMetrics, as if the pages had been read from `epoch` on (seconds since 1970) by a job of which each node is an
    /// instance.
    pub(super) fn open_metrics(&self, job: &str, epoch: f64) -> String {
        let mut text = String::new();
        for (instance, node) in &self.nodes {
            for (name, changes) in &node.series {
                let (metric, labels) = name.split_once('{').unwrap_or((name, "}"));
                let comma = if labels == "}" { "" } else { "," };
                let series = format!("{metric}{{job=\"{job}\",instance=\"{instance}\"{comma}{labels}");
                let mut changes = changes.iter().peekable();
                let mut now = None;
                for (number, time) in node.times.iter().enumerate() {
                    if let Some((_, value)) = changes.next_if(|(from, _)| *from == number) {
                        now = value.as_ref();
                    }
                    if let Some(value) = now {
                        text += &format!("{series} {value} {:.3}\n", epoch + time);
                    }
                }
            }
        }
        text + "# EOF\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_as_they_were_on_the_pages() {
        let mut recording = Recording::default();
        for line in [
            r#"{"times":{"node":"a","times":[0.0,1.5,2.0]}}"#,
            r#"{"series":{"node":"a","name":"x_total","values":[[0,7]]}}"#,
            r#"{"series":{"node":"a","name":"y{le=\"0.5\"}","values":[[1,0.25],[2,null]]}}"#,
            r#"{"series":{"node":"a","name":"x_other","values":[[0,1]]}}"#,
        ] {
            recording.add(serde_json::from_str(line).expect("a line"));
        }
        recording.retain(|metric| metric != "x_other");
        assert_eq!(
            recording.open_metrics("j", 100.0),
            "x_total{job=\"j\",instance=\"a\"} 7 100.000\n\
             x_total{job=\"j\",instance=\"a\"} 7 101.500\n\
             x_total{job=\"j\",instance=\"a\"} 7 102.000\n\
             y{job=\"j\",instance=\"a\",le=\"0.5\"} 0.25 101.500\n\
             # EOF\n"
        );
        assert_eq!(recording.length(), 2.0);
    }
}
