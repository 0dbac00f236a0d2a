//! Distributed traces: what a request did on this node, sent to an OTLP collector and joined there with what it did
//! elsewhere. The one door to OpenTelemetry.
//!
//! ```text
//! Tracer::request (the local root) --> child, child, ... --> kept? --> queue (bounded) --> Exporter --> OTLP/HTTP
//! log store, replica, router: spans of a sampled request ----------------^
//! ```
//!
//! Decides what is recorded and what is kept. A request that its caller samples is recorded; one without a caller
//! that traces is sampled by its trace id, at the configured ratio. Of all others the spans that this process makes
//! are remembered until the request ends, and kept when it was slow or failed. What a request made *other* processes
//! do is kept there by the same rule, under the same trace id, because the context travels in any case; what is done
//! only for sampled requests (the log, replicas, deliveries) is missing then.
//!
//! Does not know what any span means. Invariants: with tracing off nothing is allocated, no clock is read and no
//! random number drawn; a queue that is full loses spans and counts them, and never makes a request wait.

mod export;
mod metrics;
mod options;
mod parent;
mod record;
mod request;
mod tracer;

pub use export::TraceError;
pub use metrics::TraceMetrics;
pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::SpanKind;
pub use options::TraceOptions;
pub use parent::{carrying, from_headers, route, under};
pub use record::{Moment, Record};
pub use request::{Child, Root, child, keep, recorded};
pub use tracer::{Identity, Tracer};
