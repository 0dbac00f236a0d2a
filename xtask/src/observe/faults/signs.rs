//! What shows of a fault: the checks that are not well, as nodes answer them, and the alerts that fire, as Prometheus says. It does not
//! know which are expected.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::{Cluster, probe};
use crate::prometheus::{Prometheus, Sample};

const FIRING: &str = "ALERTS{alertstate=\"firing\"}";
/// The label of a burn's alert: its long window.
const WINDOW: &str = "window";

/// Each is a name and, where it is about a node, the node behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    pub(super) checks: BTreeSet<String>,
    pub(super) alerts: BTreeSet<String>,
}

impl Signs {
    /// Signs of these names.
    pub(super) fn of<C: Into<String>, A: Into<String>>(
        checks: impl IntoIterator<Item = C>,
        alerts: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            checks: checks.into_iter().map(Into::into).collect(),
            alerts: alerts.into_iter().map(Into::into).collect(),
        }
    }
}

impl fmt::Display for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<String>| match set.is_empty() {
            true => "none".to_owned(),
            false => set.iter().cloned().collect::<Vec<_>>().join(", "),
        };
        write!(f, "alerts: {}; checks: {}", list(&self.alerts), list(&self.checks))
    }
}

/// The alerts that fire now; a budget's is named once, whatever its windows.
pub(super) async fn firing(prometheus: &Prometheus) -> Result<BTreeSet<String>> {
    let firing = prometheus.evaluate(FIRING).await?;
    Ok(firing.iter().map(name).collect())
}

/// Which budgets are called for, over which windows: the name of the alert, its level and its long window.
pub(super) async fn burning(prometheus: &Prometheus) -> Result<Vec<(String, String, String)>> {
    let mut burning = Vec::new();
    for sample in prometheus.evaluate(FIRING).await? {
        let label = |name: &str| sample.labels.get(name).cloned();
        if let (Some(slo), Some(window)) = (label("slo"), label(WINDOW)) {
            burning.push((name(&sample), slo, window));
        }
    }
    Ok(burning)
}

fn name(alert: &Sample) -> String {
    let label = |name: &str| alert.labels.get(name).map(String::as_str);
    let name = label("alertname").unwrap_or("an alert without a name");
    match label("node") {
        Some(node) => format!("{name} {node}"),
        None => name.to_owned(),
    }
}

/// The checks that are not well at these nodes, by their index. A node that does not answer is an error.
pub(super) async fn not_well(cluster: &Cluster, asked: &[usize]) -> Result<BTreeSet<String>> {
    let mut checks = BTreeSet::new();
    for index in asked {
        let node = &cluster.nodes()[*index];
        let answer = probe(node.admin_port(), "/healthz").await.with_context(|| node.name().to_owned())?;
        let health: Value = serde_json::from_str(&answer.body)?;
        let all = health["checks"].as_array().context("/healthz tells no checks")?;
        let found = all.iter().filter(|check| check["status"] != "ok");
        checks
            .extend(found.map(|check| format!("{} {}", check["name"].as_str().unwrap_or("?"), node.name())));
    }
    Ok(checks)
}
