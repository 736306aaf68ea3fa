//! The metrics: plain numbers in, OpenMetrics or Prometheus' text out. Reads nothing and keeps nothing: whoever counts
//! hands the numbers over when somebody asks.

use prometheus_client::{
    encoding::{prometheus_text, text},
    metrics::{gauge::ConstGauge, info::Info},
    registry::Registry,
};

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// The node is as the flags want it, see `daemon::ready`.
    pub ready: bool,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4, for whoever doesn't ask for OpenMetrics.
    Text,
}

impl Format {
    /// What a reader with these `Accept` headers gets.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let open = headers.into_iter().any(|header| header.contains("application/openmetrics-text"));
        if open { Self::OpenMetrics } else { Self::Text }
    }

    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// Writes all metrics.
pub fn render(metrics: &Metrics, format: Format) -> String {
    let mut registry = Registry::with_prefix("fastpath");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "Version of the agent", build);
    registry.register("ready", "1 if /readyz says so", ConstGauge::new(i64::from(metrics.ready)));
    let mut written = String::new();
    // Writing to a string doesn't fail.
    let _ = match format {
        Format::OpenMetrics => text::encode(&mut written, &registry),
        Format::Text => prometheus_text::encode(&mut written, &registry),
    };
    written
}
