//! Compares two reports: which numbers grew by more than noise. Pure.

use super::report::{Report, Row, number};

/// A row that grew by more than this is a regression. Two runs of the same differ by less than a quarter of it.
const REGRESSION_PERCENT: f64 = 2.0;

/// What came out of a comparison.
pub(crate) struct Comparison {
    /// A line for each row that changed by more than noise, and what hinders the comparison.
    pub(crate) text: String,
    /// Rows that grew too much.
    pub(crate) regressions: usize,
    /// Rows in both reports.
    pub(crate) compared: usize,
}

/// Holds counts of instructions in `now` against those in `before`. Rows that are in one of them only are left out, and so
/// are times and sizes, which vary more. With another kernel or emulator differences are shown but are no regressions.
pub(crate) fn compare(before: &Report, now: &Report) -> Comparison {
    let mut result = Comparison { text: String::new(), regressions: 0, compared: 0 };
    let same_emulator = before.emulator == now.emulator;
    if !same_emulator {
        result.text += &not_comparable(&before.emulator, &now.emulator);
    }
    for (kernel, results) in &now.kernels {
        let Some(old) = before.kernels.get(kernel) else { continue };
        let same_kernel = old.release == results.release;
        if !same_kernel {
            result.text += &not_comparable(&old.release, &results.release);
        }
        for row in results.rows.iter().filter(|row| row.unit.starts_with("instructions/")) {
            let Some(Row { value: old, earlier, .. }) = before.row(kernel, &row.name) else { continue };
            let (old, same_state) = (*old, same_kernel && earlier.is_none());
            result.compared += 1;
            let percent = (row.value - old) / old * 100.0;
            if percent.abs() > REGRESSION_PERCENT {
                let worse = percent > 0.0;
                result.regressions += usize::from(worse && same_emulator && same_state);
                result.text += &format!(
                    "{:<7} {kernel:<5} {}: {} -> {} {} ({percent:+.1} %)\n",
                    if worse { "WORSE" } else { "better" },
                    row.name,
                    number(old),
                    number(row.value),
                    row.unit,
                );
            }
        }
    }
    result
}

fn not_comparable(then: &str, now: &str) -> String {
    format!(
        "note: {then} then, {now} now: what differs may be due to that, and isn't counted as a regression\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::KernelResults;

    fn report(rows: &[(&str, f64)]) -> Report {
        let rows = rows.iter().map(|(name, value)| Row {
            name: (*name).to_owned(),
            unit: "instructions/u".to_owned(),
            value: *value,
            ..Row::default()
        });
        let results = KernelResults { release: "r".to_owned(), rows: rows.collect() };
        Report { emulator: "e".to_owned(), kernels: [("6.12".to_owned(), results)].into() }
    }

    #[test]
    fn more_than_two_percent_worse_is_a_regression() {
        let before = report(&[("same", 1000.0), ("worse", 1000.0), ("better", 1000.0), ("gone", 1.0)]);
        let now = report(&[("same", 1020.0), ("worse", 1021.0), ("better", 900.0), ("new", 1.0)]);
        let result = compare(&before, &now);
        assert_eq!((result.compared, result.regressions), (3, 1));
        assert_eq!(
            result.text,
            "WORSE   6.12  worse: 1,000 -> 1,021 instructions/u (+2.1 %)\nbetter  6.12  better: 1,000 -> 900 instructions/u (-10.0 %)\n"
        );
    }

    #[test]
    fn another_kernel_is_no_regression() {
        let mut now = report(&[("worse", 2000.0)]);
        now.kernels.get_mut("6.12").unwrap().release = "newer".to_owned();
        let result = compare(&report(&[("worse", 1000.0)]), &now);
        assert_eq!((result.compared, result.regressions), (1, 0));
        assert!(result.text.contains("note: r then, newer now") && result.text.contains("WORSE"));
    }
}
