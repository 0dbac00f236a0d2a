//! The recording rules: what was asked and what of it was bad, per second and service level, and from these two the part that was
//! bad over each window. The long windows average the recorded short one instead of reading every series for days.
//!
//! Invariant: as long as nodes are scraped no series is missing and none is `NaN`, also while nobody asks for anything.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{Recording, Tempo};
use crate::slo::{Counts, Level, Requests, Slo};

/// What happened per second, by service level.
pub(crate) const TOTAL: &str = "debros:slo_total:rate5m";
/// What of it was bad.
pub(crate) const BAD: &str = "debros:slo_bad:rate5m";
/// The part that must be good, by service level.
pub(crate) const OBJECTIVE: &str = "debros:slo_objective:ratio";
/// The part of the error budget that is left, by service level.
pub(crate) const BUDGET_LEFT: &str = "debros:slo_budget_left:ratio";
/// Bytes until the node refuses writes to keep its reserve.
pub(crate) const USABLE_DISK: &str = "debros:disk_usable:bytes";
/// The window of these two, as their names say.
const RATE_MINUTES: u64 = 5;
/// Less than one event in thirty years: it turns nothing of nothing into nothing instead of `NaN`.
const NEVER: &str = "1e-9";

/// The name of the series with the part that was bad over a window.
pub(crate) fn bad_ratio(window: &str) -> String {
    format!("debros:slo_bad:ratio_rate{window}")
}

/// Every recording rule.
pub(super) fn recordings(slo: &Slo, tempo: Tempo) -> Result<Vec<Recording>> {
    let mut all = Vec::new();
    for level in &slo.levels {
        let Events { total, bad } = events(slo, level, tempo)?;
        let labels = BTreeMap::from([("slo", level.name.clone())]);
        all.push(Recording { record: TOTAL.into(), expr: total, labels: labels.clone() });
        all.push(Recording { record: BAD.into(), expr: bad, labels: labels.clone() });
        let objective = format!("vector({})", level.objective);
        all.push(Recording { record: OBJECTIVE.into(), expr: objective, labels });
    }
    let plain = |record: String, expr| Recording { record, expr, labels: BTreeMap::new() };
    for window in slo.windows() {
        let range = tempo.minutes(window.minutes());
        all.push(plain(bad_ratio(window.as_str()), part_bad("", &range)));
    }
    let spent = bad_ratio(slo.window.as_str());
    all.push(plain(BUDGET_LEFT.into(), format!("1 - {spent} / on (slo) group_left () (1 - {OBJECTIVE})")));
    all.push(plain(USABLE_DISK.into(), "debros_disk_free_bytes - debros_disk_reserve_bytes".into()));
    Ok(all)
}

/// The part that was bad over a range, of the levels that a selector picks.
pub(super) fn part_bad(selector: &str, range: &str) -> String {
    let [bad, total] = [BAD, TOTAL].map(|series| format!("avg_over_time({series}{selector}[{range}])"));
    format!("{bad} / clamp_min({total}, {NEVER})")
}

/// Expressions for what happened per second in a cluster, and what of it was bad.
struct Events {
    total: String,
    bad: String,
}

fn events(slo: &Slo, level: &Level, tempo: Tempo) -> Result<Events> {
    let recorded = format!("sum by (cluster) ({TOTAL}{{slo=\"{}\"}})", level.name);
    Ok(match &level.counts {
        Counts::Answered(groups) => answered(slo, &slo.requests(groups)?, &recorded, tempo),
        Counts::Faster { requests, seconds } => faster(&slo.requests(requests)?, *seconds, &recorded, tempo),
        Counts::Delivered => delivered(tempo),
        Counts::Discovered { seconds } => {
            let histogram = "debros_net_discovery_duration_seconds";
            let good = format!("{histogram}_bucket{{{}}}", bound(*seconds));
            late(&[format!("{histogram}_count")], &[good], &recorded, tempo)
        }
        Counts::Probed => {
            let failed = per_second(&["debros_probe_total{outcome=\"failed\"}".into()], tempo);
            let total = per_second(&["debros_probe_total".into()], tempo);
            Events { total, bad: format!("{failed} or 0 * {recorded}") }
        }
    })
}

fn answered(slo: &Slo, requests: &Requests, recorded: &str, tempo: Tempo) -> Events {
    let (faults, redirects) = (slo.codes.services_fault.join("|"), slo.codes.redirects.join("|"));
    let (rpc, http) = selectors(requests);
    let mut total = vec![format!("debros_rpc_requests_total{{{rpc},code!~\"{redirects}\"}}")];
    let mut bad = vec![format!("debros_rpc_requests_total{{{rpc},code=~\"{faults}\"}}")];
    if let Some(http) = http {
        total.push(format!("debros_http_requests_total{{{http}}}"));
        bad.push(format!("debros_http_requests_total{{{http},status=\"5xx\"}}"));
    }
    Events { total: per_second(&total, tempo), bad: format!("{} or 0 * {recorded}", per_second(&bad, tempo)) }
}

fn faster(requests: &Requests, seconds: f64, recorded: &str, tempo: Tempo) -> Events {
    let (rpc, http) = selectors(requests);
    let histograms = [("debros_rpc_duration_seconds", Some(rpc)), ("debros_http_duration_seconds", http)];
    let histograms = histograms.into_iter().filter_map(|(name, labels)| Some((name, labels?)));
    let (mut total, mut good) = (Vec::new(), Vec::new());
    for (name, labels) in histograms {
        total.push(format!("{name}_count{{{labels}}}"));
        good.push(format!("{name}_bucket{{{labels},{}}}", bound(seconds)));
    }
    late(&total, &good, recorded, tempo)
}

/// What came, without what came in time.
fn late(total: &[String], good: &[String], recorded: &str, tempo: Tempo) -> Events {
    // Below nothing by a hair: two sums of the same numbers.
    Events {
        total: per_second(total, tempo),
        bad: format!("clamp_min({recorded} - {}, 0)", per_second(good, tempo)),
    }
}

fn delivered(tempo: Tempo) -> Events {
    let [delivered, dropped, lost] = ["delivered", "dropped", "lost"]
        .map(|what| per_second(&[format!("debros_pubsub_{what}_total")], tempo));
    Events { total: format!("{delivered} + {dropped} + {lost}"), bad: format!("{dropped} + {lost}") }
}

/// The labels of users' requests on the SDK-facing service and, where there are some, on the HTTP API.
fn selectors(requests: &Requests) -> (String, Option<String>) {
    let joined = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join("|");
    let rpc = format!("origin=\"client\",method=~\"{}\"", joined(&requests.methods));
    let routes = (!requests.routes.is_empty()).then(|| joined(&requests.routes));
    (rpc, routes.map(|routes| format!("listener=\"http\",route=~\"{routes}\"")))
}

/// The bucket up to so many seconds. A whole bound is written with and without its `.0`, by who exposes it.
pub(super) fn bound(seconds: f64) -> String {
    if seconds.fract() == 0.0 { format!("le=~\"{seconds}(\\\\.0)?\"") } else { format!("le=\"{seconds}\"") }
}

/// The rate of all these series together, for each cluster. They are of different labels; one that does not exist is missed by none.
fn per_second(series: &[String], tempo: Tempo) -> String {
    let range = tempo.minutes(RATE_MINUTES);
    let rates = series.iter().map(|series| format!("rate({series}[{range}])")).collect::<Vec<_>>();
    format!("sum by (cluster) ({})", rates.join(" or "))
}
