//! The objects of one cluster at a moment, from caches or from the API server: the same shape either way, so that what
//! is decided over one can be decided again over the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::{Client, ResourceExt};
use serde_json::Value;

use crate::build::Kind;
use crate::names::{Names, query};

/// Kinds that are listed and watched. Secrets are not: whoever may list them may read all of them.
pub const LISTED: [Kind; 6] = [
    Kind::ServiceAccount,
    Kind::ConfigMap,
    Kind::Service,
    Kind::StatefulSet,
    Kind::PodDisruptionBudget,
    Kind::NetworkPolicy,
];

/// The objects of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
    /// Its pods' claims.
    pub claims: Vec<Arc<PersistentVolumeClaim>>,
    /// All else, by kind and name.
    pub objects: BTreeMap<(Kind, String), Arc<DynamicObject>>,
}

/// A kind, for the client.
pub fn resource(kind: Kind) -> ApiResource {
    ApiResource {
        group: kind.group().to_owned(),
        version: "v1".to_owned(),
        api_version: kind.api_version(),
        kind: kind.as_str().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// Objects of a kind in a namespace.
pub fn api(client: &Client, namespace: &str, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), namespace, &resource(kind))
}

impl Snapshot {
    /// Asks the API server, not a cache of its own: no resource version means the newest.
    ///
    /// # Errors
    /// Whatever it answers.
    pub async fn read(client: &Client, names: &Names<'_>) -> Result<Self, kube::Error> {
        let labels = query(&names.selector());
        let of_cluster = ListParams::default().labels(&labels);
        let pods = Api::<Pod>::namespaced(client.clone(), names.namespace).list(&of_cluster).await?;
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), names.namespace);
        let claims = claims.list(&of_cluster).await?;
        let mut objects = BTreeMap::new();
        for kind in LISTED {
            for object in api(client, names.namespace, kind).list(&of_cluster).await? {
                objects.insert((kind, object.name_any()), Arc::new(object));
            }
        }
        Ok(Self {
            pods: pods.into_iter().map(Arc::new).collect(),
            claims: claims.into_iter().map(Arc::new).collect(),
            objects,
        })
    }

    /// An object.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&DynamicObject> {
        self.objects.get(&(kind, name.to_owned())).map(Arc::as_ref)
    }
}

/// Whether the resource with this uid controls an object.
pub fn is_owned(object: &impl ResourceExt, uid: &str) -> bool {
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// An object as JSON. One that was listed does not say its kind itself.
pub fn value(kind: Kind, object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = Value::String(kind.api_version());
    value["kind"] = Value::String(kind.as_str().to_owned());
    value
}
