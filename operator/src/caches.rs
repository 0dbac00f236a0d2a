//! What Kubernetes holds, kept by watches: one for each kind, for all clusters. Every change of an object leads to the
//! cluster whose label it carries; whether that is true is found out later, by the owner's uid.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::NamespaceResourceScope;
use kube::runtime::reflector::store::{Writer, WriterDropped};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::build::Kind;
use crate::crd::DebrosCluster;
use crate::names::{INSTANCE, NAME, Names};
use crate::snapshot::{LISTED, Snapshot, resource};

/// Where the operator looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In every namespace.
    All,
    /// In this one.
    Namespace(String),
}

/// A change somewhere; `None` is one of no cluster.
pub type Changes = BoxStream<'static, Result<ObjectRef<DebrosCluster>, watcher::Error>>;

/// The caches.
pub struct Caches {
    /// The resources.
    pub clusters: Store<DebrosCluster>,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    kinds: BTreeMap<Kind, Store<DynamicObject>>,
}

impl Caches {
    /// Begins to watch. The caches fill as the changes are taken.
    pub fn watch(client: &Client, scope: &Scope) -> (Self, Changes) {
        let mut changes: SelectAll<Changes> = SelectAll::new();
        let (clusters, of_clusters) =
            watch(scope.typed(client), watcher::Config::default(), (), |cluster: &DebrosCluster| {
                Some(ObjectRef::from_obj(cluster))
            });
        changes.push(of_clusters);
        let ours = watcher::Config::default().labels(&format!("{NAME}=debros,{INSTANCE}"));
        let (pods, of_pods) = watch(scope.typed::<Pod>(client), ours.clone(), (), cluster_of);
        changes.push(of_pods);
        let (claims, of_claims) =
            watch(scope.typed::<PersistentVolumeClaim>(client), ours.clone(), (), cluster_of);
        changes.push(of_claims);
        let mut kinds = BTreeMap::new();
        for kind in LISTED {
            let resource = resource(kind);
            let (store, of_kind) =
                watch(scope.dynamic(client, &resource), ours.clone(), resource.clone(), cluster_of);
            changes.push(of_kind);
            kinds.insert(kind, store);
        }
        (Self { clusters, pods, claims, kinds }, changes.boxed())
    }

    /// Waits until every cache was filled once. Somebody must take the changes meanwhile.
    ///
    /// # Errors
    /// When the watches ended.
    pub async fn filled(&self) -> Result<(), WriterDropped> {
        self.clusters.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.claims.wait_until_ready().await?;
        for store in self.kinds.values() {
            store.wait_until_ready().await?;
        }
        Ok(())
    }

    /// The objects of a cluster.
    pub fn snapshot(&self, names: &Names<'_>) -> Snapshot {
        let mut snapshot = Snapshot {
            pods: of_cluster(&self.pods, names),
            claims: of_cluster(&self.claims, names),
            objects: BTreeMap::new(),
        };
        for (kind, store) in &self.kinds {
            for object in of_cluster(store, names) {
                snapshot.objects.insert((*kind, object.name_any()), object);
            }
        }
        snapshot
    }
}

fn of_cluster<K>(store: &Store<K>, names: &Names<'_>) -> Vec<Arc<K>>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone,
{
    let is_of = |object: &K| {
        object.meta().namespace.as_deref() == Some(names.namespace)
            && object.labels().get(INSTANCE).is_some_and(|instance| instance == names.cluster)
    };
    store.state().into_iter().filter(|object| is_of(object)).collect()
}

fn cluster_of<K: Resource>(object: &K) -> Option<ObjectRef<DebrosCluster>> {
    let name = object.labels().get(INSTANCE)?;
    Some(ObjectRef::new(name).within(object.meta().namespace.as_deref()?))
}

impl Scope {
    fn typed<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::All => Api::all(client.clone()),
            Self::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
        }
    }

    fn dynamic(&self, client: &Client, resource: &ApiResource) -> Api<DynamicObject> {
        match self {
            Self::All => Api::all_with(client.clone(), resource),
            Self::Namespace(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        }
    }
}

fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: K::DynamicType,
    cluster_of: impl Fn(&K) -> Option<ObjectRef<DebrosCluster>> + Send + Sync + 'static,
) -> (Store<K>, Changes)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + std::hash::Hash + Clone + Unpin + Send + Sync,
{
    let writer = Writer::new(kind);
    let reader = writer.as_reader();
    let changes = watcher(api, config).default_backoff().reflect(writer).touched_objects();
    let changes = changes.filter_map(move |change| {
        let change = match change {
            Ok(object) => cluster_of(&object).map(Ok),
            Err(error) => Some(Err(error)),
        };
        std::future::ready(change)
    });
    (reader, changes.boxed())
}
