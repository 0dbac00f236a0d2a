//! The dashboards as typed data: questions, and the expressions that answer them. What is asked is decided in the modules below, one for
//! each dashboard; how it becomes Grafana's JSON in [`grafana`]. `cargo xtask gen` writes it, `cargo xtask observe`
//! evaluates every expression of it on a real cluster.
//!
//! Invariants, which the tests hold: every panel's title is a question, every panel tells what it shows and has a unit, no row is
//! so full that it cannot be read at 1280 pixels.

mod database;
mod express;
mod grafana;
mod network;
mod operator;
mod overview;
mod pubsub;
mod service_levels;
mod storage;

use anyhow::Result;

use crate::slo::Slo;

/// The folder of the dashboards, from the root of the workspace.
pub(crate) const FOLDER: &str = "dashboards";

/// What fills the lists of clusters and nodes.
pub(crate) const VARIABLES: [&str; 2] = [CLUSTERS_OF, NODES_OF];
/// Has a label `cluster` for each.
const CLUSTERS_OF: &str = "debros_build_info";
/// Has a label `node` for each.
const NODES_OF: &str = "debros_build_info{cluster=~\"$cluster\"}";

/// The lists that people choose from: name, label, and the metric that has a label of that name for each.
const LISTS: [(&str, &str, &str); 2] = [("cluster", "Cluster", CLUSTERS_OF), ("node", "Node", NODES_OF)];

/// A page of panels.
pub(crate) struct Dashboard {
    /// In addresses: it must never change.
    pub(crate) uid: &'static str,
    pub(crate) title: &'static str,
    /// Whom it helps with what.
    about: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// Panels that belong together, below a heading.
pub(crate) struct Row {
    title: &'static str,
    pub(crate) panels: Vec<Panel>,
}

/// A question and its answer.
pub(crate) struct Panel {
    pub(crate) question: String,
    /// What is shown, and what to think of it.
    about: String,
    kind: Kind,
    unit: Unit,
    /// Where good ends, in the unit; in ascending order.
    steps: Vec<Step>,
    pub(crate) queries: Vec<Query>,
    /// The alert whose runbook says what to do.
    runbook: Option<String>,
}

/// How an answer looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One number, with its recent course.
    Number,
    /// Lines over time.
    Lines,
    /// A line of text and numbers for each label set; each query is a column.
    Table,
}

/// An expression and what its results are called.
pub(crate) struct Query {
    pub(crate) expr: String,
    /// Of a line: Grafana's template of labels. Of a column: its heading.
    legend: String,
    /// Whether requests are marked that were traced.
    exemplars: bool,
    /// Of a column, where it differs from the panel.
    column: Option<Column>,
}

/// How a column of a table is shown.
struct Column {
    unit: Unit,
    steps: Vec<Step>,
}

/// From this value on, this is how it looks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    from: f64,
    looks: Looks,
}

/// How a value looks to whoever glances at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Good,
    Doubtful,
    Bad,
}

/// What a number is measured in, as Grafana calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Seconds,
    Bytes,
    BytesPerSecond,
    /// Events a second.
    PerSecond,
    RequestsPerSecond,
    /// A part of 1, shown in per cent.
    Part,
    /// A number of things.
    Count,
    /// A multiple of what it may be.
    Times,
}

impl Panel {
    fn new(kind: Kind, unit: Unit, question: impl Into<String>, about: impl Into<String>) -> Self {
        let (question, about) = (question.into(), about.into());
        Self { question, about, kind, unit, steps: Vec::new(), queries: Vec::new(), runbook: None }
    }

    fn number(unit: Unit, question: impl Into<String>, about: impl Into<String>) -> Self {
        Self::new(Kind::Number, unit, question, about)
    }

    fn lines(unit: Unit, question: impl Into<String>, about: impl Into<String>) -> Self {
        Self::new(Kind::Lines, unit, question, about)
    }

    fn table(question: impl Into<String>, about: impl Into<String>) -> Self {
        Self::new(Kind::Table, Unit::Count, question, about)
    }

    /// Adds a line, or the number.
    fn query(mut self, expr: impl Into<String>, legend: &str) -> Self {
        self.queries.push(Query { expr: expr.into(), legend: legend.into(), exemplars: false, column: None });
        self
    }

    /// Adds a line of a histogram, on which traced requests are marked.
    fn traced(mut self, expr: impl Into<String>, legend: &str) -> Self {
        self.queries.push(Query { expr: expr.into(), legend: legend.into(), exemplars: true, column: None });
        self
    }

    /// Adds a column.
    fn column(mut self, title: &str, unit: Unit, steps: Vec<Step>, expr: impl Into<String>) -> Self {
        let column = Some(Column { unit, steps });
        self.queries.push(Query { expr: expr.into(), legend: title.into(), exemplars: false, column });
        self
    }

    /// From this value on it is bad.
    fn bad_from(mut self, from: f64) -> Self {
        self.steps = bad_from(from);
        self
    }

    /// Below this value it is bad.
    fn bad_below(mut self, below: f64) -> Self {
        self.steps = bad_below(below);
        self
    }

    fn steps(mut self, steps: Vec<Step>) -> Self {
        self.steps = steps;
        self
    }

    fn runbook(mut self, alert: impl Into<String>) -> Self {
        self.runbook = Some(alert.into());
        self
    }
}

fn bad_from(from: f64) -> Vec<Step> {
    vec![Step { from: f64::NEG_INFINITY, looks: Looks::Good }, Step { from, looks: Looks::Bad }]
}

fn bad_below(below: f64) -> Vec<Step> {
    vec![Step { from: f64::NEG_INFINITY, looks: Looks::Bad }, Step { from: below, looks: Looks::Good }]
}

/// Every dashboard.
pub(crate) fn all(slo: &Slo) -> Result<Vec<Dashboard>> {
    Ok(vec![
        service_levels::dashboard(slo)?,
        overview::dashboard(slo)?,
        database::dashboard(slo)?,
        storage::dashboard(slo)?,
        pubsub::dashboard(slo)?,
        network::dashboard(slo)?,
    ])
}

/// Where a dashboard lies, from the root of the workspace.
pub(crate) fn path(dashboard: &Dashboard) -> String {
    format!("{FOLDER}/{}.json", dashboard.uid.trim_start_matches("debros-"))
}

/// Path and text of every dashboard.
pub(crate) fn files(slo: &Slo) -> Result<Vec<(String, String)>> {
    let text =
        |dashboard: &Dashboard| Ok((path(dashboard), grafana::json(dashboard, &LISTS, &slo.runbooks)?));
    all(slo)?.iter().map(text).collect()
}

/// The dashboard that goes with the operator's chart, as text.
pub(crate) fn of_operator(slo: &Slo) -> Result<String> {
    grafana::json(&operator::dashboard(), &operator::VARIABLES, &slo.runbooks)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Dashboard, Kind, Panel, all};
    use crate::rules;
    use crate::slo::Slo;
    use crate::steps::workspace_root;

    fn slo() -> Slo {
        Slo::read(&workspace_root()).unwrap()
    }

    fn panels(check: impl Fn(&Dashboard, &Panel)) {
        for dashboard in all(&slo()).unwrap().into_iter().chain([super::operator::dashboard()]) {
            for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
                check(&dashboard, panel);
            }
        }
    }

    #[test]
    fn every_panel_asks_a_question_that_it_explains_and_answers() {
        panels(|dashboard, panel| {
            let place = format!("{}: {}", dashboard.title, panel.question);
            assert!(panel.question.ends_with('?'), "{place}");
            assert!(panel.question.len() <= 60, "{place}: too long for a third of 1280 pixels");
            assert!(panel.about.ends_with('.') && panel.about.len() > 20, "{place}");
            assert!(!panel.queries.is_empty(), "{place}");
            for query in &panel.queries {
                assert!(!query.legend.is_empty(), "{place}");
                assert!(query.column.is_some() == (panel.kind == Kind::Table), "{place}");
            }
        });
    }

    #[test]
    fn no_row_is_too_full_to_be_read_at_1280_pixels() {
        for dashboard in all(&slo()).unwrap() {
            for row in &dashboard.rows {
                let tables = row.panels.iter().filter(|panel| panel.kind == Kind::Table).count();
                let numbers = row.panels.iter().all(|panel| panel.kind == Kind::Number);
                let most = if tables > 0 {
                    1
                } else if numbers {
                    6
                } else {
                    3
                };
                assert!((1..=most).contains(&row.panels.len()), "{}: {}", dashboard.title, row.title);
            }
        }
    }

    #[test]
    fn questions_are_asked_once_in_a_dashboard_and_runbooks_exist() {
        let alerts = rules::alerts(&slo()).into_iter().map(|alert| alert.name).collect::<BTreeSet<_>>();
        let mut asked = BTreeSet::new();
        panels(|_, panel| {
            let known = panel.runbook.as_ref().is_none_or(|alert| alerts.contains(alert));
            assert!(known, "{:?}", panel.runbook);
        });
        for dashboard in all(&slo()).unwrap() {
            for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
                assert!(asked.insert((dashboard.uid, panel.question.clone())), "{}", panel.question);
            }
        }
    }
}
