//! What the prober counts. Labels are bounded: the probes and two outcomes.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Probe;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    probe: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    probe: &'static str,
}

/// Around the service levels of 100 ms and 500 ms, in seconds; a probe ends after 1.5.
const DURATION_BUCKETS: [f64; 12] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

/// The metrics of the prober. Cheap to clone.
#[derive(Clone)]
pub struct ProbeMetrics {
    probes: Family<OutcomeLabels, Counter>,
    duration: Family<ProbeLabels, Histogram>,
}

impl ProbeMetrics {
    /// Registers the metrics. All of them are there from the start, at zero.
    pub fn register(registry: &mut Registry) -> Self {
        let new: fn() -> Histogram = || Histogram::new(DURATION_BUCKETS);
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
