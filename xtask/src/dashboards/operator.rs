//! The dashboard of the operator: whether it works, what it does, and how its clusters are. It goes with the operator's chart and not with
//! the nodes' dashboards: where there is no Kubernetes, nobody has these metrics.

use super::{Dashboard, Panel, Row, Unit};

/// What fills the lists of namespaces and clusters.
pub(super) const VARIABLES: [(&str, &str, &str); 2] = [
    ("namespace", "Namespace", "debros_operator_cluster_condition"),
    ("cluster", "Cluster", "debros_operator_cluster_condition{namespace=~\"$namespace\"}"),
];
/// The labels of the clusters that are looked at.
const CLUSTERS: &str = "namespace=~\"$namespace\",cluster=~\"$cluster\"";

/// The operator and its clusters.
pub(super) fn dashboard() -> Dashboard {
    Dashboard {
        uid: "debros-operator",
        title: "operator",
        about: "The Kubernetes operator: how are its clusters, what is it doing, and what does it cost the API server?",
        rows: vec![
            Row { title: "Clusters", panels: clusters() },
            Row { title: "What is done", panels: work() },
            Row { title: "What it costs", panels: costs() },
        ],
    }
}

fn condition(name: &str) -> String {
    format!(
        "max by (namespace, cluster) (debros_operator_cluster_condition{{{CLUSTERS},condition=\"{name}\"}})"
    )
}

fn clusters() -> Vec<Panel> {
    let lines = |question: &str, about: &str, name: &str| {
        Panel::lines(Unit::Count, question, about).query(condition(name), "{{namespace}}/{{cluster}}")
    };
    vec![
        lines("Which clusters serve?", "1 where clients are served (the condition Available).", "Available")
            .bad_below(1.0),
        lines(
            "Which clusters could lose one node more?",
            "1 where every group and every partition is whole (the condition QuorumHealthy); 0 for moments while nodes are rolled.",
            "QuorumHealthy",
        ),
        lines(
            "Where is something missing?",
            "1 where something that was asked for is missing (the condition Degraded): the resource's status says what to do.",
            "Degraded",
        )
        .bad_from(1.0),
    ]
}

fn work() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::PerSecond,
            "Which steps are taken?",
            "Clusters initialised or found again, members that leave, pods that begin anew. Nothing where nothing is asked for.",
        )
        .query("sum by (step) (rate(debros_operator_steps_total[$__rate_interval]))", "{{step}}"),
        Panel::lines(
            Unit::PerSecond,
            "How do looks at clusters end?",
            "A conflict is read again at once. What failed is looked at again after a pause that grows, and an event tells why.",
        )
        .query("sum by (outcome) (rate(debros_operator_reconciles_total[$__rate_interval]))", "{{outcome}}"),
        Panel::lines(
            Unit::Seconds,
            "How long does a look take?",
            "What 99 of 100 looks take, the nodes' answers and all writes included. Nodes that do not answer cost two seconds each.",
        )
        .query(
            "histogram_quantile(0.99, sum by (le) (rate(debros_operator_reconcile_duration_seconds_bucket[$__rate_interval]))) >= 0",
            "99 of 100",
        ),
    ]
}

fn costs() -> Vec<Panel> {
    vec![
        Panel::lines(
            Unit::PerSecond,
            "What is asked of the API server?",
            "Calls by verb. At rest there are hardly any beside the lease, which is renewed every two seconds.",
        )
        .query("sum by (verb) (rate(debros_operator_api_calls_total[$__rate_interval]))", "{{verb}}"),
        Panel::lines(
            Unit::Count,
            "Does a replica work?",
            "One replica holds the lease and works; the others stand by. 0 for longer than a few seconds is nobody.",
        )
        .query("sum(debros_operator_leads)", "at work")
        .bad_below(1.0),
    ]
}

#[cfg(test)]
mod tests {
    use operator::crd::{DebrosCluster, DebrosClusterStatus};
    use operator::metrics::Metrics;
    use serde_json::json;

    use super::dashboard;

    #[test]
    fn every_metric_is_one_that_the_operator_has() {
        let metrics = Metrics::default();
        let cluster: DebrosCluster = serde_json::from_value(json!({
            "apiVersion": "debros.network/v1alpha1", "kind": "DebrosCluster",
            "metadata": { "name": "orders", "namespace": "shop" }, "spec": { "image": "debros/node" },
        }))
        .unwrap();
        let conditions = serde_json::from_value(json!([{
            "type": "Available", "status": "True", "reason": "Serving", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]))
        .unwrap();
        metrics.cluster(&cluster, &DebrosClusterStatus { conditions, ..DebrosClusterStatus::default() });
        let has = metrics.text();
        let names = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            words.filter(|word| word.starts_with("debros_operator_")).map(str::to_owned).collect()
        };
        let mut asked = 0;
        for query in dashboard().rows.iter().flat_map(|row| &row.panels).flat_map(|panel| &panel.queries) {
            for name in names(&query.expr) {
                let family = name.trim_end_matches("_bucket").trim_end_matches("_total");
                assert!(has.contains(&format!("# TYPE {family} ")), "{name} is not in:\n{has}");
                asked += 1;
            }
        }
        assert!(asked >= 6);
    }
}
