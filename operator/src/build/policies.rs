//! What bounds the pods: their account, which may do nothing; how many may be evicted; who may reach them.

use serde_json::{Value, json};

use super::{Kind, Object, names};
use crate::crd::DebrosCluster;
use crate::names::{ADMIN_PORT, HTTP_PORT, NAME, Names, P2P_PORT};

/// The operator's own pods, as its chart labels them.
const OPERATOR: &str = "debros-operator";

pub(super) fn account(names: &Names<'_>) -> Object {
    let value = json!({ "metadata": { "labels": names.labels() }, "automountServiceAccountToken": false });
    Object::new(Kind::ServiceAccount, names.account(), value)
}

/// One budget for all nodes: a group's replicas may be in both sets.
pub(super) fn budget(names: &Names<'_>, disruptions: i32) -> Object {
    let value = json!({
        "metadata": { "labels": names.labels() },
        "spec": {
            "maxUnavailable": disruptions,
            "selector": { "matchLabels": names.selector() },
        },
    });
    Object::new(Kind::PodDisruptionBudget, names.budget(), value)
}

pub(super) fn network_policy(cluster: &DebrosCluster) -> Object {
    let names = names(cluster);
    let port = |protocol: &str, port: u16| json!({ "protocol": protocol, "port": port });
    let peer_to_peer = [port("TCP", P2P_PORT), port("UDP", P2P_PORT)];
    let own = json!({ "podSelector": { "matchLabels": names.selector() } });
    let operator = json!({ "namespaceSelector": {}, "podSelector": { "matchLabels": { NAME: OPERATOR } } });
    let mut clients =
        json!({ "ports": [port("TCP", P2P_PORT), port("UDP", P2P_PORT), port("TCP", HTTP_PORT)] });
    if !cluster.spec.network_policy.clients.is_empty() {
        clients["from"] = json!(cluster.spec.network_policy.clients);
    }
    let ingress: Vec<Value> = vec![
        json!({ "from": [own, operator], "ports": peer_to_peer }),
        clients,
        // Probes come from the machine, and whoever scrapes from wherever it runs; nothing is changed there.
        json!({ "ports": [port("TCP", ADMIN_PORT)] }),
    ];
    let value = json!({
        "metadata": { "labels": names.labels() },
        "spec": {
            "podSelector": { "matchLabels": names.selector() },
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    });
    Object::new(Kind::NetworkPolicy, names.policy(), value)
}
