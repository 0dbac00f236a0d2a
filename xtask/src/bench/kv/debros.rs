//! This project under measurement: three node processes of the release build, asked through the SDK.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use debros_config::Config;
use debros_sdk::{Client, GetOptions, ListOptions, Quorum, RemoteStorage, Storage, StorageOperation};

use super::{KEYS, KvSystem, LISTED_KEYS, Work, key, random_key, random_prefix, value};
use crate::bench::load::Session;
use crate::bench::turns::Does;
use crate::bench::{Build, CONNECTIONS_MAX, System};
use crate::cluster::Cluster;
use crate::membership;

const APPLICATION: &str = "bench";
/// Its puts are acknowledged before they are on disk.
const RELAXED: &str = "bench-relaxed";
const NODES: usize = 3;

/// Starts a cluster on an empty folder and writes all keys.
pub(in crate::bench) async fn start(build: &Build) -> Result<Debros> {
    let differs = |config: &mut Config| config.storage.relaxed_namespaces = vec![RELAXED.to_owned()];
    let cluster = build.cluster(NODES, differs).await?;
    let clients = clients_of(&cluster, APPLICATION).await?;
    let relaxed = clients_of(&cluster, RELAXED).await?;
    for first in [&clients[0], &relaxed[0]] {
        let put =
            |number| StorageOperation::Put { key: key(number), value: value(), options: Default::default() };
        for outcome in first.storage().batch((0..KEYS).map(put).collect()).await {
            outcome.context("cannot write the keys of the benchmark")?;
        }
    }
    Ok(Debros { name: build.name, cluster, clients, relaxed })
}

async fn clients_of(cluster: &Cluster, application: &str) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(membership::client(cluster, application).await?);
    }
    Ok(clients)
}

/// A cluster of node processes and its clients.
pub(in crate::bench) struct Debros {
    name: &'static str,
    cluster: Cluster,
    clients: Vec<Client>,
    relaxed: Vec<Client>,
}

impl Debros {
    /// The nodes.
    pub(in crate::bench) fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

#[async_trait]
impl System for Debros {
    fn name(&self) -> &'static str {
        self.name
    }

    fn pids(&self) -> Vec<u32> {
        self.cluster.pids()
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        for client in self.clients.iter().chain(&self.relaxed) {
            client.close().await;
        }
        self.cluster.stop().await
    }
}

impl KvSystem for Debros {
    fn has(&self, _: Work) -> bool {
        true
    }
}

#[async_trait]
impl Does<Work> for Debros {
    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        let connections = if work == Work::PutRelaxed { &self.relaxed } else { &self.clients };
        let session = |client: usize| {
            let storage = connections[client % connections.len()].storage();
            Box::new(Asking { work, storage }) as Box<dyn Session>
        };
        Ok((0..clients).map(session).collect())
    }
}

/// One client.
struct Asking {
    work: Work,
    storage: RemoteStorage,
}

impl Asking {
    async fn get(&self, quorum: Quorum) -> Result<()> {
        let options = GetOptions { quorum, ..Default::default() };
        if self.storage.get_with(&random_key(), options).await?.is_none() {
            bail!("debros does not know a key that was written");
        }
        Ok(())
    }
}

#[async_trait]
impl Session for Asking {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::PutFsync | Work::PutRelaxed => {
                self.storage.put(&random_key(), value()).await?;
                Ok(())
            }
            Work::GetR1 => self.get(Quorum::One).await,
            Work::GetR2 => self.get(Quorum::Majority).await,
            Work::List100 => {
                let options = ListOptions { limit: Some(LISTED_KEYS), values: true, ..Default::default() };
                let found = self.storage.list_with(&random_prefix(), options).await?.entries.len();
                if found != LISTED_KEYS as usize {
                    bail!("debros gave {found} keys instead of {LISTED_KEYS}");
                }
                Ok(())
            }
        }
    }
}
