//! The handle by which everybody records: on or off, what is sampled, and the queue to the exporter.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::TraceContext;
use debros_proto::limits;
use opentelemetry::KeyValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::export::{Exporter, TraceError};
use super::metrics::TraceMetrics;
use super::options::TraceOptions;
use super::record::Record;
use super::request::{self, Root};
use crate::metrics::recording;

/// Who records, as resource attributes of all spans.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's peer id.
    pub peer: String,
    /// Its failure domain; may be empty.
    pub zone: String,
}

/// Records, or does nothing at all. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Shared>>);

pub(super) struct Shared {
    /// Of the upper half of the trace ids, as the specification of ratio sampling has it the same for all nodes.
    sampled_below: u64,
    slow: Duration,
    queue: mpsc::Sender<Vec<Record>>,
    metrics: TraceMetrics,
    stop: CancellationToken,
}

impl Shared {
    pub(super) fn samples(&self, trace: u128) -> bool {
        (trace as u64) >> 1 < self.sampled_below
    }

    pub(super) fn slow(&self) -> Duration {
        self.slow
    }

    /// Queues spans for their export; what finds no room is lost.
    pub(super) fn keep(&self, spans: Vec<Record>) {
        let count = spans.len();
        if self.queue.try_send(spans).is_err() {
            self.metrics.dropped(count);
        }
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

impl Tracer {
    /// Records nothing.
    pub fn off() -> Self {
        Self(None)
    }

    /// Records, and exports from a task in `tracker`.
    ///
    /// # Errors
    /// [`TraceError`] when the collector cannot even be addressed. One that does not answer is no error: spans are
    /// lost then, and counted.
    pub fn start(
        options: &TraceOptions,
        identity: &Identity,
        metrics: TraceMetrics,
        tracker: &TaskTracker,
    ) -> Result<Self, TraceError> {
        let (queue, spans) = mpsc::channel(limits::TRACE_REPORTS_QUEUED_MAX);
        let stop = CancellationToken::new();
        let exporter = Exporter::new(&options.endpoint, identity, metrics.clone())?;
        tracker.spawn(exporter.run(spans, stop.clone()));
        // Half of the identifiers' range is as fine as any ratio.
        let sampled_below = (options.sampling_ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64;
        Ok(Self(Some(Arc::new(Shared { sampled_below, slow: options.slow, queue, metrics, stop }))))
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.shared().is_some()
    }

    fn shared(&self) -> Option<&Arc<Shared>> {
        self.0.as_ref().filter(|_| recording::traces())
    }

    /// Carries out a request as the local root of its trace; `failed` gives the code of what went wrong.
    pub async fn request<T>(
        &self,
        root: Root<impl FnOnce() -> Vec<KeyValue>>,
        work: impl Future<Output = T>,
        failed: impl FnOnce(&T) -> Option<&'static str>,
    ) -> T {
        // What wraps the work holds it by its place: it may be large, and every wrapper would move it.
        let work = std::pin::pin!(work);
        match self.shared() {
            None => work.await,
            Some(shared) => request::run(shared.clone(), root, work, failed).await,
        }
    }

    /// Records what was done for a sampled request of which this task is no part.
    pub fn record(&self, span: Record) {
        if let Some(shared) = self.shared() {
            shared.keep(vec![span]);
        }
    }

    /// The caller's context as a sampled request has it, where anything is recorded.
    pub fn sampled(&self, context: Option<debros_proto::v1::TraceContext>) -> Option<TraceContext> {
        if !self.is_on() {
            return None;
        }
        TraceContext::from_wire(context?).filter(|context| context.sampled)
    }

    /// Exports what waits, and ends.
    pub fn stop(&self) {
        if let Some(shared) = &self.0 {
            shared.stop.cancel();
        }
    }
}
