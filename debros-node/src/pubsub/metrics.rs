//! Pub/sub's own metrics. They have no labels: a topic, a namespace or a client is never one.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What pub/sub counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct PubSubMetrics {
    published: Counter,
    delivered: Counter,
    dropped: Counter,
    lagged: Counter,
    lost: Counter,
    repeated: Counter,
    bounced: Counter,
    sessions: Gauge,
    subscriptions: Gauge,
    interest_entries: Gauge,
    ring_bytes: Gauge,
    queue_bytes: Gauge,
    links: Gauge,
}

impl PubSubMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
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
