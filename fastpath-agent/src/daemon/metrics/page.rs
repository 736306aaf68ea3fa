//! Families of metrics with given values, as the crate's registry takes them, one call each. Nothing here counts.

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry, Unit},
};

/// Labels of one series.
type Labels = Vec<(&'static str, String)>;

/// Before the names of all metrics but the process's own.
const PREFIX: &str = "fastpath_";

/// The page to write.
#[derive(Default)]
pub(super) struct Page(Registry);

impl Page {
    pub(super) fn into_registry(self) -> Registry {
        self.0
    }

    pub(super) fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [(&'static str, String); N],
    ) {
        self.0.register(format!("{PREFIX}{name}"), help, Info::new(Labels::from(labels)));
    }

    pub(super) fn counter(&mut self, name: &str, unit: Option<Unit>, help: &str, value: u64) {
        self.register(&format!("{PREFIX}{name}"), unit, help, ConstCounter::new(value));
    }

    pub(super) fn gauge(&mut self, name: &str, unit: Option<Unit>, help: &str, value: u64) {
        self.register(&format!("{PREFIX}{name}"), unit, help, ConstGauge::new(value));
    }

    pub(super) fn seconds(&mut self, name: &str, help: &str, value: f64) {
        self.register(name, Some(Unit::Seconds), help, ConstGauge::new(value));
    }

    pub(super) fn seconds_counter(&mut self, name: &str, help: &str, value: f64) {
        self.register(name, Some(Unit::Seconds), help, ConstCounter::new(value));
    }

    pub(super) fn bytes(&mut self, name: &str, help: &str, value: u64) {
        self.register(name, Some(Unit::Bytes), help, ConstGauge::new(value));
    }

    pub(super) fn histogram(&mut self, name: &str, unit: Unit, help: &str, histogram: Histogram) {
        self.register(&format!("{PREFIX}{name}"), Some(unit), help, histogram);
    }

    /// A series for each row, which has a value for each key.
    pub(super) fn counters<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        keys: [&'static str; N],
        rows: impl IntoIterator<Item = ([String; N], u64)>,
    ) {
        self.register(&format!("{PREFIX}{name}"), unit, help, Rows::new(MetricType::Counter, keys, rows));
    }

    /// The same of gauges.
    pub(super) fn gauges<const N: usize>(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        keys: [&'static str; N],
        rows: impl IntoIterator<Item = ([String; N], u64)>,
    ) {
        self.register(&format!("{PREFIX}{name}"), unit, help, Rows::new(MetricType::Gauge, keys, rows));
    }

    fn register(&mut self, name: &str, unit: Option<Unit>, help: &str, metric: impl Metric) {
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, metric),
            None => self.0.register(name, help, metric),
        }
    }
}

/// The series of a family, in the order in which they were given: pages of the same moment are the same.
#[derive(Debug)]
struct Rows {
    kind: MetricType,
    rows: Vec<(Labels, u64)>,
}

impl Rows {
    fn new<const N: usize>(
        kind: MetricType,
        keys: [&'static str; N],
        rows: impl IntoIterator<Item = ([String; N], u64)>,
    ) -> Self {
        let rows = rows.into_iter().map(|(values, value)| (keys.into_iter().zip(values).collect(), value));
        Self { kind, rows: rows.collect() }
    }
}

impl EncodeMetric for Rows {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (labels, value) in &self.rows {
            let row = encoder.encode_family(labels)?;
            match self.kind {
                MetricType::Counter => ConstCounter::new(*value).encode(row)?,
                _ => ConstGauge::new(*value).encode(row)?,
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
