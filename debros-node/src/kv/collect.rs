//! Forgetting deletions: a tombstone goes once every replica has it and nothing older can come back.
//!
//! The first node of a partition leads. It has all replicas refuse what is at or below a clock, sees that
//! they hold the same up to there, and only then lets them forget. A replica that was away meanwhile finds
//! the others further than itself and takes their word ([`super::repair`]).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::NodeId;
use debros_proto::layout::{PARTITIONS, Phase};
use debros_proto::v1;
use tokio_util::sync::CancellationToken;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::clock::stamp_of;
use super::coordinator::Coordinator;
use super::layouts::View;
use super::repair::{self, Unfinished};
use crate::planted::{Bug, is_planted};

/// Entries looked at to find out whether there is anything to forget.
const LOOKED_AT_MAX: usize = 10_000;

/// Collects until the token is cancelled: tombstones older than `life`, every `interval`.
pub(super) async fn run(
    coordinator: Coordinator,
    life: Duration,
    interval: Duration,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = round(&coordinator, life) => {}
        }
    }
}

async fn round(coordinator: &Coordinator, life: Duration) {
    let inner = &coordinator.inner;
    let Some(view) = inner.layouts.adopted() else { return };
    let oldest = inner.clock.unix_ms().saturating_sub(life.as_millis() as u64);
    if view.phase() != Phase::Stable || oldest == 0 || inner.clock.check(view.peers().len() - 1).is_err() {
        return;
    }
    for partition in 0..PARTITIONS {
        let nodes = view.current().nodes_of(partition);
        if nodes.first() != Some(&inner.node) {
            continue;
        }
        if let Err(error) = collect(coordinator, &view, partition, nodes, stamp_of(oldest)).await {
            tracing::debug!(partition, %error, "a partition was not collected");
        }
    }
}

async fn collect(
    coordinator: &Coordinator,
    view: &Arc<View>,
    partition: u16,
    nodes: &[NodeId],
    clock: u64,
) -> Result<(), Unfinished> {
    let store = coordinator.inner.replica.store();
    let work = move |snapshot: &super::store::Snapshot<'_>| {
        snapshot.collectable(partition, clock, &Bytes::new(), LOOKED_AT_MAX)
    };
    let (found, more) = store.read(work).await?;
    if found.is_empty() && more.is_none() {
        return Ok(());
    }
    if !is_planted(Bug::TombstoneDroppedEarly) {
        let mut roots = Vec::with_capacity(nodes.len());
        for node in nodes {
            let fence = v1::ReplicaFence { partition: u32::from(partition), clock };
            let outcome = coordinator.ask_any(view, *node, Operation::Fence(fence)).await;
            let Outcome::Fenced(fenced) = outcome.map_err(Unfinished::Peer)? else {
                return Err(Unfinished::Malformed);
            };
            roots.push((*node, fenced.root));
        }
        let differing = roots.iter().filter(|(_, root)| *root != roots[0].1);
        let differing: Vec<NodeId> = differing.map(|(node, _)| *node).collect();
        if !differing.is_empty() {
            // Equal the next time round.
            for node in differing {
                repair::exchange(coordinator, view, node, partition).await?;
            }
            return Ok(());
        }
    }
    for node in nodes {
        let advance = v1::ReplicaAdvance { partition: u32::from(partition), clock };
        let outcome = coordinator.ask_any(view, *node, Operation::Advance(advance)).await;
        if let (Err(no), false) = (outcome, is_planted(Bug::TombstoneDroppedEarly)) {
            return Err(Unfinished::Peer(no));
        }
    }
    Ok(())
}
