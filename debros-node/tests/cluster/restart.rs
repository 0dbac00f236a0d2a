//! Restarts, every one at another address: any node, all nodes, in any order. And a node that comes
//! back without its log.

use std::collections::BTreeMap;

use debros_sdk::{Database, MemberState, NetworkInfo, params};

use crate::support::{Cluster, eventually, expect, holds, table, write};

/// Node ids by peer id, and the cluster's id: what a restart may not change.
async fn identity(cluster: &Cluster) -> (String, BTreeMap<String, u64>) {
    let mut ids = BTreeMap::new();
    let mut id = String::new();
    for node in cluster.running() {
        let joined = node.node.joined().await;
        id = joined.id().to_string();
        ids.insert(node.node.peer_id().to_string(), joined.node().0);
    }
    (id, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_and_all_nodes_come_back_at_other_addresses() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    let before = identity(&cluster).await;
    let mut written = Vec::new();
    for index in [1, 0, 2] {
        cluster.stop(index).await;
        written.push(written.len() as i64);
        write(&client, *written.last().unwrap()).await;
        cluster.start(index).await.unwrap();
        cluster.formed().await;
    }
    client.close().await;
    for order in [[0, 1, 2], [2, 0, 1]] {
        for index in 0..3 {
            cluster.stop(index).await;
        }
        for index in order {
            cluster.start_told(index).await;
        }
        cluster.formed().await;
        assert_eq!(identity(&cluster).await, before);
        let client = cluster.client(order[1], "app").await;
        written.push(written.len() as i64);
        write(&client, *written.last().unwrap()).await;
        client.close().await;
        for index in 0..3 {
            let reader = cluster.client(index, "app").await;
            holds(&reader, &written).await;
            reader.close().await;
        }
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_and_one_node_come_back_too() {
    for nodes in [1, 2] {
        let mut cluster = Cluster::of(nodes).await;
        let client = cluster.client(0, "app").await;
        table(&client).await;
        write(&client, 1).await;
        client.close().await;
        let before = identity(&cluster).await;
        for index in 0..nodes {
            cluster.stop(index).await;
        }
        for index in (0..nodes).rev() {
            cluster.start_told(index).await;
        }
        cluster.formed().await;
        assert_eq!(identity(&cluster).await, before);
        let client = cluster.client(nodes - 1, "app").await;
        write(&client, 2).await;
        holds(&client, &[1, 2]).await;
        client.close().await;
        cluster.shutdown().await;
    }
}

/// Without its log a node has forgotten its votes: it may not go on under its old id.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_log_makes_a_new_member_that_is_rebuilt_from_a_snapshot() {
    let mut cluster = Cluster::adjusted(3, |settings| {
        // Few entries, so that the log no longer reaches back to the beginning.
        settings.raft.durable_after_entries = 50;
        settings.raft.kept_entries = 5;
    })
    .await;
    let client = cluster.client_of_all("app").await;
    table(&client).await;
    let numbers: Vec<i64> = (1..=300).collect();
    futures::future::join_all(numbers.iter().map(|number| write(&client, *number))).await;
    let (cluster_id, _) = identity(&cluster).await;
    let (lost, peer) = (cluster.id(2).await, cluster.node(2).node.peer_id());
    cluster.stop(2).await;
    std::fs::remove_dir_all(cluster.folder().join("node-2/database")).unwrap();
    cluster.start(2).await.unwrap();
    let new = cluster.id(2).await;
    assert_eq!((lost, new), (3, 4), "an id is never used again");
    assert_eq!(cluster.node(2).node.peer_id(), peer);
    assert_eq!(cluster.node(2).node.joined().await.id().to_string(), cluster_id);
    eventually("the new member takes the lost one's place everywhere", async || {
        let members = client.cluster().members().await.map_err(|error| error.to_string())?.members;
        let active = members.iter().filter(|member| member.state == MemberState::Active);
        expect(
            active.map(|member| (member.node_id, member.voter)).collect::<Vec<_>>(),
            &vec![(1, true), (2, true), (4, true)],
        )?;
        let status = client.network().get_status().await.map_err(|error| error.to_string())?;
        let group = status.groups.iter().find(|group| group.name == "app/default").ok_or("no replica")?;
        expect((group.voters.clone(), group.learners.len()), &(vec![1, 2, 4], 0))
    })
    .await;
    let reader = cluster.client(2, "app").await;
    holds(&reader, &numbers).await;
    // It counts now: without one of the others it makes a quorum.
    cluster.stop(0).await;
    write(&client, 301).await;
    let count = client.database().query("SELECT count(*) FROM written", params![]).await.unwrap();
    assert_eq!(count.first_as::<i64>().unwrap(), Some(301));
    reader.close().await;
    client.close().await;
    cluster.shutdown().await;
}
