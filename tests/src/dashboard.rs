//! Queries of the dashboard as Grafana would send them. xtask has this file too: it knows nothing of namespaces.

/// A query with Grafana's variables filled in: every job and every node selected, and this for `$__rate_interval`.
///
/// Panics if a variable is left.
#[track_caller]
pub fn filled_in(query: &str, rate_interval: &str) -> String {
    let variables = [("$__rate_interval", rate_interval), ("$job", ".*"), ("$instance", ".*")];
    let query = variables.iter().fold(query.to_owned(), |text, (name, value)| text.replace(name, value));
    // `$1` is Prometheus's own: what a pattern has caught.
    assert!(!query.replace("$1", "").contains('$'), "a variable that isn't known: {query}");
    query
}
