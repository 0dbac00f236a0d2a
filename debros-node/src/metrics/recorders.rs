//! What is counted and measured while the node works: counters, gauges, histograms and the stopwatch for them.
//!
//! Every metric that engines touch is made of these, so that one switch ([`super::recording`]) tells what recording costs. In a shipped
//! build they are `prometheus-client`'s own. What the node itself acts on is no record and always counts.

use std::fmt;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::histogram::{self, NativeHistogramConfig};
use prometheus_client::metrics::{MetricType, TypedMetric, counter, gauge};
use tokio::time::Instant;

use super::recording;

/// Only grows. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// So many more.
    pub fn inc_by(&self, count: u64) {
        if recording::metrics() {
            self.0.inc_by(count);
        }
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// Goes up and down. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    /// One more.
    pub fn inc(&self) {
        if recording::metrics() {
            self.0.inc();
        }
    }

    /// One less.
    pub fn dec(&self) {
        if recording::metrics() {
            self.0.dec();
        }
    }

    /// It is so much now.
    pub fn set(&self, value: i64) {
        if recording::metrics() {
            self.0.set(value);
        }
    }

    /// How much it is.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// Counts by size, in classic and in native buckets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Histogram(histogram::Histogram);

impl Histogram {
    /// Of these classic bounds; `super::histograms` knows all of them.
    pub(super) fn new(bounds: &[f64], native: NativeHistogramConfig) -> Self {
        Self(histogram::Histogram::new_classic_and_native(bounds.iter().copied(), native))
    }

    /// One of this size.
    pub fn observe(&self, value: f64) {
        if recording::metrics() {
            self.0.observe(value);
        }
    }
}

/// Counts by size, with an example of each bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TracedHistogram<S>(HistogramWithExemplars<S>);

impl<S> TracedHistogram<S> {
    /// Of these bounds.
    pub(super) fn new(bounds: &[f64]) -> Self {
        Self(HistogramWithExemplars::new(bounds.iter().copied()))
    }

    /// One of this size, and what it is an example of.
    pub fn observe(&self, value: f64, example: impl FnOnce() -> S) {
        if recording::metrics() {
            self.0.observe(value, Some(example()), Some(SystemTime::now()));
        }
    }
}

/// A time that is taken only to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Option<Instant>);

impl Stopwatch {
    /// Begins now.
    pub fn start() -> Self {
        Self(recording::metrics().then(Instant::now))
    }

    /// How long it runs; nothing where nothing is recorded.
    pub fn took(self) -> Duration {
        self.0.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The same at a moment that is known for other reasons.
    pub fn until(self, now: Instant) -> Duration {
        self.0.map_or(Duration::ZERO, |began| now - began)
    }
}

impl TypedMetric for Counter {
    const TYPE: MetricType = MetricType::Counter;
}

impl TypedMetric for Gauge {
    const TYPE: MetricType = MetricType::Gauge;
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl<S> TypedMetric for TracedHistogram<S> {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Counter {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<S: EncodeLabelSet> EncodeMetric for TracedHistogram<S> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
