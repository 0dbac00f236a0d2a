//! Registers through the SDK, at whichever node, while leaders come and go.

use std::sync::Arc;
use std::time::Duration;

use debros_sdk::{
    Database, ErrorKind, ListOptions, Lock, PutOptions, Registers, Watch, WatchEvent, conformance, params,
};
use tokio::time::timeout;

use crate::support::{Cluster, DEADLINE, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn registers_work_alike_through_every_node() {
    let cluster = Cluster::of(3).await;
    // Each in a namespace of its own, all at once.
    let held = (0..3).map(async |index| {
        let client = cluster.client(index, &format!("conformance-{index}")).await;
        conformance::registers(&client.registers()).await;
        conformance::locks(Arc::new(client.registers())).await;
        let error = client.database().query("SELECT * FROM _debros_register", params![]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        client.close().await;
    });
    futures::future::join_all(held).await;
    added_here_read_there(&cluster).await;
    cluster.shutdown().await;
}

async fn added_here_read_there(cluster: &Cluster) {
    let mut clients = Vec::new();
    for index in 0..3 {
        clients.push(cluster.client(index, "app").await);
    }
    for sum in 1..=30 {
        let counter = clients[sum % 3].registers().increment(b"n", 1).await.unwrap();
        assert_eq!(counter.value, sum as i64);
        for client in &clients {
            let found = client.registers().get(b"n").await.unwrap().unwrap();
            assert_eq!((&*found.value, found.version), (sum.to_string().as_bytes(), counter.version));
        }
    }
    // A namespace sees nothing of another's.
    let stranger = cluster.client(0, "stranger").await;
    assert_eq!(stranger.registers().get(b"n").await.unwrap(), None);
    stranger.close().await;
    for client in clients {
        client.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_watches_outlive_the_leader() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    let registers = client.registers();
    let lock = Lock::new(Arc::new(registers.clone()), "lock", Duration::from_secs(20));
    let guard = lock.acquire(b"me").await.unwrap();
    let mut watch = registers.watch(b"watched/", None).await.unwrap();
    registers.put(b"watched/a", b"1").await.unwrap();
    assert_eq!(value(&mut watch).await, "1");
    let lasting = registers.grant_lease(Duration::from_secs(3600)).await.unwrap();
    registers.put_with(b"lasting", b"1", PutOptions::lease(lasting.id)).await.unwrap();
    let short = registers.grant_lease(Duration::from_secs(2)).await.unwrap();
    registers.put_with(b"watched/short", b"2", PutOptions::lease(short.id)).await.unwrap();
    assert_eq!(value(&mut watch).await, "2");
    let leader = cluster.leader(&client).await;
    cluster.stop(leader).await;
    // Whoever leads now goes on with the leases, and with what is told to those who watch.
    assert_eq!(value(&mut watch).await, "watched/short is gone");
    registers.put(b"watched/a", b"3").await.unwrap();
    assert_eq!(value(&mut watch).await, "3");
    assert_eq!(registers.get(b"watched/short").await.unwrap(), None);
    assert!(registers.get(b"lasting").await.unwrap().is_some());
    registers.keep_alive(lasting.id).await.unwrap();
    assert!(guard.is_held());
    guard.release().await.unwrap();
    drop(watch);
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_replica_serves_registers_too() {
    let cluster = Cluster::of(4).await;
    let first = cluster.client(0, "app").await;
    first.registers().put(b"key/a", b"0").await.unwrap();
    let replicas = first.list_databases().await.unwrap().remove(0).replicas;
    let mut without = None;
    for index in 0..4 {
        without = without.or((!replicas.contains(&cluster.id(index).await)).then_some(index));
    }
    let client = cluster.client(without.expect("three replicas"), "app").await;
    // Its first question: it knows nobody but the node without a replica.
    let mut watch = client.registers().watch(b"key/", None).await.unwrap();
    let page = client.registers().list(b"key/", ListOptions::default()).await.unwrap();
    assert_eq!(page.registers.len(), 1);
    first.registers().put(b"key/b", b"1").await.unwrap();
    assert_eq!(value(&mut watch).await, "1");
    for client in [first, client] {
        client.close().await;
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_cluster_has_its_registers_and_leases() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    client.registers().put(b"key", b"value").await.unwrap();
    let lease = client.registers().grant_lease(Duration::from_secs(2)).await.unwrap();
    client.registers().put_with(b"leased", b"value", PutOptions::lease(lease.id)).await.unwrap();
    client.close().await;
    for index in 0..3 {
        cluster.stop(index).await;
    }
    cluster.start(0).await.unwrap();
    for index in 1..3 {
        cluster.start_told(index).await;
    }
    let client = cluster.client_of_all("app").await;
    eventually("a lease ends by itself after a restart", async || {
        match client.registers().get(b"leased").await {
            Ok(None) => Ok(()),
            other => Err(other.map_err(|error| error.to_string())),
        }
    })
    .await;
    assert_eq!(&*client.registers().get(b"key").await.unwrap().unwrap().value, b"value");
    client.close().await;
    cluster.shutdown().await;
}

/// The next value, or which key is gone.
async fn value(watch: &mut Watch) -> String {
    let event = timeout(DEADLINE, watch.next()).await.expect("an event in time").expect("the watch goes on");
    match event.expect("no error") {
        WatchEvent::Put(register) => String::from_utf8(register.value.into()).expect("text"),
        WatchEvent::Deleted { key, .. } => format!("{} is gone", String::from_utf8_lossy(&key)),
        WatchEvent::Lagged { revision } => panic!("lagged up to {revision}"),
    }
}
