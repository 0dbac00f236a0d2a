//! Metrics of the Raft groups and of their log. A group is never a label: over groups there are counts, sums,
//! and the worst one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use debros_proto::{GroupId, limits};
use openraft::Instant;
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use prometheus_client::registry::Registry;

use super::group::{Group, LED_WITHIN};
use super::groups::Groups;
use super::log::{self, Flush};
use super::types::TypeConfig;
use crate::metrics::{Bounds, Counter, Histogram, Readings, amounts, durations, flushes, read_at_scrape};

/// With fewer voters no member can be lost, however well all are.
const VOTERS_WITH_SLACK: usize = 3;

/// What groups measure themselves. Cheap to clone; the default measures for nobody.
#[derive(Clone, Debug)]
pub struct RaftMetrics {
    pub(super) commits: Histogram,
}

impl Default for RaftMetrics {
    fn default() -> Self {
        Self { commits: durations() }
    }
}

impl RaftMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "debros_raft_commit_duration_seconds",
            "Time from a command's proposal to its outcome: a quorum has it on disk, and it is applied here",
            metrics.commits.clone(),
        );
        metrics
    }
}

/// Registers the log's metrics and makes the log report to them.
pub fn observe_log(options: log::Options, registry: &mut Registry) -> log::Options {
    let (duration, entries, bytes) = (flushes(), amounts(), Counter::default());
    registry.register(
        "debros_raft_log_flush_duration_seconds",
        "Time to write and sync one batch of the Raft log",
        duration.clone(),
    );
    registry.register(
        "debros_raft_log_flush_entries",
        "Entries of all groups that one flush made durable",
        entries.clone(),
    );
    registry.register(
        "debros_raft_log_written_bytes",
        "Bytes written to the Raft log, framing included",
        bytes.clone(),
    );
    let on_flush = move |flush: &Flush| {
        duration.observe(flush.duration.as_secs_f64());
        entries.observe(flush.entries as f64);
        bytes.inc_by(flush.bytes);
    };
    log::Options { on_flush: Some(Arc::new(on_flush)), ..options }
}

/// Names what the log and the links hold to a limit.
pub fn bound_queues(bounds: &Bounds, groups: &Groups) {
    let (log, links) = (groups.log().clone(), groups.clone());
    bounds.queue_bytes("raft_log", log::PENDING_BYTES_MAX, move || log.pending_bytes());
    bounds.queue_items("raft_peer_frames", limits::PEER_OUTBOX_FRAMES, move || links.fullest_outbox());
}

/// Registers what is read from the groups at each scrape.
pub fn register_groups(registry: &mut Registry, groups: Groups) {
    let terms = Mutex::new(Terms::default());
    read_at_scrape(registry, move |readings| {
        let replicas: Vec<(GroupId, Replica)> =
            groups.all().iter().map(|group| (group.id(), Replica::of(group))).collect();
        let changes = terms.lock().unwrap_or_else(PoisonError::into_inner).follow(&replicas);
        readings.counter(
            "debros_raft_term_changes",
            "Terms that began in this node's groups, as seen from scrape to scrape: elections, won or not",
            changes,
        )?;
        tell(readings, &replicas)
    });
}

/// The last term of each group, and how many began since the first look.
#[derive(Default)]
struct Terms {
    last: HashMap<GroupId, u64>,
    changes: u64,
}

impl Terms {
    fn follow(&mut self, replicas: &[(GroupId, Replica)]) -> u64 {
        let mut last = HashMap::with_capacity(replicas.len());
        for (group, replica) in replicas {
            let before = self.last.get(group).copied().unwrap_or(replica.term);
            self.changes += replica.term.saturating_sub(before);
            last.insert(*group, replica.term.max(before));
        }
        self.last = last;
        self.changes
    }
}

/// What is told of one replica.
struct Replica {
    term: u64,
    leads: bool,
    stopped: bool,
    led: bool,
    voters: usize,
    /// Only of one that leads: members that answer beyond the quorum.
    slack: Option<i64>,
    commit_lag: u64,
    apply_lag: u64,
    /// Only of one that leads: what the slowest voter lacks.
    follower_lag: u64,
    snapshot_lag: u64,
    snapshot_age: Duration,
}

impl Replica {
    fn of(group: &Group) -> Self {
        // Looks at the same value: a second look while the first lasts waits for ever once a change waits between them.
        let led = group.is_led();
        let metrics = group.raft().metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let committed = metrics.local_committed.as_ref().map_or(0, |id| id.index);
        let applied = group.applied_index();
        let durable = metrics.snapshot.as_ref().map_or(0, |id| id.index);
        let stopped = metrics.running_state.is_err() || metrics.state == ServerState::Shutdown;
        let leads = !stopped && metrics.state == ServerState::Leader;
        let voters = metrics.membership_config.membership().voter_ids().count();
        let matched = |id: &Option<super::types::LogId>| id.as_ref().map_or(0, |id| id.index);
        let behind = metrics.replication.iter().flatten().map(|(_, id)| last.saturating_sub(matched(id)));
        let snapshot_lag = applied.saturating_sub(durable);
        Self {
            term: metrics.current_term,
            leads,
            stopped,
            led,
            voters,
            slack: leads.then(|| slack(group.node().0, &metrics)).flatten(),
            commit_lag: last.saturating_sub(committed),
            apply_lag: committed.saturating_sub(applied),
            follower_lag: if leads { behind.max().unwrap_or(0) } else { 0 },
            snapshot_lag,
            snapshot_age: if snapshot_lag > 0 { group.since_durable() } else { Duration::ZERO },
        }
    }
}

/// How many more voters may fall silent before no quorum is left; negative when it is not there already. During a
/// change of members the worse of both configurations counts.
fn slack(own: u64, metrics: &openraft::RaftMetrics<TypeConfig>) -> Option<i64> {
    let answers = |node: &u64| {
        *node == own
            || metrics
                .heartbeat
                .as_ref()
                .and_then(|heartbeat| heartbeat.get(node)?.as_ref())
                .is_some_and(|at| at.elapsed() < LED_WITHIN)
    };
    let configurations = metrics.membership_config.membership().get_joint_config();
    let slack_of = |voters: &std::collections::BTreeSet<u64>| {
        let quorum = voters.len() / 2 + 1;
        voters.iter().filter(|node| answers(node)).count() as i64 - quorum as i64
    };
    configurations.iter().map(slack_of).min()
}

fn tell(readings: &mut Readings<'_>, replicas: &[(GroupId, Replica)]) -> fmt::Result {
    let count = |holds: &dyn Fn(&Replica) -> bool| {
        replicas.iter().filter(|(_, replica)| holds(replica)).count() as u64
    };
    let most = |value: &dyn Fn(&Replica) -> u64| {
        replicas.iter().map(|(_, replica)| value(replica)).max().unwrap_or(0)
    };
    let gauges = [
        ("debros_raft_groups", "Replicas on this node", count(&|_| true)),
        ("debros_raft_groups_led", "Groups that this node leads", count(&|replica| replica.leads)),
        (
            "debros_raft_groups_leaderless",
            "Replicas that have not heard from a leader, or as leaders from a quorum, for two seconds",
            count(&|replica| !replica.led),
        ),
        ("debros_raft_groups_stopped", "Replicas that have stopped", count(&|replica| replica.stopped)),
        (
            "debros_raft_groups_without_slack",
            "Groups led here, of three voters or more, that lose their quorum with the next voter that is lost",
            count(&|replica| replica.voters >= VOTERS_WITH_SLACK && replica.slack == Some(0)),
        ),
        (
            "debros_raft_groups_without_quorum",
            "Groups led here of which no quorum answers: they take no writes",
            count(&|replica| replica.slack.is_some_and(|slack| slack < 0)),
        ),
        (
            "debros_raft_commit_lag_entries",
            "Entries at the end of a replica's log that are not known to be committed, of the replica with most",
            most(&|replica| replica.commit_lag),
        ),
        (
            "debros_raft_apply_lag_entries",
            "Committed entries that a replica has not applied, of the replica with most",
            most(&|replica| replica.apply_lag),
        ),
        (
            "debros_raft_follower_lag_entries",
            "Entries that another replica of a group led here lacks, of the one that lacks most",
            most(&|replica| replica.follower_lag),
        ),
        (
            "debros_raft_snapshot_lag_entries",
            "Entries applied since a replica's state was last made durable, of the replica with most",
            most(&|replica| replica.snapshot_lag),
        ),
    ];
    for (name, help, value) in gauges {
        readings.gauge(name, help, value)?;
    }
    let age = replicas.iter().map(|(_, replica)| replica.snapshot_age).max().unwrap_or_default();
    readings.gauge(
        "debros_raft_snapshot_age_seconds",
        "Time since a replica with newer entries last made its state durable, of the one that waits longest",
        age.as_secs_f64(),
    )?;
    // Where nothing is led there is nothing to tell, and any number would be a lie.
    match replicas.iter().filter_map(|(_, replica)| replica.slack).min() {
        Some(slack) => readings.gauge(
            "debros_raft_quorum_slack_min",
            "Voters that answer beyond the quorum, of the group led here with fewest; absent where none is led",
            slack,
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::GroupId;

    use super::{Replica, Terms};

    fn replica(group: u64, term: u64) -> (GroupId, Replica) {
        let replica = Replica {
            term,
            leads: false,
            stopped: false,
            led: true,
            voters: 3,
            slack: None,
            commit_lag: 0,
            apply_lag: 0,
            follower_lag: 0,
            snapshot_lag: 0,
            snapshot_age: std::time::Duration::ZERO,
        };
        (GroupId(group), replica)
    }

    #[test]
    fn changes_of_terms_are_counted_also_when_groups_come_and_go() {
        let mut terms = Terms::default();
        assert_eq!(terms.follow(&[replica(1, 7)]), 0);
        assert_eq!(terms.follow(&[replica(1, 9), replica(2, 4)]), 2);
        assert_eq!(terms.follow(&[replica(2, 5)]), 3);
        assert_eq!(terms.follow(&[replica(1, 9), replica(2, 5)]), 3);
    }
}
