//! Who belongs to a cluster: planned leave, replacement of a node that is gone for good, and nodes
//! that belong elsewhere.

use std::time::Duration;

use debros_node::blocking::Blocking;
use debros_node::launch::{Launched, launch};
use debros_node::raft::log::{LogStore, Options};
use debros_proto::ClusterId;
use debros_sdk::{ErrorKind, MemberState, NetworkInfo};
use tokio::time::timeout;

use crate::support::{
    Cluster, DEADLINE, address_of, configuration, eventually, expect, holds, table, whole, write,
};

async fn failure(node: &Launched) -> String {
    whole(&timeout(DEADLINE, node.failed()).await.expect("the node gives up in time"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_leaves_and_its_replicas_move() {
    let mut cluster = Cluster::of(4).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let database = client.list_databases().await.unwrap().remove(0);
    assert_eq!(database.replicas.len(), 3);
    // The one that leads it, if that is not the node through which the client asks.
    let leader = cluster.leader(&client).await;
    let leaving = if leader == 0 { cluster.place_of(database.replicas[1]).await } else { leader };
    let id = cluster.id(leaving).await;
    client.cluster().leave(Some(id)).await.unwrap();
    let members = client.cluster().members().await.unwrap().members;
    assert_eq!(members.iter().filter(|member| member.state == MemberState::Active).count(), 3);
    assert!(members.iter().all(|member| member.node_id != id), "{members:?}");
    let moved = client.list_databases().await.unwrap().remove(0);
    assert!(moved.replicas.len() == 3 && !moved.replicas.contains(&id), "{moved:?}");
    // Once more: it has left already.
    client.cluster().leave(Some(id)).await.unwrap();
    write(&client, 2).await;
    cluster.stop(leaving).await;
    write(&client, 3).await;
    for index in (0..4).filter(|index| *index != leaving) {
        let reader = cluster.client(index, "app").await;
        holds(&reader, &[1, 2, 3]).await;
        reader.close().await;
    }
    let unknown = client.cluster().leave(Some(99)).await.unwrap_err();
    assert_eq!((unknown.kind(), unknown.to_string().as_str()), (ErrorKind::NotFound, "there is no node 99"));
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_shrinks_to_one_node_which_cannot_leave() {
    let mut cluster = Cluster::of(3).await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    for (index, left) in [(2, 2), (1, 1)] {
        let id = cluster.id(index).await;
        client.cluster().leave(Some(id)).await.unwrap();
        cluster.stop(index).await;
        write(&client, left).await;
        eventually("those who left neither vote nor hold replicas", async || {
            let members = client.cluster().members().await.map_err(|error| error.to_string())?.members;
            expect(members.len(), &(left as usize))?;
            expect(members.iter().filter(|member| member.voter).count(), &1)?;
            let status = client.network().get_status().await.map_err(|error| error.to_string())?;
            let votes =
                status.groups.iter().map(|group| (group.voters.contains(&id), group.learners.contains(&id)));
            expect(votes.collect::<Vec<_>>(), &vec![(false, false); status.groups.len()])
        })
        .await;
    }
    let refused = client.cluster().leave(None).await.unwrap_err();
    assert_eq!(refused.to_string(), "the last node of a cluster cannot leave: stop it instead");
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_is_gone_for_good_is_replaced() {
    let mut cluster = Cluster::adjusted(4, |settings| {
        settings.reconcile.lost_after = Duration::from_secs(2);
    })
    .await;
    let client = cluster.client(0, "app").await;
    table(&client).await;
    write(&client, 1).await;
    let voters = cluster.node(0).node.joined().await.meta().status().voters;
    let database = client.list_databases().await.unwrap().remove(0);
    assert_eq!(database.replicas.len(), 3);
    let gone = database.replicas.iter().copied().find(|id| *id != 1).unwrap();
    assert_eq!(
        voters.iter().map(|id| id.0).collect::<Vec<_>>(),
        database.replicas,
        "both chose the first three"
    );
    let place = cluster.place_of(gone).await;
    cluster.stop(place).await;
    eventually("the fourth node takes over vote and replica", async || {
        let voters = cluster.node(0).node.joined().await.meta().status().voters;
        expect((voters.len(), voters.iter().any(|id| id.0 == gone)), &(3, false))?;
        let status = client.network().get_status().await.map_err(|error| error.to_string())?;
        let group = status.groups.iter().find(|group| group.name == "app/default").ok_or("no replica")?;
        expect(
            (group.voters.len(), group.voters.contains(&gone), group.voters.contains(&4)),
            &(3, false, true),
        )
    })
    .await;
    write(&client, 2).await;
    let fourth = cluster.place_of(4).await;
    let reader = cluster.client(fourth, "app").await;
    holds(&reader, &[1, 2]).await;
    reader.close().await;
    // It comes back as the member it was, without the vote it lost.
    cluster.start(place).await.unwrap();
    cluster.formed().await;
    assert_eq!(cluster.id(place).await, gone);
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused_by_name() {
    let mut cluster = Cluster::of(1).await;
    let id = cluster.node(0).node.joined().await.id().to_string();
    let elsewhere = cluster.folder().join("elsewhere");
    let other = launch(&configuration(&elsewhere, &[])).await.unwrap();
    let other_id = other.node.joined().await.id().to_string();
    other.shutdown().await;
    assert_ne!(id, other_id, "every cluster has an id of its own");

    // A data folder of the other cluster that has lost its log: it says where it belongs.
    std::fs::remove_dir_all(elsewhere.join("database")).unwrap();
    let bootstrap = [address_of(cluster.node(0))];
    let stray = launch(&configuration(&elsewhere, &bootstrap)).await.unwrap();
    let told = failure(&stray).await;
    let wanted = format!("this is cluster {id}, but the joining node belongs to cluster {other_id}");
    assert!(told.contains(&wanted), "{told}");
    assert!(told.contains("or give it an empty data folder"), "{told}");
    stray.shutdown().await;

    // A fresh node that is pinned to another cluster.
    let mut config = configuration(&cluster.folder().join("pinned"), &bootstrap);
    config.cluster.id = Some(other_id.clone());
    let stray = launch(&config).await.unwrap();
    assert!(failure(&stray).await.contains(&wanted));
    stray.shutdown().await;

    // A pinned node in the right cluster is as good as any; in the wrong folder it is told so.
    config.cluster.id = Some(id.clone());
    let member = launch(&config).await.unwrap();
    assert_eq!(member.node.joined().await.id().to_string(), id);
    member.shutdown().await;
    cluster.config(0).cluster.id = Some(other_id.clone());
    cluster.stop(0).await;
    cluster.start(0).await.unwrap();
    let told = failure(cluster.node(0)).await;
    assert!(
        told.contains(&format!(
            "the data folder belongs to cluster {id}, but the configuration pins cluster {other_id}"
        )),
        "{told}"
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_initialised_once() {
    let mut cluster = Cluster::of(2).await;
    let id = cluster.node(0).node.joined().await.id();
    // The node that began the cluster is asked again, and starts again.
    let client = cluster.client(0, "app").await;
    let refused = client.cluster().initialise().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(refused.to_string(), format!("this node already belongs to cluster {id}"));
    client.close().await;
    cluster.stop(0).await;
    cluster.start(0).await.unwrap();
    assert_eq!(cluster.node(0).node.joined().await.id(), id);
    // Another node of type `bootstrap` that knows members joins them.
    let mut config = configuration(&cluster.folder().join("second"), &[address_of(cluster.node(0))]);
    config.node.node_type = debros_config::NodeType::Bootstrap;
    let second = launch(&config).await.unwrap();
    assert_eq!(timeout(DEADLINE, second.node.joined()).await.unwrap().id(), id);
    second.shutdown().await;
    cluster.shutdown().await;
}

/// As an operator does it: nobody is told to begin, then one is asked to, once.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_initialises_a_cluster_of_waiting_nodes() {
    let cluster = Cluster::empty().await;
    let mut waiting = Vec::new();
    let mut bootstrap = Vec::new();
    for name in ["a", "b"] {
        let mut config = configuration(&cluster.folder().join(name), &bootstrap);
        config.node.node_type = debros_config::NodeType::Node;
        let node = launch(&config).await.unwrap();
        bootstrap = vec![address_of(&node)];
        waiting.push(node);
    }
    let client = debros_sdk::Client::builder("app")
        .bootstrap_peers([address_of(&waiting[0])])
        .connect()
        .await
        .unwrap();
    let not_yet = client.cluster().members().await.unwrap_err();
    assert_eq!(not_yet.kind(), ErrorKind::NotReady, "{not_yet}");
    assert!(not_yet.to_string().contains("this node has not joined a cluster yet"), "{not_yet}");
    let first = client.cluster().node_at(&address_of(&waiting[0]), DEADLINE).await.unwrap();
    assert_eq!(first.status(DEADLINE).await.unwrap().belongs_to, "");
    let id = first.initialise().await.unwrap();
    assert_eq!(first.status(DEADLINE).await.unwrap().belongs_to, id);
    for node in &waiting {
        let joined = timeout(DEADLINE, node.node.joined()).await.unwrap();
        assert_eq!(joined.id().to_string(), id);
    }
    assert_eq!(client.cluster().initialise().await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    client.close().await;
    futures::future::join_all(waiting.into_iter().map(Launched::shutdown)).await;
}

/// Killed between writing `member.json` and the first vote: nobody asks it a second time.
#[tokio::test(flavor = "multi_thread")]
async fn an_initialisation_that_was_cut_short_is_finished_at_the_next_start() {
    let cluster = Cluster::empty().await;
    let folder = cluster.folder().join("waiting");
    let mut config = configuration(&folder, &[]);
    config.node.node_type = debros_config::NodeType::Node;
    let waiting = launch(&config).await.unwrap();
    waiting.shutdown().await;
    let log =
        LogStore::open(folder.join("database/raft"), Blocking::Threads, Options::default()).await.unwrap();
    assert_eq!(log.groups(), [], "a pristine log");
    let id = ClusterId::from_bytes([7; 16]);
    let member = format!(r#"{{"cluster_id": "{id}", "node_id": 1, "incarnation": "{}"}}"#, log.incarnation());
    log.close().await.unwrap();
    std::fs::write(folder.join("member.json"), member).unwrap();

    let node = launch(&config).await.unwrap();
    let joined = timeout(DEADLINE, node.node.joined()).await.expect("a working cluster");
    assert_eq!((joined.id(), joined.map().cluster_id()), (id, Some(id)));
    assert_eq!(joined.map().members().map(|member| member.id.0).collect::<Vec<_>>(), [1]);
    let client = debros_sdk::Client::builder("app").bootstrap_peers([address_of(&node)]).connect();
    let client = client.await.unwrap();
    table(&client).await;
    write(&client, 1).await;
    holds(&client, &[1]).await;
    client.close().await;
    // Others are admitted to it.
    let config = configuration(&cluster.folder().join("second"), &[address_of(&node)]);
    let second = launch(&config).await.unwrap();
    assert_eq!(timeout(DEADLINE, second.node.joined()).await.unwrap().id(), id);
    second.shutdown().await;
    node.shutdown().await;
}
