//! Metrics of the databases. A database is never a label: there are sums over all, and the largest.

use std::time::Duration;

use debros_sqlite::CacheAccesses;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::Files;
use crate::metrics::{Counter, Histogram, durations, read_at_scrape};

/// What databases measure. Cheap to clone; the default measures for nobody.
#[derive(Clone)]
pub struct SqlMetrics {
    applies: Histogram,
    checkpoints: Histogram,
    hits: Counter,
    misses: Counter,
    writes: Counter,
    spills: Counter,
}

impl Default for SqlMetrics {
    fn default() -> Self {
        Self::of(&Family::default())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl SqlMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let accesses = Family::default();
        let metrics = Self::of(&accesses);
        registry.register(
            "debros_sqlite_page_cache",
            "Pages that the caches of writers had, had to read, wrote, and wrote early for want of room",
            accesses,
        );
        registry.register(
            "debros_sqlite_apply_duration_seconds",
            "Time to apply one batch of committed entries in one transaction",
            metrics.applies.clone(),
        );
        registry.register(
            "debros_sqlite_checkpoint_duration_seconds",
            "Time to move a write-ahead log into its database and sync it; writes of the database wait",
            metrics.checkpoints.clone(),
        );
        metrics
    }

    fn of(accesses: &Family<KindLabels, Counter>) -> Self {
        let counter = |kind| accesses.get_or_create_owned(&KindLabels { kind });
        Self {
            applies: durations(),
            checkpoints: durations(),
            hits: counter("hit"),
            misses: counter("miss"),
            writes: counter("write"),
            spills: counter("spill"),
        }
    }

    pub(super) fn applied(&self, took: Duration) {
        self.applies.observe(took.as_secs_f64());
    }

    pub(super) fn checkpointed(&self, took: Duration) {
        self.checkpoints.observe(took.as_secs_f64());
    }

    pub(super) fn accessed(&self, accesses: CacheAccesses) {
        let CacheAccesses { hits, misses, writes, spills } = accesses;
        self.hits.inc_by(hits);
        self.misses.inc_by(misses);
        self.writes.inc_by(writes);
        self.spills.inc_by(spills);
    }
}

/// Registers what is read of all databases at each scrape.
pub fn register_files(registry: &mut Registry, all: impl Fn() -> Vec<Files> + Send + Sync + 'static) {
    read_at_scrape(registry, move |readings| {
        let all = all();
        let sum = |value: fn(&Files) -> u64| all.iter().map(value).sum::<u64>();
        readings.gauge(
            "debros_sqlite_databases",
            "Databases with a replica on this node",
            all.len() as u64,
        )?;
        readings.gauge(
            "debros_sqlite_size_bytes",
            "Bytes of this node's databases on disk, without their write-ahead logs",
            sum(|files| files.bytes),
        )?;
        readings.gauge(
            "debros_sqlite_largest_bytes",
            "Bytes of the largest of this node's databases",
            all.iter().map(|files| files.bytes).max().unwrap_or(0),
        )?;
        readings.gauge(
            "debros_sqlite_wal_bytes",
            "Bytes of the write-ahead logs of this node's databases",
            sum(|files| files.wal_bytes),
        )?;
        let free = sum(|files| files.free_pages);
        readings.gauges(
            ("debros_sqlite_pages", "Pages of this node's databases; free ones are used before files grow"),
            "kind",
            [("used", sum(|files| files.pages).saturating_sub(free)), ("free", free)],
        )
    });
}
