//! From what connections of different lengths cost: from which length on offloading pays. Pure.

use super::report::Report;

/// Rounds of the rows in the report.
const ROUNDS: [u32; 4] = [0, 7, 22, 500];
/// Thresholds that are measured with the agent's rules and programs.
pub(crate) const THRESHOLDS: [u32; 3] = [1, 6, 20];

/// Length of a connection and what it costs on top of no fast path, in instructions.
pub(crate) type Points = Vec<(f64, f64)>;

/// What connections cost with a threshold, over what they cost without fast path, by length.
pub(crate) fn points(report: &Report, kernel: &str, threshold: u32) -> Points {
    let point = |rounds: u32| {
        let without = report.row(kernel, &format!("tcp4-{rounds}-rounds/no-fastpath"))?;
        let with = report.row(kernel, &format!("tcp4-{rounds}-rounds/ours-ebpf-threshold-{threshold}"))?;
        Some((without.packets?, with.value - without.value))
    };
    ROUNDS.into_iter().filter_map(point).collect()
}

/// The number of packets from which on a connection costs less than without fast path.
pub(crate) fn length(points: &[(f64, f64)]) -> Option<f64> {
    points.windows(2).find_map(|pair| {
        let ((short, cost), (long, gain)) = (pair[0], pair[1]);
        (cost > 0.0 && gain <= 0.0).then(|| short + (long - short) * cost / (cost - gain))
    })
}

/// The threshold to recommend for a kernel: the length at which immediate offloading would pay. Who offloads just then
/// never spends more than twice what it would have cost to know each connection's length beforehand.
pub(crate) fn recommendation(report: &Report, kernel: &str) -> Option<f64> {
    length(&points(report, kernel, THRESHOLDS[0])).map(f64::round)
}

/// Lines for a terminal or a document.
pub(crate) fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for kernel in report.kernels.keys().rev() {
        for threshold in THRESHOLDS {
            if let Some(packets) = length(&points(report, kernel, threshold)) {
                lines.push(format!(
                    "Linux {kernel}, threshold {threshold}: cheaper from {packets:.0} packets on, both directions counted"
                ));
            }
        }
        if let Some(threshold) = recommendation(report, kernel) {
            lines.push(format!("Linux {kernel}: recommended threshold {threshold:.0}"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::length;

    #[test]
    fn break_even_is_where_the_line_crosses_zero() {
        assert_eq!(length(&[(10.0, 300.0), (20.0, 100.0), (40.0, -300.0)]), Some(25.0));
        assert_eq!(length(&[(10.0, 300.0), (20.0, 100.0)]), None, "never");
        assert_eq!(length(&[(10.0, -1.0), (20.0, -5.0)]), None, "always");
    }
}
