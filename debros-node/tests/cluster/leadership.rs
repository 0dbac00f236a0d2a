//! A leader that goes: writes stop for a moment and go on, and none is lost or applied twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use debros_node::service::Principal;
use debros_proto::v1;
use debros_sdk::{Client, Database, Storage, params};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::support::{Cluster, DEADLINE, address_of, eventually, holds, table, write};

/// A write that waits longer than this for a leader that was shut down, and so has handed over, is
/// one too many, even on a busy machine.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(5);

/// So many that each of three nodes is the first one of some.
const KEYS: usize = 20;

/// Writes one number after the other until told to stop; gives the longest pause.
struct Writer {
    acknowledged: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
    work: JoinHandle<Duration>,
}

impl Writer {
    fn start(client: Client) -> Self {
        let (acknowledged, stop) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (acknowledged.clone(), stop.clone());
        let work = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let (number, started) = (counted.load(Ordering::Relaxed) + 1, Instant::now());
                write(&client, number).await;
                longest = longest.max(started.elapsed());
                counted.store(number, Ordering::Relaxed);
            }
            longest
        });
        Self { acknowledged, stop, work }
    }

    /// Waits until so many more writes are acknowledged.
    async fn more(&self, writes: i64) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + writes;
        eventually("writes go on", async || {
            let acknowledged = self.acknowledged.load(Ordering::Relaxed);
            if acknowledged >= wanted { Ok(()) } else { Err(format!("{acknowledged} of {wanted}")) }
        })
        .await;
    }

    /// Ends; gives how many writes were acknowledged and the longest pause.
    async fn end(self) -> (i64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.work.await.expect("every write was acknowledged");
        (self.acknowledged.load(Ordering::Relaxed), longest)
    }
}

/// As an operator does it before a node is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_hands_over_what_it_leads_when_it_is_asked_to() {
    let cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    let leader = cluster.leader(&client).await;
    let node = client.cluster().node_at(&address_of(cluster.node(leader)), DEADLINE).await.unwrap();
    assert_eq!(node.peer_id(), cluster.node(leader).node.peer_id().to_string());
    assert_eq!(node.hand_over().await.unwrap(), 0);
    let groups = node.status(DEADLINE).await.unwrap().groups;
    assert!(groups.len() >= 2 && groups.iter().all(|group| group.role != "leader"), "{groups:?}");
    write(&client, 1).await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_shut_down_hands_over_under_load() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    // The client has a stream at every node, which a stop has no reason to wait for.
    for key in 0..KEYS {
        client.storage().put(&key.to_string(), "value".into()).await.unwrap();
    }
    let writer = Writer::start(client.clone());
    let mut before = 0;
    for _ in 0..3 {
        writer.more(20).await;
        let leader = cluster.leader(&client).await;
        let term = cluster.node(leader).node.joined().await.meta().status().term;
        assert!(term >= before, "terms only grow");
        before = term;
        cluster.stop(leader).await;
        writer.more(20).await;
        cluster.start(leader).await.unwrap();
        cluster.formed().await;
    }
    let (acknowledged, longest) = writer.end().await;
    assert!(longest < HANDED_OVER_WITHIN, "writes were away for {longest:?}");
    let numbers: Vec<i64> = (1..=acknowledged).collect();
    for index in 0..3 {
        let reader = cluster.client(index, "app").await;
        holds(&reader, &numbers).await;
        reader.close().await;
    }
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_outlives_its_leader() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    let leader = cluster.leader(&client).await;
    let header = Some(v1::RequestHeader { namespace: "app".into(), ..Default::default() });
    let open = v1::OpenSessionRequest { header: header.clone(), ..Default::default() };
    let session = cluster.node(leader).node.databases().open_session(&Principal::Http, open).await.unwrap();
    let insert = |sequence: u64| v1::ExecuteRequest {
        header: header.clone(),
        statements: vec![v1::Statement {
            sql: "INSERT INTO written SELECT coalesce(max(n), 0) + 1 FROM written RETURNING n".into(),
            ..Default::default()
        }],
        session: Some(v1::WriteSession { id: session.id, sequence, acknowledged: 1 }),
        return_rows: true,
        ..Default::default()
    };
    let first = cluster.node(leader).node.databases().execute(&Principal::Http, insert(1)).await.unwrap();
    cluster.stop(leader).await;
    let next = cluster.leader(&client).await;
    assert_ne!(next, leader);
    let databases = cluster.node(next).node.databases().clone();
    let repeated = databases.execute(&Principal::Http, insert(1)).await.unwrap();
    assert_eq!(repeated.results, first.results, "the first result again");
    let second = databases.execute(&Principal::Http, insert(2)).await.unwrap();
    assert_ne!(second.results, first.results);
    let mut unknown = insert(3);
    unknown.session.as_mut().unwrap().id += 1_000_000;
    let refused = databases.execute(&Principal::Http, unknown).await.unwrap_err();
    assert!(refused.maybe_applied, "{refused}");
    assert!(refused.message.contains("the write session is unknown or has expired"), "{refused}");
    let count = client.database().query("SELECT count(*) FROM written", params![]).await.unwrap();
    assert_eq!(count.first_as::<i64>().unwrap(), Some(2));
    client.close().await;
    cluster.shutdown().await;
}
