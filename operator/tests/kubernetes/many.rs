//! A hundred clusters in one operator: what it needs of memory, how often it calls the API server when nothing happens,
//! and how soon it reacts. The real loop and the real caches; the nodes are in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams};
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use operator::caches::{Caches, Scope};
use operator::controller;
use operator::crd::DebrosCluster;
use operator::metrics::Metrics;
use operator::nodes::{Answers, Leave, NodeError, Nodes, Place};
use operator::observed::PodId;
use operator::reconcile::Context;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::scene::{Scene, client, config, define};

const CLUSTERS: usize = 100;
/// Until nothing of what was written is new any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// Nobody answers: the operator has nothing to do but to look.
struct Silent;

#[async_trait::async_trait]
impl Nodes for Silent {
    async fn look(&self, _: &Place) -> Result<Answers, NodeError> {
        Ok(Answers::default())
    }
    async fn initialise(&self, _: &Place, _: PodId) -> Result<String, NodeError> {
        Err(NodeError::NotNow("nobody answers".to_owned()))
    }
    async fn leave(&self, _: &Place, _: u64) -> Result<Leave, NodeError> {
        Err(NodeError::NotNow("nobody answers".to_owned()))
    }
    async fn hand_over(&self, _: &Place, _: PodId) -> Result<(), NodeError> {
        Err(NodeError::NotNow("nobody answers".to_owned()))
    }
    async fn set_log_level(&self, _: &Place, _: PodId, _: &str) -> Result<(), NodeError> {
        Err(NodeError::NotNow("nobody answers".to_owned()))
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

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_clusters_rest_in_one_operator() {
    let Some(tests) = client().await else { return };
    define(&tests).await;
    let mut scenes = Vec::new();
    for _ in 0..CLUSTERS {
        scenes.push(
            Scene::new(&tests, json!({ "image": "debros/node:0.1.0", "bootstrap": { "replicas": 1 } })).await,
        );
    }
    let before = resident_bytes();
    let metrics = Metrics::default();
    let config = config().await.expect("there was one before");
    let client = ClientBuilder::try_from(config).expect("a client").with_layer(&metrics).build();
    let (caches, changes) = Caches::watch(&client, &Scope::All);
    let caches = Arc::new(caches);
    let context = Context {
        client: client.clone(),
        source: caches.clone(),
        nodes: Arc::new(Silent),
        metrics: metrics.clone(),
        recent: Default::default(),
    };
    let recorder =
        Recorder::new(client, Reporter { controller: "debros-operator".to_owned(), instance: None });
    let stop = CancellationToken::new();
    let started = Instant::now();
    let running =
        tokio::spawn(controller::run(context, recorder, caches.clusters.clone(), changes, stop.clone()));
    let all = Api::<DebrosCluster>::all(tests.clone());
    let ours = |cluster: &DebrosCluster| {
        scenes.iter().any(|scene| Some(&scene.namespace) == cluster.metadata.namespace.as_ref())
    };
    wait_until("every cluster has a status", async || {
        let clusters = all.list(&Default::default()).await.expect("a list");
        clusters.iter().filter(|cluster| ours(cluster)).all(|cluster| cluster.status.is_some())
    })
    .await;
    println!("{CLUSTERS} clusters taken up in {:.1?}, {} calls", started.elapsed(), metrics.api_calls());

    // What was written comes back through the caches, and is looked at once more.
    tokio::time::sleep(SETTLES_WITHIN).await; // poll: nothing to wait for but time
    let calls = metrics.api_calls();
    tokio::time::sleep(IDLE).await; // poll: the calls of an operator at rest
    let idle = metrics.api_calls() - calls;
    let an_hour = idle * 3600 / IDLE.as_secs();
    println!(
        "at rest: {idle} calls in {IDLE:?}, {an_hour} an hour; {} MiB",
        (resident_bytes() - before.min(resident_bytes())) >> 20
    );

    let (namespace, edited) = (scenes[0].namespace.clone(), Instant::now());
    let clusters = Api::<DebrosCluster>::namespaced(tests.clone(), &namespace);
    let patch = Patch::Merge(json!({ "spec": { "peers": { "replicas": 2 } } }));
    let generation =
        clusters.patch("orders", &PatchParams::default(), &patch).await.expect("taken").metadata.generation;
    wait_until("the change is seen", async || {
        let status = clusters.get("orders").await.expect("it is there").status.unwrap_or_default();
        status.observed_generation == generation
    })
    .await;
    println!("a change is carried out after {:.0?}", edited.elapsed());
    stop.cancel();
    running.await.expect("the loop ends");
    assert!(an_hour < 20_000, "{an_hour} calls an hour of an operator at rest");
}
