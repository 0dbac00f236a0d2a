//! What routing is in the traces of published messages. A publisher that samples a message says so in a header of it
//! (`traceparent`); nodes add nothing to messages, so a message whose publisher does not trace is not traced here.

use debros_proto::TraceContext;
use debros_proto::packed::{self, MessageRef};
use debros_proto::trace::TRACEPARENT;

use super::space::Piece;
use crate::trace::{KeyValue, Moment, Record, SpanKind, Tracer};

/// Of one batch no more messages are followed: the first ones tell what became of the others.
const TRACED_PER_BATCH_MAX: usize = 64;

/// Where messages of a batch begin to be routed, for those who record it.
pub(super) struct Routing {
    tracer: Tracer,
    began: Moment,
}

impl Routing {
    /// It begins now; `None` where nobody records it.
    pub(super) fn begin(tracer: &Tracer) -> Option<Self> {
        tracer.is_on().then(|| Self { tracer: tracer.clone(), began: Moment::now() })
    }

    /// This node has taken the messages in as their origin.
    pub(super) fn taken_in(&self, pieces: &[Piece], messages: &[u8]) {
        for piece in pieces {
            for (topic, context) in traced(&messages[piece.at.clone()]) {
                let mut span = self.span("pubsub route", SpanKind::Server, topic, &context);
                span.attributes.push(KeyValue::new("debros.nodes", piece.route.nodes.len() as i64));
                self.tracer.record(span);
            }
        }
    }

    /// The messages were handed to subscriptions of this node.
    pub(super) fn delivered(&self, pieces: &[Piece], messages: &[u8]) {
        for piece in pieces.iter().filter(|piece| !piece.route.local.is_empty()) {
            self.handed_over(&messages[piece.at.clone()], piece.route.local.len());
        }
    }

    /// The same to so many subscriptions.
    pub(super) fn handed_over(&self, messages: &[u8], subscriptions: usize) {
        for (topic, context) in traced(messages) {
            let mut span = self.span("pubsub deliver", SpanKind::Consumer, topic, &context);
            span.attributes.push(KeyValue::new("debros.subscriptions", subscriptions as i64));
            span.links.push(context);
            self.tracer.record(span);
        }
    }

    fn span(&self, name: &'static str, kind: SpanKind, topic: &[u8], context: &TraceContext) -> Record {
        let operation = if kind == SpanKind::Consumer { "receive" } else { "send" };
        let attributes = vec![
            KeyValue::new("messaging.system", "debros"),
            KeyValue::new("messaging.operation.type", operation),
            KeyValue::new("messaging.destination.name", String::from_utf8_lossy(topic).into_owned()),
        ];
        Record { remote: true, attributes, ..Record::ending_now(name, kind, context, self.began) }
    }
}

/// Topics and contexts of the messages that are sampled.
fn traced(messages: &[u8]) -> impl Iterator<Item = (&[u8], TraceContext)> {
    let mut rest = messages;
    let all = std::iter::from_fn(move || {
        let message = MessageRef::first(rest).ok()?;
        rest = rest.get(message.encoded_len..)?;
        Some(message)
    });
    let sampled = all.filter(|message| !message.headers.is_empty()).filter_map(|message| {
        let text = packed::header(message.headers, TRACEPARENT.as_bytes())?;
        let context = TraceContext::parse(text).filter(|context| context.sampled)?;
        Some((message.topic, context))
    });
    sampled.take(TRACED_PER_BATCH_MAX)
}
