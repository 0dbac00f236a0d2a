//! The dashboard of what carries the rest: members, connections, HTTP, processes.

use anyhow::Result;

use super::express::{gauge, quantile, rate, selected};
use super::{Dashboard, Panel, Row, Unit};
use crate::rules::alert_on;
use crate::slo::Slo;

/// Whether nodes reach each other, and what their processes do.
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-network",
        title: "network",
        about: "Members, connections, HTTP and processes: does every node reach every other, and has it what it needs?",
        rows: vec![
            Row { title: "Members", panels: members(slo)? },
            Row { title: "Connections", panels: connections() },
            Row { title: "Streams", panels: streams() },
            Row { title: "HTTP", panels: http() },
            Row { title: "Processes", panels: processes() },
            Row { title: "Threads and mappings", panels: threads() },
            Row { title: "Runtime and bounds", panels: runtime() },
        ],
    })
}

fn members(slo: &Slo) -> Result<Vec<Panel>> {
    let level = slo.level("discovery")?;
    let buckets = selected("debros_net_discovery_duration_seconds_bucket");
    Ok(vec![
        Panel::lines(
            Unit::Count,
            "Does every node know every member?",
            "Members as each node knows them, and those that it cannot reach: a node that cannot be reached by one only is cut off from that one.",
        )
        .query(gauge("debros_cluster_members"), "{{node}}, members")
        .query(gauge("debros_cluster_members_unreachable"), "{{node}}, unreachable")
        .runbook("DebrosNodeDown"),
        Panel::lines(
            Unit::Count,
            "Do all act on the same map?",
            "The epoch of the cluster map that each node has. Lines that do not meet again within seconds: a node does not hear the meta group.",
        )
        .query(gauge("debros_cluster_epoch"), "{{node}}"),
        Panel::lines(
            Unit::Seconds,
            "How soon is a node connected?",
            format!("Since the process began, from an address's being learnt to the connection. The dashed line is the promise: {}.", level.promise),
        )
        // Without nodes that were found by the others before they found anybody.
        .query(format!("histogram_quantile(0.99, sum by (le, node) ({buckets})) >= 0"), "{{node}}, 99 % below")
        .bad_from(level.seconds().unwrap_or_default())
        .runbook(alert_on(level)),
    ])
}

fn connections() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Count,
            "How are nodes and clients connected?",
            "Connections by transport, of peers and SDK clients together, and the peers that are connected of those that are known.",
        )
        .query(format!("sum by (transport) ({})", selected("debros_net_connections")), "{{transport}}")
        .query(format!("sum by (state) ({})", selected("debros_net_peers")), "peers, {{state}}"),
        Panel::lines(
            Unit::PerSecond,
            "Which connections fail?",
            "Dials that failed and admissions refused, by reason. Refusals come from nodes of another cluster or with another secret.",
        )
        .query(rate("debros_net_dials_failed_total", "reason"), "dial: {{reason}}")
        .query(rate("debros_net_admission_refused_total", "reason"), "refused: {{reason}}"),
        Panel::lines(
            Unit::Seconds,
            "How far apart are the nodes?",
            "The longest round trip from each node to a peer. Every commit waits for one to a follower.",
        )
        .query(gauge("debros_net_round_trip_max_seconds"), "{{node}}"),
    ]
}

fn streams() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::PerSecond,
            "Do connections come and go?",
            "Connections opened and those that failed while they came in. In a settled cluster there are few of either.",
        )
        .query(rate("debros_net_connections_opened_total", "node"), "{{node}}, opened")
        .query(rate("debros_net_inbound_failed_total", "node"), "{{node}}, failed"),
        Panel::lines(
            Unit::PerSecond,
            "Do streams come and go?",
            "Streams are long-lived: a high rate means that something gives up on them, or refuses them at a limit.",
        )
        .query(rate("debros_net_streams_opened_total", "cluster"), "opened")
        .query(rate("debros_net_streams_accepted_total", "cluster"), "accepted")
        .query(rate("debros_net_streams_refused_total", "cluster"), "refused"),
        Panel::lines(
            Unit::PerSecond,
            "Are heartbeats lost?",
            "Connections given up because the other side was silent. The node that all others lose is the one to look at.",
        )
        .query(rate("debros_net_heartbeats_lost_total", "node"), "{{node}}")
        .runbook("DebrosNodeDown"),
    ]
}

fn http() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::RequestsPerSecond,
            "What is asked over HTTP?",
            "By route and listener: `http` is rqlite's API, `admin` health checks and metrics.",
        )
        .query(rate("debros_http_requests_total", "listener, route"), "{{listener}} {{route}}"),
        Panel::lines(
            Unit::RequestsPerSecond,
            "How does HTTP answer?",
            "By class of status: 5xx is the service's fault and counts against availability.",
        )
        .query(rate("debros_http_requests_total", "listener, status"), "{{listener}} {{status}}"),
        Panel::lines(
            Unit::Seconds,
            "Is HTTP slow?",
            "What 99 of 100 requests take, by route; a scrape of the metrics should stay below 20 ms.",
        )
        .query(quantile(0.99, "debros_http_duration_seconds", "listener, route"), "{{listener}} {{route}}"),
    ]
}

fn processes() -> Vec<Panel> {
    let descriptors =
        format!("{} / clamp_min({}, 1)", selected("process_open_fds"), selected("process_max_fds"));
    vec![
        Panel::lines(
            Unit::Count,
            "How much processor does each node take?",
            "Processors kept busy, user and system time.",
        )
        .query(rate("process_cpu_seconds_total", "node"), "{{node}}"),
        Panel::lines(
            Unit::Bytes,
            "How much memory does each node take?",
            "What is in RAM. What is only mapped does not count: the storage maps storage.max_size.",
        )
        .query(gauge("process_resident_memory_bytes"), "{{node}}, in RAM"),
        Panel::lines(
            Unit::Part,
            "Are there file descriptors left?",
            "Open ones of what the system allows the process.",
        )
        .query(descriptors, "{{node}}")
        .bad_from(0.9)
        .runbook("DebrosLimitNear"),
    ]
}

fn threads() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Count,
            "How many threads does each node have?",
            "Workers of the runtime and those that wait for disks. A number that only grows is work that blocks and never ends.",
        )
        .query(gauge("process_threads"), "{{node}}"),
        Panel::lines(
            Unit::Bytes,
            "How much does each node map?",
            "Address space, not memory: most of it is storage.max_size, which the storage maps as a whole.",
        )
        .query(gauge("process_virtual_memory_bytes"), "{{node}}"),
    ]
}

fn runtime() -> Vec<Panel> {
    let busy = format!(
        "{} / clamp_min(sum by (node) ({}), 1)",
        rate("debros_tokio_busy_seconds_total", "node"),
        selected("debros_tokio_workers")
    );
    let full = |unit: &str| {
        let (used, limit) = (format!("debros_queue_{unit}"), format!("debros_queue_{unit}_limit"));
        format!("max by (queue) ({} / {})", selected(&used), selected(&limit))
    };
    vec![
        Panel::lines(
            Unit::Part,
            "Are the runtime's threads busy?",
            "The part of the time that tokio's workers are busy. Near 100 % every request waits for others.",
        )
        .query(busy, "{{node}}")
        .bad_from(0.95),
        Panel::lines(
            Unit::Count,
            "How many tasks live and wait?",
            "Tasks of the runtime, and those in its global queue. Tasks that only grow in number are a leak.",
        )
        .query(gauge("debros_tokio_live_tasks"), "{{node}}, live")
        .query(gauge("debros_tokio_global_queue_tasks"), "{{node}}, waiting"),
        Panel::lines(
            Unit::Part,
            "How full are the queues?",
            "Of their limits, by queue. The ring of pub/sub keeps what it can, so full is its usual state.",
        )
        .query(full("bytes"), "{{queue}}")
        .query(full("items"), "{{queue}}, items")
        .bad_from(0.9)
        .runbook("DebrosQueueFull"),
    ]
}
