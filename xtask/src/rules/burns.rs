//! The alerts on error budgets: for each service level and each burn one, over a long window and a short one. "Multiwindow,
//! Multi-Burn-Rate Alerts" in chapter 5 of the Google SRE workbook.

use std::collections::BTreeMap;

use super::levels::{BAD, bad_ratio, part_bad};
use super::{Alert, Comparison, Relation, Tempo};
use crate::slo::{Burn, Level, Slo};

/// Every alert on a budget.
pub(super) fn alerts(slo: &Slo, tempo: Tempo) -> Vec<Alert> {
    let of_level = |level| slo.burns.iter().map(move |burn| alert(level, burn, slo, tempo));
    slo.levels.iter().flat_map(of_level).collect()
}

/// What the alerts on a level's budget are called.
pub(crate) fn name(level: &Level) -> String {
    let words = level.name.split('_').map(|word| {
        let (first, rest) = word.split_at(1.min(word.len()));
        first.to_uppercase() + rest
    });
    format!("Debros{}BudgetBurns", words.collect::<String>())
}

/// An expression that gives something while the short window of a burn still sees it, and needs none of what is recorded for windows.
pub(crate) fn still(level: &Level, burn: &Burn, tempo: Tempo) -> String {
    let part = part_bad(&format!("{{slo=\"{}\"}}", level.name), &tempo.minutes(burn.short.minutes()));
    format!("{part} > {}", threshold(level, burn))
}

/// The part of requests that is bad when a budget burns so fast.
pub(super) fn threshold(level: &Level, burn: &Burn) -> f64 {
    (burn.factor * level.budget() * 1e9).round() / 1e9
}

fn alert(level: &Level, burn: &Burn, slo: &Slo, tempo: Tempo) -> Alert {
    let Burn { factor, long, short, severity } = burn;
    let (long, slo_name) = (long.as_str(), &level.name);
    let over = |window: &str| Comparison {
        left: format!("{}{{slo=\"{slo_name}\"}}", bad_ratio(window)),
        relation: Relation::Above,
        right: threshold(level, burn),
    };
    let (seconds, range) = (tempo.seconds(burn.long.minutes() * 60), tempo.minutes(burn.long.minutes()));
    let enough = Comparison {
        left: format!("{seconds} * avg_over_time({BAD}{{slo=\"{slo_name}\"}}[{range}])"),
        relation: Relation::AtLeast,
        right: level.least as f64,
    };
    let days = (slo.window.minutes() as f64 / factor / (24.0 * 60.0) * 10.0).round() / 10.0;
    Alert {
        name: name(level),
        severity: *severity,
        holds: tempo.minutes(0),
        conditions: vec![over(long), over(short.as_str()), enough],
        summary: format!(
            "{{{{ $labels.cluster }}}} breaks a promise: {} ({})",
            level.promise,
            level.percent()
        ),
        description: format!(
            "It is promised for {} that {}. Over the last {long} the error budget burnt {factor} times as fast as it may, and it does over the last {}: \
             at this pace the budget of {} is spent in {days} days.",
            level.percent(),
            level.promise,
            short.as_str(),
            slo.window.as_str(),
        ),
        labels: BTreeMap::from([("slo", slo_name.clone()), ("window", long.to_owned())]),
        proof: None,
    }
}
