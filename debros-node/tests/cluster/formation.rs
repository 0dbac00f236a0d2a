//! Clusters of one, two, three and five nodes: who votes, who knows whom, and how a database grows
//! to the replicas it should have.

use debros_sdk::{Client, Health, NetworkInfo};
use futures::future::join_all;

use crate::support::{Cluster, configuration, eventually, expect, holds, table, write};

/// What the members should come to when there are so many of them.
async fn settled(cluster: &Cluster, client: &Client, nodes: usize, voters: usize) {
    cluster.formed().await;
    eventually("the meta group has the voters it should have", async || {
        let members = client.cluster().members().await.map_err(|error| error.to_string())?.members;
        expect(members.len(), &nodes)?;
        expect(members.iter().filter(|member| member.voter).count(), &voters)?;
        expect(members.iter().filter(|member| member.leader).count(), &1)
    })
    .await;
    for node in cluster.running() {
        eventually("every node has the same voters", async || {
            let meta = node.node.joined().await.meta().status();
            expect((meta.voters.len(), meta.learners.len(), meta.joint), &(voters, nodes - voters, false))
        })
        .await;
    }
    let replicas = nodes.min(3);
    eventually("the default database has the replicas it should have", async || {
        let databases = client.list_databases().await.map_err(|error| error.to_string())?;
        expect(databases[0].replicas.len(), &replicas)?;
        let group = databases[0].group;
        let status = client.network().get_status().await.map_err(|error| error.to_string())?;
        let here = status.groups.iter().find(|found| found.group == group).ok_or("no replica at node 0")?;
        expect(here.voters.len(), &replicas)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_from_one_node_to_five() {
    let mut cluster = Cluster::of(1).await;
    let client = cluster.client(0, "grows").await;
    table(&client).await;
    for (nodes, voters) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5)] {
        if nodes > 1 {
            cluster.add().await;
        }
        settled(&cluster, &client, nodes, voters).await;
        write(&client, nodes as i64).await;
        let status = client.network().get_status().await.unwrap();
        let under_replicated = status.warnings.iter().any(|warning| {
            warning.starts_with("degraded: under-replicated: 1 databases have fewer replicas than asked for")
        });
        assert_eq!(under_replicated, nodes < 3, "{nodes} nodes: {:?}", status.warnings);
        eventually("health says the same", async || {
            let health = client.network().health().await.map_err(|error| error.to_string())?;
            let wanted = if nodes < 3 { Health::Degraded } else { Health::Healthy };
            expect(health.status, &wanted).map_err(|reason| format!("{reason}: {:?}", health.checks))
        })
        .await;
    }
    let written: Vec<i64> = (1..=5).collect();
    for index in 0..5 {
        let reader = cluster.client(index, "grows").await;
        holds(&reader, &written).await;
        eventually("the peers say who they are", async || {
            let peers = reader.network().get_peers().await.map_err(|error| error.to_string())?;
            let members = peers.iter().filter(|peer| peer.node_id != 0 && peer.last_seen.is_some());
            expect(members.filter(|peer| peer.connected).count(), &4)
                .map_err(|reason| format!("{reason}: {peers:?}"))
        })
        .await;
        reader.close().await;
    }
    client.close().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_that_start_at_once_form_one_cluster() {
    let mut cluster = Cluster::empty().await;
    cluster.add().await;
    let first = crate::support::address_of(cluster.node(0));
    let others = (1..5).map(|index| {
        let folder = cluster.folder().join(format!("at-once-{index}"));
        let first = first.clone();
        async move {
            let config = configuration(&folder, &[first]);
            debros_node::launch::launch(&config).await.expect("the node starts")
        }
    });
    let others = join_all(others).await;
    let id = cluster.node(0).node.joined().await.id();
    for node in &others {
        let joined = node.node.joined().await;
        assert_eq!(joined.id(), id);
        let mut map = joined.watch();
        let all = map.wait_for(|map| map.members().count() == 5);
        tokio::time::timeout(crate::support::DEADLINE, all).await.expect("all five in time").unwrap();
        eventually("a full mesh", async || expect(node.node.connected_peers(), &4)).await;
    }
    let ids: std::collections::BTreeSet<u64> = join_all(others.iter().map(|node| node.node.joined()))
        .await
        .iter()
        .map(|joined| joined.node().0)
        .collect();
    assert_eq!(ids, (2..=5).collect(), "every node has an id of its own");
    join_all(others.into_iter().map(debros_node::launch::Launched::shutdown)).await;
    cluster.shutdown().await;
}
