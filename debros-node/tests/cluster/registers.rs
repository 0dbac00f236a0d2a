//! Registers through the SDK, at whichever node, while leaders come and go.

use std::sync::Arc;
use std::time::Duration;

use debros_node::service::Principal;
use debros_proto::{ErrorCode, v1};
use debros_sdk::{
    Client, Database, ErrorKind, Lock, RegisterEvent, RegisterListOptions, RegisterPutOptions, RegisterWatch,
    Registers, conformance, params,
};
use futures::StreamExt;
use tokio::time::timeout;
use v1::register_operation::Kind;

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
    registers.put_with(b"lasting", b"1", RegisterPutOptions::lease(lasting.id)).await.unwrap();
    let short = registers.grant_lease(Duration::from_secs(2)).await.unwrap();
    registers.put_with(b"watched/short", b"2", RegisterPutOptions::lease(short.id)).await.unwrap();
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
    the_stream_of_another_node_is_handed_on(&cluster, without.expect("three replicas"), &first).await;
    // Its first question: it knows nobody but the node without a replica.
    let mut watch = client.registers().watch(b"key/", None).await.unwrap();
    let page = client.registers().list(b"key/", RegisterListOptions::default()).await.unwrap();
    assert_eq!(page.registers.len(), 1);
    first.registers().put(b"key/b", b"1").await.unwrap();
    assert_eq!(value(&mut watch).await, "1");
    for client in [first, client] {
        client.close().await;
    }
    cluster.shutdown().await;
}

async fn the_stream_of_another_node_is_handed_on(cluster: &Cluster, without: usize, client: &Client) {
    let header = Some(v1::RequestHeader { namespace: "app".to_owned(), ..Default::default() });
    let request = v1::RegisterWatchRequest { header, prefix: "key/".into(), after: None };
    let mut watch = cluster.node(without).node.registers().watch(&Principal::Http, request).await.unwrap();
    let first = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(first.changes.is_empty() && !first.lagged, "{first:?}");
    let version = client.registers().put(b"key/a", b"0").await.unwrap();
    loop {
        let told = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
        if let Some(change) = told.changes.first() {
            assert_eq!((change.version, told.revision >= version), (version, true));
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_write_is_applied_once_and_gives_the_first_answer() {
    let cluster = Cluster::of(3).await;
    let header = || Some(v1::RequestHeader { namespace: "app".to_owned(), ..Default::default() });
    let open = v1::OpenSessionRequest { header: header(), database: String::new() };
    let session = cluster.node(0).node.databases().open_session(&Principal::Http, open).await.unwrap().id;
    let write = |sequence: u64, kind: Kind| v1::RegisterWriteRequest {
        header: header(),
        operation: Some(v1::RegisterOperation { kind: Some(kind) }),
        session: Some(v1::WriteSession { id: session, sequence, acknowledged: 1 }),
    };
    let increment = Kind::Increment(v1::RegisterIncrement { key: "n".into(), delta: 5 });
    let swap = v1::RegisterPut { key: "n".into(), expected_version: Some(7), ..Default::default() };
    let operations = [increment, Kind::Put(swap), Kind::GrantLease(v1::LeaseGrant { ttl_ms: 60_000 })];
    for (sequence, kind) in (1..).zip(operations) {
        let mut outcomes = Vec::new();
        // Through the leader and through the others, which forward it.
        for index in [0, 1, 2, 0] {
            let registers = cluster.node(index).node.registers();
            let answer = registers.write(&Principal::Http, write(sequence, kind.clone())).await.unwrap();
            outcomes.push(answer.outcome.unwrap());
        }
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
    }
    let client = cluster.client(1, "app").await;
    assert_eq!(&*client.registers().get(b"n").await.unwrap().unwrap().value, b"5");
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_known_of_a_dropped_database_fits_the_next_one_of_its_name() {
    let cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    let registers = client.registers();
    let version = registers.put(b"key", b"old").await.unwrap();
    let lease = registers.grant_lease(Duration::from_secs(3600)).await.unwrap();
    let revision = registers.list(b"", RegisterListOptions::default()).await.unwrap().revision;
    let header = || Some(v1::RequestHeader { namespace: "app".to_owned(), ..Default::default() });
    let open = v1::OpenSessionRequest { header: header(), database: String::new() };
    let session = cluster.node(0).node.databases().open_session(&Principal::Http, open).await.unwrap().id;
    client.drop_database("default", false).await.unwrap();
    // As much as was done to the old one, and more, so that every number of it would have come again.
    let mut versions = Vec::new();
    for _ in 0..20 {
        versions.push(eventually_put(&registers, b"key").await);
        registers.grant_lease(Duration::from_secs(3600)).await.unwrap();
    }
    assert!(versions[0] > session.max(lease.id.0).max(version), "{versions:?}");
    assert!(registers.compare_and_set(b"key", version, b"stale").await.unwrap().is_err());
    let leased = registers.put_with(b"key", b"stale", RegisterPutOptions::lease(lease.id)).await;
    assert_eq!(leased.unwrap_err().kind(), ErrorKind::NotFound);
    let increment = Kind::Increment(v1::RegisterIncrement { key: "n".into(), delta: 5 });
    let write = v1::RegisterWriteRequest {
        header: header(),
        operation: Some(v1::RegisterOperation { kind: Some(increment) }),
        session: Some(v1::WriteSession { id: session, sequence: 1, acknowledged: 0 }),
    };
    let refused = cluster.node(0).node.registers().write(&Principal::Http, write).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::SessionExpired, "{refused}");
    let mut watch = registers.watch(b"", Some(revision)).await.unwrap();
    let event = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, RegisterEvent::Lagged { .. }), "{event:?}");
    drop(watch);
    client.close().await;
    cluster.shutdown().await;
}

async fn eventually_put(registers: &dyn Registers, key: &[u8]) -> u64 {
    eventually("the new database takes a write", async || {
        registers.put(key, b"new").await.map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_slowly_misses_nothing_that_is_remembered_and_is_told_of_the_rest() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    let registers = client.registers();
    let before = registers.put(b"first", b"x").await.unwrap();
    let mut watch = registers.watch(b"slow/", None).await.unwrap();
    // Many more messages than wait for an application.
    let mut versions = Vec::new();
    for number in 0..100 {
        versions.push(registers.put(format!("slow/{number}").as_bytes(), b"x").await.unwrap());
    }
    for version in versions {
        let event = timeout(DEADLINE, watch.next()).await.unwrap().unwrap().unwrap();
        assert!(matches!(&event, RegisterEvent::Put(register) if register.version == version), "{event:?}");
    }
    // Nobody need read what a watch has to tell before the client is closed.
    let stranger = cluster.client(0, "stranger").await;
    let _unread = stranger.registers().watch(b"", None).await.unwrap();
    for _ in 0..40 {
        stranger.registers().increment(b"n", 1).await.unwrap();
    }
    timeout(DEADLINE, stranger.close()).await.expect("closed in time");
    // More bytes than a node remembers.
    for _ in 0..6 {
        registers.put(b"large", &vec![0; 1 << 20]).await.unwrap();
    }
    let mut late = registers.watch(b"", Some(before)).await.unwrap();
    let event = timeout(DEADLINE, late.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, RegisterEvent::Lagged { revision } if revision > before), "{event:?}");
    let version = registers.put(b"last", b"x").await.unwrap();
    let event = timeout(DEADLINE, late.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&event, RegisterEvent::Put(register) if register.version == version), "{event:?}");
    // The database is another one: what was known of it never was.
    client.drop_database("default", false).await.unwrap();
    let mut other = eventually("the new database can be watched", async || {
        client.registers().watch(b"", Some(1 << 40)).await.map_err(|error| error.to_string())
    })
    .await;
    let event = timeout(DEADLINE, other.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, RegisterEvent::Lagged { .. }), "{event:?}");
    assert_eq!(client.registers().get(b"first").await.unwrap(), None);
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_cluster_has_its_registers_and_leases() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    client.registers().put(b"key", b"value").await.unwrap();
    let lease = client.registers().grant_lease(Duration::from_secs(2)).await.unwrap();
    client.registers().put_with(b"leased", b"value", RegisterPutOptions::lease(lease.id)).await.unwrap();
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
async fn value(watch: &mut RegisterWatch) -> String {
    let event = timeout(DEADLINE, watch.next()).await.expect("an event in time").expect("the watch goes on");
    match event.expect("no error") {
        RegisterEvent::Put(register) => String::from_utf8(register.value.into()).expect("text"),
        RegisterEvent::Deleted { key, .. } => format!("{} is gone", String::from_utf8_lossy(&key)),
        RegisterEvent::Lagged { revision } => panic!("lagged up to {revision}"),
    }
}
