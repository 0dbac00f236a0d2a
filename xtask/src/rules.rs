//! Prometheus' rules and alerts as typed data, and the files that `cargo xtask gen` writes of them: `rules.yaml` and
//! `alerts.yaml`, and the tests that `promtool` runs against both. What is recorded follows from the service levels
//! ([`crate::slo`]); what is alerted on is decided in [`burns`] and [`causes`].
//!
//! Invariant: every alert compares typed expressions with constants, so that the expressions can be evaluated while all is well
//! ([`Comparison::left`] must have a value then, an alert must have none).

mod burns;
mod causes;
mod fixtures;
mod levels;
mod tempo;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use serde::Serialize;

use crate::slo::{Severity, Slo};
pub(crate) use burns::name as alert_on;
pub(crate) use burns::still as burns_still;
pub(crate) use fixtures::files as test_files;
pub(crate) use levels::{BAD as SLO_BAD, TOTAL as SLO_TOTAL};
pub(crate) use levels::{BUDGET_LEFT, OBJECTIVE, USABLE_DISK, bad_ratio};
pub(crate) use tempo::Tempo;

/// Where the recording rules lie, from the root of the workspace.
pub(crate) const RULES_PATH: &str = "configs/prometheus/rules.yaml";
/// Where the alerts lie.
pub(crate) const ALERTS_PATH: &str = "configs/prometheus/alerts.yaml";

const RULES_GROUP: &str = "debros-levels";
const ALERTS_GROUP: &str = "debros-alerts";

/// A series that is computed as others are scraped.
pub(crate) struct Recording {
    pub(crate) record: String,
    pub(crate) expr: String,
    labels: BTreeMap<&'static str, String>,
}

/// What somebody is called for.
pub(crate) struct Alert {
    pub(crate) name: String,
    pub(crate) severity: Severity,
    /// So long must it hold, in Prometheus' notation.
    pub(crate) holds: String,
    /// All must be true.
    pub(crate) conditions: Vec<Comparison>,
    /// What is wrong, for users, in a line.
    pub(crate) summary: String,
    /// What was measured, and what that means.
    pub(crate) description: String,
    labels: BTreeMap<&'static str, String>,
    /// What makes it fire and what just does not; the burns have theirs together.
    proof: Option<causes::Proof>,
}

/// An expression against a constant.
pub(crate) struct Comparison {
    pub(crate) left: String,
    pub(crate) relation: Relation,
    pub(crate) right: f64,
}

/// How the two stand to one another when the condition is true.
#[derive(Clone, Copy)]
pub(crate) enum Relation {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Above => ">",
            Self::AtLeast => ">=",
            Self::Below => "<",
            Self::AtMost => "<=",
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.left, self.relation, self.right)
    }
}

impl Alert {
    fn expr(&self) -> String {
        let conditions = self.conditions.iter().map(ToString::to_string).collect::<Vec<_>>();
        conditions.join("\nand ")
    }
}

/// Every recording rule, each after those that it reads.
pub(crate) fn recordings(slo: &Slo) -> Result<Vec<Recording>> {
    levels::recordings(slo, Tempo::REAL)
}

/// Every alert.
pub(crate) fn alerts(slo: &Slo) -> Vec<Alert> {
    alerts_at(slo, Tempo::REAL)
}

fn alerts_at(slo: &Slo, tempo: Tempo) -> Vec<Alert> {
    let mut alerts = burns::alerts(slo, tempo);
    alerts.extend(causes::alerts(tempo));
    alerts
}

#[derive(Serialize)]
struct RuleFile {
    groups: Vec<RuleGroup>,
}

#[derive(Serialize)]
struct RuleGroup {
    name: &'static str,
    rules: Vec<Rule>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Rule {
    Recording {
        record: String,
        expr: String,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<&'static str, String>,
    },
    Alert {
        alert: String,
        expr: String,
        #[serde(rename = "for")]
        holds: String,
        labels: BTreeMap<&'static str, String>,
        annotations: BTreeMap<&'static str, String>,
    },
}

/// The text of `rules.yaml`.
pub(crate) fn rules_file(slo: &Slo, tempo: Tempo) -> Result<String> {
    let rules = levels::recordings(slo, tempo)?.into_iter().map(|recording| {
        let Recording { record, expr, labels } = recording;
        Rule::Recording { record, expr, labels }
    });
    file(RULES_GROUP, rules.collect())
}

/// The text of `alerts.yaml`.
pub(crate) fn alerts_file(slo: &Slo, tempo: Tempo) -> Result<String> {
    let rules = alerts_at(slo, tempo).into_iter().map(|alert| {
        let (expr, runbook) = (alert.expr(), format!("{}/{}.md", slo.runbooks, alert.name));
        let mut labels = alert.labels;
        labels.insert("severity", alert.severity.as_str().to_owned());
        let annotations = BTreeMap::from([
            ("summary", alert.summary),
            ("description", alert.description),
            ("runbook_url", runbook),
        ]);
        Rule::Alert { alert: alert.name, expr, holds: alert.holds, labels, annotations }
    });
    file(ALERTS_GROUP, rules.collect())
}

fn file(name: &'static str, rules: Vec<Rule>) -> Result<String> {
    written(&RuleFile { groups: vec![RuleGroup { name, rules }] })
}

/// As YAML, below a line that says where it comes from.
fn written(content: &impl Serialize) -> Result<String> {
    let yaml = serde_saphyr::to_string(content)?;
    Ok(format!(
        "# Written by `cargo xtask gen` from {} and xtask/src/rules; edit those.\n{yaml}",
        crate::slo::PATH
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Alert, alerts, recordings};
    use crate::dashboards;
    use crate::slo::Slo;
    use crate::steps::workspace_root;

    const RUNBOOKS: &str = "docs/runbooks";

    fn slo() -> Slo {
        Slo::read(&workspace_root()).unwrap()
    }

    fn runbook(alert: &Alert) -> String {
        format!("{RUNBOOKS}/{}.md", alert.name)
    }

    fn text(alert: &Alert) -> String {
        std::fs::read_to_string(workspace_root().join(runbook(alert))).unwrap()
    }

    #[test]
    fn every_alert_has_its_runbook_and_every_runbook_its_alert() {
        let wanted = alerts(&slo()).iter().map(runbook).collect::<BTreeSet<_>>();
        let folder = std::fs::read_dir(workspace_root().join(RUNBOOKS)).unwrap();
        let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let there = names.filter(|name| name != "README.md").map(|name| format!("{RUNBOOKS}/{name}"));
        assert_eq!(there.collect::<BTreeSet<_>>(), wanted);
    }

    #[test]
    fn every_runbook_says_what_it_must() {
        for alert in alerts(&slo()) {
            let text = text(&alert);
            assert!(text.starts_with(&format!("# {}\n", alert.name)), "{}", alert.name);
            for heading in ["## What it means", "## How to confirm", "## What to do", "## What not to do"] {
                assert!(text.lines().any(|line| line == heading), "{}: {heading}", alert.name);
            }
        }
    }

    #[test]
    fn a_runbook_names_panels_that_there_are() {
        let dashboards = dashboards::all(&slo()).unwrap();
        let panels = dashboards.iter().flat_map(|dashboard| &dashboard.rows).flat_map(|row| &row.panels);
        let questions = panels.map(|panel| panel.question.clone()).collect::<BTreeSet<_>>();
        let mut named = 0;
        for alert in alerts(&slo()) {
            // A question in italics is a panel's.
            for words in text(&alert).replace('\n', " ").split('*').filter(|words| words.ends_with('?')) {
                assert!(questions.contains(words), "{}: {words}", alert.name);
                named += 1;
            }
        }
        assert!(named > 30, "{named}");
    }

    #[test]
    fn alerts_say_what_is_wrong_and_name_the_service() {
        for alert in alerts(&slo()) {
            let Alert { name, summary, description, conditions, .. } = alert;
            assert!(name.starts_with("Debros") && name.chars().all(char::is_alphanumeric), "{name}");
            assert!(!summary.is_empty() && !description.is_empty() && !conditions.is_empty(), "{name}");
            // The tests compare no texts, so a text must not depend on what is measured.
            assert!(!summary.contains("$value") && !description.contains("$value"), "{name}");
        }
    }

    #[test]
    fn a_series_is_recorded_before_it_is_read_and_once() {
        let mut known = BTreeSet::new();
        for recording in recordings(&slo()).unwrap() {
            let key = (recording.record.clone(), recording.labels.clone());
            for word in recording.expr.split(|c: char| !c.is_alphanumeric() && c != ':' && c != '_') {
                let read = word.starts_with("debros:");
                assert!(
                    !read || known.iter().any(|(name, _)| name == word),
                    "{word} is read before it is recorded"
                );
            }
            assert!(known.insert(key), "{} twice", recording.record);
        }
    }
}
