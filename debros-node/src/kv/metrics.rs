//! The storage's own metrics. Labels are bounded: none but the kind of an event.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the storage counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KvMetrics {
    clock_refusals: Counter,
    read_repairs: Counter,
    restamps: Counter,
    hints_kept: Counter,
    hints_delivered: Counter,
    hints_dropped: Counter,
    repaired_entries: Counter,
    collected_tombstones: Counter,
    divergent_partitions: Gauge,
    partitions_to_copy: Gauge,
    copied_entries: Counter,
    layout_version: Gauge,
}

impl KvMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(format!("debros_storage_{name}"), help, counter.clone());
        };
        counter(
            "clock_refusals",
            "Versions refused because they lay in a replica's future",
            &metrics.clock_refusals,
        );
        counter(
            "read_repairs",
            "Reads that found replicas disagreeing and wrote back",
            &metrics.read_repairs,
        );
        counter("restamps", "Writes stamped again above a newer version", &metrics.restamps);
        counter("hints_kept", "Writes kept for replicas that were absent", &metrics.hints_kept);
        counter("hints_delivered", "Kept writes that reached their replica", &metrics.hints_delivered);
        counter("hints_dropped", "Kept writes given up, for age or want of room", &metrics.hints_dropped);
        counter("repaired_entries", "Entries that anti-entropy brought here", &metrics.repaired_entries);
        counter(
            "collected_tombstones",
            "Tombstones dropped after all replicas had them",
            &metrics.collected_tombstones,
        );
        counter("copied_entries", "Entries copied for a change of the layout", &metrics.copied_entries);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(format!("debros_storage_{name}"), help, gauge.clone());
        };
        gauge(
            "divergent_partitions",
            "Partitions that differed from a peer's in the last round",
            &metrics.divergent_partitions,
        );
        gauge(
            "partitions_to_copy",
            "Partitions that this node still has to copy",
            &metrics.partitions_to_copy,
        );
        gauge(
            "layout_version",
            "The version of the layout under which this node acts",
            &metrics.layout_version,
        );
        metrics
    }

    pub(super) fn clock_refused(&self) {
        self.clock_refusals.inc();
    }
    pub(super) fn read_repaired(&self) {
        self.read_repairs.inc();
    }
    pub(super) fn restamped(&self) {
        self.restamps.inc();
    }
    pub(super) fn hint_kept(&self) {
        self.hints_kept.inc();
    }
    pub(super) fn hints_delivered(&self, count: u64) {
        self.hints_delivered.inc_by(count);
    }
    pub(super) fn hints_dropped(&self, count: u64) {
        self.hints_dropped.inc_by(count);
    }
    pub(super) fn repaired(&self, count: u64) {
        self.repaired_entries.inc_by(count);
    }
    pub(super) fn collected(&self, count: u64) {
        self.collected_tombstones.inc_by(count);
    }
    pub(super) fn copied(&self, count: u64) {
        self.copied_entries.inc_by(count);
    }
    pub(super) fn set_divergent(&self, partitions: usize) {
        self.divergent_partitions.set(partitions as i64);
    }
    pub(super) fn set_to_copy(&self, partitions: usize) {
        self.partitions_to_copy.set(partitions as i64);
    }
    pub(super) fn set_layout(&self, version: u64) {
        self.layout_version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    /// Partitions that this node still has to copy.
    pub(super) fn to_copy(&self) -> u64 {
        u64::try_from(self.partitions_to_copy.get()).unwrap_or(0)
    }
}
