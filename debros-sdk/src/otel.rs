//! Traces, with the feature `otel`: calls are `tracing` spans, and carry the application's trace to the nodes.
//!
//! Brings no subscriber and no exporter: the application has its own, with a layer of `tracing-opentelemetry`. Where
//! it has none there is no context, and nodes then decide by themselves what they sample. Whether anything is
//! recorded is the application's decision; nodes follow it.

use debros_proto::trace::TRACEPARENT;
use debros_proto::{TraceContext, v1};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tonic::Request;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::call::Failed;
use crate::error::Error;
use crate::pubsub::batch::Outgoing;
use crate::pubsub::message::{Headers, Message};

/// Carries out an operation in a span of its own; `message` is what it sends.
pub(crate) async fn call<T>(
    message: &'static str,
    namespace: &str,
    work: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let operation = message.strip_suffix("Request").unwrap_or(message);
    let system = match operation {
        "Execute" | "Query" | "OpenSession" | "CreateDatabase" | "DropDatabase" | "ListDatabases" => "sqlite",
        _ => "debros",
    };
    let span = tracing::info_span!(
        target: "debros_sdk",
        "debros call",
        otel.name = operation,
        otel.kind = "client",
        db.system.name = system,
        db.operation.name = operation,
        db.namespace = namespace,
        error.type = Empty,
        otel.status_code = Empty,
    );
    let result = work.instrument(span.clone()).await;
    if let Err(failed) = &result {
        fail(&span, failed.failure.code.as_str_name());
    }
    result
}

/// Publishes in a span of its own.
pub(crate) async fn publishing<T>(
    topic: &str,
    namespace: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let span = tracing::info_span!(
        target: "debros_sdk",
        "debros publish",
        otel.name = "publish",
        otel.kind = "producer",
        messaging.system = "debros",
        messaging.operation.type = "send",
        messaging.operation.name = "publish",
        messaging.destination.name = topic,
        debros.namespace = namespace,
        error.type = Empty,
        otel.status_code = Empty,
    );
    let result = work.instrument(span.clone()).await;
    if let Err(error) = &result {
        fail(&span, &format!("{:?}", error.kind()));
    }
    result
}

fn fail(span: &Span, code: &str) {
    span.record("error.type", code);
    span.record("otel.status_code", "ERROR");
}

/// The span in which a message is handled. It begins a trace of its own, linked to that of the message.
pub(crate) fn handling(message: &Message) -> Span {
    let Some(published) = message.headers().get(TRACEPARENT).and_then(|text| TraceContext::parse(&text))
    else {
        return Span::none();
    };
    let span = tracing::info_span!(
        target: "debros_sdk",
        parent: None,
        "debros process",
        otel.name = "process",
        otel.kind = "consumer",
        messaging.system = "debros",
        messaging.operation.type = "process",
        messaging.operation.name = "handle",
        messaging.destination.name = message.topic(),
    );
    let flags = if published.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let trace = TraceId::from_bytes(published.trace.to_be_bytes());
    let parent = SpanId::from_bytes(published.span.to_be_bytes());
    span.add_link(SpanContext::new(trace, parent, flags, true, TraceState::NONE));
    span
}

/// A unary call that carries the current context.
pub(crate) fn carrying<Q>(request: Q) -> Request<Q> {
    let mut request = Request::new(request);
    // It is made of digits and dashes.
    if let Some(Ok(text)) = current().map(|context| context.traceparent().parse()) {
        request.metadata_mut().insert(TRACEPARENT, text);
    }
    request
}

/// The current context, for a call on a stream.
pub(crate) fn context() -> Option<v1::TraceContext> {
    current().map(|context| context.to_wire())
}

/// The headers of a message that is published in a sampled span: its own and the context. `None` where they stay as
/// they are.
pub(crate) fn headers(message: &Outgoing<'_>) -> Option<Headers> {
    let context = current().filter(|context| context.sampled)?;
    let own = message.headers.cloned().unwrap_or_default();
    if own.get(TRACEPARENT).is_some() {
        return None;
    }
    // A message whose headers are full goes without.
    own.with(TRACEPARENT, context.traceparent()).ok()
}

/// That of the current span, or of whoever uses OpenTelemetry without `tracing`.
fn current() -> Option<TraceContext> {
    let of_span = Span::current().context();
    let context = of_span.span().span_context().clone();
    let context = match context.is_valid() {
        true => context,
        false => opentelemetry::Context::current().span().span_context().clone(),
    };
    let (trace, span) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
    context.is_valid().then(|| TraceContext {
        trace: u128::from_be_bytes(trace),
        span: u64::from_be_bytes(span),
        sampled: context.is_sampled(),
    })
}
