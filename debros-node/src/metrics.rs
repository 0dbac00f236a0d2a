//! Metrics that belong to no request: the Raft log, the groups, the process. Labels are bounded: a group is
//! never one, only counts over groups are given.

mod process;

use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::raft::log::{self, Flush};
use crate::raft::{Groups, Role};
use process::ProcessCollector;

/// From a fast disk's flush to one that endangers elections, in seconds.
const FLUSH_BUCKETS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5];
/// Entries that one flush made durable.
const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0];

/// Registers the log's metrics and makes the log report to them.
pub fn observe_log(options: log::Options, registry: &mut Registry) -> log::Options {
    let duration = Histogram::new(FLUSH_BUCKETS);
    let entries = Histogram::new(BATCH_BUCKETS);
    registry.register(
        "debros_raft_log_flush_duration_seconds",
        "Time to write and sync one batch of the Raft log",
        duration.clone(),
    );
    registry.register("debros_raft_log_flush_entries", "Entries made durable by one flush", entries.clone());
    let on_flush = move |flush: &Flush| {
        duration.observe(flush.duration.as_secs_f64());
        entries.observe(flush.entries as f64);
    };
    log::Options { on_flush: Some(Arc::new(on_flush)), ..options }
}

/// Registers what is read from the groups at each scrape.
pub fn register_groups(registry: &mut Registry, groups: Groups) {
    registry.register_collector(Box::new(GroupsCollector(groups)));
}

/// The process's own metrics, in a registry of their own: a process may have many nodes.
pub fn process() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(ProcessCollector));
    registry
}

struct GroupsCollector(Groups);

impl std::fmt::Debug for GroupsCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupsCollector")
    }
}

impl Collector for GroupsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let statuses: Vec<_> = self.0.all().iter().map(|group| group.status()).collect();
        let count = |wanted: &dyn Fn(&crate::raft::Status) -> bool| {
            i64::try_from(statuses.iter().filter(|status| wanted(status)).count()).unwrap_or(i64::MAX)
        };
        let terms: u64 = statuses.iter().map(|status| status.term).sum();
        let gauges: [(&str, &str, i64); 6] = [
            ("debros_raft_groups", "Replicas on this node", count(&|_| true)),
            (
                "debros_raft_groups_led",
                "Groups that this node leads",
                count(&|status| status.role == Role::Leader),
            ),
            (
                "debros_raft_groups_leaderless",
                "Replicas that know no leader",
                count(&|status| status.leader.is_none()),
            ),
            (
                "debros_raft_groups_stopped",
                "Replicas that have stopped",
                count(&|status| status.role == Role::Stopped),
            ),
            (
                "debros_raft_apply_lag_entries",
                "Largest number of entries that a replica's log is ahead of its state",
                statuses
                    .iter()
                    .map(|status| status.last_log_index.saturating_sub(status.applied_index))
                    .max()
                    .map_or(0, |lag| i64::try_from(lag).unwrap_or(i64::MAX)),
            ),
            // No counter: it falls when a replica goes.
            (
                "debros_raft_terms",
                "Sum of the terms of this node's groups; rises with every election",
                i64::try_from(terms).unwrap_or(i64::MAX),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
