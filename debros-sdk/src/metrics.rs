//! What a client counts of its own operations: how many, how they ended, how long they took with all their
//! attempts, and how many attempts were more than the first. The application decides whether anybody sees it
//! ([`Client::register_metrics`](crate::Client::register_metrics)); nothing is served from here.
//!
//! Labels are bounded: operations are the kinds of requests, codes the words of [`ErrorKind`].

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use debros_proto::limits;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, NativeHistogramConfig};
use prometheus_client::registry::Registry;

use crate::error::ErrorKind;

/// The code of an operation that succeeded.
const OK: &str = "ok";
/// A native bucket is at most this much wider than the one before, and there are at most so many.
const NATIVE: (f64, usize) = (1.1, 160);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    operation: &'static str,
    code: &'static str,
}

fn durations() -> Histogram {
    let (factor, buckets_max) = NATIVE;
    let native = NativeHistogramConfig::new(factor).max_buckets(buckets_max);
    Histogram::new_classic_and_native(limits::DURATION_BOUNDS_SECONDS, native)
}

/// The metrics of a client and all its clones.
pub(crate) struct Metrics {
    requests: Family<OutcomeLabels, Counter>,
    retries: Family<OperationLabels, Counter>,
    durations: Family<OperationLabels, Histogram, fn() -> Histogram>,
    operations: RwLock<HashMap<&'static str, Arc<Operation>>>,
    /// Touched for every message: not even looked up.
    pub(crate) publish: Arc<Operation>,
}

/// The handle of one operation.
pub(crate) struct Operation {
    name: &'static str,
    requests: Family<OutcomeLabels, Counter>,
    ok: Counter,
    retries: Counter,
    duration: Histogram,
}

impl Operation {
    /// Counts an operation that came to its end after so many attempts.
    pub(crate) fn ended(&self, error: Option<ErrorKind>, attempts: usize, took: Duration) {
        match error {
            None => drop(self.ok.inc()),
            Some(kind) => {
                let labels = OutcomeLabels { operation: self.name, code: kind.as_str() };
                self.requests.get_or_create(&labels).inc();
            }
        }
        if attempts > 1 {
            self.retries.inc_by(attempts as u64 - 1);
        }
        self.duration.observe(took.as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let (requests, retries) = (Family::default(), Family::default());
        let durations: Family<_, _, fn() -> Histogram> = Family::new_with_constructor(durations);
        let publish = Arc::new(operation("Publish", &requests, &retries, &durations));
        Self { requests, retries, durations, operations: RwLock::default(), publish }
    }

    /// The handle of an operation. It is made when it is first asked for.
    pub(crate) fn operation(&self, name: &'static str) -> Arc<Operation> {
        let known = self.operations.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let mut operations = self.operations.write().unwrap_or_else(PoisonError::into_inner);
            let make = || Arc::new(operation(name, &self.requests, &self.retries, &self.durations));
            Arc::clone(operations.entry(name).or_insert_with(make))
        })
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "debros_sdk_requests",
            "Operations of this client that came to their end, by how they ended",
            self.requests.clone(),
        );
        registry.register(
            "debros_sdk_retries",
            "Attempts of this client's operations beyond the first one of each",
            self.retries.clone(),
        );
        registry.register(
            "debros_sdk_duration_seconds",
            "Time that this client's operations took, with all their attempts and pauses",
            self.durations.clone(),
        );
    }
}

fn operation(
    name: &'static str,
    requests: &Family<OutcomeLabels, Counter>,
    retries: &Family<OperationLabels, Counter>,
    durations: &Family<OperationLabels, Histogram, fn() -> Histogram>,
) -> Operation {
    let labels = OperationLabels { operation: name };
    Operation {
        name,
        requests: requests.clone(),
        ok: requests.get_or_create_owned(&OutcomeLabels { operation: name, code: OK }),
        retries: retries.get_or_create_owned(&labels),
        duration: durations.get_or_create_owned(&labels),
    }
}
