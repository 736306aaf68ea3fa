//! Results of the benchmark: what they hold, as JSON and as a table. Pure but for reading and writing files.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};

/// Results of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// QEMU's version.
    pub(crate) emulator: String,
    /// By the name in tests/kernels.toml.
    pub(crate) kernels: BTreeMap<String, KernelResults>,
}

/// Results on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KernelResults {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// In the order in which they were measured.
    pub(crate) rows: Vec<Row>,
}

/// One number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    /// The median of the repetitions.
    pub(crate) value: f64,
    /// From the least to the greatest repetition, in percent of the median.
    pub(crate) spread: f64,
    /// Packets of a connection, in rows that measure connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) packets: Option<f64>,
    /// Where it wasn't measured in the state that the rest is of: in which else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) earlier: Option<String>,
}

impl Report {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        serde_json::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(path, self.to_json()?)?)
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Takes over from `older` the rows that weren't measured now, and marks those of another release of the kernel. Rows of both
    /// come in the older one's order.
    pub(crate) fn fill_in(&mut self, older: Self) {
        for (kernel, old) in older.kernels {
            let now = self
                .kernels
                .entry(kernel)
                .or_insert_with(|| KernelResults { release: old.release.clone(), rows: Vec::new() });
            let mut new = std::mem::take(&mut now.rows);
            now.rows = old.rows;
            if old.release != now.release {
                for row in &mut now.rows {
                    row.earlier.get_or_insert_with(|| format!("Linux {}", old.release));
                }
            }
            for row in new.drain(..) {
                match now.rows.iter_mut().find(|old| old.name == row.name) {
                    Some(place) => *place = row,
                    None => now.rows.push(row),
                }
            }
        }
    }

    /// Drops rows that aren't measured any more; the others come in the order of these names.
    pub(crate) fn retain(&mut self, names: &[String]) {
        let place = |row: &Row| names.iter().position(|name| *name == row.name);
        for kernel in self.kernels.values_mut() {
            kernel.rows.retain(|row| place(row).is_some());
            kernel.rows.sort_by_key(place);
        }
    }

    /// The number of a row on a kernel.
    pub(crate) fn value(&self, kernel: &str, name: &str) -> Option<f64> {
        self.row(kernel, name).map(|row| row.value)
    }

    pub(crate) fn row(&self, kernel: &str, name: &str) -> Option<&Row> {
        self.kernels.get(kernel)?.rows.iter().find(|row| row.name == name)
    }

    /// Names and units of all rows, in order.
    pub(crate) fn names(&self) -> Vec<(&str, &str)> {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for row in self.kernels.values().flat_map(|kernel| &kernel.rows) {
            if !names.iter().any(|(name, _)| *name == row.name) {
                names.push((&row.name, &row.unit));
            }
        }
        names
    }

    /// One line for each row, a column for each kernel, newest first; rows that belong together under one head.
    pub(crate) fn table(&self) -> String {
        let names = self.names();
        let width = names.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(24) + 2;
        let mut text = String::new();
        let mut last_unit = "";
        for (name, unit) in names {
            if unit != last_unit {
                let kernels: String =
                    self.kernels.keys().rev().map(|kernel| format!("{kernel:>12}")).collect();
                text += &format!("\n{unit:<width$}{kernels}{:>10}\n", "spread");
                last_unit = unit;
            }
            text += &format!("{name:<width$}");
            let mut spread: f64 = 0.0;
            for kernel in self.kernels.keys().rev() {
                let row = self.row(kernel, name);
                spread = row.map_or(spread, |row| spread.max(row.spread));
                text += &format!("{:>12}", row.map_or_else(|| "-".to_owned(), |row| number(row.value)));
            }
            text += &format!("{:>10}\n", format!("{spread:.2} %"));
        }
        text
    }
}

/// A number for people: thousands apart, decimals only where they matter.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 100.0 && value.fract() != 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_gone_are_dropped_and_the_others_put_in_order() {
        let row = |name: &str| Row { name: name.to_owned(), ..Row::default() };
        let results =
            KernelResults { release: "r".to_owned(), rows: ["kept", "gone", "new"].map(row).into() };
        let mut report = Report { emulator: "e".to_owned(), kernels: [("6.12".to_owned(), results)].into() };
        report.retain(&["new", "other", "kept"].map(str::to_owned));
        assert_eq!(report.kernels["6.12"].rows, ["new", "kept"].map(row));
    }

    #[test]
    fn rows_of_another_kernel_are_marked() {
        let report = |release: &str, names: &[&str]| {
            let rows = names.iter().map(|name| Row { name: (*name).to_owned(), ..Row::default() });
            let results = KernelResults { release: release.to_owned(), rows: rows.collect() };
            Report { emulator: "e".to_owned(), kernels: [("6.1".to_owned(), results)].into() }
        };
        let mut now = report("2", &["again"]);
        now.fill_in(report("1", &["again", "not again"]));
        let earlier = |name| now.row("6.1", name).unwrap().earlier.as_deref();
        assert_eq!((earlier("again"), earlier("not again")), (None, Some("Linux 1")));
    }

    #[test]
    fn numbers_for_people() {
        for (value, text) in
            [(0.0, "0"), (5.25, "5.2"), (999.6, "1,000"), (5_050.4, "5,050"), (-1_234_567.0, "-1,234,567")]
        {
            assert_eq!(number(value), text);
        }
    }
}
