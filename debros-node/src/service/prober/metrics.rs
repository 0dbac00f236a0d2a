//! What the prober counts. Labels are bounded: the probes and two outcomes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Probe;
use crate::metrics::{Counter, Histogram, durations};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    probe: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    probe: &'static str,
}

/// The metrics of the prober. Cheap to clone.
#[derive(Clone)]
pub struct ProbeMetrics {
    probes: Family<OutcomeLabels, Counter>,
    duration: Family<ProbeLabels, Histogram>,
}

impl ProbeMetrics {
    /// Registers the metrics. All of them are there from the start, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = durations;
        let metrics = Self { probes: Family::default(), duration: Family::new_with_constructor(new) };
        for probe in Probe::ALL.map(Probe::as_str) {
            for outcome in ["ok", "failed"] {
                drop(metrics.probes.get_or_create(&OutcomeLabels { probe, outcome }));
            }
            drop(metrics.duration.get_or_create(&ProbeLabels { probe }));
        }
        registry.register(
            "debros_probe",
            "Probes by what was probed and outcome: a write, read back or received through another node",
            metrics.probes.clone(),
        );
        registry.register(
            "debros_probe_duration_seconds",
            "Time that a probe took",
            metrics.duration.clone(),
        );
        metrics
    }

    pub(super) fn probed(&self, probe: Probe, ok: bool, took: Duration) {
        let (probe, outcome) = (probe.as_str(), if ok { "ok" } else { "failed" });
        self.probes.get_or_create(&OutcomeLabels { probe, outcome }).inc();
        self.duration.get_or_create(&ProbeLabels { probe }).observe(took.as_secs_f64());
    }
}
