//! The pods of a set: restricted as far as Kubernetes knows, and probed by three questions that mean different things.

use serde_json::{Value, json};

use super::config::{DATA_FOLDER, FILE, FOLDER, SECRET_FOLDER, TLS_FOLDER};
use super::{names, secret_name};
use crate::crd::{DebrosCluster, NodeSet};
use crate::names::{ADMIN_PORT, CLAIM, CONTAINER, HTTP_PORT, P2P_PORT, REVISION, Role};

/// Nobody's user, as the images have it.
const USER: i64 = 65532;
/// A node that stops hands over its leaderships and flushes, which takes seconds; a slow disk is given more.
const TERMINATION_SECONDS: i64 = 60;
/// A log of hours is read before the node listens at all.
const STARTUP_SECONDS_MAX: i64 = 3600;
const STARTUP_PERIOD_SECONDS: i64 = 2;
/// What holds zones, in Kubernetes and on its pods.
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";

/// What a user asks for a set.
pub(super) fn set_of(cluster: &DebrosCluster, role: Role) -> &NodeSet {
    match role {
        Role::Bootstrap => &cluster.spec.bootstrap,
        Role::Peer => &cluster.spec.peers,
    }
}

/// The template of a set's pods. The revision is a hash over the template without one.
pub(super) fn template(cluster: &DebrosCluster, role: Role, revision: &str) -> Value {
    let (spec, set, names) = (&cluster.spec, set_of(cluster, role), names(cluster));
    let mut labels = set.labels.clone();
    labels.extend(names.set_labels(role));
    let mut metadata = json!({ "labels": labels });
    if !revision.is_empty() {
        metadata["labels"][REVISION] = json!(revision);
    }
    if spec.monitoring.annotations {
        metadata["annotations"] = json!({
            "prometheus.io/scrape": "true",
            "prometheus.io/port": ADMIN_PORT.to_string(),
            "prometheus.io/path": "/metrics",
            "prometheus.io/scheme": scheme(cluster).to_lowercase(),
        });
    }
    let mut pod = json!({
        "serviceAccountName": names.account(),
        "automountServiceAccountToken": false,
        // Kubernetes would set DEBROS_... for a Service called debros, which a node refuses as an unknown key.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": TERMINATION_SECONDS,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            // Or the identity's file would be made readable for the group at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container(cluster, set)],
        "volumes": volumes(cluster, role, revision),
        "topologySpreadConstraints": spread(cluster, role),
        "affinity": affinity(cluster, role),
    });
    if !set.tolerations.is_empty() {
        pod["tolerations"] = json!(set.tolerations);
    }
    if !spec.image_pull_secrets.is_empty() {
        pod["imagePullSecrets"] = json!(spec.image_pull_secrets);
    }
    json!({ "metadata": metadata, "spec": pod })
}

fn container(cluster: &DebrosCluster, set: &NodeSet) -> Value {
    let mut mounts = vec![
        json!({ "name": CLAIM, "mountPath": DATA_FOLDER }),
        json!({ "name": "config", "mountPath": FOLDER, "readOnly": true }),
        json!({ "name": "tmp", "mountPath": "/tmp" }),
    ];
    if secret_name(cluster).is_some() {
        mounts.push(json!({ "name": "secret", "mountPath": SECRET_FOLDER, "readOnly": true }));
    }
    if cluster.spec.tls.is_some() {
        mounts.push(json!({ "name": "tls", "mountPath": TLS_FOLDER, "readOnly": true }));
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": cluster.spec.image,
        "command": ["debros-node"],
        "args": ["--config", format!("{FOLDER}/{FILE}")],
        "env": [
            { "name": "DEBROS_NODE__ID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            // Kubernetes puts the machine's zone on the pod since 1.35; before, there is none.
            { "name": "DEBROS_NODE__ZONE",
              "valueFrom": { "fieldRef": { "fieldPath": format!("metadata.labels['{ZONE}']") } } },
        ],
        "ports": [
            { "name": "p2p", "containerPort": P2P_PORT, "protocol": "TCP" },
            { "name": "p2p-quic", "containerPort": P2P_PORT, "protocol": "UDP" },
            { "name": "http", "containerPort": HTTP_PORT, "protocol": "TCP" },
            { "name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP" },
        ],
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": mounts,
    });
    if let Some(policy) = cluster.spec.image_pull_policy {
        container["imagePullPolicy"] = json!(policy.as_str());
    }
    if let Some(resources) = &set.resources {
        container["resources"] = json!(resources);
    }
    probes(cluster, &mut container);
    container
}

/// Started: it has read its log and listens. Alive: it still answers, whatever it waits for, so that neither a lost
/// quorum nor a follower that catches up has it killed. Ready: its groups have leaders, so that clients are well served.
fn probes(cluster: &DebrosCluster, container: &mut Value) {
    let get = |path: &str| json!({ "path": path, "port": "admin", "scheme": scheme(cluster) });
    container["startupProbe"] = json!({
        "httpGet": get("/livez"),
        "periodSeconds": STARTUP_PERIOD_SECONDS,
        "timeoutSeconds": 2,
        "failureThreshold": STARTUP_SECONDS_MAX / STARTUP_PERIOD_SECONDS,
    });
    container["livenessProbe"] = json!({
        "httpGet": get("/livez"),
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 6,
    });
    container["readinessProbe"] = json!({
        "httpGet": get("/readyz"),
        "periodSeconds": 3,
        "timeoutSeconds": 3,
        "failureThreshold": 3,
    });
}

fn scheme(cluster: &DebrosCluster) -> &'static str {
    if cluster.spec.tls.is_some() { "HTTPS" } else { "HTTP" }
}

fn volumes(cluster: &DebrosCluster, role: Role, revision: &str) -> Vec<Value> {
    let name = match revision {
        "" => String::new(),
        revision => names(cluster).config(role, revision),
    };
    let mut volumes = vec![
        json!({ "name": "config", "configMap": { "name": name } }),
        json!({ "name": "tmp", "emptyDir": { "sizeLimit": "1Gi" } }),
    ];
    if let Some(secret) = secret_name(cluster) {
        // Readable for the group, which is the pod's own.
        volumes.push(json!({ "name": "secret", "secret": { "secretName": secret, "defaultMode": 0o440 } }));
    }
    if let Some(tls) = &cluster.spec.tls {
        volumes.push(
            json!({ "name": "tls", "secret": { "secretName": tls.secret_name, "defaultMode": 0o440 } }),
        );
    }
    volumes
}

/// Over zones and over machines, of all nodes together: a group's replicas may be in both sets.
fn spread(cluster: &DebrosCluster, role: Role) -> Value {
    let (set, names) = (set_of(cluster, role), names(cluster));
    if let Some(given) = &set.topology_spread_constraints {
        let mut given = json!(given);
        for constraint in given.as_array_mut().into_iter().flatten() {
            if constraint.get("labelSelector").is_none() {
                constraint["labelSelector"] = json!({ "matchLabels": names.set_selector(role) });
            }
        }
        return given;
    }
    let over = |key: &str| {
        json!({
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": names.selector() },
        })
    };
    json!([over(ZONE), over(HOST)])
}

fn affinity(cluster: &DebrosCluster, role: Role) -> Value {
    if let Some(given) = &set_of(cluster, role).affinity {
        return json!(given);
    }
    json!({
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "podAffinityTerm": {
                    "topologyKey": HOST,
                    "labelSelector": { "matchLabels": names(cluster).selector() },
                },
            }],
        },
    })
}
