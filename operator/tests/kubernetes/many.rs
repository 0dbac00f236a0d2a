//! A hundred clusters in one operator: what it needs of memory, how often it calls the API server when nothing happens,
//! and how soon it reacts. The real loop and the real caches; the nodes are in memory, and the clusters were settled before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use operator::caches::{Caches, Scope};
use operator::controller;
use operator::crd::DebrosCluster;
use operator::lease::Hold;
use operator::metrics::Metrics;
use operator::nodes::{Answers, Leave, NodeError, Nodes, Place};
use operator::observed::PodId;
use operator::reconcile::Context;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::lives::{Life, MortalNodes};
use crate::rights::restricted;
use crate::scene::{Scene, client, config, define, extent};
use crate::support::Cluster;

/// Scenes that are settled beside each other.
const AT_A_TIME: usize = 8;
/// Until every cluster was looked at and nothing of what was written is new any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// What an hour may cost at rest, for each cluster: now and then what cannot be watched is read again, and watches are
/// begun anew.
const CALLS_AN_HOUR_MAX: u64 = 60;
/// The same of the operator itself.
const OWN_CALLS_AN_HOUR_MAX: u64 = 1200;
const REACTS_WITHIN: Duration = Duration::from_secs(5);

/// The nodes of all clusters, by the uid of the resource.
struct Everybody(HashMap<String, MortalNodes>);

impl Everybody {
    fn of(&self, place: &Place) -> Result<&MortalNodes, NodeError> {
        let nodes = self.0.get(&place.uid);
        nodes.ok_or_else(|| NodeError::NotNow("nobody answers".to_owned()))
    }
}

#[async_trait]
impl Nodes for Everybody {
    async fn look(&self, place: &Place) -> Result<Answers, NodeError> {
        self.of(place)?.look(place).await
    }
    async fn initialise(&self, place: &Place, pod: PodId) -> Result<String, NodeError> {
        self.of(place)?.initialise(place, pod).await
    }
    async fn leave(&self, place: &Place, node_id: u64) -> Result<Leave, NodeError> {
        self.of(place)?.leave(place, node_id).await
    }
    async fn hand_over(&self, place: &Place, pod: PodId) -> Result<(), NodeError> {
        self.of(place)?.hand_over(place, pod).await
    }
    async fn set_log_level(&self, place: &Place, pod: PodId, level: &str) -> Result<(), NodeError> {
        self.of(place)?.set_log_level(place, pod, level).await
    }
    async fn forget(&self, _: &str) {}
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = pages.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}

async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await; // poll: what the API server shows
    }
}

/// A cluster of one node at rest, the uid of its resource, and its nodes.
async fn at_rest(client: &kube::Client) -> (Scene, String, Arc<Mutex<Cluster>>) {
    let spec =
        json!({ "image": "debros/node:0.1.0", "bootstrap": { "replicas": 1 }, "replicationFactor": 1 });
    let mut scene = Scene::new(client, spec).await;
    let operator = scene.operator(&Life::endless()).await;
    scene.settle(&operator).await;
    let (uid, nodes) = (scene.cluster().await.uid().expect("a uid"), Arc::clone(&scene.nodes));
    (scene, uid, nodes)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clusters_rest_in_one_operator() {
    let Some(tests) = client().await else { return };
    define(&tests).await;
    let extent = extent();
    let scenes = (0..extent.clusters).map(|_| at_rest(&tests));
    let scenes: Vec<_> = futures::stream::iter(scenes).buffer_unordered(AT_A_TIME).collect().await;
    let nodes = scenes.iter().map(|(_, uid, cluster)| {
        (uid.clone(), MortalNodes { cluster: Arc::clone(cluster), life: Life::endless() })
    });
    let nodes = Everybody(nodes.collect());

    let before = resident_bytes();
    let metrics = Metrics::default();
    let config = restricted(config().await.expect("there was one before"));
    let client = ClientBuilder::try_from(config).expect("a client").with_layer(&metrics).build();
    let (caches, changes) = Caches::watch(&client, &Scope::All);
    let caches = Arc::new(caches);
    let context = Context {
        client: client.clone(),
        source: caches.clone(),
        nodes: Arc::new(nodes),
        metrics: metrics.clone(),
        hold: Hold::default(),
        recent: Default::default(),
    };
    let reporter = Reporter { controller: "debros-operator".to_owned(), instance: None };
    let stop = CancellationToken::new();
    let recorder = Recorder::new(client, reporter);
    let clusters = caches.clusters.clone();
    let running = tokio::spawn(controller::run(context, recorder, clusters, changes, stop.clone()));
    // Nothing to wait for but time: what is measured is that nothing happens.
    tokio::time::sleep(SETTLES_WITHIN).await; // poll: every cluster is looked at once
    let taken_up = metrics.api_calls();
    tokio::time::sleep(extent.rest).await; // poll: the calls of an operator at rest
    let idle = metrics.api_calls() - taken_up;
    let an_hour = idle * 3600 / extent.rest.as_secs();
    println!("{} clusters taken up in {taken_up} calls", extent.clusters);
    println!(
        "at rest: {idle} calls in {:?}, {an_hour} an hour; {} MiB more than without it",
        extent.rest,
        resident_bytes().saturating_sub(before) >> 20
    );

    let namespace = scenes[0].0.namespace.clone();
    let edited = Instant::now();
    let clusters = Api::<DebrosCluster>::namespaced(tests.clone(), &namespace);
    let patch = Patch::Merge(json!({ "spec": { "peers": { "replicas": 2 } } }));
    clusters.patch("orders", &PatchParams::default(), &patch).await.expect("the change is taken");
    let sets = Api::<StatefulSet>::namespaced(tests.clone(), &namespace);
    wait_until("the StatefulSet has two replicas", async || {
        let set = sets.get("orders-peer").await.expect("it is there");
        set.spec.and_then(|spec| spec.replicas) == Some(2)
    })
    .await;
    let reacted = edited.elapsed();
    println!("a change has its effect after {reacted:.0?}");
    stop.cancel();
    running.await.expect("the loop ends");
    for (scene, ..) in scenes {
        scene.end().await;
    }
    let allowed = OWN_CALLS_AN_HOUR_MAX + CALLS_AN_HOUR_MAX * extent.clusters as u64;
    assert!(an_hour <= allowed, "{an_hour} calls an hour of an operator at rest, more than {allowed}");
    assert!(reacted < REACTS_WITHIN, "{reacted:?} until a change has its effect");
}
