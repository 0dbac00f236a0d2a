//! The storage's own metrics. Labels are bounded: none but the kind of a page or the name of a table.

use std::fmt;
use std::time::Duration;

use debros_proto::limits;
use prometheus_client::registry::Registry;

use super::store::{READS_WAITING_MAX, Statistics, WRITES_WAITING_MAX};
use super::{Kv, KvSlot};
use crate::metrics::{Bounds, Counter, Gauge, Histogram, Readings, flushes, read_at_scrape};

/// What the storage counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct KvMetrics {
    clock_refusals: Counter,
    read_repairs: Counter,
    restamps: Counter,
    hints_kept: Counter,
    hints_delivered: Counter,
    hints_dropped: Counter,
    repair_rounds: Counter,
    repaired_entries: Counter,
    collected_tombstones: Counter,
    divergent_partitions: Gauge,
    partitions_to_copy: Gauge,
    copied_entries: Counter,
    layout_version: Gauge,
    store: StoreMetrics,
}

/// What the store measures. Cheap to clone; the default measures nothing.
#[derive(Clone, Default)]
pub struct StoreMetrics {
    flushes: Option<Histogram>,
}

impl fmt::Debug for StoreMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreMetrics")
    }
}

impl StoreMetrics {
    pub(super) fn flushed(&self, took: Duration) {
        if let Some(flushes) = &self.flushes {
            flushes.observe(took.as_secs_f64());
        }
    }
}

impl KvMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let flushes = flushes();
        registry.register(
            "debros_storage_flush_duration_seconds",
            "Time to sync the storage's journal; acknowledged writes waited for it",
            flushes.clone(),
        );
        let metrics = Self { store: StoreMetrics { flushes: Some(flushes) }, ..Self::default() };
        metrics.register_counters(registry);
        metrics.register_gauges(registry);
        metrics
    }

    fn register_counters(&self, registry: &mut Registry) {
        let counters = [
            (
                "clock_refusals",
                "Versions refused because they lay in a replica's future",
                &self.clock_refusals,
            ),
            ("read_repairs", "Reads that found replicas disagreeing and wrote back", &self.read_repairs),
            ("restamps", "Writes stamped again above a newer version", &self.restamps),
            ("hints_kept", "Writes kept for replicas that were absent", &self.hints_kept),
            ("hints_delivered", "Kept writes that reached their replica", &self.hints_delivered),
            ("hints_dropped", "Kept writes given up, for age or want of room", &self.hints_dropped),
            (
                "repair_rounds",
                "Rounds in which this node compared itself with its peers",
                &self.repair_rounds,
            ),
            ("repaired_entries", "Entries that anti-entropy brought here", &self.repaired_entries),
            (
                "collected_tombstones",
                "Tombstones dropped after all replicas had them",
                &self.collected_tombstones,
            ),
            ("copied_entries", "Entries copied for a change of the layout", &self.copied_entries),
        ];
        for (name, help, counter) in counters {
            registry.register(format!("debros_storage_{name}"), help, counter.clone());
        }
    }

    fn register_gauges(&self, registry: &mut Registry) {
        let gauges = [
            (
                "divergent_partitions",
                "Partitions that differed from a peer's in the last round by more than writes under way",
                &self.divergent_partitions,
            ),
            ("partitions_to_copy", "Partitions that this node still has to copy", &self.partitions_to_copy),
            ("layout_version", "The version of the layout under which this node acts", &self.layout_version),
        ];
        for (name, help, gauge) in gauges {
            registry.register(format!("debros_storage_{name}"), help, gauge.clone());
        }
    }

    /// What the store is to report to.
    pub fn store(&self) -> StoreMetrics {
        self.store.clone()
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
    pub(super) fn repair_round(&self) {
        self.repair_rounds.inc();
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

/// Registers what is read from the engine at each scrape: zeros before the node is a member.
pub fn register_storage(registry: &mut Registry, bounds: &Bounds, slot: &KvSlot) {
    let read = |read: fn(&Kv) -> usize| {
        let slot = slot.clone();
        move || slot.peek().as_ref().map_or(0, read)
    };
    bounds.queue_items(
        "storage_writes",
        WRITES_WAITING_MAX,
        read(|kv| kv.coordinator.inner.replica.store().waiting().0),
    );
    bounds.queue_items(
        "storage_reads",
        READS_WAITING_MAX,
        read(|kv| kv.coordinator.inner.replica.store().waiting().1),
    );
    bounds.queue_bytes(
        "storage_hints",
        usize::try_from(limits::HINTS_BYTES_MAX).unwrap_or(usize::MAX),
        read(|kv| {
            let bytes = kv.coordinator.inner.replica.store().hinted_bytes();
            usize::try_from(bytes).unwrap_or(usize::MAX)
        }),
    );
    bounds.queue_bytes(
        "storage_lists",
        limits::LISTS_BYTES_MAX,
        read(|kv| kv.coordinator.inner.lists.used()),
    );
    let slot = slot.clone();
    read_at_scrape(registry, move |readings| tell(readings, slot.peek().as_ref()));
}

fn tell(readings: &mut Readings<'_>, kv: Option<&Kv>) -> fmt::Result {
    let inner = kv.map(|kv| &kv.coordinator.inner);
    let offset_ms = inner.and_then(|inner| inner.clock.offset_ms()).unwrap_or(0);
    readings.gauge(
        "debros_storage_clock_offset_seconds",
        "How far the median of the peers' clocks and this one is ahead of this node's; 0 while no peer was asked",
        Duration::from_millis(offset_ms.unsigned_abs()).as_secs_f64() * offset_ms.signum() as f64,
    )?;
    let store = inner.map(|inner| inner.replica.store());
    readings.gauge(
        "debros_storage_hints_waiting_bytes",
        "Bytes of writes kept for replicas that are absent",
        store.map_or(0, |store| store.hinted_bytes()),
    )?;
    readings.gauge(
        "debros_storage_tombstones",
        "Deletions that this node remembers; known from its first round of repairs on",
        store.map_or(0, |store| store.tombstones()),
    )?;
    readings.gauge(
        "debros_storage_lmdb_disk_bytes",
        "Bytes of the LMDB file on disk",
        store.map_or(0, |store| store.disk_bytes()),
    )?;
    let statistics = store.and_then(|store| store.statistics().ok()).unwrap_or_default();
    let Statistics {
        map_bytes,
        used_bytes,
        readers,
        branch_pages,
        leaf_pages,
        overflow_pages,
        entries: [data, hints, state],
    } = statistics;
    readings.gauge(
        "debros_storage_lmdb_map_bytes",
        "Bytes that the LMDB file may grow to: storage.max_size",
        map_bytes,
    )?;
    readings.gauge(
        "debros_storage_lmdb_used_bytes",
        "Bytes of the LMDB pages that hold something",
        used_bytes,
    )?;
    readings.gauge(
        "debros_storage_lmdb_readers",
        "Places for snapshots of LMDB that are or were in use",
        readers,
    )?;
    readings.gauges(
        ("debros_storage_lmdb_pages", "Pages of LMDB that hold something"),
        "kind",
        [("branch", branch_pages), ("leaf", leaf_pages), ("overflow", overflow_pages)],
    )?;
    readings.gauges(
        ("debros_storage_lmdb_entries", "Entries in LMDB; what is only in the journal comes later"),
        "table",
        [("data", data), ("hints", hints), ("state", state)],
    )
}
