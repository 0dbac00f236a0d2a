//! The alerts on causes that a person must act on before or while users feel them. Whatever heals by itself is no alert, and neither is
//! what the service levels ([`super::burns`]) notice anyway without telling more.
//!
//! Each carries its proof: series under which it fires, and series that come near and must leave everybody asleep.

use std::collections::BTreeMap;

use debros_proto::limits::CLOCK_OFFSET_MAX;

use super::{Alert, Comparison, Relation, Tempo, USABLE_DISK};
use crate::slo::Severity;

/// Half of what makes a node refuse to coordinate writes: time to mend the clock.
const CLOCK_OFFSET_SECONDS: f64 = CLOCK_OFFSET_MAX.as_millis() as f64 / 2000.0;
/// A disk that is full sooner than this does not wait for the next morning.
const DISK_FORECAST_SECONDS: u64 = 4 * 3600;
/// The forecast draws a line through so much of the past.
const DISK_TREND_MINUTES: u64 = 60;
/// The part of a limit above which what is bounded by it is nearly used up.
const NEARLY_USED_UP: f64 = 0.9;

/// What makes an alert fire, and what does not.
pub(super) struct Proof {
    pub(super) fires: Vec<Input>,
    /// In minutes after the beginning, when it is looked at.
    pub(super) fires_at: u64,
    pub(super) silent: Vec<Input>,
    pub(super) silent_at: u64,
}

/// A series in promtool's notation, a sample each minute.
pub(super) struct Input {
    pub(super) series: String,
    pub(super) values: &'static str,
}

/// Every alert on a cause.
pub(super) fn alerts(tempo: Tempo) -> Vec<Alert> {
    let causes = raft().into_iter().chain(machine(tempo)).chain(bounds());
    causes.map(|cause| cause.alert(tempo)).collect()
}

/// The parts that differ from alert to alert.
struct Cause {
    name: &'static str,
    severity: Severity,
    /// In minutes.
    holds: u64,
    condition: Comparison,
    summary: &'static str,
    description: String,
    proof: Proof,
}

impl Cause {
    fn alert(self, tempo: Tempo) -> Alert {
        let Self { name, severity, holds, condition, summary, description, proof } = self;
        Alert {
            name: name.to_owned(),
            severity,
            holds: tempo.minutes(holds),
            conditions: vec![condition],
            summary: summary.to_owned(),
            description,
            labels: BTreeMap::new(),
            proof: Some(proof),
        }
    }
}

fn when(left: impl Into<String>, relation: Relation, right: f64) -> Comparison {
    Comparison { left: left.into(), relation, right }
}

/// One series of one node that fires and one that does not.
fn proof(metric: &str, fires: (&'static str, u64), silent: (&'static str, u64)) -> Proof {
    Proof {
        fires: vec![of_node(metric, fires.0)],
        fires_at: fires.1,
        silent: vec![of_node(metric, silent.0)],
        silent_at: silent.1,
    }
}

fn of_node(metric: &str, values: &'static str) -> Input {
    let (name, labels) = metric.split_once('{').map_or((metric, String::new()), |(name, labels)| {
        (name, format!("{},", labels.trim_end_matches('}')))
    });
    Input { series: format!("{name}{{{labels}job=\"debros\",cluster=\"test\",node=\"node-1\"}}"), values }
}

fn raft() -> [Cause; 4] {
    [
        Cause {
            name: "DebrosQuorumSlackZero",
            severity: Severity::Page,
            holds: 5,
            condition: when("sum by (cluster) (debros_raft_groups_without_slack)", Relation::Above, 0.0),
            summary: "{{ $labels.cluster }}: one more node lost and databases stop",
            description: "Databases of three or more replicas have just enough of them left. Users feel nothing yet; the next node \
                          that goes takes these databases' writes and linearizable reads with it."
                .into(),
            // A node that is restarted is back within the five minutes.
            proof: proof("debros_raft_groups_without_slack", ("0x4 3x15", 10), ("0x9 3x4 0x5", 14)),
        },
        Cause {
            name: "DebrosGroupWithoutLeader",
            severity: Severity::Page,
            holds: 1,
            condition: when("max by (cluster, node) (debros_raft_groups_leaderless)", Relation::Above, 0.0),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has databases that nobody leads",
            description: "Replicas on this node have known no leader for a minute; an election takes a second or two. Writes and \
                          linearizable reads of these databases fail, at least through this node."
                .into(),
            proof: proof("debros_raft_groups_leaderless", ("0x4 1x5", 6), ("0x7 1 0x3", 8)),
        },
        Cause {
            name: "DebrosReplicaStopped",
            severity: Severity::Page,
            holds: 1,
            condition: when("max by (cluster, node) (debros_raft_groups_stopped)", Relation::Above, 0.0),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has stopped a replica",
            description: "A replica stopped because its machine failed it: an I/O error, a disk that is full, a state that cannot be \
                          trusted. It does not come back by itself, and the databases concerned live with one replica fewer."
                .into(),
            proof: proof("debros_raft_groups_stopped", ("0x4 1x5", 6), ("0x7 1 0x3", 8)),
        },
        Cause {
            name: "DebrosReplicasDiverge",
            severity: Severity::Ticket,
            holds: 15,
            condition: when("max by (cluster, node) (debros_storage_divergent_partitions)", Relation::Above, 0.0),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} holds other keys than its peers",
            description: "Rounds of repair, one each ten seconds, have found differences for a quarter of an hour without mending \
                          them. Reads at the default quorum still give the newest value; the copies that protect it are fewer."
                .into(),
            // A node that was away is repaired within minutes.
            proof: proof("debros_storage_divergent_partitions", ("0x4 7x25", 20), ("0x12 900 500 100x8 0x5", 23)),
        },
    ]
}

fn machine(tempo: Tempo) -> [Cause; 4] {
    let disk = |values| {
        vec![of_node("debros_disk_free_bytes", values), of_node("debros_disk_reserve_bytes", "1e9x90")]
    };
    [
        Cause {
            name: "DebrosNodeDown",
            severity: Severity::Ticket,
            holds: 5,
            condition: when("min by (cluster, node) (up{job=\"debros\"})", Relation::Below, 1.0),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} gives no metrics",
            description: "Prometheus has not reached the node for five minutes: it is down, cut off or busy beyond answering. The others \
                          go on without it; whether a further loss would be felt, DebrosQuorumSlackZero tells."
                .into(),
            proof: proof("up", ("1x4 0x10", 10), ("1x8 0x4 1x3", 13)),
        },
        Cause {
            name: "DebrosDiskFullSoon",
            severity: Severity::Page,
            holds: 15,
            condition: when(
                format!(
                    "predict_linear({USABLE_DISK}[{}], {})",
                    tempo.minutes(DISK_TREND_MINUTES),
                    tempo.seconds(DISK_FORECAST_SECONDS)
                ),
                Relation::Below,
                0.0,
            ),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has a full disk in less than four hours",
            description: "At the pace of the last hour the disk of the node is full, but for its reserve, within four hours. From then \
                          on it refuses writes."
                .into(),
            // 100 GB that go by 1 GB a minute last 100 minutes; by 0.3 GB a minute, more than five hours.
            proof: Proof { fires: disk("100e9-1e9x90"), silent: disk("100e9-0.25e9x90"), fires_at: 80, silent_at: 80 },
        },
        Cause {
            name: "DebrosDiskFull",
            severity: Severity::Page,
            holds: 1,
            condition: when(format!("min by (cluster, node) ({USABLE_DISK})"), Relation::AtMost, 0.0),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} refuses writes: its disk is full",
            description: "Nothing is free but the reserve that deletions and recovery need. Writes that need this node fail with \
                          DISK_FULL; reads and deletions go on."
                .into(),
            proof: Proof { fires: disk("0.9e9x90"), silent: disk("1.1e9x90"), fires_at: 9, silent_at: 9 },
        },
        Cause {
            name: "DebrosClockSkew",
            severity: Severity::Page,
            holds: 2,
            condition: when(
                "max by (cluster, node) (abs(debros_storage_clock_offset_seconds))",
                Relation::Above,
                CLOCK_OFFSET_SECONDS,
            ),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has a clock that is wrong",
            description: format!(
                "The clock of the node is more than {CLOCK_OFFSET_SECONDS} s from the median of its peers. From {} s it coordinates no \
                 writes of the storage; before that, of two writes at once the earlier one may win.",
                2.0 * CLOCK_OFFSET_SECONDS
            ),
            proof: proof("debros_storage_clock_offset_seconds", ("0x4 -0.13x10", 7), ("0x4 -0.12x10", 14)),
        },
    ]
}

fn bounds() -> [Cause; 2] {
    let resource = |used| {
        vec![
            of_node("debros_resource_used{resource=\"pubsub_sessions\"}", used),
            of_node("debros_resource_limit{resource=\"pubsub_sessions\"}", "1000x30"),
        ]
    };
    let queue = |used| {
        vec![
            of_node("debros_queue_bytes{queue=\"storage_hints\"}", used),
            of_node("debros_queue_bytes_limit{queue=\"storage_hints\"}", "1000x30"),
            // The ring keeps what it can on purpose.
            of_node("debros_queue_bytes{queue=\"pubsub_ring\"}", "1000x30"),
            of_node("debros_queue_bytes_limit{queue=\"pubsub_ring\"}", "1000x30"),
        ]
    };
    [
        Cause {
            name: "DebrosLimitNear",
            severity: Severity::Ticket,
            holds: 15,
            condition: when(
                "max by (cluster, node, resource) (debros_resource_used / debros_resource_limit)",
                Relation::Above,
                NEARLY_USED_UP,
            ),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has nearly used up its {{ $labels.resource }}",
            description: "More than nine tenths of what the node allows are in use. At the limit it refuses further ones. Either there are \
                          many users, or a client opens them and never closes any."
                .into(),
            proof: Proof { fires: resource("950x30"), silent: resource("890x30"), fires_at: 20, silent_at: 20 },
        },
        Cause {
            name: "DebrosQueueFull",
            severity: Severity::Ticket,
            holds: 5,
            condition: when(
                "max by (cluster, node, queue) (debros_queue_bytes{queue!=\"pubsub_ring\"} / debros_queue_bytes_limit \
                 or debros_queue_items / debros_queue_items_limit)",
                Relation::Above,
                NEARLY_USED_UP,
            ),
            summary: "{{ $labels.node }} of {{ $labels.cluster }} has a queue that is nearly full: {{ $labels.queue }}",
            description: "More than nine tenths of what may wait in this queue wait there. At the limit it refuses or drops, as the \
                          runbook says of each queue."
                .into(),
            proof: Proof { fires: queue("950x30"), silent: queue("890x30"), fires_at: 12, silent_at: 12 },
        },
    ]
}
