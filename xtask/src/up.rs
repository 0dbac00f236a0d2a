//! `cargo xtask up`: the whole thing at work. Three nodes start as processes, and then one act after the other shows
//! something with them. This module sets the stage; an act is a module below it and gets the [`Stage`].

mod database;
mod leader;
mod pubsub;
mod storage;
mod voice;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use debros_sdk::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{Cluster, Layout, Node, node_program};
use crate::steps::{cargo, run as run_program, target_folder};
use crate::{membership, prometheus};
use voice::Voice;

const APPLICATION: &str = "demo";
/// What Prometheus calls this cluster.
const CLUSTER: &str = "up";
/// Where a Prometheus is told of the nodes, below the folder of the cluster.
const SCRAPE_FILE: &str = "prometheus.yaml";
/// Somebody is watching: dashboards should move.
const SCRAPE_SECONDS: u32 = 5;

/// Options of `up`.
#[derive(Args)]
pub(crate) struct UpOptions {
    /// Stop after the demonstration instead of leaving the cluster running until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// How many nodes; the demonstration kills one, so the others must be a quorum.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
    nodes: u8,
    /// Go on with what an earlier run left, instead of with empty folders.
    #[arg(long)]
    keep_data: bool,
    /// Build the nodes with optimisation: slower to build, faster to run.
    #[arg(long)]
    release: bool,
}

/// What an act has to play with.
struct Stage {
    cluster: Cluster,
    client: Client,
    /// Where the nodes keep data and logs.
    folder: PathBuf,
    voice: Voice,
}

/// Builds, starts, shows and either stops or waits for Ctrl-C.
pub(crate) fn run(options: &UpOptions) -> Result<()> {
    let voice = Voice::new();
    voice.headline("Building debros-node");
    let layout = Layout {
        program: build(options.release)?,
        folder: target_folder().join("up"),
        nodes: usize::from(options.nodes),
        keep_data: options.keep_data,
    };
    demonstrate(layout, options.once, voice)
}

/// The demonstration as a test of the programs that are built already.
pub(crate) fn test() -> Result<()> {
    let program = node_program(&target_folder(), "debug");
    let layout = Layout { program, folder: target_folder().join("up-test"), nodes: 3, keep_data: false };
    demonstrate(layout, true, Voice::new())
}

fn demonstrate(layout: Layout, once: bool, voice: Voice) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        // Nodes that were started go with what is dropped here.
        let mut stage = tokio::select! {
            stage = set(layout, voice) => stage?,
            _ = interrupt.recv() => return Ok(()),
        };
        let shown = tokio::select! {
            shown = play(&mut stage) => shown.map(|()| true),
            _ = interrupt.recv() => Ok(false),
        };
        if matches!(shown, Ok(true)) && !once {
            stage.voice.headline("The cluster keeps running; Ctrl-C stops it");
            show_addresses(&stage);
            interrupt.recv().await;
        }
        stage.voice.headline("Stopping");
        stage.client.close().await;
        stage.cluster.stop().await?;
        shown.map(drop)
    })
}

/// The acts, in order. A later capability joins here.
async fn play(stage: &mut Stage) -> Result<()> {
    database::play(stage).await?;
    storage::play(stage).await?;
    pubsub::play(stage).await?;
    leader::play(stage).await
}

fn build(release: bool) -> Result<PathBuf> {
    let mut arguments = vec!["build", "--package", "debros-node", "--bin", "debros-node"];
    if release {
        arguments.push("--release");
    }
    run_program(cargo(&arguments))?;
    Ok(node_program(&target_folder(), if release { "release" } else { "debug" }))
}

async fn set(layout: Layout, voice: Voice) -> Result<Stage> {
    voice.headline(&format!("Starting {} nodes, each a process of its own", layout.nodes));
    let folder = layout.folder.clone();
    let mut cluster = Cluster::prepare(layout)?;
    let took = voice.timed(cluster.start_all()).await?;
    voice.line(&format!("all ready after {took}"));
    let client = membership::client(&cluster, APPLICATION).await?;
    let scrape = folder.join(SCRAPE_FILE);
    fs::write(&scrape, prometheus::scrape_config(&cluster, CLUSTER, SCRAPE_SECONDS)?)?;
    let stage = Stage { cluster, client, folder, voice };
    show_addresses(&stage);
    Ok(stage)
}

fn show_addresses(stage: &Stage) {
    for node in stage.cluster.nodes() {
        let pid = node.pid().map_or("not running".to_owned(), |pid| format!("pid {pid}"));
        let (http, admin) = (node.http_port(), node.admin_port());
        stage.voice.line(&format!(
            "{}  {pid:<11}  {}  HTTP http://127.0.0.1:{http}  health http://127.0.0.1:{admin}/healthz",
            node.name(),
            node.peer_address(),
        ));
    }
    let admin = |node: &Node| format!("http://127.0.0.1:{}/metrics", node.admin_port());
    let metrics = stage.cluster.nodes().iter().map(admin).collect::<Vec<_>>();
    stage.voice.line(&format!("metrics: {}", metrics.join("  ")));
    let scrape = stage.folder.join(SCRAPE_FILE);
    stage.voice.line(&format!("to scrape them: prometheus --config.file {}", scrape.display()));
    stage.voice.line(&format!("data and logs: {}", stage.folder.display()));
    let address = stage.cluster.nodes()[0].peer_address();
    let debros = format!("cargo run -q -p debros-cli -- -b {address} -n {APPLICATION}");
    stage.voice.line(&format!("try it: {debros} query 'SELECT count(*) FROM notes'"));
    stage.voice.line(&format!("        {debros} storage list --values"));
    stage.voice.line(&format!("        {debros} pubsub subscribe 'ships.>'"));
}
