//! The dashboard of pub/sub: what is published, whether it arrives, who listens.

use anyhow::Result;

use super::express::{gauge, quantile, rate, selected};
use super::service_levels::none_of;
use super::{Dashboard, Panel, Row, Unit};
use crate::rules::{alert_on, bad_ratio};
use crate::slo::Slo;

const SERVICE: &str = "origin=\"client\",service=\"pubsub\"";
const OPERATIONS: &str = "method=~\"PubSubPublish|PubSubSubscribe|PubSubTopics|PubSubPresent\"";

/// What is published, and whether it arrives.
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-pubsub",
        title: "pub/sub",
        about: "Live messages: do they arrive, in time and all of them, and who listens?",
        rows: vec![
            Row { title: "Messages", panels: messages(slo)? },
            Row { title: "Requests", panels: requests(slo)? },
            Row { title: "Gaps", panels: gaps() },
            Row { title: "Who listens", panels: listeners() },
        ],
    })
}

fn messages(slo: &Slo) -> Result<Vec<Panel>> {
    let level = slo.level("delivery")?;
    Ok(vec![
        Panel::lines(
            Unit::PerSecond,
            "How many messages go in and out?",
            "Published by clients, and sent to subscriptions: each message once for each subscription that it matches.",
        )
        .query(rate("debros_pubsub_published_total", "cluster"), "published")
        .query(rate("debros_pubsub_delivered_total", "cluster"), "delivered"),
        Panel::lines(
            Unit::PerSecond,
            "Which messages are missed?",
            "Dropped because a subscription's queue was full: its client reads too slowly. Lost because they left the ring before a node had them: that \
             node was away too long.",
        )
        .query(rate("debros_pubsub_dropped_total", "cluster"), "dropped")
        .query(rate("debros_pubsub_lost_total", "cluster"), "lost")
        .runbook(alert_on(level)),
        Panel::lines(
            Unit::Part,
            "What part of the messages is missed?",
            format!("Over five minutes; the dashed line is what is promised for {}: {}.", level.percent(), level.promise),
        )
        .query(format!("{}{{cluster=~\"$cluster\",slo=\"delivery\"}}", bad_ratio("5m")), "missed")
        .bad_from(level.budget())
        .runbook(alert_on(level)),
    ])
}

fn requests(slo: &Slo) -> Result<Vec<Panel>> {
    let level = slo.level("pubsub_latency")?;
    let requests = format!("debros_rpc_requests_total{{{SERVICE}}}");
    let failed = rate(&format!("debros_rpc_requests_total{{{SERVICE},code!=\"OK\"}}"), "code");
    let slowest = quantile(0.99, &format!("debros_rpc_duration_seconds{{{SERVICE},{OPERATIONS}}}"), "method");
    Ok(vec![
        Panel::lines(
            Unit::RequestsPerSecond,
            "What is asked of pub/sub?",
            "Requests of users by method; publishing counts in batches, not in messages.",
        )
        .query(rate(&requests, "method"), "{{method}}"),
        Panel::lines(
            Unit::Seconds,
            "Which pub/sub operations are slow?",
            format!(
                "What 99 of 100 operations take, by method. The dashed line is the promise: {}.",
                level.promise
            ),
        )
        .query(slowest, "{{method}}")
        .bad_from(level.seconds().unwrap_or_default())
        .runbook(alert_on(level)),
        Panel::lines(
            Unit::RequestsPerSecond,
            "Which pub/sub operations fail?",
            "By error code, whosever fault it is.",
        )
        .query(format!("{failed} or {}", none_of(&requests, "code")), "{{code}}"),
    ])
}

fn gaps() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::PerSecond,
            "Are gaps noticed and repaired?",
            "Messages that were missed on the way and came again from the origin's ring, and notices to subscriptions of those that did not.",
        )
        .query(rate("debros_pubsub_gaps_repaired_total", "cluster"), "repaired")
        .query(rate("debros_pubsub_lagged_total", "cluster"), "notices"),
        Panel::lines(
            Unit::PerSecond,
            "Do publishers send twice?",
            "Messages that came again and were known: clients that moved to another node and sent what had not been acknowledged. And messages rerouted \
             because a queue group's member had gone.",
        )
        .query(rate("debros_pubsub_repeated_total", "cluster"), "sent again")
        .query(rate("debros_pubsub_bounced_total", "cluster"), "rerouted"),
        Panel::lines(
            Unit::Part,
            "How full are rings and queues?",
            "Of their limits. The ring keeps what it can, so full is its usual state; a full queue is a client that does not read.",
        )
        .query(
            format!(
                "max by (queue) ({} / {})",
                selected("debros_queue_bytes{queue=~\"pubsub_.*\"}"),
                selected("debros_queue_bytes_limit")
            ),
            "{{queue}}",
        )
        .runbook("DebrosQueueFull"),
    ]
}

fn listeners() -> Vec<Panel> {
    vec![
        Panel::lines(Unit::Count, "How many clients are attached?", "Sessions of clients on each node.")
            .query(gauge("debros_pubsub_sessions"), "{{node}}"),
        Panel::lines(
            Unit::Count,
            "How many subscriptions are there?",
            "Subscriptions of the clients of each node. A climb without an end is a client that never unsubscribes.",
        )
        .query(gauge("debros_pubsub_subscriptions"), "{{node}}")
        .runbook("DebrosLimitNear"),
        Panel::lines(
            Unit::Count,
            "Do nodes know each other's interest?",
            "Patterns of other nodes that each node knows, and the nodes that its messages reach: all others, when all is well.",
        )
        .query(gauge("debros_pubsub_interest_entries"), "{{node}}, patterns")
        .query(gauge("debros_pubsub_links"), "{{node}}, nodes"),
    ]
}
