//! The storage under the same strikes: who puts, and what every node must give after a round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use debros_sdk::{Client, Quorum};

use crate::cluster::Cluster;
use crate::pace::Pace;
use crate::puts::{Books, Puts};
use crate::{membership, storage};

/// Each with a connection of its own, and one put after the other.
const CLIENTS: usize = 3;
/// So few that clients meet at keys, so many that they spread over all of a namespace's partitions.
const KEYS: u32 = 500;
/// One key of so many is read at once when a node is back.
const SAMPLED: usize = 10;

/// What the storage should hold, and those who put it there.
pub(super) struct Stored {
    books: Arc<Books>,
    clients: Vec<Client>,
}

impl Stored {
    /// Waits until every node has its share: before that a node's death is more than one replica's.
    pub(super) async fn prepare(cluster: &Cluster, application: &str) -> Result<Self> {
        storage::laid_out(cluster, application, cluster.nodes().len()).await?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(membership::client(cluster, application).await?);
        }
        Ok(Self { books: Arc::default(), clients })
    }

    /// How the puts come along.
    pub(super) fn pace(&self) -> &Pace {
        &self.books.pace
    }

    /// Lets the clients put.
    pub(super) fn start(&self) -> Puts {
        Puts::start(&self.clients, &self.books, KEYS, Duration::ZERO)
    }

    /// With all puts at rest: whoever asks gets what was acknowledged, while a replica is still behind; every node holds
    /// it by itself after the time that this returns; then every node gives all of it, and all replicas together do.
    pub(super) async fn check(&self, cluster: &Cluster, application: &str) -> Result<Duration> {
        let returned = Instant::now();
        let clients = storage::at_each_node(cluster, application).await?;
        // A reading mends what it finds, so most keys are left to the nodes.
        for client in &clients {
            let read = self.books.read(client, Quorum::Majority, SAMPLED).await;
            read.context("gets while a replica is behind")?;
        }
        let equal = storage::equal(&clients).await?;
        let took = returned.elapsed();
        self.books.hold(&equal).context("what each node holds by itself")?;
        for (client, node) in clients.iter().zip(cluster.nodes()) {
            let listed = storage::entries(&client.storage(), Quorum::Majority).await?;
            self.books.hold(&listed).with_context(|| format!("a list by {}", node.name()))?;
            for quorum in [Quorum::Majority, Quorum::All] {
                let read = self.books.read(client, quorum, 1).await;
                read.with_context(|| format!("gets with {quorum:?}"))?;
            }
        }
        storage::close(clients).await;
        Ok(took)
    }

    /// Closes the clients.
    pub(super) async fn close(self) {
        storage::close(self.clients).await;
    }
}
