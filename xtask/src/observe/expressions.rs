//! Every expression that Prometheus is ever asked: of panels, of rules, of alerts. An alert that is silent gives nothing, so of an alert the
//! expressions are evaluated that it compares; they must have values while all is well.

use std::fmt;

use anyhow::Result;

use crate::prometheus::Prometheus;
use crate::slo::Slo;
use crate::{dashboards, rules};

/// What Grafana fills in, and what is filled in here: all nodes, and a rate over several scrapes.
const FILLED_IN: [(&str, &str); 3] = [("$cluster", ".*"), ("$node", ".*"), ("$__rate_interval", "30s")];
/// Enough of an expression to find it.
const SHOWN: usize = 110;

/// An expression, and where it stands.
pub(super) struct Expression {
    place: String,
    expr: String,
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.expr.chars().take(SHOWN).collect::<String>();
        if shown.len() < self.expr.len() {
            shown.push('…');
        }
        write!(f, "{}: {shown}", self.place)
    }
}

/// Every expression, in the order of the files.
pub(super) fn all(slo: &Slo) -> Result<Vec<Expression>> {
    let mut all = Vec::new();
    for recording in rules::recordings(slo)? {
        all.push(Expression { place: format!("rule {}", recording.record), expr: recording.expr });
    }
    for alert in rules::alerts(slo) {
        for condition in alert.conditions {
            all.push(Expression { place: format!("alert {}", alert.name), expr: condition.left });
        }
    }
    for dashboard in dashboards::all(slo)? {
        let panels = dashboard.rows.into_iter().flat_map(|row| row.panels);
        for panel in panels {
            for query in panel.queries {
                let place = format!("panel {}, {}", dashboard.title, panel.question);
                all.push(Expression { place, expr: filled_in(&query.expr) });
            }
        }
    }
    for expr in dashboards::VARIABLES {
        all.push(Expression { place: "variable".into(), expr: filled_in(expr) });
    }
    Ok(all)
}

fn filled_in(expr: &str) -> String {
    FILLED_IN.iter().fold(expr.to_owned(), |expr, (name, value)| expr.replace(name, value))
}

/// What came of an expression.
pub(super) enum Verdict {
    /// Its first value, and how many there are.
    Values(f64, usize),
    Empty,
    NaN,
    Failed(String),
}

impl Verdict {
    pub(super) fn is_well(&self) -> bool {
        matches!(self, Self::Values(..))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Values(first, 1) => write!(f, "ok     {:>12}          ", short(*first)),
            Self::Values(first, count) => write!(f, "ok     {:>12} ({count:>3} in all)", short(*first)),
            Self::Empty => f.write_str("EMPTY"),
            Self::NaN => f.write_str("NAN"),
            Self::Failed(error) => write!(f, "ERROR  {error}"),
        }
    }
}

fn short(value: f64) -> String {
    if value == 0.0 || (1e-3..1e9).contains(&value.abs()) {
        format!("{}", (value * 1e4).round() / 1e4)
    } else {
        format!("{value:.3e}")
    }
}

impl Expression {
    pub(super) async fn evaluate(&self, prometheus: &Prometheus) -> Verdict {
        match prometheus.evaluate(&self.expr).await {
            Err(error) => Verdict::Failed(format!("{error:#}")),
            Ok(samples) if samples.iter().any(|sample| sample.value.is_nan()) => Verdict::NaN,
            Ok(samples) => {
                samples.first().map_or(Verdict::Empty, |first| Verdict::Values(first.value, samples.len()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{all, short};
    use crate::slo::Slo;
    use crate::steps::workspace_root;

    #[test]
    fn nothing_is_left_for_grafana_to_fill_in() {
        let all = all(&Slo::read(&workspace_root()).unwrap()).unwrap();
        assert!(all.len() > 100, "{}", all.len());
        for expression in all {
            assert!(!expression.expr.contains('$'), "{}: {}", expression.place, expression.expr);
        }
    }

    #[test]
    fn values_are_short() {
        assert_eq!(
            (short(0.0), short(0.123_456), short(3e12)),
            ("0".into(), "0.1235".into(), "3.000e12".into())
        );
    }
}
