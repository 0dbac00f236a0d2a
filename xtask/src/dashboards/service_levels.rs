//! The dashboard of the promises: which are kept, how much may still go wrong, and what goes wrong.

use anyhow::{Result, ensure};

use super::express::{CLUSTERS, quantile, rate};
use super::{Dashboard, Looks, Panel, Row, Step, Unit, bad_below, bad_from};
use crate::rules::{BUDGET_LEFT, OBJECTIVE, alert_on, bad_ratio};
use crate::slo::{Counts, Level, Slo};

/// Users are not asked for by node: a promise is one of the cluster.
pub(super) fn dashboard(slo: &Slo) -> Result<Dashboard> {
    Ok(Dashboard {
        uid: "debros-slo",
        title: "service levels",
        about: "Do users get what was promised, and how much may still go wrong?",
        rows: vec![
            Row { title: "Promises", panels: vec![promises(slo)?] },
            Row { title: "Error budgets", panels: vec![budgets(slo), burns(slo)?, parts_bad(slo)?] },
            Row {
                title: "Speed",
                panels: speeds(slo, &["storage_latency", "pubsub_latency", "database_latency"])?,
            },
            Row { title: "Writes and membership", panels: speeds(slo, &["write_latency", "discovery"])? },
            Row { title: "What goes wrong", panels: vec![faults(slo), missed(slo)?, probes(slo)?] },
        ],
    })
}

fn of_clusters(record: &str) -> String {
    format!("{record}{{{CLUSTERS}}}")
}

/// How many times as fast as it may a budget burns.
pub(super) fn burn(window: &str) -> String {
    format!("{} / on (slo) group_left () (1 - {OBJECTIVE})", of_clusters(&bad_ratio(window)))
}

/// From which factors on somebody is called.
pub(super) fn burn_steps(slo: &Slo) -> Vec<Step> {
    let slowest = slo.burns.iter().map(|burn| burn.factor).fold(f64::INFINITY, f64::min);
    let fastest = slo.burns.iter().map(|burn| burn.factor).fold(0.0, f64::max);
    vec![
        Step { from: f64::NEG_INFINITY, looks: Looks::Good },
        Step { from: slowest, looks: Looks::Doubtful },
        Step { from: fastest, looks: Looks::Bad },
    ]
}

fn windows(slo: &Slo) -> Result<(&str, &str)> {
    let mut longs = slo.burns.iter().map(|burn| &burn.long).collect::<Vec<_>>();
    longs.sort();
    ensure!(longs.len() >= 2, "two burns at least are needed");
    Ok((longs[0].as_str(), longs[1].as_str()))
}

fn promises(slo: &Slo) -> Result<Panel> {
    let (hour, later) = windows(slo)?;
    let window = slo.window.as_str();
    let spent = of_clusters(&bad_ratio(window));
    let promised = format!("0 * {spent} + on (slo) group_left () {OBJECTIVE}");
    let about = format!(
        "Each promise of configs/slo.yaml: what part must be good, what part was over {window}, what is left of the error budget, and how many times as \
         fast as it may the budget burns."
    );
    Ok(Panel::table("Which promises are kept?", about)
        .column("promised", Unit::Part, vec![], promised)
        .column("good", Unit::Part, vec![], format!("1 - {spent}"))
        .column("budget left", Unit::Part, bad_below(0.0), of_clusters(BUDGET_LEFT))
        .column(&format!("burn, {hour}"), Unit::Times, burn_steps(slo), burn(hour))
        .column(&format!("burn, {later}"), Unit::Times, burn_steps(slo), burn(later)))
}

fn budgets(slo: &Slo) -> Panel {
    let window = slo.window.as_str();
    let about = format!(
        "What part of what may go wrong within {window} has not gone wrong yet. Below nothing the promise is broken: mend before you change."
    );
    Panel::lines(Unit::Part, "How much of each error budget is left?", about)
        .query(of_clusters(BUDGET_LEFT), "{{slo}}")
        .bad_below(0.0)
}

fn burns(slo: &Slo) -> Result<Panel> {
    let (hour, _) = windows(slo)?;
    let about = format!(
        "At 1 the budget lasts exactly as long as it must. Over {hour}; somebody is called at the dashed lines once it also holds over a shorter window."
    );
    Ok(Panel::lines(Unit::Times, "How fast does each error budget burn?", about)
        .query(burn(hour), "{{slo}}")
        .steps(burn_steps(slo)))
}

fn parts_bad(slo: &Slo) -> Result<Panel> {
    let shortest = slo.windows().into_iter().next();
    let shortest = shortest.map_or("5m", |window| window.as_str());
    let about =
        format!("The part of requests, messages or probes of the last {shortest} that was not as promised.");
    Ok(Panel::lines(Unit::Part, "What part is bad right now?", about)
        .query(of_clusters(&bad_ratio(shortest)), "{{slo}}")
        .runbook(alert_on(slo.level("availability")?)))
}

fn speeds(slo: &Slo, names: &[&str]) -> Result<Vec<Panel>> {
    let panel = |name: &&str| {
        let level = slo.level(name)?;
        speed(slo, level)
    };
    names.iter().map(panel).collect()
}

fn speed(slo: &Slo, level: &Level) -> Result<Panel> {
    let seconds = level.seconds().unwrap_or_default();
    let histogram = match &level.counts {
        Counts::Faster { requests, .. } => {
            let methods = slo.requests(requests)?.methods.into_iter().collect::<Vec<_>>().join("|");
            format!("debros_rpc_duration_seconds{{origin=\"client\",method=~\"{methods}\"}}")
        }
        Counts::Discovered { .. } => "debros_net_discovery_duration_seconds".to_owned(),
        Counts::Answered(_) | Counts::Delivered | Counts::Probed => {
            anyhow::bail!("{} is no promise of speed", level.name)
        }
    };
    let question = match level.name.as_str() {
        "storage_latency" => "Are storage operations fast enough?",
        "pubsub_latency" => "Are pub/sub operations fast enough?",
        "database_latency" => "Are database operations fast enough?",
        "write_latency" => "Are linearizable writes fast enough?",
        "discovery" => "Do nodes find one another soon enough?",
        name => anyhow::bail!("no question is known for the level {name}"),
    };
    let about = format!(
        "Promised for {}: {}. The dashed line is the promise; the 99th percentile should stay below it.",
        level.percent(),
        level.promise
    );
    let of = |part| quantile(part, &histogram, "cluster");
    // Discovery happens seldom: over the minutes of a rate there is often none.
    let of: &dyn Fn(f64) -> String = match level.counts {
        Counts::Discovered { .. } => &|part| {
            let buckets = format!("{histogram}_bucket{{{CLUSTERS}}}");
            format!("histogram_quantile({part}, sum by (le, cluster) ({buckets}))")
        },
        _ => &of,
    };
    Ok(Panel::lines(Unit::Seconds, question, about)
        .query(of(0.99), "99 % below")
        .query(of(0.5), "half below")
        .bad_from(seconds)
        .runbook(alert_on(level)))
}

fn faults(slo: &Slo) -> Panel {
    let codes = slo.codes.services_fault.join("|");
    let failed = rate(&format!("debros_rpc_requests_total{{origin=\"client\",code=~\"{codes}\"}}"), "code");
    let none = none_of("debros_rpc_requests_total{origin=\"client\"}", "code");
    Panel::lines(
        Unit::RequestsPerSecond,
        "Which failures are the service's fault?",
        "Requests of users that failed by the service's fault, by error code; docs/troubleshooting.md leads from a code to its cause.",
    )
    .query(format!("{failed} or {none}"), "{{code}}")
}

/// A line at nothing, so that "none" is seen to be known.
pub(super) fn none_of(total: &str, label: &str) -> String {
    format!("label_replace(0 * {}, \"{label}\", \"none\", \"\", \"\")", rate(total, "job"))
}

fn missed(slo: &Slo) -> Result<Panel> {
    let level = slo.level("delivery")?;
    Ok(Panel::lines(
        Unit::Part,
        "Do messages reach their subscribers?",
        format!(
            "The part of messages that subscribers were told they missed. Promised for {}: {}.",
            level.percent(),
            level.promise
        ),
    )
    .query(format!("{}{{{CLUSTERS},slo=\"delivery\"}}", bad_ratio("5m")), "missed")
    .steps(bad_from(level.budget()))
    .runbook(alert_on(level)))
}

fn probes(slo: &Slo) -> Result<Panel> {
    let failed = rate("debros_probe_total{outcome=\"failed\"}", "probe");
    let all = rate("debros_probe_total", "probe");
    let level = slo.level("probes")?;
    Ok(Panel::lines(
        Unit::Part,
        "Do the nodes' own probes succeed?",
        "Each node writes, reads back through another node, publishes and receives, whether or not users ask for anything. The part of the probes \
         that failed.",
    )
    .query(format!("({failed} or 0 * {all}) / clamp_min({all}, 1e-9)"), "{{probe}} failed")
    .steps(bad_from(level.budget()))
    .runbook(alert_on(level)))
}
