//! The reference page of all metrics, made from what is registered: names, types, labels and help as a scraper
//! gets them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use prometheus_client::encoding::prometheus_protobuf::{encode, prometheus_data_model};
use prometheus_client::registry::Registry;

/// Values of a label that are listed; of one with more, or whose values depend on the machine, the name says enough.
const VALUES_LISTED_MAX: usize = 12;
/// Labels whose values depend on the build or on who asks.
const OPEN_LABELS: [&str; 6] = ["route", "version", "rustc", "target", "operation", "code"];

/// A metric as it is scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name; a counter's ends in `_total`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: Kind,
    /// What it tells.
    pub help: String,
    /// Its labels, with the values they have from the start.
    pub labels: BTreeMap<String, BTreeSet<String>>,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size, in classic and in native buckets.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Every metric of a registry, by name.
///
/// # Errors
/// When one cannot be written.
pub fn list(registry: &Registry) -> Result<Vec<Metric>, std::fmt::Error> {
    let mut metrics: Vec<Metric> = encode(registry)?.into_iter().map(metric).collect();
    metrics.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(metrics)
}

fn metric(family: prometheus_data_model::MetricFamily) -> Metric {
    use prometheus_data_model::MetricType;
    let kind = match family.r#type() {
        MetricType::Counter => Kind::Counter,
        MetricType::Histogram | MetricType::GaugeHistogram => Kind::Histogram,
        MetricType::Gauge | MetricType::Summary | MetricType::Untyped => Kind::Gauge,
    };
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for pair in family.metric.into_iter().flat_map(|metric| metric.label) {
        labels.entry(pair.name).or_default().insert(pair.value);
    }
    // `prometheus-client` ends every help with a full stop.
    let help = family.help.strip_suffix('.').unwrap_or(&family.help).to_owned();
    Metric { name: family.name, kind, help, labels }
}

/// The rows of a table of these metrics.
pub fn reference(metrics: &[Metric]) -> String {
    let mut text = "| name | type | labels | what it tells |\n|---|---|---|---|\n".to_owned();
    for Metric { name, kind, help, labels } in metrics {
        let labels: Vec<String> = labels.iter().map(|(label, values)| shown(label, values)).collect();
        // Writing into a string cannot fail.
        let _ = writeln!(text, "| `{name}` | {} | {} | {help} |", kind.as_str(), labels.join("; "));
    }
    text
}

fn shown(label: &str, values: &BTreeSet<String>) -> String {
    if values.len() > VALUES_LISTED_MAX || OPEN_LABELS.contains(&label) {
        return format!("`{label}`");
    }
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    format!("`{label}`: {}", values.join(", "))
}
