//! The key-value storage through the SDK: at every node, while nodes die and come back, and while the
//! cluster grows and shrinks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use debros_node::kv::KvSlot;
use debros_node::node::Settings;
use debros_proto::ErrorCode;
use debros_proto::layout::PARTITIONS;
use debros_sdk::{Client, ErrorKind, PubSub, Storage, SubscriptionEvent, WatchEvent};

use crate::support::{Cluster, eventually, expect};

/// What takes minutes in production, in the time of a test.
fn hasty(settings: &mut Settings) {
    settings.kv.repair_interval = Duration::from_millis(200);
    settings.kv.collect_interval = Duration::from_millis(300);
    settings.reconcile.layout_settles_after = Duration::from_millis(300);
}

/// Deletions are forgotten at once, too.
fn forgetful(settings: &mut Settings) {
    hasty(settings);
    settings.kv.tombstone_life = Duration::from_millis(500);
}

fn kv(cluster: &Cluster, index: usize) -> KvSlot {
    cluster.node(index).node.storage_engine().clone()
}

/// Waits until all running nodes act under one settled layout of so many nodes.
async fn laid_out(cluster: &Cluster, nodes: usize) {
    for node in cluster.running() {
        eventually("the storage is laid out over all nodes", async || {
            let layout = node.node.storage_engine().get().and_then(|kv| kv.layout());
            let layout = layout.map_err(|failure| failure.to_string())?;
            let members = layout.current.as_ref().map_or(0, |set| set.nodes.len());
            expect((members, layout.next.is_none()), &(nodes, true))
                .map_err(|reason| format!("{reason} at {}: {layout:?}", node.node.peer_id()))
        })
        .await;
    }
}

/// Waits until the replicas of every partition have equal trees.
async fn converged(cluster: &Cluster) {
    eventually("replicas are equal", async || {
        let mut roots: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
        for node in cluster.running() {
            let engine = node.node.storage_engine().get().map_err(|failure| failure.to_string())?;
            for partition in 0..PARTITIONS {
                let root = engine.root_of(partition).await.map_err(|error| error.to_string())?;
                let Some(root) = root else { continue };
                let known = roots.entry(partition).or_insert_with(|| root.clone());
                if *known != root {
                    return Err(format!("partition {partition} differs"));
                }
            }
        }
        Ok(())
    })
    .await;
}

fn key(number: usize) -> String {
    format!("key-{number:05}")
}

async fn put_all(client: &Client, numbers: std::ops::Range<usize>, value: &str) {
    let storage = client.storage();
    let puts = numbers.map(|number| {
        let (storage, value) = (storage.clone(), Bytes::from(value.to_owned()));
        async move { storage.put(&key(number), value).await }
    });
    for outcome in futures::future::join_all(puts).await {
        outcome.expect("a put");
    }
}

async fn all_hold(clients: &[Client], numbers: std::ops::Range<usize>, value: &str) {
    for client in clients {
        let storage = client.storage();
        for number in numbers.clone() {
            let found = storage.get(&key(number)).await.expect("a get");
            assert_eq!(found.as_deref(), Some(value.as_bytes()), "{}", key(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_works_alike_through_every_node() {
    let cluster = Cluster::adjusted(3, hasty).await;
    laid_out(&cluster, 3).await;
    for index in 0..3 {
        // A namespace each: the contract is held to an empty storage.
        let client = cluster.client(index, &format!("app-{index}")).await;
        debros_sdk::conformance::storage(&client.storage()).await;
        client.close().await;
    }
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(cluster.client(index, "app").await);
    }
    put_all(&clients[0], 0..50, "first").await;
    all_hold(&clients, 0..50, "first").await;
    put_all(&clients[1], 0..50, "second").await;
    all_hold(&clients, 0..50, "second").await;
    let stranger = cluster.client(0, "another").await;
    assert_eq!(stranger.storage().get(&key(1)).await.expect("a get"), None, "namespaces do not meet");
    assert_eq!(stranger.storage().list("", 10).await.expect("a list"), Vec::<String>::new());
    converged(&cluster).await;
    for client in clients.into_iter().chain([stranger]) {
        client.close().await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_gets_what_it_missed() {
    let mut cluster = Cluster::adjusted(3, hasty).await;
    laid_out(&cluster, 3).await;
    let client = cluster.client(0, "app").await;
    put_all(&client, 0..100, "before").await;
    cluster.stop(2).await;
    put_all(&client, 50..150, "while away").await;
    client.storage().delete(&key(0)).await.expect("a delete");
    cluster.start_told(2).await;
    cluster.formed().await;
    converged(&cluster).await;
    let returned = [cluster.client(2, "app").await];
    all_hold(&returned, 1..50, "before").await;
    all_hold(&returned, 50..150, "while away").await;
    assert_eq!(returned[0].storage().get(&key(0)).await.expect("a get"), None);
    for client in returned.into_iter().chain([client]) {
        client.close().await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_growing_cluster_moves_its_share_and_loses_nothing() {
    let mut cluster = Cluster::adjusted(3, hasty).await;
    laid_out(&cluster, 3).await;
    let client = cluster.client(0, "app").await;
    put_all(&client, 0..300, "before").await;
    cluster.add().await;
    cluster.add().await;
    // While the layout changes.
    put_all(&client, 100..400, "meanwhile").await;
    all_hold(std::slice::from_ref(&client), 0..100, "before").await;
    laid_out(&cluster, 5).await;
    let clients = [cluster.client(3, "app").await, cluster.client(4, "app").await];
    all_hold(&clients, 0..100, "before").await;
    all_hold(&clients, 100..400, "meanwhile").await;
    converged(&cluster).await;
    let held = futures::future::join_all((0..5).map(|index| held(&cluster, index))).await;
    assert_eq!(held.iter().sum::<usize>(), 3 * usize::from(PARTITIONS), "{held:?}");
    assert!(held.iter().all(|share| (400..850).contains(share)), "{held:?}");
    for client in clients.into_iter().chain([client]) {
        client.close().await;
    }
    cluster.shutdown().await;
}

/// Partitions that a node answers for.
async fn held(cluster: &Cluster, index: usize) -> usize {
    let engine = kv(cluster, index).get().expect("a member");
    let mut held = 0;
    for partition in 0..PARTITIONS {
        held += usize::from(engine.root_of(partition).await.expect("a root").is_some());
    }
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_stays_deleted_when_its_tombstone_is_forgotten() {
    let mut cluster = Cluster::adjusted(3, forgetful).await;
    laid_out(&cluster, 3).await;
    let client = cluster.client(0, "app").await;
    put_all(&client, 0..20, "gone soon").await;
    // The third node still has the values when the others delete them.
    cluster.stop(2).await;
    for number in 0..20 {
        client.storage().delete(&key(number)).await.expect("a delete");
    }
    cluster.start_told(2).await;
    cluster.formed().await;
    converged(&cluster).await;
    let collected = || async {
        let metrics = cluster.node(0).node.registry().clone();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics).expect("metrics");
        text.lines()
            .find_map(|line| line.strip_prefix("debros_storage_collected_tombstones_total "))
            .and_then(|count| count.parse::<u64>().ok())
            .unwrap_or_default()
    };
    eventually("tombstones are forgotten", async || {
        let count = collected().await;
        if count >= 20 { Ok(()) } else { Err(format!("{count} so far")) }
    })
    .await;
    converged(&cluster).await;
    for index in 0..3 {
        let client = cluster.client(index, "app").await;
        assert_eq!(client.storage().list("", 100).await.expect("a list"), Vec::<String>::new());
        assert_eq!(client.storage().get(&key(3)).await.expect("a get"), None);
        client.close().await;
    }
    put_all(&client, 0..5, "anew").await;
    all_hold(std::slice::from_ref(&client), 0..5, "anew").await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_acknowledged() {
    let mut cluster = Cluster::adjusted(3, hasty).await;
    laid_out(&cluster, 3).await;
    let client = cluster.client(0, "app").await;
    put_all(&client, 0..5, "here").await;
    cluster.stop(1).await;
    cluster.stop(2).await;
    let options = debros_sdk::PutOptions { timeout: Some(Duration::from_secs(2)), ..Default::default() };
    let refused = client.storage().put_with("alone", "x".into(), options).await.expect_err("no majority");
    assert!(matches!(refused.kind(), ErrorKind::Unavailable | ErrorKind::UnknownOutcome), "{refused:?}");
    assert!(refused.is_retryable());
    let one = debros_sdk::GetOptions { quorum: debros_sdk::Quorum::One, ..Default::default() };
    let found = client.storage().get_with(&key(1), one).await.expect("one replica is enough if asked so");
    assert_eq!(found.expect("a value").value, "here");
    client.close().await;
    cluster.shutdown().await;
}

/// It has a map that names it, and nobody sends it a newer one.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_removed_while_it_was_away_stops_serving() {
    let mut cluster = Cluster::adjusted(4, hasty).await;
    laid_out(&cluster, 4).await;
    let client = cluster.client(0, "app").await;
    put_all(&client, 0..10, "before").await;
    let id = cluster.id(3).await;
    cluster.stop(3).await;
    client.cluster().leave(Some(id)).await.expect("it is taken out");
    put_all(&client, 0..10, "after").await;
    cluster.start_told(3).await;
    let returned = cluster.client(3, "app").await;
    let mut watch = returned.storage().watch("", Default::default()).await.expect("a watch");
    let mut subscription = returned.pubsub().subscribe("news").await.expect("a subscription");
    let engine = kv(&cluster, 3);
    eventually("it finds out that it is no member", async || match engine.get() {
        Ok(_) => Err("it serves".to_owned()),
        Err(failure) => {
            expect((failure.code, failure.message.contains("was removed")), &(ErrorCode::Unavailable, true))
        }
    })
    .await;
    for index in 0..3 {
        assert!(kv(&cluster, index).get().is_ok(), "members go on");
    }
    let one = debros_sdk::GetOptions { quorum: debros_sdk::Quorum::One, ..Default::default() };
    let found = returned.storage().get_with(&key(1), one).await.expect("others answer").expect("a value");
    assert_eq!(found.value, "after");
    // A watch that had told nothing yet says that it lagged, and tells what comes then.
    eventually("a watch goes on at a member", async || {
        put_all(&client, 0..1, "later").await;
        let event = tokio::time::timeout(Duration::from_secs(1), watch.next()).await;
        let event = event.map_err(|_| "it tells nothing".to_owned())?.expect("no end");
        let event = event.map_err(|error| error.to_string())?;
        let later = matches!(&event, WatchEvent::Put(entry) if entry.value == "later");
        expect(later, &true)
    })
    .await;
    eventually("a subscription goes on at a member", async || {
        client.pubsub().publish("news", b"later").await.expect("a member takes it in");
        let event = tokio::time::timeout(Duration::from_secs(1), subscription.next()).await;
        let event = event.map_err(|_| "it tells nothing".to_owned())?.expect("no end");
        let event = event.map_err(|error| error.to_string())?;
        expect(matches!(event, SubscriptionEvent::Message(_)), &true)
    })
    .await;
    returned.close().await;
    client.close().await;
    cluster.shutdown().await;
}
