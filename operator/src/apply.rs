//! Writes: objects by server-side apply, under one field manager; the one step; and what is kept up beside it. An object
//! that is as it must be is not written, one that is somebody else's is not touched.

mod take_back;

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::build::{self, Kind, Object};
use crate::crd::DebrosCluster;
use crate::decide::Step;
use crate::dereference::World;
use crate::lease::Hold;
use crate::names::{APPLIED, COMPONENT, FIELD_MANAGER, Role};
use crate::nodes::{Leave, NodeError, Nodes};
use crate::quantity;
use crate::snapshot::{Snapshot, api, is_owned, value};

/// A call that ends a pod is given up after this, within the lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Kubernetes said no.
    #[error("{what}: {source}")]
    Kube {
        /// What was written.
        what: String,
        /// Its answer.
        #[source]
        source: kube::Error,
    },
    /// A node said no.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Another replica may work already, and its steps are not these.
    #[error("{what}: left to the replica that holds the lease, which this one may not do for much longer")]
    NotHeld {
        /// What was to be written.
        what: String,
    },
    /// Whether it was done shows when it is looked at again.
    #[error("{what}: Kubernetes did not answer within {} s", CALL_TIMEOUT.as_secs())]
    TimedOut {
        /// What was to be written.
        what: String,
    },
}

impl ApplyError {
    fn of(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube { what, source }
    }

    /// What was read is no longer so: reading again is all it takes.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { source: kube::Error::Api(status), .. } if status.code == 409)
    }
}

/// What came of writing the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Objects that were written.
    pub applied: Vec<String>,
    /// Objects with our names that are somebody else's.
    pub foreign: Vec<String>,
    /// Objects of kinds that this API server does not know.
    pub missing: Vec<String>,
}

/// Writes what is not as it must be.
///
/// # Errors
/// The first that Kubernetes refuses.
pub async fn apply(
    client: &Client,
    cluster: &DebrosCluster,
    objects: &[Object],
    snapshot: &Snapshot,
) -> Result<Written, ApplyError> {
    let (names, uid) = (build::names(cluster), cluster.uid().unwrap_or_default());
    let mut written = Written::default();
    for object in objects {
        let what = format!("{} {}", object.kind.as_str(), object.name);
        let api = api(client, names.namespace, object.kind);
        // What a cache does not show may be there without our labels.
        let asked;
        let there = match snapshot.get(object.kind, &object.name) {
            Some(there) => Some(there),
            None => {
                asked = api.get_opt(&object.name).await.map_err(ApplyError::of(what.clone()))?;
                asked.as_ref()
            }
        };
        if there.is_some_and(|there| !is_owned(there, &uid)) {
            written.foreign.push(what);
            continue;
        }
        let mut desired = finished(cluster, object, there);
        let edited = there.is_some_and(take_back::is_edited);
        if !edited && there.is_some_and(|there| is_current(&desired, &value(object.kind, there))) {
            continue;
        }
        if let Some(there) = there.filter(|_| edited) {
            let taken = take_back::take_back(&api, object.kind, there).await;
            let version = taken.map_err(ApplyError::of(what.clone()))?;
            if object.kind == Kind::StatefulSet {
                desired["metadata"]["resourceVersion"] = json!(version);
            }
            tracing::info!(object = what, "somebody edited it: it is made anew from the resource");
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(&object.name, &params, &Patch::Apply(&desired)).await {
            Ok(_) => {}
            // A kind that comes with another program, which is not there.
            Err(kube::Error::Api(status)) if object.kind == Kind::ServiceMonitor && status.code == 404 => {
                written.missing.push(what);
                continue;
            }
            Err(error) => return Err(ApplyError::of(what)(error)),
        }
        tracing::info!(object = what, "applied");
        written.applied.push(what);
    }
    Ok(written)
}

/// The object with its owner and its hash; of one that is there, its uid, so that another one is not meant.
fn finished(cluster: &DebrosCluster, object: &Object, there: Option<&DynamicObject>) -> Value {
    let mut desired = object.value.clone();
    desired["metadata"]["namespace"] = json!(build::names(cluster).namespace);
    desired["metadata"]["ownerReferences"] = build::owner_reference(cluster);
    desired["metadata"]["annotations"][APPLIED] = json!(build::hash(&[&object.value.to_string()]));
    if let Some(uid) = there.and_then(|there| there.metadata.uid.as_ref()) {
        desired["metadata"]["uid"] = json!(uid);
    }
    // How many pods there are to be was decided over what was read: over something older it may end one too many.
    if let (Kind::StatefulSet, Some(version)) = (object.kind, there.and_then(ResourceExt::resource_version)) {
        desired["metadata"]["resourceVersion"] = json!(version);
    }
    desired
}

/// Whether all that is desired is there. Kubernetes adds fields; what we no longer want is told by the hash.
pub fn is_current(desired: &Value, there: &Value) -> bool {
    match (desired, there) {
        (Value::Object(desired), Value::Object(there)) => desired.iter().all(|(key, desired)| {
            // Written in plain, kept in base 64; whether a Secret is current is told by its hash alone.
            key == "stringData" || is_current(desired, there.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(desired), Value::Array(there)) => {
            desired.len() == there.len()
                && desired.iter().zip(there).all(|(desired, there)| is_current(desired, there))
        }
        // Nothing and an empty list or map are the same to Kubernetes.
        (Value::Array(list), Value::Null) => list.is_empty(),
        (Value::Object(map), Value::Null) => map.values().all(|value| is_current(value, &Value::Null)),
        (Value::String(text), Value::Null) => text.is_empty(),
        // Kubernetes writes quantities in a form of its own.
        (Value::String(desired), Value::String(there)) => {
            desired == there || quantity::are_same(desired, there)
        }
        (desired, there) => desired == there,
    }
}

/// Deletes what is ours and wanted no more: configurations that no pod runs, and policies that were switched off.
///
/// # Errors
/// The first that Kubernetes refuses.
pub async fn prune(
    client: &Client,
    cluster: &DebrosCluster,
    objects: &[Object],
    world: &World,
) -> Result<(), ApplyError> {
    let (names, uid) = (build::names(cluster), cluster.uid().unwrap_or_default());
    for ((kind, name), there) in &world.snapshot.objects {
        let wanted = objects.iter().any(|object| object.kind == *kind && object.name == *name);
        if wanted || !is_owned(there.as_ref(), &uid) {
            continue;
        }
        let removable = match kind {
            Kind::NetworkPolicy => *name == names.policy(),
            Kind::ConfigMap => Role::ALL.into_iter().any(|role| {
                let of_role = there.labels().get(COMPONENT).is_some_and(|set| set == role.as_str());
                let used =
                    world.revisions.of(role).iter().any(|revision| names.config(role, revision) == *name);
                of_role && !used
            }),
            _ => false,
        };
        if removable {
            let preconditions =
                Preconditions { uid: there.metadata.uid.clone(), resource_version: there.resource_version() };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            let deleted = api(client, names.namespace, *kind).delete(name, &params).await;
            gone_is_fine(deleted.map(drop)).map_err(ApplyError::of(format!("{} {name}", kind.as_str())))?;
        }
    }
    Ok(())
}

fn gone_is_fine(deleted: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other,
    }
}

/// Carries out a step. Gives the id of the cluster when it came to be.
///
/// # Errors
/// When a node or Kubernetes refuses; asking again is safe.
pub async fn carry_out(
    client: &Client,
    cluster: &DebrosCluster,
    step: &Step,
    world: &World,
    nodes: &dyn Nodes,
    hold: &Hold,
) -> Result<Option<String>, ApplyError> {
    match step {
        Step::None => Ok(None),
        Step::Record(id) => Ok(Some(id.clone())),
        Step::Initialise(pod) => Ok(Some(nodes.initialise(&world.place, *pod).await?)),
        Step::TakeOut { node_id, pod } => {
            let left = nodes.leave(&world.place, *node_id).await?;
            tracing::info!(node_id, ?pod, done = left == Leave::Done, "a member leaves");
            Ok(None)
        }
        Step::Restart { pod, uid, resource_version, hand_over } => {
            if *hand_over {
                nodes.hand_over(&world.place, *pod).await?;
            }
            let names = build::names(cluster);
            let name = names.pod(pod.role, pod.ordinal);
            let preconditions =
                Preconditions { uid: Some(uid.clone()), resource_version: Some(resource_version.clone()) };
            let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            let what = format!("Pod {name}");
            // The API server compares the pod with what was read, and not the others with it: nobody else may end one meanwhile.
            if !hold.covers(CALL_TIMEOUT) {
                return Err(ApplyError::NotHeld { what });
            }
            let pods = Api::<Pod>::namespaced(client.clone(), names.namespace);
            let Ok(deleted) = timeout(CALL_TIMEOUT, pods.delete(&name, &params)).await else {
                return Err(ApplyError::TimedOut { what });
            };
            gone_is_fine(deleted.map(drop)).map_err(ApplyError::of(what))?;
            tracing::info!(pod = name, "a pod begins anew");
            Ok(None)
        }
    }
}

/// Asks for a larger volume behind a claim.
///
/// # Errors
/// When Kubernetes refuses, which it does where the class does not let volumes grow.
pub async fn grow(client: &Client, namespace: &str, claim: &str, size: &str) -> Result<(), ApplyError> {
    let value = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": claim },
        "spec": { "resources": { "requests": { "storage": size } } },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
    let patched = claims.patch(claim, &params, &Patch::Apply(&value)).await;
    patched.map(drop).map_err(ApplyError::of(format!("PersistentVolumeClaim {claim}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::is_current;

    #[test]
    fn what_kubernetes_adds_makes_no_difference_and_what_others_change_does() {
        let desired = json!({ "spec": { "replicas": 3, "list": [{ "name": "a" }], "none": [] } });
        let there = json!({ "spec": { "replicas": 3, "list": [{ "name": "a", "added": 1 }] }, "status": {} });
        assert!(is_current(&desired, &there));
        for changed in [
            json!({ "spec": { "replicas": 2, "list": [{ "name": "a" }] } }),
            json!({ "spec": { "replicas": 3, "list": [{ "name": "a" }, { "name": "b" }] } }),
            json!({ "spec": { "list": [{ "name": "a" }] } }),
        ] {
            assert!(!is_current(&desired, &changed), "{changed}");
        }
    }
}
