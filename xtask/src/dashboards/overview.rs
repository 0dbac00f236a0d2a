//! The dashboard to begin with: is all well, and if not, on which node and in which part.

use anyhow::Result;

use super::express::{CLUSTERS, NODES, gauge, quantile, rate, selected};
use super::service_levels::{burn, burn_steps};
use super::{Dashboard, Looks, Panel, Row, Step, Unit, bad_below, bad_from};
use crate::rules::USABLE_DISK;
use crate::slo::Slo;

/// Is all well, and where not?
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-overview",
        title: "overview",
        about: "Is all well? If not: which node, and which part of it?",
        rows: vec![
            Row { title: "At a glance", panels: glance(slo) },
            Row { title: "Nodes", panels: vec![nodes()] },
            Row { title: "What users ask for", panels: asked(slo)? },
            Row { title: "What it takes", panels: takes() },
            Row { title: "What is wrong", panels: wrong() },
            Row { title: "Traces and probes", panels: vec![traces(), probes()] },
        ],
    })
}

fn glance(slo: &Slo) -> Vec<Panel> {
    let shortest = slo.burns.iter().map(|burn| &burn.long).min();
    let hour = shortest.map_or("1h", |window| window.as_str());
    vec![
        Panel::number(
            Unit::Part,
            "Do all nodes answer?",
            "The part of the nodes that Prometheus reaches; below 100 % some node is down or cut off.",
        )
        .query(format!("avg(up{{job=\"debros\",{CLUSTERS}}})"), "of nodes")
        .bad_below(1.0)
        .runbook("DebrosNodeDown"),
        Panel::number(
            Unit::Count,
            "Is every database led?",
            "Replicas that know no leader: writes and linearizable reads of their databases fail.",
        )
        .query(format!("sum(debros_raft_groups_leaderless{{{CLUSTERS}}})"), "without leader")
        .bad_from(1.0)
        .runbook("DebrosGroupWithoutLeader"),
        Panel::number(
            Unit::Count,
            "May one more node be lost?",
            "Databases whose quorum would go with the next node that goes. 0 is well; users feel nothing yet of more.",
        )
        .query(format!("sum(debros_raft_groups_without_slack{{{CLUSTERS}}})"), "without slack")
        .bad_from(1.0)
        .runbook("DebrosQuorumSlackZero"),
        Panel::number(
            Unit::Times,
            "Does an error budget burn?",
            format!("The budget that burns fastest, over {hour}, in multiples of what lasts; the service levels' dashboard tells which."),
        )
        .query(format!("max({})", burn(hour)), "times as fast")
        .steps(burn_steps(slo)),
        Panel::number(
            Unit::Count,
            "How many alerts fire?",
            "Alerts of configs/prometheus/alerts.yaml that somebody was called for and that go on.",
        )
        .query("count(ALERTS{cluster=~\"$cluster\",alertname=~\"Debros.*\",alertstate=\"firing\"}) or vector(0)", "firing")
        .bad_from(1.0),
        Panel::number(
            Unit::Count,
            "Do nodes run the same version?",
            "How many versions run; two are normal during an update, and at no other time.",
        )
        .query(format!("count(count by (version) (debros_build_info{{{CLUSTERS}}}))"), "versions")
        .steps(vec![
            Step { from: f64::NEG_INFINITY, looks: Looks::Good },
            Step { from: 2.0, looks: Looks::Doubtful },
        ]),
    ]
}

/// One line for each node.
fn nodes() -> Panel {
    let by_node = |metric: &str| format!("sum by (cluster, node) ({})", selected(metric));
    let rate = |metric: &str| rate(metric, "cluster, node");
    let slowest = quantile(0.99, "debros_rpc_duration_seconds{origin=\"client\"}", "cluster, node");
    let failed = rate("debros_rpc_requests_total{origin=\"client\",code!=\"OK\"}");
    let all = rate("debros_rpc_requests_total{origin=\"client\"}");
    Panel::table(
        "How is each node?",
        "A line for each node: whether it answers, what it leads, what it does for users, and what it needs. A node that led and leads no more has \
         been restarted or cut off; leaders move back by themselves.",
    )
    .column("up", Unit::Count, bad_below(1.0), by_node("up{job=\"debros\"}"))
    .column("leads", Unit::Count, vec![], by_node("debros_raft_groups_led"))
    .column("leaderless", Unit::Count, bad_from(1.0), by_node("debros_raft_groups_leaderless"))
    .column("stopped", Unit::Count, bad_from(1.0), by_node("debros_raft_groups_stopped"))
    .column("requests", Unit::RequestsPerSecond, vec![], all.clone())
    .column("not OK", Unit::RequestsPerSecond, vec![], format!("{failed} or 0 * {all}"))
    .column("99 % below", Unit::Seconds, bad_from(0.5), slowest)
    .column("CPU", Unit::Count, vec![], rate("process_cpu_seconds_total"))
    .column("memory", Unit::Bytes, vec![], by_node("process_resident_memory_bytes"))
    .column("disk left", Unit::Bytes, bad_below(1.0), by_node(USABLE_DISK))
    .column("clock", Unit::Seconds, vec![], by_node("debros_storage_clock_offset_seconds"))
    .column("up since", Unit::Seconds, vec![], format!("time() - {}", by_node("process_start_time_seconds")))
}

fn asked(slo: &Slo) -> Result<Vec<Panel>> {
    let requests = "debros_rpc_requests_total{origin=\"client\"}";
    let slowest = quantile(0.99, "debros_rpc_duration_seconds{origin=\"client\"}", "service");
    let level = slo.level("database_latency")?.seconds().unwrap_or_default();
    Ok(vec![
        Panel::lines(
            Unit::RequestsPerSecond,
            "What do users ask for?",
            "Requests of users by part of the service; what nodes ask each other for is not in here.",
        )
        .query(rate(requests, "service"), "{{service}}"),
        Panel::lines(
            Unit::Seconds,
            "Is it answered in time?",
            "What 99 of 100 requests take, by part of the service. The dashed line is what is promised for databases.",
        )
        .query(slowest, "{{service}}")
        .bad_from(level),
        Panel::lines(
            Unit::Part,
            "What part is not answered?",
            "The part of users' requests that failed, whosever fault it was: the service levels' dashboard tells them apart.",
        )
        .query(
            format!(
                "({} or 0 * {all}) / clamp_min({all}, 1e-9)",
                rate("debros_rpc_requests_total{origin=\"client\",code!=\"OK\"}", "service"),
                all = rate(requests, "service")
            ),
            "{{service}}",
        ),
    ])
}

fn takes() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::Count,
            "Which node works hardest?",
            "Processors that each node's process keeps busy. One far above the others leads much or is asked for much.",
        )
        .query(rate("process_cpu_seconds_total", "node"), "{{node}}"),
        Panel::lines(
            Unit::Bytes,
            "Which node needs how much memory?",
            "Memory of each node's process that is in RAM. Steady growth over days is a leak.",
        )
        .query(gauge("process_resident_memory_bytes"), "{{node}}"),
        Panel::lines(
            Unit::Bytes,
            "How much disk is left?",
            "Until a node refuses writes, to keep its reserve for deletions and recovery.",
        )
        .query(gauge(USABLE_DISK), "{{node}}")
        .bad_below(0.0)
        .runbook("DebrosDiskFullSoon"),
    ]
}

fn wrong() -> Vec<Panel> {
    let limits = selected("debros_resource_limit");
    vec![
        Panel::lines(
            Unit::Count,
            "Which alerts fire, and since when?",
            "Each alert that fires, as a line for as long as it does; the line `none` is always there.",
        )
        .query(
            "count by (alertname) (ALERTS{cluster=~\"$cluster\",alertname=~\"Debros.*\",alertstate=\"firing\"}) \
             or label_replace(vector(0), \"alertname\", \"none\", \"\", \"\")",
            "{{alertname}}",
        ),
        Panel::lines(
            Unit::Count,
            "Who leads, and did that change?",
            "Databases that each node leads. A line that falls while others rise is a node that was restarted, cut off or too slow.",
        )
        .query(gauge("debros_raft_groups_led"), "{{node}}"),
        Panel::lines(
            Unit::Part,
            "What comes near its limit?",
            "Sessions, subscriptions, watches, connections and databases in use, of what the node allows. A steady climb is a leak of some client.",
        )
        .query(
            format!("max by (resource) (debros_resource_used{{{NODES}}} / {limits})"),
            "{{resource}}",
        )
        .bad_from(0.9)
        .runbook("DebrosLimitNear"),
    ]
}

fn traces() -> Panel {
    let slowest = quantile(0.99, "debros_rpc_traced_duration_seconds", "service");
    let none = rate("debros_rpc_requests_total{origin=\"client\"}", "service");
    Panel::lines(
        Unit::Seconds,
        "Which traced requests are slow?",
        "What 99 of 100 traced requests take, by part of the service; a mark is a request, and leads to its trace. 0 while nothing is traced: tracing is off \
         unless it is configured, and Prometheus keeps the marks only with --enable-feature=exemplar-storage.",
    )
    .traced(format!("{slowest} or 0 * {none}"), "{{service}}")
}

fn probes() -> Panel {
    Panel::lines(
        Unit::Seconds,
        "How long do the nodes' probes take?",
        "Each node writes, reads back through another one, publishes and receives each few seconds: what a user would feel at that node who asks now.",
    )
    .query(quantile(0.99, "debros_probe_duration_seconds", "node, probe"), "{{node}} {{probe}}")
}
