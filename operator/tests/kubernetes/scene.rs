//! A namespace of a real API server, with a DebrosCluster, a stand-in for the kubelets, and operators that come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use operator::crd::{self, DebrosCluster};
use operator::lease::Hold;
use operator::metrics::Metrics;
use operator::names::Names;
use operator::reconcile::{Context, Source, reconcile};
use operator::snapshot::{LISTED, Snapshot, api};
use serde_json::{Value, json};

use crate::kubelet::Kubelet;
use crate::lives::{Life, Meddler, MortalNodes, Mortality};
use crate::rights::{grant, restricted};
use crate::support::Cluster;

/// Rounds within which everything is reached; each is one look of the operator.
const ROUNDS_MAX: usize = 400;
const NAME: &str = "orders";
/// Every n-th look is over objects as they were at the look before.
const STALE_EVERY: usize = 3;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Every n-th call is one at which an operator is ended.
    pub(crate) calls_between_ends: usize,
    /// Clusters in one operator.
    pub(crate) clusters: usize,
    /// How long it is watched at rest.
    pub(crate) rest: Duration,
}

/// All of it, or what a run of all tests has time for.
pub(crate) fn extent() -> Extent {
    match std::env::var(crate::EXTENT).as_deref() {
        Ok("short") => Extent { calls_between_ends: 12, clusters: 10, rest: Duration::from_secs(20) },
        Ok(other) if other != "full" => panic!("{} is {other}: it must be short or full", crate::EXTENT),
        _ => Extent { calls_between_ends: 1, clusters: 100, rest: Duration::from_secs(60) },
    }
}

/// How the API server is reached; `None`, and said so, when there is none to test on.
pub(crate) async fn config() -> Option<Config> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let Some(path) = std::env::var_os(crate::KUBECONFIG) else {
        eprintln!(
            "skipped: {} names no API server, see operator/tests/kubernetes/main.rs",
            crate::KUBECONFIG
        );
        return None;
    };
    let read = Kubeconfig::read_from(path).expect("the kubeconfig is read");
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    Some(config.expect("the kubeconfig can be used"))
}

/// A connection of the tests' own.
pub(crate) async fn client() -> Option<Client> {
    Some(Client::try_from(config().await?).expect("a client"))
}

/// Teaches the API server the resource and who may do what with it, and waits until it knows.
pub(crate) async fn define(client: &Client) {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    let name = "debrosclusters.debros.network";
    let params = PatchParams::apply("tests").force();
    definitions
        .patch(name, &params, &Patch::Apply(crd::definition()))
        .await
        .expect("the definition is taken");
    let established = kube::runtime::wait::conditions::is_crd_established();
    kube::runtime::wait::await_condition(definitions, name, established)
        .await
        .expect("the definition is established");
    grant(client).await;
}

/// Objects as the operator's cache has them, which may be old.
struct Held(Mutex<Snapshot>);

impl Source for Held {
    fn snapshot(&self, _: &DebrosCluster) -> Snapshot {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// A namespace and what happens in it.
pub(crate) struct Scene {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) nodes: Arc<Mutex<Cluster>>,
    kubelet: Kubelet,
    held: Arc<Held>,
    rounds: usize,
}

impl Scene {
    /// A new namespace with a resource of this spec.
    pub(crate) async fn new(client: &Client, spec: Value) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let namespaces = Api::<Namespace>::all(client.clone());
        let made = serde_json::from_value(json!({ "metadata": { "name": namespace } })).expect("a namespace");
        namespaces.create(&PostParams::default(), &made).await.expect("a namespace is made");
        let cluster = serde_json::from_value(json!({
            "apiVersion": "debros.network/v1alpha1", "kind": "DebrosCluster",
            "metadata": { "name": NAME }, "spec": spec,
        }));
        let clusters = Api::<DebrosCluster>::namespaced(client.clone(), &namespace);
        clusters
            .create(&PostParams::default(), &cluster.expect("a resource"))
            .await
            .expect("the resource is taken");
        let nodes = Arc::new(Mutex::new(Cluster::with_databases(&[3])));
        let names = Names { namespace: &namespace, cluster: NAME };
        let kubelet = Kubelet::new(client.clone(), &names, Arc::clone(&nodes));
        let held = Arc::new(Held(Mutex::default()));
        Self { client: client.clone(), namespace, nodes, kubelet, held, rounds: 0 }
    }

    pub(crate) fn names(&self) -> Names<'_> {
        Names { namespace: &self.namespace, cluster: NAME }
    }

    pub(crate) async fn cluster(&self) -> DebrosCluster {
        Api::<DebrosCluster>::namespaced(self.client.clone(), &self.namespace)
            .get(NAME)
            .await
            .expect("the resource")
    }

    /// Changes the resource as a user does.
    pub(crate) async fn edit(&self, spec: Value) {
        let clusters = Api::<DebrosCluster>::namespaced(self.client.clone(), &self.namespace);
        let patch = Patch::Merge(json!({ "spec": spec }));
        clusters.patch(NAME, &PatchParams::default(), &patch).await.expect("the change is taken");
    }

    /// An operator that lives so long.
    pub(crate) async fn operator(&self, life: &Life) -> Context {
        let config = restricted(config().await.expect("there was one before"));
        let mortality = Mortality { life: life.clone(), meddler: Meddler::new(self.client.clone()) };
        let client = ClientBuilder::try_from(config).expect("a client").with_layer(&mortality).build();
        Context {
            client,
            source: self.held.clone(),
            nodes: Arc::new(MortalNodes { cluster: Arc::clone(&self.nodes), life: life.clone() }),
            metrics: Metrics::default(),
            hold: Hold::default(),
            recent: Mutex::default(),
        }
    }

    /// Kubernetes and the nodes work, and the operator looks once, now and then at what has been.
    pub(crate) async fn round(&mut self, operator: &Context) {
        self.kubelet.work().await;
        self.nodes.lock().expect("not poisoned").tick();
        self.rounds += 1;
        if !self.rounds.is_multiple_of(STALE_EVERY) {
            let read = Snapshot::read(&self.client, &self.names()).await.expect("objects are read");
            *self.held.0.lock().expect("not poisoned") = read;
        }
        let cluster = self.cluster().await;
        // What fails is found again: that is what is tried here.
        let _ = reconcile(&cluster, operator).await;
        self.check();
    }

    /// What must hold at any moment.
    fn check(&self) {
        let nodes = self.nodes.lock().expect("not poisoned");
        assert!(nodes.initialised <= 1, "the cluster was initialised {} times", nodes.initialised);
        assert_eq!(nodes.without_quorum(), [""; 0], "a quorum was lost");
    }

    /// Rounds until everything is as it is wanted; gives how many it took.
    pub(crate) async fn settle(&mut self, operator: &Context) -> usize {
        let mut calm = 0;
        for round in 1..=ROUNDS_MAX {
            self.round(operator).await;
            // Twice in a row over fresh objects: nothing is left to do.
            calm = if self.is_reached().await { calm + 1 } else { 0 };
            if calm > STALE_EVERY {
                return round;
            }
        }
        panic!("not reached in {}: {:?}", self.namespace, self.cluster().await.status);
    }

    /// Takes the resource and its objects away, so that nobody else comes upon them.
    pub(crate) async fn end(self) {
        let (delete, all) = (DeleteParams::default().grace_period(0), ListParams::default());
        let clusters = Api::<DebrosCluster>::namespaced(self.client.clone(), &self.namespace);
        clusters.delete_collection(&delete, &all).await.expect("resources are deleted");
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        pods.delete_collection(&delete, &all).await.expect("pods are deleted");
        for kind in LISTED {
            let objects = api(&self.client, &self.namespace, kind);
            objects.delete_collection(&delete, &all).await.expect("objects are deleted");
        }
    }

    async fn is_reached(&self) -> bool {
        let cluster = self.cluster().await;
        let total = cluster.spec.bootstrap.replicas + cluster.spec.peers.replicas;
        let status = cluster.status.clone().unwrap_or_default();
        let holds =
            |name: &str| status.conditions.iter().any(|known| known.type_ == name && known.status == "True");
        let nodes_are = {
            let nodes = self.nodes.lock().expect("not poisoned");
            nodes.active() == total as usize && nodes.running.len() == total as usize && nodes.is_whole()
        };
        nodes_are
            && status.observed_generation == cluster.metadata.generation
            && status.summary == format!("{total}/{total}")
            && status.current_revision == status.target_revision
            && ["Available", "QuorumHealthy", "Reconciled"].into_iter().all(holds)
            && !holds("Progressing")
            && !holds("Degraded")
    }

    /// Everything in the namespace that is the operator's, less what differs between any two runs.
    pub(crate) async fn objects(&self) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
        for kind in LISTED {
            for object in
                api(&self.client, &self.namespace, kind).list(&ListParams::default()).await.expect("a list")
            {
                if object.name_any() != "default" && object.name_any() != "kube-root-ca.crt" {
                    all.insert(format!("{} {}", kind.as_str(), object.name_any()), self.plain(&object));
                }
            }
        }
        all
    }

    fn plain(&self, object: &DynamicObject) -> Value {
        let labels = object.labels().clone();
        let mut data = object.data.clone();
        data.as_object_mut().map(|fields| fields.remove("status"));
        for address in ["clusterIP", "clusterIPs"] {
            if data["spec"][address] != json!("None") && data["spec"][address] != json!(["None"]) {
                data["spec"].as_object_mut().map(|fields| fields.remove(address));
            }
        }
        // Each namespace has its own name, its resource its own uid.
        let text =
            json!({ "labels": labels, "data": data }).to_string().replace(&self.namespace, "NAMESPACE");
        serde_json::from_str(&text).expect("JSON")
    }
}
