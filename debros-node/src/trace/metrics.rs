//! What became of recorded spans.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::metrics::Counter;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

const EXPORTED: &str = "exported";
const FAILED: &str = "failed";
const DROPPED: &str = "dropped";

/// The metrics of the tracer.
#[derive(Clone, Default)]
pub struct TraceMetrics {
    spans: Family<OutcomeLabels, Counter>,
}

impl TraceMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "debros_trace_spans",
            "Recorded spans by what became of them: exported, failed (the collector did not take them), or dropped (no room in the queue)",
            metrics.spans.clone(),
        );
        for outcome in [EXPORTED, FAILED, DROPPED] {
            metrics.count(outcome, 0);
        }
        metrics
    }

    fn count(&self, outcome: &'static str, spans: usize) {
        self.spans.get_or_create(&OutcomeLabels { outcome }).inc_by(spans as u64);
    }

    pub(super) fn exported(&self, spans: usize) {
        self.count(EXPORTED, spans);
    }

    pub(super) fn failed(&self, spans: usize) {
        self.count(FAILED, spans);
    }

    pub(super) fn dropped(&self, spans: usize) {
        self.count(DROPPED, spans);
    }
}
