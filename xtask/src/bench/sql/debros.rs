//! This project under measurement: three node processes of the release build, asked through the SDK.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use debros_sdk::{Client, Consistency, Database, Parameters, ReadOptions, RemoteDatabase, Statement, Value};

use super::{READ_ROWS, SqlSystem, TRANSACTION_ROWS, VALUE_BYTES, Work};
use crate::bench::load::Session;
use crate::bench::turns::Does;
use crate::bench::{Build, CONNECTIONS_MAX, System};
use crate::cluster::Cluster;
use crate::membership;

const APPLICATION: &str = "bench";
const NODES: usize = 3;
const TABLES: [&str; 2] = [
    "CREATE TABLE written (id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE known (id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
];
const INSERT: &str = "INSERT INTO written (value) VALUES (?)";
const FILL: &str = "INSERT INTO known (id, value) VALUES (?, ?)";
const READ: &str = "SELECT value FROM known WHERE id = ?";

/// Starts a cluster on an empty folder and writes what reads read.
pub(in crate::bench) async fn start(build: &Build) -> Result<Debros> {
    let cluster = build.cluster(NODES, |_| ()).await?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(membership::client(&cluster, APPLICATION).await?);
    }
    let database = clients[0].database();
    for table in TABLES {
        database.create_table(table).await.context("cannot create the tables of the benchmark")?;
    }
    let fill = |row| Statement::new(FILL, [Value::Integer(i64::from(row)), value()]);
    database.transaction((0..READ_ROWS).map(fill).collect()).await?;
    Ok(Debros { name: build.name, cluster, clients, killed: None })
}

/// A cluster of node processes and its clients.
pub(in crate::bench) struct Debros {
    name: &'static str,
    cluster: Cluster,
    clients: Vec<Client>,
    killed: Option<usize>,
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
        for client in &self.clients {
            client.close().await;
        }
        self.cluster.stop().await
    }
}

#[async_trait]
impl Does<Work> for Debros {
    async fn sessions(&mut self, work: Work, clients: usize) -> Result<Vec<Box<dyn Session>>> {
        let session = |client: usize| {
            let database = self.clients[client % self.clients.len()].database();
            Box::new(Asking { work, database }) as Box<dyn Session>
        };
        Ok((0..clients).map(session).collect())
    }
}

#[async_trait]
impl SqlSystem for Debros {
    async fn steadfast_writer(&mut self) -> Result<Box<dyn Session>> {
        // Retrying is the SDK's own business.
        Ok(Box::new(Asking { work: Work::Outage, database: self.clients[0].database() }))
    }

    async fn kill_leader(&mut self) -> Result<()> {
        let leader = membership::leader(&self.cluster, &self.clients[0]).await?;
        self.killed = Some(leader);
        self.cluster.kill(leader).await
    }

    async fn restore(&mut self) -> Result<()> {
        if let Some(killed) = self.killed.take() {
            self.cluster.start(killed)?;
            self.cluster.ready(killed).await?;
        }
        membership::leader(&self.cluster, &self.clients[0]).await.map(drop)
    }
}

/// One client.
struct Asking {
    work: Work,
    database: RemoteDatabase,
}

impl Asking {
    async fn read(&self, consistency: Consistency) -> Result<()> {
        let row = i64::from(rand::random_range(0..READ_ROWS));
        let parameters = Parameters::Positional(vec![Value::Integer(row)]);
        let found = self.database.query_with(READ, parameters, ReadOptions::consistency(consistency)).await?;
        if found.count != 1 {
            bail!("debros does not know a row that was written");
        }
        Ok(())
    }
}

fn value() -> Value {
    Value::Blob(vec![b'x'; VALUE_BYTES].into())
}

#[async_trait]
impl Session for Asking {
    async fn once(&mut self) -> Result<()> {
        match self.work {
            Work::Insert | Work::Outage => {
                self.database.execute(INSERT, Parameters::Positional(vec![value()])).await?;
                Ok(())
            }
            Work::LinearizableRead => self.read(Consistency::Linearizable).await,
            Work::StaleRead => self.read(Consistency::None).await,
            Work::InsertTx100 => {
                let insert = |_| Statement::new(INSERT, [value()]);
                self.database.transaction((0..TRANSACTION_ROWS).map(insert).collect()).await?;
                Ok(())
            }
        }
    }
}
