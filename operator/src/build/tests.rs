//! Rendered objects against golden files: what Kubernetes is told, for people to read and to compare. `UPDATE_GOLDENS=1`
//! writes them. That every field has a name that Kubernetes knows is checked against its own types.

use std::fmt::Write as _;
use std::path::Path;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Kind, Object, Shape, build, plan};
use crate::crd::DebrosCluster;
use crate::names::BySet;

const CLUSTER_ID: &str = "00112233445566778899aabbccddeeff";

fn cluster(spec: Value) -> DebrosCluster {
    serde_json::from_value(json!({
        "apiVersion": "debros.network/v1alpha1",
        "kind": "DebrosCluster",
        "metadata": { "name": "orders", "namespace": "shop", "uid": "0000-1111" },
        "spec": spec,
    }))
    .expect("a resource")
}

fn smallest() -> DebrosCluster {
    cluster(json!({ "image": "debros/node:0.1.0" }))
}

/// Every field that a user can set.
fn fullest() -> DebrosCluster {
    cluster(json!({
        "image": "registry.example/debros/node:0.2.0",
        "imagePullPolicy": "IfNotPresent",
        "imagePullSecrets": [{ "name": "registry" }],
        "bootstrap": {
            "replicas": 5,
            "storage": { "size": "100Gi", "storageClassName": "fast" },
            "resources": { "requests": { "cpu": "500m", "memory": "1Gi" } },
            "tolerations": [{ "key": "dedicated", "operator": "Equal", "value": "debros", "effect": "NoSchedule" }],
            "labels": { "team": "orders" },
        },
        "peers": {
            "replicas": 2,
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] }],
            } } },
            "topologySpreadConstraints":
                [{ "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule" }],
        },
        "config": { "logging": { "level": "debug", "format": "json" }, "storage": { "max_size": "100GiB" } },
        "replicationFactor": 5,
        "tls": { "secretName": "orders-tls" },
        "service": { "type": "LoadBalancer", "annotations": { "example/internal": "true" } },
        "networkPolicy": { "clients": [{ "podSelector": { "matchLabels": { "app": "web" } } }] },
        "monitoring": { "annotations": false, "serviceMonitor": true, "serviceMonitorLabels": { "release": "main" } },
        "volumes": { "whenDeleted": "Delete", "whenScaled": "Delete" },
        "nodeLossDelay": "10m",
    }))
}

fn rendered(cluster: &DebrosCluster, shape: &Shape) -> Vec<Object> {
    let plan = plan(cluster, shape.cluster_id.as_deref()).expect("a plan");
    build(cluster, &plan, shape)
}

fn started() -> Shape {
    Shape {
        cluster_id: Some(CLUSTER_ID.to_owned()),
        replicas: BySet { bootstrap: 3, peer: 0 },
        budget: 1,
        ..Shape::default()
    }
}

fn yaml(objects: &[Object]) -> String {
    let mut text = String::new();
    for object in objects {
        let yaml = serde_saphyr::to_string(&object.value).expect("JSON has a YAML form");
        let _ = write!(text, "---\n{yaml}");
    }
    text
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder is made");
        std::fs::write(&path, text).expect("the golden file is written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == text, "{name} is not what is rendered; see it with UPDATE_GOLDENS=1 and `git diff`");
}

#[test]
fn the_smallest_cluster_before_it_is_initialised() {
    let shape = Shape {
        replicas: BySet { bootstrap: 3, peer: 0 },
        new_secret: Some("a secret that is made".to_owned()),
        ..Shape::default()
    };
    compare("smallest-new.yaml", &yaml(&rendered(&smallest(), &shape)));
}

#[test]
fn the_smallest_cluster() {
    compare("smallest.yaml", &yaml(&rendered(&smallest(), &started())));
}

#[test]
fn a_cluster_with_every_field_set() {
    let shape = Shape {
        replicas: BySet { bootstrap: 5, peer: 3 },
        template_sizes: BySet { bootstrap: Some("50Gi".to_owned()), peer: None },
        ..started()
    };
    compare("fullest.yaml", &yaml(&rendered(&fullest(), &shape)));
}

/// What is left of a value once Kubernetes' own type has read it.
fn read_as<T: DeserializeOwned + Serialize>(value: &Value) -> Value {
    let read: T = serde_json::from_value(value.clone()).expect("Kubernetes' own type reads it");
    serde_json::to_value(read).expect("JSON")
}

#[test]
fn every_field_is_one_that_kubernetes_knows() {
    for object in rendered(&smallest(), &started()).into_iter().chain(rendered(&fullest(), &started())) {
        let read = match object.kind {
            Kind::ServiceAccount => read_as::<ServiceAccount>(&object.value),
            Kind::ConfigMap => read_as::<ConfigMap>(&object.value),
            Kind::Secret => read_as::<Secret>(&object.value),
            Kind::Service => read_as::<Service>(&object.value),
            Kind::StatefulSet => read_as::<StatefulSet>(&object.value),
            Kind::PodDisruptionBudget => read_as::<PodDisruptionBudget>(&object.value),
            Kind::NetworkPolicy => read_as::<NetworkPolicy>(&object.value),
            Kind::ServiceMonitor => continue,
        };
        assert!(
            crate::apply::is_current(&object.value, &read),
            "{} {}: {}",
            object.kind.as_str(),
            object.name,
            read
        );
    }
}

#[test]
fn what_needs_no_restart_makes_no_revision() {
    let revisions = |cluster: &DebrosCluster, id| plan(cluster, id).expect("a plan").revisions;
    let base = revisions(&smallest(), None);
    assert_eq!(revisions(&smallest(), Some(CLUSTER_ID)), base, "the id of the cluster");
    let mut changed = smallest();
    changed.spec.bootstrap.replicas = 5;
    changed.spec.peers.replicas = 7;
    assert_eq!(revisions(&changed, None), base, "the number of nodes");
    let louder =
        cluster(json!({ "image": "debros/node:0.1.0", "config": { "logging": { "level": "debug" } } }));
    assert_eq!(
        revisions(&louder, None),
        revisions(
            &cluster(json!({
                "image": "debros/node:0.1.0", "config": { "logging": { "level": "warn" } }
            })),
            None
        ),
        "what is logged"
    );
    changed.spec.image = "debros/node:0.2.0".to_owned();
    assert_ne!(revisions(&changed, None), base, "the image");
    changed.spec.image = smallest().spec.image;
    changed.spec.node_loss_delay = "7m".to_owned();
    assert_ne!(revisions(&changed, None), base, "a key that a node reads when it starts");
}

#[test]
fn keys_of_the_operator_are_refused_with_what_to_do_instead() {
    let refused = |config: Value| {
        let cluster = cluster(json!({ "image": "debros/node:0.1.0", "config": config }));
        plan(&cluster, None).expect_err("it is refused").to_string()
    };
    let owned = refused(json!({ "database": { "replication_factor": 5 } }));
    assert!(owned.contains("set spec.replicationFactor"), "{owned}");
    let unknown = refused(json!({ "storage": { "max_sise": "1GiB" } }));
    assert!(unknown.contains("max_size"), "{unknown}");
}
