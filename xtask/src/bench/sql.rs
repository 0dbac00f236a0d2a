//! `bench sql`: what an application asks of a database, and how long writes are away when the leader is killed. Decides
//! the works and their order; knows systems only through [`SqlSystem`].

pub(super) mod debros;
mod etcd;

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use clap::{Args, ValueEnum};

use super::form::Row;
use super::load::Session;
use super::turns::{self, Does, Work as _, in_turns};
use super::{Build, CommonOptions, program};
use crate::outage;

const BENCH: &str = "sql";
const CLIENTS: &[u16] = &[1, 8, 64, 256];
const CLIENTS_QUICK: &[u16] = &[1, 64];
/// Outages differ from one to the next: an election's timeout is random.
const KILLS: usize = 7;
const KILLS_QUICK: usize = 2;
/// The bytes of a row, and of a value for a peer without rows.
const VALUE_BYTES: usize = 32;
/// Rows, or keys, that reads choose from.
const READ_ROWS: u32 = 1000;
/// Rows of one transaction.
const TRANSACTION_ROWS: usize = 100;

/// Options of `bench sql`.
#[derive(Args)]
pub(crate) struct SqlOptions {
    #[command(flatten)]
    common: CommonOptions,
    /// What the clients do.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK,..")]
    works: Option<Vec<Work>>,
    /// Measure this system too, in turns with ours, and show the ratios.
    #[arg(long, value_name = "PEER")]
    against: Option<Peer>,
}

/// A system that is not ours.
#[derive(Clone, Copy, ValueEnum)]
enum Peer {
    /// The etcd on the PATH (Debian: etcd-server).
    Etcd,
}

/// What a client does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum Work {
    /// One row of 32 bytes; acknowledged when a quorum has it on disk.
    Insert,
    /// One row by its key, as of now.
    LinearizableRead,
    /// One row by its key, as the asked node knows it.
    StaleRead,
    /// A transaction of 100 rows of 32 bytes.
    #[value(name = "insert_tx100")]
    InsertTx100,
    /// One insert after the other while the leader is killed; p50 is the median outage, p99 the longest.
    Outage,
}

impl turns::Work for Work {
    const BENCH: &'static str = BENCH;

    fn name(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::LinearizableRead => "linearizable_read",
            Self::StaleRead => "stale_read",
            Self::InsertTx100 => "insert_tx100",
            Self::Outage => "outage",
        }
    }
}

/// A system whose leader can be killed while it is written to.
#[async_trait]
trait SqlSystem: Does<Work> {
    /// A client that keeps writing whatever happens to the leader.
    async fn steadfast_writer(&mut self) -> Result<Box<dyn Session>>;
    /// SIGKILL to the process that leads.
    async fn kill_leader(&mut self) -> Result<()>;
    /// Starts what was killed and waits until it takes part again.
    async fn restore(&mut self) -> Result<()>;
}

/// Measures and reports.
pub(super) async fn run(options: &SqlOptions) -> Result<()> {
    let common = &options.common;
    let mut systems: Vec<Box<dyn SqlSystem>> = vec![Box::new(debros::start(&Build::shipped()).await?)];
    if let Some(Peer::Etcd) = options.against
        && let Some(program) = program("etcd", "etcd-server")
    {
        systems.push(Box::new(etcd::start(&program).await?));
    }
    let works = options.works.clone().unwrap_or_else(|| Work::value_variants().to_vec());
    let mut rows = Vec::new();
    for work in works.iter().copied().filter(|work| *work != Work::Outage) {
        for clients in common.clients(CLIENTS, CLIENTS_QUICK) {
            let mut systems = systems.iter_mut().map(Box::as_mut).collect::<Vec<_>>();
            rows.extend(in_turns(&mut systems, work, clients, common.duration()).await?);
        }
    }
    if works.contains(&Work::Outage) {
        let kills = if common.quick { KILLS_QUICK } else { KILLS };
        for system in &mut systems {
            rows.push(outages(system.as_mut(), kills).await?);
        }
    }
    for system in systems {
        system.stop().await?;
    }
    common.report(&rows)
}

async fn outages(system: &mut dyn SqlSystem, kills: usize) -> Result<Row> {
    let mut outages = Vec::new();
    for kill in 1..=kills {
        let mut writer = system.steadfast_writer().await?;
        let outage = outage::measure(async || writer.once().await, system.kill_leader()).await?.longest;
        eprintln!(
            "outage, kill {kill} of {kills}: {} was away for {:.0} ms",
            system.name(),
            outage.as_secs_f64() * 1e3
        );
        outages.push(outage);
        system.restore().await?;
    }
    outages.sort();
    let us = |outage: Option<&Duration>| outage.map(|outage| outage.as_secs_f64() * 1e6);
    Ok(Row {
        bench: BENCH,
        work: Work::Outage.name(),
        system: system.name().to_owned(),
        clients: 1,
        ops_per_s: None,
        p50_us: us(outages.get(outages.len() / 2)),
        p99_us: us(outages.last()),
        cpu_us_per_op: None,
    })
}
