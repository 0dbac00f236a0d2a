//! `cargo xtask crash`: kill -9 of a random node, over and over, while clients write. At the end every
//! node holds every acknowledged write, once, and all nodes hold the same. This module decides what is
//! struck down and when; [`load`] writes and keeps the books, [`check`] closes them.
//!
//! The first round kills the leader, so that the shortest run has seen an election.

mod check;
mod load;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use debros_sdk::{Client, Database, Parameters};
use serde::Serialize;
use tokio::time::sleep;

use crate::cluster::{Cluster, Layout, node_program};
use crate::membership;
use crate::steps::{cargo, run as run_program, step, target_folder};
use load::{Books, Load, TABLE};

const NODES: usize = 3;
const APPLICATION: &str = "crash";
/// Acknowledged writes before a strike, and after it before the node comes back.
const WRITES_BETWEEN: u64 = 50;
/// Writes are away for seconds at most; this is for a machine at its limit.
const RESUMED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

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
}

/// What all rounds came to.
#[derive(Debug, Serialize)]
struct Summary {
    rounds: u32,
    acknowledged: u64,
    unknown: u64,
    outage_ms_max: u128,
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
    let Summary { acknowledged, unknown, outage_ms_max, .. } = summary;
    println!(
        "{acknowledged} acknowledged writes, each found once on every node; {unknown} of unknown outcome"
    );
    println!("all nodes hold the same rows; writes were away for {outage_ms_max} ms at most");
    if let Some(path) = &options.json {
        let mut lines = rounds.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        lines.push(serde_json::to_string(&summary)?);
        std::fs::write(path, lines.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn crash(layout: Layout, rounds: u32) -> Result<(Vec<Round>, Summary)> {
    let mut cluster = Cluster::prepare(layout)?;
    cluster.start_all().await?;
    let client = membership::client(&cluster, APPLICATION).await?;
    client.database().execute(TABLE, Parameters::default()).await.context("cannot create the table")?;
    let books = Arc::new(Books::default());
    let load = Load::start(&client, &books);
    let mut told = Vec::new();
    for round in 1..=rounds {
        let round = strike(&mut cluster, &client, &books, round).await?;
        let Round { round: number, killed, led, outage_ms, ready_ms, acknowledged } = &round;
        let role = if *led { "the leader" } else { "a follower" };
        println!(
            "round {number:>3}/{rounds}  {killed} ({role}) killed  writes away {outage_ms:>5} ms  \
             ready again after {ready_ms:>5} ms  {acknowledged} acknowledged"
        );
        told.push(round);
    }
    load.stop().await?;
    check::all(&cluster, APPLICATION, &books).await?;
    let ledger = books.ledger();
    let summary = Summary {
        rounds,
        acknowledged: ledger.acknowledged.len() as u64,
        unknown: ledger.unknown.len() as u64,
        outage_ms_max: told.iter().map(|round| round.outage_ms).max().unwrap_or(0),
    };
    client.close().await;
    cluster.stop().await?;
    Ok((told, summary))
}

async fn strike(cluster: &mut Cluster, client: &Client, books: &Books, round: u32) -> Result<Round> {
    more_writes(books).await?;
    let leader = membership::leader(cluster, client).await?;
    let victim = if round == 1 { leader } else { rand::random_range(0..cluster.nodes().len()) };
    let killed = cluster.nodes()[victim].name().to_owned();
    books.begin_round();
    cluster.kill(victim).await?;
    more_writes(books).await.with_context(|| format!("writes stay away after {killed} was killed"))?;
    let started = Instant::now();
    cluster.start(victim)?;
    cluster.ready(victim).await?;
    Ok(Round {
        round,
        killed,
        led: victim == leader,
        outage_ms: books.longest_pause().as_millis(),
        ready_ms: started.elapsed().as_millis(),
        acknowledged: books.acknowledged(),
    })
}

/// Waits until so many more writes are acknowledged.
async fn more_writes(books: &Books) -> Result<()> {
    let (started, wanted) = (Instant::now(), books.acknowledged() + WRITES_BETWEEN);
    while books.acknowledged() < wanted {
        if started.elapsed() > RESUMED_WITHIN {
            bail!("{} of {wanted} writes are acknowledged after {RESUMED_WITHIN:?}", books.acknowledged());
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
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
    }
}
