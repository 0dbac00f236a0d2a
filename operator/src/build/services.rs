//! The Services: two headless ones, by which nodes find each other before they are ready, and the one of clients.

use serde_json::{Value, json};

use super::{Kind, Object, names};
use crate::crd::{DebrosCluster, ServiceType};
use crate::names::{ADMIN_PORT, COMPONENT, HTTP_PORT, Names, P2P_PORT, Role};

fn peer_to_peer() -> [Value; 2] {
    [
        json!({ "name": "p2p", "port": P2P_PORT, "targetPort": "p2p", "protocol": "TCP" }),
        json!({ "name": "p2p-quic", "port": P2P_PORT, "targetPort": "p2p-quic", "protocol": "UDP" }),
    ]
}

fn http() -> Value {
    json!({ "name": "http", "port": HTTP_PORT, "targetPort": "http", "protocol": "TCP" })
}

/// Gives each pod of a set its name in DNS, ready or not.
pub(super) fn headless(names: &Names<'_>, role: Role) -> Object {
    let [tcp, quic] = peer_to_peer();
    let admin = json!({ "name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "protocol": "TCP" });
    let value = json!({
        "metadata": { "labels": names.set_labels(role) },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": names.set_selector(role),
            "ports": [tcp, quic, http(), admin],
        },
    });
    Object::new(Kind::Service, names.set(role), value)
}

/// Leads clients to any node that is ready.
pub(super) fn client(cluster: &DebrosCluster) -> Object {
    let (names, service) = (names(cluster), &cluster.spec.service);
    let [tcp, quic] = peer_to_peer();
    let mut spec = json!({
        "type": service.service_type.as_str(),
        "selector": names.selector(),
        "ports": [tcp, quic, http()],
    });
    if service.service_type != ServiceType::ClusterIP {
        // A client keeps its connection to a node: one hop less, and the node sees who it is.
        spec["externalTrafficPolicy"] = json!("Local");
    }
    let mut metadata = json!({ "labels": names.labels() });
    if !service.annotations.is_empty() {
        metadata["annotations"] = json!(service.annotations);
    }
    Object::new(Kind::Service, names.client_service(), json!({ "metadata": metadata, "spec": spec }))
}

/// Tells the Prometheus operator of the nodes.
pub(super) fn monitor(cluster: &DebrosCluster) -> Object {
    let names = names(cluster);
    let mut labels = cluster.spec.monitoring.service_monitor_labels.clone();
    labels.extend(names.labels());
    let mut endpoint = json!({ "port": "admin", "path": "/metrics" });
    if cluster.spec.tls.is_some() {
        endpoint["scheme"] = json!("https");
        endpoint["tlsConfig"] = json!({ "insecureSkipVerify": true });
    }
    let value = json!({
        "metadata": { "labels": labels },
        "spec": {
            // The headless ones only, or each node would be scraped twice.
            "selector": {
                "matchLabels": names.selector(),
                "matchExpressions": [{ "key": COMPONENT, "operator": "Exists" }],
            },
            "endpoints": [endpoint],
        },
    });
    Object::new(Kind::ServiceMonitor, names.cluster.to_owned(), value)
}
