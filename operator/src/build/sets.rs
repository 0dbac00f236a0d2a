//! The StatefulSets. They make and place pods and volumes; when a pod goes is decided by the operator alone, so they
//! update none by themselves.

use serde_json::{Value, json};

use super::pods::{set_of, template};
use super::{Kind, Object, Plan, Shape, names};
use crate::crd::DebrosCluster;
use crate::names::{CLAIM, Role};

pub(super) fn stateful_set(cluster: &DebrosCluster, role: Role, plan: &Plan, shape: &Shape) -> Object {
    let (names, volumes) = (names(cluster), &cluster.spec.volumes);
    let value = json!({
        "metadata": { "labels": names.set_labels(role) },
        "spec": {
            "serviceName": names.set(role),
            "replicas": shape.replicas.of(role),
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "OnDelete" },
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": volumes.when_deleted.as_str(),
                "whenScaled": volumes.when_scaled.as_str(),
            },
            "selector": { "matchLabels": names.set_selector(role) },
            "template": template(cluster, role, plan.revisions.of(role)),
            "volumeClaimTemplates": [claim(cluster, role, shape)],
        },
    });
    Object::new(Kind::StatefulSet, names.set(role), value)
}

/// A template that is there stays as it is; claims grow one by one.
fn claim(cluster: &DebrosCluster, role: Role, shape: &Shape) -> Value {
    let storage = &set_of(cluster, role).storage;
    let size = shape.template_sizes.of(role).as_ref().unwrap_or(&storage.size);
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": size } },
    });
    if let Some(class) = &storage.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": CLAIM, "labels": names(cluster).set_selector(role) },
        "spec": spec,
    })
}
