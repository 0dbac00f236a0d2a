//! What a dropped database leaves on a node: put away whatever the node was doing at the time, kept for
//! a while, then removed.

use std::path::{Path, PathBuf};

use debros_node::blocking::Blocking;
use debros_node::clock::Clock;
use debros_node::raft::log::{LogStore, Options};
use debros_proto::GroupId;
use debros_sdk::{Client, Consistency, CreateOptions, Database, NetworkInfo, ReadOptions, params};

use crate::support::{Cluster, eventually, expect};

/// The folder of databases and log of the node at a place.
fn folder(cluster: &Cluster, index: usize) -> PathBuf {
    cluster.folder().join(format!("node-{index}/database"))
}

fn database(folder: &Path, group: u64) -> PathBuf {
    folder.join(format!("db-{group}"))
}

/// What of a group is in quarantine.
fn quarantined(folder: &Path, group: u64) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder.join("quarantine")).into_iter().flatten();
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let prefix = format!("{group}-");
    paths.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).collect()
}

/// Whether the log of a stopped node holds something of a group.
async fn is_in_log(folder: &Path, group: u64) -> bool {
    let log = LogStore::open(folder.join("raft"), Blocking::Threads, Options::default()).await.unwrap();
    let found = log.groups().contains(&GroupId(group));
    log.close().await.unwrap();
    found
}

async fn put_away(folder: &Path, group: u64) {
    eventually("the dropped database is in quarantine", async || {
        let found = (database(folder, group).exists(), quarantined(folder, group).len());
        expect(found, &(false, 1))
    })
    .await;
    let files = std::fs::read_dir(&quarantined(folder, group)[0]).unwrap();
    assert!(files.count() > 0, "its files are kept");
}

/// Creates a database with a row in it; gives its group.
async fn create(client: &Client) -> u64 {
    let group = client.create_database("orders", CreateOptions::default()).await.unwrap().group;
    let orders = client.database_named("orders").unwrap();
    orders.create_table("CREATE TABLE t (a INTEGER)").await.unwrap();
    orders.execute("INSERT INTO t VALUES (7)", params![]).await.unwrap();
    group
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_down_puts_away_what_was_dropped_meanwhile() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client(0, "app").await;
    let group = create(&client).await;
    let third = cluster.client(2, "app").await;
    eventually("the third node has a replica", async || {
        let stale = ReadOptions::consistency(Consistency::None);
        let orders = third.database_named("orders").map_err(|error| error.to_string())?;
        let read = orders.query_with("SELECT a FROM t", params![], stale).await;
        expect(database(&folder(&cluster, 2), group).exists(), &true)?;
        let found = read.and_then(|rows| rows.rows_as::<i64>()).map_err(|error| error.to_string())?;
        expect(found, &vec![7])
    })
    .await;
    third.close().await;
    cluster.stop(2).await;
    let folder = folder(&cluster, 2);
    assert!(is_in_log(&folder, group).await);
    client.drop_database("orders", false).await.unwrap();
    cluster.start(2).await.unwrap();
    put_away(&folder, group).await;
    cluster.stop(2).await;
    assert!(!is_in_log(&folder, group).await);

    // Killed after the log was removed and before the folder was moved.
    std::fs::rename(&quarantined(&folder, group)[0], database(&folder, group)).unwrap();
    cluster.start(2).await.unwrap();
    put_away(&folder, group).await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_could_not_be_put_away_is_tried_again() {
    let cluster = Cluster::of(1).await;
    let client = cluster.client(0, "app").await;
    let group = create(&client).await;
    let folder = folder(&cluster, 0);
    let in_the_way = folder.join("quarantine");
    std::fs::write(&in_the_way, "a file").unwrap();
    client.drop_database("orders", false).await.unwrap();
    eventually("the replica is closed", async || {
        let status = client.network().get_status().await.map_err(|error| error.to_string())?;
        expect(status.groups.iter().any(|found| found.group == group), &false)
    })
    .await;
    assert!(database(&folder, group).exists());
    std::fs::remove_file(&in_the_way).unwrap();
    put_away(&folder, group).await;
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quarantine_is_kept_for_a_while_and_then_removed() {
    let mut cluster = Cluster::of(1).await;
    cluster.stop(0).await;
    let quarantine = folder(&cluster, 0).join("quarantine");
    let (old, young) = (quarantine.join("8-1"), quarantine.join(format!("9-{}", Clock::system().unix_ms())));
    for folder in [&old, &young] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("db"), "rows").unwrap();
    }
    cluster.start(0).await.unwrap();
    eventually("what is old enough is removed", async || expect(old.exists(), &false)).await;
    assert_eq!(std::fs::read_to_string(young.join("db")).unwrap(), "rows");
    cluster.shutdown().await;
}
