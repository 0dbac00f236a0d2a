//! A node that leaves: whoever is told that it has left may stop it at that moment.

use std::time::Duration;

use debros_node::cluster::map::NodeState;
use debros_proto::NodeId;
use debros_sdk::{Client, CreateOptions, Database, params};
use tokio::time::timeout;

use crate::support::{Cluster, address_of, eventually, expect, holds, table, write};

/// A leave of a node without much data is over long before the wait for a lost answer would be.
const SOON: Duration = Duration::from_secs(8);

/// No group on the node at this place counts on it, the map's own one included.
async fn needed_by_nobody(cluster: &Cluster, place: usize) {
    let id = cluster.id(place).await;
    let status = cluster.node(place).node.cluster_service().node_status();
    assert!(!status.groups.is_empty());
    for group in status.groups {
        assert!(!group.voters.contains(&id) && group.role != "leader", "{group:?}");
    }
}

/// The others have what was written, know that the node is gone, and take more. Ends the cluster.
async fn serves_on_without(id: u64, cluster: Cluster, client: Client) {
    let members = client.cluster().members().await.unwrap().members;
    assert!(members.iter().all(|member| member.node_id != id), "{members:?}");
    write(&client, 2).await;
    holds(&client, &[1, 2]).await;
    client.create_database("later", CreateOptions::default()).await.unwrap();
    let later = client.database_named("later").unwrap();
    later.create_table("CREATE TABLE kept (n INTEGER)").await.unwrap();
    assert_eq!(later.execute("INSERT INTO kept VALUES (1)", params![]).await.unwrap().rows_affected, 1);
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_voter_leaves_and_is_stopped_at_once() {
    let mut cluster = Cluster::of(2).await;
    let client = cluster.client(1, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let id = cluster.id(0).await;
    let voters = cluster.node(1).node.joined().await.meta().status().voters;
    assert_eq!(voters.iter().map(|voter| voter.0).collect::<Vec<_>>(), [id]);
    client.cluster().leave(Some(id)).await.unwrap();
    needed_by_nobody(&cluster, 0).await;
    cluster.stop(0).await;
    serves_on_without(id, cluster, client).await;
}

/// As a pod does that is asked for again, and finds its former volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_left_comes_back_as_another_one_where_it_may() {
    let mut cluster = Cluster::of(4).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let (id, address) = (cluster.id(3).await, address_of(cluster.node(3)));
    cluster.config(3).cluster.rejoin = true;
    cluster.stop(3).await;
    cluster.start(3).await.unwrap();
    cluster.formed().await;
    assert_eq!(cluster.id(3).await, id, "who was not removed stays who it was");
    client.cluster().leave(Some(id)).await.unwrap();
    eventually("it knows that it has left", async || {
        expect(cluster.node(3).node.cluster_service().node_status().begins_anew, &true)
    })
    .await;
    cluster.stop(3).await;
    cluster.start(3).await.unwrap();
    cluster.formed().await;
    let next = cluster.id(3).await;
    assert!(next > id, "{next} is a new number");
    assert_ne!(address_of(cluster.node(3)).rsplit('/').next(), address.rsplit('/').next(), "a new identity");
    assert!(!cluster.node(3).node.cluster_service().node_status().begins_anew);
    let kept = cluster.config(3).node.data_dir.join(format!("left-{id}"));
    assert!(kept.join("identity.key").exists() && kept.join("database").exists(), "{}", kept.display());
    serves_on_without(id, cluster, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_itself_leaves_too() {
    let mut cluster = Cluster::of(2).await;
    let asked = cluster.client(0, "app").await;
    table(&asked).await;
    write(&asked, 1).await;
    let id = cluster.id(0).await;
    timeout(SOON, asked.cluster().leave(Some(id))).await.expect("no lost answer is waited for").unwrap();
    needed_by_nobody(&cluster, 0).await;
    asked.close().await;
    cluster.stop(0).await;
    let client = cluster.client(1, "app").await;
    serves_on_without(id, cluster, client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_is_taken_out() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let id = cluster.id(2).await;
    cluster.stop(2).await;
    client.cluster().leave(Some(id)).await.unwrap();
    let meta = cluster.node(0).node.joined().await.meta().status();
    assert!(meta.voters.iter().all(|voter| voter.0 != id), "{meta:?}");
    serves_on_without(id, cluster, client).await;
}

/// Nobody was there to pass the request on to.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_told_to_leave_while_it_was_away_does_so_when_it_is_back() {
    let mut cluster = Cluster::of(4).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let id = cluster.id(3).await;
    // Its keys have to move, which takes longer than the node is away.
    eventually("the storage is laid out over all nodes", async || {
        let map = cluster.node(0).node.joined().await.map();
        let stable = map.layout().is_some_and(|layout| layout.next.is_none());
        expect(stable && map.holds_storage(NodeId(id)), &true)
    })
    .await;
    cluster.stop(3).await;
    let asking = client.cluster().clone();
    let leave = tokio::spawn(async move { asking.leave(Some(id)).await });
    eventually("the map says that it leaves", async || {
        let map = cluster.node(0).node.joined().await.map();
        expect(map.node(NodeId(id)).map(|node| node.state), &Some(NodeState::Leaving))
    })
    .await;
    cluster.start_told(3).await;
    leave.await.unwrap().unwrap();
    needed_by_nobody(&cluster, 3).await;
    cluster.stop(3).await;
    serves_on_without(id, cluster, client).await;
}

/// It was away while all the others that it knew left: it has never heard of who leads now.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_finds_back_to_a_cluster_of_strangers() {
    let mut cluster = Cluster::of(2).await;
    cluster.stop(1).await;
    let third = cluster.add().await;
    let client = cluster.client(third, "app").await;
    eventually("the new node votes and has the map", async || {
        let joined = cluster.node(third).node.joined().await;
        let voters: Vec<u64> = joined.meta().status().voters.iter().map(|voter| voter.0).collect();
        expect((voters, joined.map().members().count()), &(vec![1, 3], 3))
    })
    .await;
    client.cluster().leave(Some(1)).await.unwrap();
    needed_by_nobody(&cluster, 0).await;
    cluster.stop(0).await;
    cluster.start_told(1).await;
    eventually("it follows who leads now, and hears who has left", async || {
        let joined = cluster.node(1).node.joined().await;
        let members: Vec<u64> = joined.map().members().map(|member| member.id.0).collect();
        expect((joined.meta().status().leader, members), &(Some(NodeId(3)), vec![2, 3]))
    })
    .await;
    table(&client).await;
    write(&client, 1).await;
    client.close().await;
    cluster.shutdown().await;
}
