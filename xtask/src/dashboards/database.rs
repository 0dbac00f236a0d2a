//! The dashboard of the databases and registers: what is asked, how it is replicated, what SQLite does.

use anyhow::Result;

use super::express::{gauge, mean, quantile, rate, selected};
use super::service_levels::none_of;
use super::{Dashboard, Panel, Row, Unit};
use crate::rules::alert_on;
use crate::slo::Slo;

const SERVICES: &str = "origin=\"client\",service=~\"database|registers\"";

/// What is asked of the databases, and what that takes.
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-database",
        title: "database",
        about: "Databases and registers: are they asked, led, replicated and stored as they should be?",
        rows: vec![
            Row { title: "Requests", panels: requests(slo)? },
            Row { title: "Quorum", panels: quorum() },
            Row { title: "Replication", panels: replication() },
            Row { title: "The log on disk", panels: log() },
            Row { title: "SQLite", panels: sqlite() },
            Row { title: "SQLite's files", panels: files() },
        ],
    })
}

fn requests(slo: &Slo) -> Result<Vec<Panel>> {
    let level = slo.level("database_latency")?;
    let requests = format!("debros_rpc_requests_total{{{SERVICES}}}");
    let failed = rate(&format!("debros_rpc_requests_total{{{SERVICES},code!=\"OK\"}}"), "code");
    let slowest = quantile(0.99, &format!("debros_rpc_duration_seconds{{{SERVICES}}}"), "method");
    Ok(vec![
        Panel::lines(
            Unit::RequestsPerSecond,
            "What is asked of the databases?",
            "Requests of users by method. Those of rqlite's HTTP API are on the network's dashboard.",
        )
        .query(rate(&requests, "method"), "{{method}}"),
        Panel::lines(
            Unit::Seconds,
            "Which requests are slow?",
            format!("What 99 of 100 requests take, by method. The dashed line is the promise: {}.", level.promise),
        )
        .query(slowest, "{{method}}")
        .bad_from(level.seconds().unwrap_or_default())
        .runbook(alert_on(level)),
        Panel::lines(
            Unit::RequestsPerSecond,
            "Which requests fail?",
            "By error code, whosever fault it is: SQL and INVALID_ARGUMENT are the caller's, UNAVAILABLE and BUSY are ours.",
        )
        .query(format!("{failed} or {}", none_of(&requests, "code")), "{{code}}"),
    ])
}

fn quorum() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Count,
            "Who leads how many databases?",
            "Groups by leader. Evenly spread is best; a node that leads none has been restarted, or is slow.",
        )
        .query(gauge("debros_raft_groups_led"), "{{node}}"),
        Panel::lines(
            Unit::Count,
            "What has no quorum, no slack or no leader?",
            "Without slack: the next node lost costs the quorum. Without quorum: writes fail now. Without leader: this replica does not know whom to ask.",
        )
        .query(rate_free_sum("debros_raft_groups_without_slack"), "without slack")
        .query(rate_free_sum("debros_raft_groups_without_quorum"), "without quorum")
        .query(rate_free_sum("debros_raft_groups_leaderless"), "without leader")
        .query(rate_free_sum("debros_raft_groups_stopped"), "stopped")
        .bad_from(1.0)
        .runbook("DebrosQuorumSlackZero"),
        Panel::lines(
            Unit::Count,
            "How many nodes may be lost?",
            "Members that answer beyond the quorum, of the group that has fewest. 1 is usual for three replicas.",
        )
        .query(format!("min by (cluster) ({})", selected("debros_raft_quorum_slack_min")), "at least")
        .bad_below(1.0)
        .runbook("DebrosQuorumSlackZero"),
    ]
}

fn rate_free_sum(metric: &str) -> String {
    format!("sum({})", selected(metric))
}

fn replication() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Seconds,
            "How long does a commit take?",
            "From a proposal to its being committed and applied at the leader: the network to a follower and two syncs of disks are in it.",
        )
        .query(quantile(0.99, "debros_raft_commit_duration_seconds", "node"), "{{node}}, 99 % below")
        .query(quantile(0.5, "debros_raft_commit_duration_seconds", "node"), "{{node}}, half below"),
        Panel::lines(
            Unit::Count,
            "How far is somebody behind?",
            "Entries that the group that lags most is behind on any node: not yet committed, committed and not yet applied, not yet at a follower.",
        )
        .query(format!("max({})", selected("debros_raft_commit_lag_entries")), "commit")
        .query(format!("max({})", selected("debros_raft_apply_lag_entries")), "apply")
        .query(format!("max({})", selected("debros_raft_follower_lag_entries")), "follower"),
        Panel::lines(
            Unit::PerSecond,
            "Are there elections?",
            "Changes of term of the groups on each node. In quiet times there are none; a steady rate is a network or a disk that is too slow for heartbeats.",
        )
        .query(rate("debros_raft_term_changes_total", "node"), "{{node}}")
        .runbook("DebrosGroupWithoutLeader"),
    ]
}

fn log() -> Vec<Panel> {
    let flush = "debros_raft_log_flush_duration_seconds";
    vec![
        Panel::lines(
            Unit::Seconds,
            "Is the disk fast enough for the log?",
            "Writing and syncing a batch of the log. Nothing is acknowledged before; above 64 ms elections are near.",
        )
        .query(quantile(0.99, flush, "node"), "{{node}}, 99 % below")
        .query(quantile(0.5, flush, "node"), "{{node}}, half below")
        .bad_from(0.064),
        Panel::lines(
            Unit::Count,
            "How many entries share a sync?",
            "On the average; under load many writes share one sync of the disk.",
        )
        .query(mean("debros_raft_log_flush_entries", "node"), "{{node}}"),
        Panel::lines(
            Unit::BytesPerSecond,
            "How much goes into the log?",
            "Bytes written by each node to the log that all its groups share.",
        )
        .query(rate("debros_raft_log_written_bytes_total", "node"), "{{node}}"),
    ]
}

fn sqlite() -> Vec<Panel> {
    let cache = "debros_sqlite_page_cache_total";
    let hits = rate(&format!("{cache}{{kind=\"hit\"}}"), "node");
    let looked = rate(&format!("{cache}{{kind=~\"hit|miss\"}}"), "node");
    vec![
        Panel::lines(
            Unit::Seconds,
            "How long does applying take?",
            "One transaction of SQLite with a batch of committed entries. Slow statements of users are in here.",
        )
        .query(quantile(0.99, "debros_sqlite_apply_duration_seconds", "node"), "{{node}}, 99 % below")
        .query(quantile(0.5, "debros_sqlite_apply_duration_seconds", "node"), "{{node}}, half below"),
        Panel::lines(
            Unit::Part,
            "Do pages come from memory?",
            "The part of SQLite's pages found in its cache. A fall means that the databases in use outgrew it.",
        )
        .query(format!("{hits} / clamp_min({looked}, 1e-9)"), "{{node}}"),
        Panel::lines(
            Unit::Seconds,
            "How old is what a snapshot holds?",
            "Of the replica whose snapshot is oldest while it has newer entries. The log is kept for as long.",
        )
        .query(gauge("debros_raft_snapshot_age_seconds"), "{{node}}"),
    ]
}

fn files() -> Vec<Panel> {
    let pages =
        |kind: &str| format!("sum by (node) ({})", selected(&format!("debros_sqlite_pages{{{kind}}}")));
    vec![
        Panel::lines(
            Unit::Bytes,
            "How large are the databases?",
            "All of a node together, and the largest one.",
        )
        .query(gauge("debros_sqlite_size_bytes"), "{{node}}, all")
        .query(gauge("debros_sqlite_largest_bytes"), "{{node}}, largest"),
        Panel::lines(
            Unit::Bytes,
            "How much waits for a checkpoint?",
            "Write-ahead logs of a node's databases. They shrink at checkpoints; growth without end is a reader that never ends.",
        )
        .query(gauge("debros_sqlite_wal_bytes"), "{{node}}"),
        Panel::lines(
            Unit::Part,
            "What part of the files is free pages?",
            "Pages that deletions left and later insertions take again. Much for long: the data has shrunk for good.",
        )
        .query(format!("{} / clamp_min({}, 1)", pages("kind=\"free\""), pages("")), "{{node}}"),
    ]
}
