//! The crash sweep: each scenario is run once to count its calls, and then again for each of them, with an operator
//! that is ended in that very call. Another one begins where it stood, and must come to the same state.

use std::collections::BTreeMap;

use futures::StreamExt;
use serde_json::{Value, json};

use crate::lives::Life;
use crate::scene::{Scene, client, define, extent};

const IMAGE: &str = "debros/node:0.1.0";
/// Runs beside each other, each in a namespace of its own: most of the time they wait for the API server's disk.
const AT_A_TIME: usize = 4;

fn spec(peers: i32, image: &str) -> Value {
    json!({
        "image": image,
        "bootstrap": { "replicas": 3 },
        "peers": { "replicas": peers },
        "volumes": { "whenScaled": "Delete" },
    })
}

/// A change of the resource, from where it begins; the first one of all is that it is made.
struct Scenario {
    name: &'static str,
    begins_with: Option<Value>,
    goes_to: Value,
}

fn scenarios() -> [Scenario; 4] {
    [
        Scenario { name: "install", begins_with: None, goes_to: spec(0, IMAGE) },
        Scenario { name: "scale up", begins_with: Some(spec(0, IMAGE)), goes_to: spec(2, IMAGE) },
        Scenario { name: "scale down", begins_with: Some(spec(2, IMAGE)), goes_to: spec(0, IMAGE) },
        Scenario { name: "roll", begins_with: Some(spec(0, IMAGE)), goes_to: spec(0, "debros/node:0.1.1") },
    ]
}

/// Runs a scenario with an operator that lives so long, and then with one that goes on. Gives the calls that the first
/// one made, and what is there in the end.
async fn run(scenario: &Scenario, client: &kube::Client, life: &Life) -> (u64, BTreeMap<String, Value>) {
    let begins_with = scenario.begins_with.as_ref().unwrap_or(&scenario.goes_to);
    let mut scene = Scene::new(client, begins_with.clone()).await;
    if scenario.begins_with.is_some() {
        let unhurried = scene.operator(&Life::endless()).await;
        scene.settle(&unhurried).await;
        scene.edit(scenario.goes_to.clone()).await;
    }
    let mortal = scene.operator(life).await;
    let mut rounds = 0;
    while !life.is_over() {
        scene.round(&mortal).await;
        rounds += 1;
        if rounds > 60 {
            // It had nothing more to do: that is a whole run.
            break;
        }
    }
    let next = scene.operator(&Life::endless()).await;
    scene.settle(&next).await;
    let objects = scene.objects().await;
    scene.end().await;
    (life.made(), objects)
}

/// Ends an operator in this call of a scenario, and compares what the next one makes of it.
async fn ended_at(scenario: &Scenario, client: &kube::Client, call: u64, expected: &BTreeMap<String, Value>) {
    let life = Life::of(i64::try_from(call).expect("few"));
    let (made, reached) = run(scenario, client, &life).await;
    assert!(made <= call);
    let case = format!("{}, ended at call {call}", scenario.name);
    for (object, value) in expected {
        assert_eq!(Some(value), reached.get(object), "{case}: {object}");
    }
    assert_eq!(expected.len(), reached.len(), "{case}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_is_ended_at_any_call_is_followed_by_one_that_gets_to_the_same_state() {
    let Some(client) = client().await else { return };
    define(&client).await;
    let (every, mut all) = (extent().calls_between_ends, 0);
    for scenario in &scenarios() {
        let started = std::time::Instant::now();
        let (calls, expected) = run(scenario, &client, &Life::endless()).await;
        assert!(calls > 0 && !expected.is_empty());
        // The last one is in any case among them.
        let ends: Vec<u64> = (1..=calls).rev().step_by(every).collect();
        let (client, expected) = (&client, &expected);
        let runs = ends.iter().map(|call| ended_at(scenario, client, *call, expected));
        futures::stream::iter(runs).buffer_unordered(AT_A_TIME).for_each(|()| std::future::ready(())).await;
        all += ends.len();
        println!(
            "{:<11} {calls:>3} calls, ended at {:>3} of them, all came to the same state ({:.0?})",
            scenario.name,
            ends.len(),
            started.elapsed()
        );
    }
    println!("{all} operators were ended, each at another call");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_is_put_back_and_what_is_theirs_is_left_alone() {
    let Some(client) = client().await else { return };
    define(&client).await;
    let mut scene = Scene::new(&client, spec(0, IMAGE)).await;
    // Somebody else's Service has the name that clients are to use.
    let services =
        kube::Api::<k8s_openapi::api::core::v1::Service>::namespaced(client.clone(), &scene.namespace);
    let theirs = json!({ "metadata": { "name": "orders" }, "spec": { "ports": [{ "port": 1 }] } });
    services
        .create(&Default::default(), &serde_json::from_value(theirs).expect("a Service"))
        .await
        .expect("made");
    let operator = scene.operator(&Life::endless()).await;
    for _ in 0..10 {
        scene.round(&operator).await;
    }
    let status = scene.cluster().await.status.expect("a status");
    assert!(status.message.contains("Service orders is somebody else's"), "{}", status.message);
    let left = services.get("orders").await.expect("it is there");
    assert!(left.metadata.owner_references.is_none());
    services.delete("orders", &Default::default()).await.expect("deleted");
    scene.settle(&operator).await;
    let before = scene.objects().await;

    services.delete("orders-bootstrap", &Default::default()).await.expect("deleted");
    let sets =
        kube::Api::<k8s_openapi::api::apps::v1::StatefulSet>::namespaced(client.clone(), &scene.namespace);
    let edited = json!({ "spec": { "updateStrategy": { "type": "RollingUpdate" }, "template": { "spec": {
        "containers": [{ "name": "debros-node", "image": "edited" }],
    } } } });
    sets.patch("orders-bootstrap", &Default::default(), &kube::api::Patch::Strategic(edited))
        .await
        .expect("edited");
    scene.settle(&operator).await;
    assert_eq!(scene.objects().await, before);
    scene.end().await;
}
