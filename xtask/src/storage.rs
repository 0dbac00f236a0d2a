//! How the storage of a [`Cluster`] is: over which nodes it is laid out, what a node itself holds, what its metrics say.
//! Asked as an operator would; it decides nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use debros_sdk::{Client, Entry, ListOptions, NetworkInfo, Quorum, RemoteStorage, Storage, StorageInfo};
use tokio::time::sleep;

use crate::cluster::{Cluster, Node, probe};
use crate::membership;

/// A change of the layout waits two seconds for more nodes, then copies; this is for a machine at its limit.
const LAID_OUT_WITHIN: Duration = Duration::from_secs(90);
/// Writes kept for a node reach it within a second or two of its return; what nobody kept, within two rounds of repair of
/// ten seconds each.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until every running node acts under a settled layout of so many nodes; gives what the last of them says.
pub(crate) async fn laid_out(cluster: &Cluster, application: &str, nodes: usize) -> Result<StorageInfo> {
    let clients = at_each_node(cluster, application).await?;
    let started = Instant::now();
    let settled = loop {
        let all = statuses(&clients).await?;
        let settled =
            |status: &StorageInfo| status.phase == "stable" && usize::try_from(status.nodes) == Ok(nodes);
        if let Some(last) = all.last().filter(|_| all.iter().all(settled)) {
            break last.clone();
        }
        let patience = started.elapsed();
        ensure!(
            patience < LAID_OUT_WITHIN,
            "not laid out over {nodes} nodes after {LAID_OUT_WITHIN:?}: {all:?}"
        );
        sleep(LOOK_EVERY).await;
    };
    close(clients).await;
    Ok(settled)
}

/// A client for each running node, in their order.
pub(crate) async fn at_each_node(cluster: &Cluster, application: &str) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for (index, node) in cluster.nodes().iter().enumerate() {
        if node.pid().is_some() {
            clients.push(membership::client_at(cluster, index, application).await?);
        }
    }
    Ok(clients)
}

/// Closes clients.
pub(crate) async fn close(clients: Vec<Client>) {
    for client in clients {
        client.close().await;
    }
}

/// What the nodes to which these clients are connected say of their storage.
pub(crate) async fn statuses(clients: &[Client]) -> Result<Vec<StorageInfo>> {
    let mut all = Vec::new();
    for client in clients {
        let status = client.network().get_status().await.context("a node does not tell its status")?;
        all.push(status.storage.unwrap_or_default());
    }
    Ok(all)
}

/// All entries of a client's namespace at this quorum, coordinated by the node that the client began at. In a cluster of as
/// many nodes as a key has replicas, [`Quorum::One`] gives what that very node holds.
pub(crate) async fn entries(storage: &RemoteStorage, quorum: Quorum) -> Result<BTreeMap<String, Entry>> {
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let options = ListOptions { after, values: true, quorum, ..ListOptions::default() };
        let page = storage.list_with("", options).await.context("cannot list the storage")?;
        found.extend(page.entries.into_iter().map(|entry| (entry.key.clone(), entry)));
        match page.cursor {
            Some(cursor) => after = Some(cursor),
            None => return Ok(found),
        }
    }
}

/// Waits until the nodes of a cluster of three hold the same of the clients' namespace, each by itself.
pub(crate) async fn equal(clients: &[Client]) -> Result<BTreeMap<String, Entry>> {
    let started = Instant::now();
    loop {
        let mut held = Vec::new();
        for client in clients {
            held.push(entries(&client.storage(), Quorum::One).await?);
        }
        let different = held.iter().position(|other| *other != held[0]);
        let Some(different) = different else {
            return held.pop().context("no node runs");
        };
        if started.elapsed() > EQUAL_WITHIN {
            let one = held[0].iter().find(|(key, entry)| held[different].get(*key) != Some(entry));
            bail!(
                "the nodes' storages still differ after {EQUAL_WITHIN:?}: {} entries at the first, {} at \
                 number {different}, where this one is not the same: {one:?}",
                held[0].len(),
                held[different].len()
            );
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The value of one of a node's metrics of the storage, by its name behind `debros_storage_`.
pub(crate) async fn metric(node: &Node, name: &str) -> Result<u64> {
    let answer = probe(node.admin_port(), "/metrics").await?;
    let value = value_of(&answer.body, name);
    value.with_context(|| format!("{} has no metric debros_storage_{name}", node.name()))
}

fn value_of(metrics: &str, name: &str) -> Option<u64> {
    let values = metrics.lines().filter_map(|line| line.strip_prefix("debros_storage_")?.split_once(' '));
    values.into_iter().find(|(known, _)| *known == name).and_then(|(_, value)| value.parse().ok())
}

/// Waits until no running node has found a partition in its last round of repair that differs from a peer's.
pub(crate) async fn nothing_diverges(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    for node in cluster.nodes().iter().filter(|node| node.pid().is_some()) {
        loop {
            let divergent = metric(node, "divergent_partitions").await?;
            if divergent == 0 {
                break;
            }
            let patience = started.elapsed();
            ensure!(patience < EQUAL_WITHIN, "{} still finds {divergent} divergent partitions", node.name());
            sleep(LOOK_EVERY).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let metrics = "# HELP debros_storage_read_repairs Reads\ndebros_storage_read_repairs_total 7\n\
                       debros_storage_hints_kept_total 3\nother_read_repairs_total 9\n";
        assert_eq!(value_of(metrics, "read_repairs_total"), Some(7));
        assert_eq!(value_of(metrics, "read_repairs"), None);
    }
}
