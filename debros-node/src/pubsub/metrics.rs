//! Pub/sub's own metrics. They have no labels: a topic, a namespace or a client is never one. Counters are touched
//! once for a run of messages, not for each.

use debros_proto::{ErrorCode, limits};
use prometheus_client::registry::Registry;

use super::PubSubSlot;
use crate::metrics::{Bounds, Counter, Gauge, Operation, Stopwatch};

/// What pub/sub counts. Cheap to clone.
#[derive(Clone, Default)]
pub struct PubSubMetrics {
    published: Counter,
    delivered: Counter,
    dropped: Counter,
    lagged: Counter,
    lost: Counter,
    repeated: Counter,
    bounced: Counter,
    gaps_repaired: Counter,
    sessions: Gauge,
    subscriptions: Gauge,
    interest_entries: Gauge,
    ring_bytes: Gauge,
    queue_bytes: Gauge,
    links: Gauge,
    operations: Option<PubSubOperations>,
}

/// The requests on a session that users wait for.
#[derive(Clone)]
pub struct PubSubOperations {
    /// A batch, until it is acknowledged.
    pub publish: Operation,
    /// A subscription, until it stands.
    pub subscribe: Operation,
}

impl PubSubMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry, operations: PubSubOperations) -> Self {
        let metrics = Self { operations: Some(operations), ..Self::default() };
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("debros_pubsub_{name}"), help, counter.clone());
        };
        counter("published", "Messages that this node took in from its clients", &metrics.published);
        counter("delivered", "Messages sent to subscriptions of this node's clients", &metrics.delivered);
        counter("dropped", "Messages dropped because a subscription's queue was full", &metrics.dropped);
        counter("lagged", "Notices to subscriptions that messages were missed", &metrics.lagged);
        counter("lost", "Messages that left the ring before a node had them", &metrics.lost);
        counter("repeated", "Messages that publishers sent again and that were known", &metrics.repeated);
        counter("bounced", "Messages rerouted because a queue group's member had gone", &metrics.bounced);
        counter(
            "gaps_repaired",
            "Messages that a broken link, or a subscription that moved, had missed and got from a ring",
            &metrics.gaps_repaired,
        );
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(format!("debros_pubsub_{name}"), help, gauge.clone());
        };
        gauge("sessions", "Clients attached to this node", &metrics.sessions);
        gauge("subscriptions", "Subscriptions of this node's clients", &metrics.subscriptions);
        gauge("interest_entries", "Patterns of other nodes that this node knows", &metrics.interest_entries);
        gauge("ring_bytes", "Bytes of published messages kept for repair", &metrics.ring_bytes);
        gauge("queue_bytes", "Bytes of messages that wait for subscriptions", &metrics.queue_bytes);
        gauge("links", "Nodes that this node's messages reach", &metrics.links);
        metrics
    }

    /// Messages taken in from this node's clients, and handed to them.
    pub fn totals(&self) -> (u64, u64) {
        (self.published.get(), self.delivered.get())
    }

    /// A batch that came then was acknowledged, or refused.
    pub(super) fn publish_answered(&self, since: Stopwatch, error: Option<ErrorCode>) {
        if let Some(operations) = &self.operations {
            operations.publish.answered(error, since.took());
        }
    }
    /// A subscription that was asked for then stands, or was refused.
    pub(super) fn subscribe_answered(&self, since: Stopwatch, error: Option<ErrorCode>) {
        if let Some(operations) = &self.operations {
            operations.subscribe.answered(error, since.took());
        }
    }
    pub(super) fn gaps_repaired(&self, count: u64) {
        self.gaps_repaired.inc_by(count);
    }
    pub(super) fn published(&self, count: u64) {
        self.published.inc_by(count);
    }
    pub(super) fn delivered(&self, count: u64) {
        self.delivered.inc_by(count);
    }
    pub(super) fn dropped(&self, count: u64) {
        self.dropped.inc_by(count);
    }
    pub(super) fn lagged(&self) {
        self.lagged.inc();
    }
    pub(super) fn lost(&self, count: u64) {
        self.lost.inc_by(count);
    }
    pub(super) fn repeated(&self, count: u64) {
        self.repeated.inc_by(count);
    }
    pub(super) fn bounced(&self) {
        self.bounced.inc();
    }
    pub(super) fn set_sessions(&self, count: usize) {
        self.sessions.set(count as i64);
    }
    pub(super) fn set_subscriptions(&self, count: usize) {
        self.subscriptions.set(count as i64);
    }
    pub(super) fn set_interest_entries(&self, count: usize) {
        self.interest_entries.set(count as i64);
    }
    pub(super) fn set_ring_bytes(&self, bytes: usize) {
        self.ring_bytes.set(bytes as i64);
    }
    pub(super) fn set_queue_bytes(&self, bytes: usize) {
        self.queue_bytes.set(bytes as i64);
    }
    pub(super) fn set_links(&self, count: usize) {
        self.links.set(count as i64);
    }
}

/// Names what the engine holds to a limit.
pub fn bound_pubsub(bounds: &Bounds, metrics: &PubSubMetrics, slot: &PubSubSlot) {
    let read = |gauge: &Gauge| {
        let gauge = gauge.clone();
        move || usize::try_from(gauge.get()).unwrap_or(0)
    };
    bounds.resource("pubsub_sessions", limits::SESSIONS_PER_NODE_MAX, read(&metrics.sessions));
    bounds.resource("pubsub_subscriptions", limits::SUBSCRIPTIONS_MAX, read(&metrics.subscriptions));
    bounds.queue_bytes("pubsub_ring", limits::RING_BYTES_MAX, read(&metrics.ring_bytes));
    let slot = slot.clone();
    let waiting = move || slot.peek().map_or(0, |pubsub| pubsub.shared.router().waiting_bytes());
    bounds.queue_bytes("pubsub_queues", limits::NODE_QUEUES_BYTES, waiting);
}
