//! The dashboard of the key-value storage: what is asked, whether replicas agree, what the disk does.

use anyhow::Result;

use super::express::{gauge, quantile, rate, selected};
use super::service_levels::none_of;
use super::{Dashboard, Looks, Panel, Row, Step, Unit};
use crate::rules::alert_on;
use crate::slo::Slo;

const SERVICE: &str = "origin=\"client\",service=\"storage\"";
/// Those that hold one operation each; a watch lasts as long as somebody listens.
const OPERATIONS: &str = "method=~\"StoragePut|StorageGet|StorageDelete|StorageList\"";

/// What is asked of the storage, and whether its replicas agree.
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-storage",
        title: "storage",
        about: "The key-value storage: is it asked, equal on all replicas and written as it should be?",
        rows: vec![
            Row { title: "Requests", panels: requests(slo)? },
            Row { title: "Do replicas agree", panels: agreement() },
            Row { title: "Absent replicas", panels: absence() },
            Row { title: "Time and layout", panels: time_and_layout() },
            Row { title: "The store on disk", panels: disk() },
        ],
    })
}

fn requests(slo: &Slo) -> Result<Vec<Panel>> {
    let level = slo.level("storage_latency")?;
    let requests = format!("debros_rpc_requests_total{{{SERVICE}}}");
    let failed = rate(&format!("debros_rpc_requests_total{{{SERVICE},code!=\"OK\"}}"), "code");
    let slowest = quantile(0.99, &format!("debros_rpc_duration_seconds{{{SERVICE},{OPERATIONS}}}"), "method");
    Ok(vec![
        Panel::lines(
            Unit::RequestsPerSecond,
            "What is asked of the storage?",
            "Requests of users by method; a batch counts as its operations.",
        )
        .query(rate(&requests, "method"), "{{method}}"),
        Panel::lines(
            Unit::Seconds,
            "Which operations are slow?",
            format!("What 99 of 100 operations take, by method. The dashed line is the promise: {}.", level.promise),
        )
        .query(slowest, "{{method}}")
        .bad_from(level.seconds().unwrap_or_default())
        .runbook(alert_on(level)),
        Panel::lines(
            Unit::RequestsPerSecond,
            "Which operations fail?",
            "By error code, whosever fault it is: NOT_FOUND is the caller's, UNAVAILABLE, BUSY and DISK_FULL are ours.",
        )
        .query(format!("{failed} or {}", none_of(&requests, "code")), "{{code}}"),
    ])
}

fn agreement() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Count,
            "Do replicas hold the same?",
            "Partitions that differed from a peer's in a node's last round of repair. After an absence it falls to nothing within minutes.",
        )
        .query(gauge("debros_storage_divergent_partitions"), "{{node}}")
        .bad_from(1.0)
        .runbook("DebrosReplicasDiverge"),
        Panel::lines(
            Unit::PerSecond,
            "What does repair bring back?",
            "Rounds of repair, and the entries that these brought. Entries in quiet times mean that something else failed to deliver them.",
        )
        .query(rate("debros_storage_repair_rounds_total", "cluster"), "rounds")
        .query(rate("debros_storage_repaired_entries_total", "cluster"), "entries"),
        Panel::lines(
            Unit::PerSecond,
            "Do reads and writes meet disagreement?",
            "Reads that found replicas disagreeing and wrote the newest back, and writes stamped again above a newer version.",
        )
        .query(rate("debros_storage_read_repairs_total", "cluster"), "reads repaired")
        .query(rate("debros_storage_restamps_total", "cluster"), "writes stamped again"),
    ]
}

fn absence() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Bytes,
            "How much waits for absent replicas?",
            "Hints: writes kept for replicas that gave no answer. Past a node's limit they are dropped, and repair does their work.",
        )
        .query(gauge("debros_storage_hints_waiting_bytes"), "{{node}}")
        .runbook("DebrosQueueFull"),
        Panel::lines(
            Unit::PerSecond,
            "Do hints reach their replicas?",
            "Kept, delivered and given up. What is kept should be delivered within seconds of the replica's return.",
        )
        .query(rate("debros_storage_hints_kept_total", "cluster"), "kept")
        .query(rate("debros_storage_hints_delivered_total", "cluster"), "delivered")
        .query(rate("debros_storage_hints_dropped_total", "cluster"), "given up"),
        Panel::lines(
            Unit::Count,
            "Are deletions forgotten in time?",
            "Tombstones: deleted keys that must be remembered until every replica knows. They go after storage.tombstone_life, not while a replica is away.",
        )
        .query(gauge("debros_storage_tombstones"), "{{node}}"),
    ]
}

fn time_and_layout() -> Vec<Panel> {
    let offset = debros_proto::limits::CLOCK_OFFSET_MAX.as_secs_f64();
    vec![
        Panel::lines(
            Unit::Seconds,
            "Are the clocks right?",
            "How far each node's clock is from the median of its peers. At the red line a node coordinates no writes any more.",
        )
        .query(format!("abs({})", selected("debros_storage_clock_offset_seconds")), "{{node}}")
        .steps(vec![
            Step { from: f64::NEG_INFINITY, looks: Looks::Good },
            Step { from: offset / 2.0, looks: Looks::Doubtful },
            Step { from: offset, looks: Looks::Bad },
        ])
        .runbook("DebrosClockSkew"),
        Panel::lines(
            Unit::PerSecond,
            "Are writes refused for their time?",
            "Versions that a replica refused because they lay in its future: the clock of the coordinator or of the replica is wrong.",
        )
        .query(rate("debros_storage_clock_refusals_total", "node"), "{{node}}")
        .runbook("DebrosClockSkew"),
        Panel::lines(
            Unit::Count,
            "Is a change of the layout under way?",
            "Partitions that a node still has to copy, and the layout under which each acts: the versions are equal when it is done.",
        )
        .query(gauge("debros_storage_partitions_to_copy"), "{{node}}, to copy")
        .query(gauge("debros_storage_layout_version"), "{{node}}, layout"),
    ]
}

fn disk() -> Vec<Panel> {
    let flush = "debros_storage_flush_duration_seconds";
    let ratio = format!(
        "{} / clamp_min({}, 1)",
        selected("debros_storage_lmdb_used_bytes"),
        selected("debros_storage_lmdb_map_bytes")
    );
    vec![
        Panel::lines(
            Unit::Seconds,
            "Is the disk fast enough for the journal?",
            "Syncing a batch of the journal. No put is acknowledged before a majority of replicas has done it.",
        )
        .query(quantile(0.99, flush, "node"), "{{node}}, 99 % below")
        .query(quantile(0.5, flush, "node"), "{{node}}, half below"),
        Panel::lines(
            Unit::Part,
            "How full is the store?",
            "Used of storage.max_size. Near the end puts are refused, so that deletions keep their room.",
        )
        .query(ratio, "{{node}}")
        .bad_from(0.875)
        .runbook("DebrosDiskFull"),
        Panel::lines(
            Unit::Count,
            "What does the store hold?",
            "Entries by table of LMDB: values, hints, and what the store notes for itself.",
        )
        .query(format!("sum by (table) ({})", selected("debros_storage_lmdb_entries")), "{{table}}"),
    ]
}
