//! `cargo xtask crash`: kill -9 of a random node, over and over, while clients write SQL and storage. After each round
//! every node gives every acknowledged put, and all come to hold the same; at the end every node holds every acknowledged
//! row, once, and all nodes hold the same. This module decides what is struck down and when; [`load`] writes SQL and keeps
//! the books, [`check`] closes them; [`storage`] does both for the storage.
//!
//! The first round kills the leader, so that the shortest run has seen an election.

pub(crate) mod check;
pub(crate) mod load;
mod storage;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use debros_sdk::{Client, Database, Parameters};
use serde::Serialize;

use crate::cluster::{Cluster, Layout, node_program};
use crate::membership;
use crate::steps::{cargo, run as run_program, step, target_folder};
use load::{Books, Load, TABLE};
use storage::Stored;

const NODES: usize = 3;
const APPLICATION: &str = "crash";
/// Acknowledged writes before a strike, and after it before the node comes back.
const WRITES_BETWEEN: u64 = 50;

/// Options of `crash`.
#[derive(Args)]
pub(crate) struct CrashOptions {
    /// How often a node is killed.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write the results to FILE as JSON, one object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Build the nodes with optimisation: slower to build, faster to run.
    #[arg(long)]
    release: bool,
}

/// What one round saw.
#[derive(Debug, Serialize)]
struct Round {
    round: u32,
    killed: String,
    led: bool,
    /// The longest time without an acknowledged write, from before the strike until the node was back.
    outage_ms: u128,
    /// From its start until the killed node was ready again.
    ready_ms: u128,
    acknowledged: u64,
    /// As `outage_ms`, of puts.
    put_outage_ms: u128,
    /// From when the killed node was ready until all nodes held the same.
    equal_ms: u128,
    acknowledged_puts: u64,
}

/// What all rounds came to.
#[derive(Debug, Serialize)]
struct Summary {
    rounds: u32,
    acknowledged: u64,
    unknown: u64,
    outage_ms_max: u128,
    acknowledged_puts: u64,
    put_outage_ms_max: u128,
    equal_ms_max: u128,
}

/// Builds, strikes, checks.
pub(crate) fn run(options: &CrashOptions) -> Result<()> {
    let mut arguments = vec!["build", "--package", "debros-node", "--bin", "debros-node"];
    if options.release {
        arguments.push("--release");
    }
    step("build", || run_program(cargo(&arguments)))?;
    let layout = Layout {
        program: node_program(&target_folder(), if options.release { "release" } else { "debug" }),
        folder: target_folder().join("crash"),
        nodes: NODES,
        keep_data: false,
    };
    println!(
        "kill -9 of a random one of {NODES} nodes, {} times; logs: {}",
        options.rounds,
        layout.folder.display()
    );
    let (rounds, summary) = tokio::runtime::Runtime::new()?.block_on(crash(layout, options.rounds))?;
    tell(&summary);
    if let Some(path) = &options.json {
        let mut lines = rounds.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        lines.push(serde_json::to_string(&summary)?);
        std::fs::write(path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn tell(summary: &Summary) {
    let Summary { rounds: _, acknowledged, unknown, outage_ms_max, .. } = summary;
    println!(
        "SQL: {acknowledged} acknowledged writes, each found once on every node; {unknown} of unknown outcome"
    );
    println!("SQL: all nodes hold the same rows; writes were away for {outage_ms_max} ms at most");
    let Summary { acknowledged_puts, put_outage_ms_max, equal_ms_max, .. } = summary;
    println!(
        "storage: {acknowledged_puts} acknowledged puts, none lost, none failed; away for {put_outage_ms_max} ms at most"
    );
    println!("storage: all nodes hold the same, {equal_ms_max} ms after the killed one was ready at most");
}

async fn crash(layout: Layout, rounds: u32) -> Result<(Vec<Round>, Summary)> {
    let mut cluster = Cluster::prepare(layout)?;
    cluster.start_all().await?;
    let client = membership::client(&cluster, APPLICATION).await?;
    client.database().execute(TABLE, Parameters::default()).await.context("cannot create the table")?;
    let mut stored = Stored::prepare(&cluster, APPLICATION).await?;
    let books = Arc::new(Books::default());
    let load = Load::start(&client, &books, Duration::ZERO);
    let mut told = Vec::new();
    for round in 1..=rounds {
        let round = strike(&mut cluster, &client, &books, &mut stored, round).await?;
        show(&round, rounds);
        told.push(round);
    }
    load.stop().await?;
    check::all(&cluster, APPLICATION, &books).await?;
    let ledger = books.ledger();
    let most = |of: fn(&Round) -> u128| told.iter().map(of).max().unwrap_or(0);
    let summary = Summary {
        rounds,
        acknowledged: ledger.acknowledged.len() as u64,
        unknown: ledger.unknown.len() as u64,
        outage_ms_max: most(|round| round.outage_ms),
        acknowledged_puts: stored.pace().acknowledged(),
        put_outage_ms_max: most(|round| round.put_outage_ms),
        equal_ms_max: most(|round| round.equal_ms),
    };
    stored.close().await;
    client.close().await;
    cluster.stop().await?;
    Ok((told, summary))
}

fn show(round: &Round, rounds: u32) {
    let Round { round: number, killed, led, outage_ms, ready_ms, acknowledged, .. } = round;
    let role = if *led { "the leader" } else { "a follower" };
    println!(
        "round {number:>3}/{rounds}  {killed} ({role}) killed  ready again after {ready_ms:>5} ms\n  \
         SQL      writes away {outage_ms:>5} ms  {acknowledged} acknowledged"
    );
    let Round { put_outage_ms, equal_ms, acknowledged_puts, .. } = round;
    println!(
        "  storage  puts away   {put_outage_ms:>5} ms  {acknowledged_puts} acknowledged  all nodes equal after {equal_ms} ms"
    );
}

async fn strike(
    cluster: &mut Cluster,
    client: &Client,
    books: &Books,
    stored: &mut Stored,
    round: u32,
) -> Result<Round> {
    let puts = stored.start();
    more_writes(books, stored).await?;
    let leader = membership::leader(cluster, client).await?;
    let victim = if round == 1 { leader } else { rand::random_range(0..cluster.nodes().len()) };
    let killed = cluster.nodes()[victim].name().to_owned();
    books.pace.begin_round();
    stored.pace().begin_round();
    cluster.kill(victim).await?;
    more_writes(books, stored)
        .await
        .with_context(|| format!("writes stay away after {killed} was killed"))?;
    let started = Instant::now();
    cluster.start(victim)?;
    cluster.ready(victim).await?;
    let ready_ms = started.elapsed().as_millis();
    let outage_ms = books.pace.longest_pause().as_millis();
    let put_outage_ms = stored.pace().longest_pause().as_millis();
    puts.stop().await?;
    let equal = stored.check(cluster, APPLICATION).await;
    let equal =
        equal.with_context(|| format!("the storage is not what it should be after {killed} was back"))?;
    Ok(Round {
        round,
        killed,
        led: victim == leader,
        outage_ms,
        ready_ms,
        acknowledged: books.pace.acknowledged(),
        put_outage_ms,
        equal_ms: equal.as_millis(),
        acknowledged_puts: stored.pace().acknowledged(),
    })
}

/// Waits until so many more writes and puts are acknowledged.
async fn more_writes(books: &Books, stored: &Stored) -> Result<()> {
    books.pace.more(WRITES_BETWEEN).await.context("SQL")?;
    stored.pace().more(WRITES_BETWEEN).await.context("the storage")
}

#[cfg(test)]
mod tests {
    use super::{Layout, NODES, crash};
    use crate::cluster::node_program;
    use crate::steps::target_folder;

    /// The short version of the command, with the program that the tests' build has made.
    #[tokio::test(flavor = "multi_thread")]
    async fn three_rounds_lose_no_acknowledged_write() {
        let program = node_program(&target_folder(), "debug");
        assert!(program.is_file(), "build it first: cargo build --package debros-node");
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { program, folder: folder.path().join("crash"), nodes: NODES, keep_data: false };
        let (rounds, summary) = crash(layout, 3).await.unwrap();
        assert_eq!(rounds.len(), 3);
        assert!(rounds[0].led, "the first round kills the leader");
        assert!(summary.acknowledged >= 300, "{summary:?}");
        assert!(summary.acknowledged_puts >= 300, "{summary:?}");
    }
}
