//! `cargo xtask grow`: two nodes join three while clients put. Nothing acknowledged may be lost and no put may fail, the
//! nodes tell how far they are, and nothing moves but what the new nodes are to hold. This module decides who joins when,
//! and what should move; [`crate::puts`] keeps the books.
//!
//! What should move is computed as every node computes it, from the members alone: [`debros_proto::layout`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use debros_proto::layout::{Placement, majority, partition_of};
use debros_proto::{NodeId, v1};
use debros_sdk::{Client, Quorum, StorageInfo};
use tokio::time::sleep;

use crate::cluster::{Cluster, Layout, node_program};
use crate::puts::{Books, Puts};
use crate::steps::{cargo, run as run_program, step, target_folder};
use crate::{membership, storage};

const NODES_BEFORE: usize = 3;
const NODES_AFTER: usize = 5;
/// Replicas of a key: three, as nodes that are started without further ado have it.
const REPLICAS: u32 = 3;
/// The keys of one namespace are in at most sixteen partitions; so many namespaces make the shares even.
const NAMESPACES: usize = 8;
/// A share of two nodes is copied in seconds; this is for a machine at its limit.
const GROWN_WITHIN: Duration = Duration::from_secs(180);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Puts before nodes join, of each namespace.
const PUTS_BEFORE: u64 = 20;
/// Replicas of the keys that nodes keep for their own probes, one each, if all of them were at all nodes that join.
const PROBED_REPLICAS_MAX: u64 = (NODES_AFTER * (NODES_AFTER - NODES_BEFORE)) as u64;
/// The version of a layout grows by one for each phase of a change: both are written, the next is read, it is settled.
const VERSIONS_OF_A_CHANGE: u64 = 3;

/// Options of `grow`.
#[derive(Args)]
pub(crate) struct GrowOptions {
    /// Keys of each of eight namespaces.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    keys: u32,
    /// Build the nodes with optimisation: slower to build, faster to run.
    #[arg(long)]
    release: bool,
}

/// A namespace under load.
struct Load {
    client: Client,
    books: Arc<Books>,
}

/// Builds, grows, checks.
pub(crate) fn run(options: &GrowOptions) -> Result<()> {
    let mut arguments = vec!["build", "--package", "debros-node", "--bin", "debros-node"];
    if options.release {
        arguments.push("--release");
    }
    step("build", || run_program(cargo(&arguments)))?;
    let layout = Layout {
        program: node_program(&target_folder(), if options.release { "release" } else { "debug" }),
        folder: target_folder().join("grow"),
        nodes: NODES_AFTER,
        keep_data: false,
    };
    println!(
        "{NODES_BEFORE} nodes become {NODES_AFTER} while {NAMESPACES} clients put; logs: {}",
        layout.folder.display()
    );
    tokio::runtime::Runtime::new()?.block_on(grow(layout, options.keys))
}

async fn grow(layout: Layout, keys: u32) -> Result<()> {
    let mut cluster = Cluster::prepare(layout)?;
    for index in 0..NODES_BEFORE {
        cluster.start(index)?;
    }
    for index in 0..NODES_BEFORE {
        cluster.ready(index).await?;
    }
    let before = storage::laid_out(&cluster, &namespace(0), NODES_BEFORE).await?;
    let loads = fill(&cluster, keys).await?;
    let copied_before = copied(&cluster, 0..NODES_BEFORE).await?;
    println!("{} entries at {NODES_BEFORE} nodes", loads.len() * keys as usize);

    let puts: Vec<Puts> = loads
        .iter()
        .map(|load| Puts::start(std::slice::from_ref(&load.client), &load.books, keys, Duration::ZERO))
        .collect();
    for load in &loads {
        load.books.pace.more(PUTS_BEFORE).await?;
        load.books.pace.begin_round();
    }
    let started = Instant::now();
    for index in NODES_BEFORE..NODES_AFTER {
        cluster.start(index)?;
    }
    for index in NODES_BEFORE..NODES_AFTER {
        cluster.ready(index).await?;
    }
    println!(
        "{} more nodes are ready after {} ms",
        NODES_AFTER - NODES_BEFORE,
        started.elapsed().as_millis()
    );
    let after = follow(&cluster).await?;
    println!(
        "laid out over {NODES_AFTER} nodes {} ms after they were started",
        started.elapsed().as_millis()
    );
    let away = loads.iter().map(|load| load.books.pace.longest_pause()).max().unwrap_or_default();
    for puts in puts {
        puts.stop().await?;
    }
    let acknowledged: u64 = loads.iter().map(|load| load.books.pace.acknowledged()).sum();
    println!(
        "{acknowledged} acknowledged puts, none failed; a client waited for {} ms at most",
        away.as_millis()
    );

    nothing_lost(&cluster, &loads).await?;
    println!("every key reads as it was last put, through each node, and at all of its replicas");
    let is_one_change = after.layout_version - before.layout_version == VERSIONS_OF_A_CHANGE;
    only_the_share_moved(&cluster, &loads, copied_before, is_one_change).await?;
    storage::nothing_diverges(&cluster).await?;
    storage::close(loads.into_iter().map(|load| load.client).collect()).await;
    cluster.stop().await
}

fn namespace(number: usize) -> String {
    format!("grow-{number}")
}

async fn fill(cluster: &Cluster, keys: u32) -> Result<Vec<Load>> {
    let mut loads = Vec::new();
    for number in 0..NAMESPACES {
        // Nodes that do not run yet cannot let a client in; it learns of them later.
        let client = membership::client_at(cluster, number % NODES_BEFORE, &namespace(number)).await?;
        let books = Arc::new(Books::default());
        crate::puts::fill(&client, &books, keys).await?;
        loads.push(Load { client, books });
    }
    Ok(loads)
}

/// Tells what the nodes say of the change until it is over.
async fn follow(cluster: &Cluster) -> Result<StorageInfo> {
    let clients = storage::at_each_node(cluster, &namespace(0)).await?;
    let started = Instant::now();
    let (mut told, mut copied_seen, mut to_copy_seen) = (String::new(), false, false);
    let settled = loop {
        let all = storage::statuses(&clients).await?;
        let nodes = u32::try_from(NODES_AFTER)?;
        if all.iter().all(|status| status.phase == "stable" && status.nodes == nodes) {
            break all.into_iter().next().context("no node runs")?;
        }
        let newest = all.iter().max_by_key(|status| status.layout_version).context("no node runs")?;
        let left: u32 = all.iter().map(|status| status.partitions_to_copy).sum();
        copied_seen |= newest.nodes_copied > 0;
        to_copy_seen |= left > 0;
        let StorageInfo { layout_version, phase, nodes, nodes_copied, .. } = newest;
        // Every partition would be too many lines.
        let line = match phase.as_str() {
            "stable" => format!("layout {layout_version} stable over {nodes} nodes"),
            _ => format!("layout {layout_version} {phase}: {nodes_copied} of {nodes} nodes have copied"),
        };
        if line != told {
            println!("  {:>6} ms  {line}, {left} partitions to copy", started.elapsed().as_millis());
            told = line;
        }
        ensure!(started.elapsed() < GROWN_WITHIN, "not laid out anew after {GROWN_WITHIN:?}: {all:?}");
        sleep(LOOK_EVERY).await;
    };
    ensure!(copied_seen, "no node ever told that some have copied and some have not");
    ensure!(to_copy_seen, "no node ever told how many partitions it still had to copy");
    storage::close(clients).await;
    Ok(settled)
}

async fn nothing_lost(cluster: &Cluster, loads: &[Load]) -> Result<()> {
    for (number, load) in loads.iter().enumerate() {
        let clients = storage::at_each_node(cluster, &namespace(number)).await?;
        for (client, node) in clients.iter().zip(cluster.nodes()) {
            let listed = storage::entries(&client.storage(), Quorum::Majority).await?;
            load.books.hold(&listed).with_context(|| format!("a list by {}", node.name()))?;
        }
        for quorum in [Quorum::Majority, Quorum::All] {
            let read = load.books.read(&clients[0], quorum, 1).await;
            read.with_context(|| format!("gets with {quorum:?}"))?;
        }
        storage::close(clients).await;
    }
    Ok(())
}

async fn copied(cluster: &Cluster, nodes: std::ops::Range<usize>) -> Result<u64> {
    let mut sum = 0;
    for node in &cluster.nodes()[nodes] {
        sum += storage::metric(node, "copied_entries_total").await?;
    }
    Ok(sum)
}

/// The new nodes have copied what they hold now, from as many others as no write can have missed; the old ones nothing.
async fn only_the_share_moved(
    cluster: &Cluster,
    loads: &[Load],
    copied_before: u64,
    is_one_change: bool,
) -> Result<()> {
    let shares = shares(cluster, loads).await?;
    let old = copied(cluster, 0..NODES_BEFORE).await? - copied_before;
    let new = copied(cluster, NODES_BEFORE..NODES_AFTER).await?;
    let Shares { entries, moved } = shares;
    let copies_each = u64::from(REPLICAS) - majority(REPLICAS as usize) as u64 + 1;
    println!(
        "{moved} of {entries} replicas of entries are at other nodes than before; the new nodes have copied \
         {new} entries, each from {copies_each} nodes; the old nodes {old}"
    );
    ensure!(old == 0, "nodes that gain nothing have copied {old} entries");
    ensure!(new >= moved, "the new nodes have copied less than they hold");
    if is_one_change {
        ensure!(
            new <= copies_each * (moved + PROBED_REPLICAS_MAX),
            "more was copied than {copies_each} times what had to move"
        );
    } else {
        println!("they did not join in one change, so some was copied twice: no upper bound is checked");
    }
    Ok(())
}

struct Shares {
    /// Replicas of all entries.
    entries: u64,
    /// Those at a node that did not hold them before.
    moved: u64,
}

async fn shares(cluster: &Cluster, loads: &[Load]) -> Result<Shares> {
    let members = loads[0].client.cluster().members().await?.members;
    let (mut old, mut all) = (Vec::new(), Vec::new());
    for member in &members {
        let is_at = |address: &str| member.addresses.iter().any(|known| known.starts_with(address));
        let index = cluster.nodes().iter().position(|node| is_at(&node.peer_address()));
        let node = v1::LayoutNode { node_id: member.node_id, weight: 1, ..Default::default() };
        if index.context("a member is none of this cluster's nodes")? < NODES_BEFORE {
            old.push(node.clone());
        }
        all.push(node);
    }
    ensure!((old.len(), all.len()) == (NODES_BEFORE, NODES_AFTER), "the members are {members:?}");
    let placement = |nodes| Placement::new(&v1::LayoutSet { replicas: REPLICAS, nodes });
    let (before, after) = (placement(old), placement(all));
    let mut shares = Shares { entries: 0, moved: 0 };
    for (number, load) in loads.iter().enumerate() {
        for key in load.books.keys() {
            let partition = partition_of(&namespace(number), &key);
            let holders = |placement: &Placement| -> BTreeSet<NodeId> {
                placement.nodes_of(partition).iter().copied().collect()
            };
            let holders_after = holders(&after);
            shares.entries += holders_after.len() as u64;
            shares.moved += holders_after.difference(&holders(&before)).count() as u64;
        }
    }
    Ok(shares)
}
