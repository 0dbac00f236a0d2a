//! A span that has ended, as it waits for its export.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use debros_proto::TraceContext;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

/// When something began: by the clock of the day, and by one that never steps back.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    steady: Instant,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Now, by the clock of the day as it was then: one reading instead of two, and the parts of a request never begin before it.
    pub(super) fn later(&self) -> Self {
        let steady = Instant::now();
        Self { wall: self.wall + steady.duration_since(self.steady), steady }
    }

    /// How long ago that is.
    pub fn elapsed(&self) -> Duration {
        self.steady.elapsed()
    }
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was done: one of few names.
    pub name: Cow<'static, str>,
    /// Which side of a call it is.
    pub kind: SpanKind,
    /// The trace and the span itself.
    pub context: TraceContext,
    /// The span on whose behalf; `None` for the first of a trace.
    pub parent: Option<u64>,
    /// The parent is of another process.
    pub remote: bool,
    /// When it began.
    pub began: Moment,
    /// How long it took.
    pub took: Duration,
    /// What is told of it.
    pub attributes: Vec<KeyValue>,
    /// Spans of which it is a consequence.
    pub links: Vec<TraceContext>,
    /// The code of what went wrong.
    pub error: Option<&'static str>,
}

impl Record {
    /// A span under `parent`, which began at `began` and ends now. It gets an id of its own.
    pub fn ending_now(name: &'static str, kind: SpanKind, parent: &TraceContext, began: Moment) -> Self {
        Self { took: began.elapsed(), ..Self::beginning(name, kind, parent, began) }
    }

    /// A span under `parent`, which began at `began` and has not ended. It gets an id of its own.
    pub(super) fn beginning(
        name: &'static str,
        kind: SpanKind,
        parent: &TraceContext,
        began: Moment,
    ) -> Self {
        Self {
            name: name.into(),
            kind,
            context: TraceContext { span: new_span(), ..*parent },
            parent: Some(parent.span),
            remote: false,
            began,
            took: Duration::ZERO,
            attributes: Vec::new(),
            links: Vec::new(),
            error: None,
        }
    }

    pub(super) fn into_span(self, scope: &InstrumentationScope) -> SpanData {
        let Self { name, kind, context, parent, remote, began, took, mut attributes, links, error } = self;
        let status = match error {
            None => Status::Unset,
            Some(code) => {
                attributes.push(KeyValue::new("error.type", code));
                Status::error(code)
            }
        };
        let mut linked = SpanLinks::default();
        linked.links = links.iter().map(|link| Link::with_context(span_context(link, true))).collect();
        SpanData {
            span_context: span_context(&TraceContext { sampled: true, ..context }, false),
            parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.to_be_bytes())),
            parent_span_is_remote: remote,
            span_kind: kind,
            name,
            start_time: began.wall,
            end_time: began.wall + took,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: linked,
            status,
            instrumentation_scope: scope.clone(),
        }
    }
}

fn span_context(context: &TraceContext, remote: bool) -> SpanContext {
    let flags = if context.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (context.trace.to_be_bytes(), context.span.to_be_bytes());
    SpanContext::new(TraceId::from_bytes(trace), SpanId::from_bytes(span), flags, remote, TraceState::NONE)
}

/// An id for a span: never 0.
pub(super) fn new_span() -> u64 {
    rand::random::<u64>().max(1)
}

/// An id for a trace: never 0.
pub(super) fn new_trace() -> u128 {
    rand::random::<u128>().max(1)
}
