//! The storage's client against nodes that die and freeze: where it sends, what it sends again, and
//! what a watch tells when the node behind it is gone.

use std::time::Duration;

use bytes::Bytes;
use debros_proto::NodeId;
use debros_proto::layout::{Layout, partition_of};
use debros_sdk::{
    Client, ErrorKind, PutOptions, RemoteStorage, Storage, StorageOperation, WatchEvent, WatchOptions,
    conformance,
};
use tokio::time::Instant;

use crate::support::{Fault, World};
use crate::{client, eventually};

async fn storage(world: &World) -> (Client, RemoteStorage) {
    let client = client(world, 0).await;
    let storage = client.storage();
    (client, storage)
}

#[tokio::test(start_paused = true)]
async fn a_clusters_storage_conforms() {
    let world = World::new(3);
    let (client, storage) = storage(&world).await;
    conformance::storage(&storage).await;
    client.close().await;
    assert_eq!(storage.get("a").await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_operation_goes_to_a_node_that_holds_its_key() {
    let world = World::new(5);
    world.state().replicas = 2;
    let (_client, storage) = storage(&world).await;
    for number in 0..40 {
        storage.put(&format!("key/{number}"), Bytes::new()).await.unwrap();
        storage.get(&format!("key/{number}")).await.unwrap();
    }
    let state = world.state();
    let layout = Layout::new(state.layout()).unwrap();
    let mut asked = std::collections::BTreeSet::new();
    for (index, key, _) in &state.operates {
        let node = NodeId(*index as u64 + 1);
        assert!(layout.holds(node, partition_of("test", key)), "{key} is not at {node:?}");
        asked.insert(*index);
    }
    assert_eq!((state.operates.len(), state.layouts_told), (80, 1));
    assert!(asked.len() > 2, "reads and writes are spread: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn many_operations_share_messages() {
    let world = World::new(1);
    let (_client, storage) = storage(&world).await;
    storage.put("first", Bytes::new()).await.unwrap();
    let put = |number| StorageOperation::Put {
        key: format!("{number}"),
        value: Bytes::new(),
        options: PutOptions::default(),
    };
    let written = storage.batch((0..500).map(put).collect()).await;
    assert!(written.iter().all(Result::is_ok));
    let state = world.state();
    assert_eq!(state.operates.len(), 501);
    assert!(state.frames < 50, "{}", state.frames);
}

#[tokio::test(start_paused = true)]
async fn the_clock_that_was_seen_goes_with_the_next_operation() {
    let world = World::new(3);
    let (client, storage) = storage(&world).await;
    let version = storage.put("a", Bytes::new()).await.unwrap();
    client.storage().get("b").await.unwrap();
    assert_eq!(world.state().operates.last().unwrap().2, version.clock);
}

#[tokio::test(start_paused = true)]
async fn dead_and_frozen_nodes_cost_no_operation() {
    let world = World::new(3);
    let (_client, storage) = storage(&world).await;
    storage.put("a", Bytes::from("1")).await.unwrap();
    world.kill(1);
    for number in 0..20 {
        storage.put(&format!("{number}"), Bytes::from("2")).await.unwrap();
    }
    world.restart(1);
    world.freeze(2);
    let started = Instant::now();
    for number in 0..20 {
        assert_eq!(storage.get(&format!("{number}")).await.unwrap(), Some("2".into()));
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(storage.get("a").await.unwrap(), Some("1".into()));
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_node_died_before_answering_is_put_again() {
    let world = World::new(3);
    let (_client, storage) = storage(&world).await;
    storage.put("warm", Bytes::new()).await.unwrap();
    for fault in [Fault::Kill, Fault::Freeze] {
        world.state().after_apply = vec![fault];
        let started = Instant::now();
        storage.put("a", Bytes::from("1")).await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(3), "{fault:?} {:?}", started.elapsed());
        assert_eq!(storage.get("a").await.unwrap(), Some("1".into()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_put_is_not_put_again_beside_itself() {
    let world = World::new(3);
    let (_client, storage) = storage(&world).await;
    storage.put("warm", Bytes::new()).await.unwrap();
    world.state().after_apply = vec![Fault::Mute];
    let options = PutOptions { timeout: Some(Duration::from_secs(5)), ..PutOptions::default() };
    storage.put_with("a", Bytes::from("1"), options).await.unwrap_err();
    assert_eq!(world.state().operates.iter().filter(|(_, key, _)| key == "a").count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_nobody_answers_is_unknown_and_a_get_is_only_late() {
    let world = World::new(1);
    let (_client, storage) = storage(&world).await;
    storage.put("warm", Bytes::new()).await.unwrap();
    world.state().after_apply = vec![Fault::Mute];
    let options = PutOptions { timeout: Some(Duration::from_secs(1)), ..PutOptions::default() };
    let error = storage.put_with("a", Bytes::from("1"), options).await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::UnknownOutcome, true), "{error}");
    assert_eq!(storage.get("a").await.unwrap(), Some("1".into()));
    world.freeze(0);
    let error = storage.get("a").await.unwrap_err();
    assert!(error.is_retryable() && !error.maybe_applied(), "{error}");
}

#[tokio::test(start_paused = true)]
async fn with_all_nodes_gone_a_put_is_unreachable_and_not_applied() {
    let world = World::new(2);
    let (_client, storage) = storage(&world).await;
    storage.put("warm", Bytes::new()).await.unwrap();
    world.kill(0);
    world.kill(1);
    let error = storage.put("a", Bytes::new()).await.unwrap_err();
    assert_eq!((error.kind(), error.maybe_applied()), (ErrorKind::Unreachable, false), "{error}");
    world.restart(1);
    storage.put("a", Bytes::from("1")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_changed_layout_is_learnt() {
    let world = World::new(3);
    let (_client, storage) = storage(&world).await;
    storage.put("a", Bytes::new()).await.unwrap();
    {
        let mut state = world.state();
        (state.layout_version, state.stale_answers, state.replicas) = (2, 1, 1);
    }
    storage.put("a", Bytes::from("2")).await.unwrap();
    eventually("the layout is asked for again", || world.state().layouts_told > 1).await;
    world.state().operates.clear();
    for _ in 0..10 {
        storage.get("a").await.unwrap();
    }
    let state = world.state();
    let layout = Layout::new(state.layout()).unwrap();
    let owner = layout.current().nodes_of(partition_of("test", "a"))[0];
    assert!(state.operates.iter().all(|(index, ..)| *index as u64 + 1 == owner.0), "{:?}", state.operates);
}

#[tokio::test(start_paused = true)]
async fn a_storage_of_a_cluster_without_a_layout_works_through_any_node() {
    let world = World::new(2);
    world.state().layout_version = 0;
    world.state().replicas = 0;
    let (_client, storage) = storage(&world).await;
    storage.put("a", Bytes::from("1")).await.unwrap();
    assert_eq!(storage.list("", 10).await.unwrap(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_at_another_node_and_misses_nothing() {
    let world = World::new(3);
    let (_client, storage) = storage(&world).await;
    let mut watch = storage.watch("a/", WatchOptions::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::CaughtUp);
    for round in 0..4 {
        let node = world.state().watched.unwrap();
        if round == 2 {
            world.freeze(node);
        } else {
            world.kill(node);
        }
        let key = format!("a/{round}");
        world.storage.put(&key, Bytes::from("1")).await.unwrap();
        loop {
            match watch.next().await.unwrap().unwrap() {
                WatchEvent::Put(entry) if entry.key == key => break,
                WatchEvent::Lagged => panic!("nothing was missed"),
                _ => {}
            }
        }
        if round == 2 {
            world.kill(node);
        }
        world.restart(node);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_lists_when_a_watch_has_lagged_misses_nothing() {
    let world = World::new(3);
    world.state().tokenless = true;
    let (_client, storage) = storage(&world).await;
    let mut watch = storage.watch("a/", WatchOptions::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::CaughtUp);
    let node = world.state().watched.take().unwrap();
    world.kill(node);
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::Lagged);
    assert!(world.state().watched.is_some(), "another node is listened to before it is told");
    assert_eq!(storage.list("a/", 10).await.unwrap(), [""; 0]);
    world.storage.put("a/later", Bytes::from("1")).await.unwrap();
    while !matches!(watch.next().await.unwrap().unwrap(), WatchEvent::Put(entry) if entry.key == "a/later") {}
}

#[tokio::test(start_paused = true)]
async fn a_watch_outlives_an_outage_and_ends_with_its_client() {
    let world = World::new(1);
    let (client, storage) = storage(&world).await;
    let mut watch = storage.watch("", WatchOptions::default()).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap(), WatchEvent::CaughtUp);
    world.kill(0);
    let error = watch.next().await.unwrap().unwrap_err();
    assert!(error.is_retryable(), "{error}");
    world.restart(0);
    world.storage.put("a", Bytes::new()).await.unwrap();
    while !matches!(watch.next().await.unwrap(), Ok(WatchEvent::Put(_))) {}
    client.close().await;
    // What has arrived is told first.
    let error = loop {
        if let Err(error) = watch.next().await.unwrap() {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(watch.next().await.is_none());
}
