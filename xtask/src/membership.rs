//! Which process of a [`Cluster`] is which member: the question that comes before any kill. Asked through the SDK, as an
//! operator would; it decides nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use debros_sdk::{Client, Database};
use tokio::time::sleep;

use crate::cluster::Cluster;

/// An election takes well under a second; this is for a machine at its limit.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A client that knows every node of the cluster.
pub(crate) async fn client(cluster: &Cluster, application: &str) -> Result<Client> {
    let client = Client::builder(application).bootstrap_peers(cluster.peer_addresses()).connect().await;
    client.context("no node lets the SDK connect")
}

/// A client that begins at one node.
pub(crate) async fn client_at(cluster: &Cluster, index: usize, application: &str) -> Result<Client> {
    let node = &cluster.nodes()[index];
    let client = Client::builder(application).bootstrap_peers([node.peer_address()]).connect().await;
    client.with_context(|| format!("{} does not let the SDK connect", node.name()))
}

/// The index of the running process that leads the client's default database.
pub(crate) async fn leader(cluster: &Cluster, client: &Client) -> Result<usize> {
    let start = Instant::now();
    loop {
        if let Some(index) = leader_now(cluster, client).await?
            && cluster.nodes()[index].pid().is_some()
        {
            return Ok(index);
        }
        if start.elapsed() > LEADER_WITHIN {
            bail!("no running node leads the database after {LEADER_WITHIN:?}");
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn leader_now(cluster: &Cluster, client: &Client) -> Result<Option<usize>> {
    let databases = client.list_databases().await?;
    let default = client.database();
    let asked = databases.iter().find(|database| database.name == default.name());
    let leader = asked.map_or(0, |database| database.leader);
    let members = client.cluster().members().await?.members;
    let Some(member) = members.into_iter().find(|member| leader != 0 && member.node_id == leader) else {
        return Ok(None);
    };
    let is_at = |address: &str| member.addresses.iter().any(|known| known.starts_with(address));
    Ok(cluster.nodes().iter().position(|node| is_at(&node.peer_address())))
}
