//! This node's part in a change of the layout: adopt each phase durably, copy what it gains, forget what it
//! gave up, and tell the meta group.
//!
//! Invariants: a partition that this node gains is empty when the change begins, and is copied from N-W+1
//! nodes of the old set that refuse the earlier layout, so that nothing acknowledged is missed; a node says
//! that it has copied only when that is on disk. A store that was lost is filled in the same way before
//! anything is read from it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use debros_net::Lane;
use debros_proto::layout::{Layout, PARTITIONS, Phase, Placement, majority};
use debros_proto::{Failure, NodeId, v1};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coordinator::Coordinator;
use super::record::Entry;
use super::store::{Durability, Origin, Put, StoreError};
use crate::planted::{Bug, is_planted};

/// Tells the meta group how far this node is.
pub type Reporter = Arc<dyn Fn(v1::LayoutProgress) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Partitions that are copied at a time.
const COPIES_AT_A_TIME: usize = 4;
/// Bytes per second that a node copies: faster disturbs what clients ask of the nodes.
const COPY_BYTES_PER_SECOND: u64 = 64 << 20;
/// What failed is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// Copies behind each other are given up when nothing arrives for this long.
const COPY_SILENCE: Duration = Duration::from_secs(5);

/// The task that follows the layout.
pub(super) struct Transition {
    coordinator: Coordinator,
    report: Reporter,
    /// The settled layout for which nothing foreign is kept any more.
    tidy_for: AtomicU64,
}

/// Why a step has to be taken again.
#[derive(Debug, thiserror::Error)]
enum Again {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("too few replicas of partition {0} could be copied from")]
    TooFewSources(u16),
    #[error("{0}")]
    Report(Failure),
}

impl Transition {
    pub(super) fn new(coordinator: Coordinator, report: Reporter) -> Self {
        Self { coordinator, report, tidy_for: AtomicU64::new(0) }
    }

    /// Runs until the token is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut known = self.coordinator.inner.layouts.watch_known();
        loop {
            let target = known.borrow_and_update().clone();
            let step = async {
                match &target {
                    Some(target) => self.follow(target).await,
                    None => Ok(()),
                }
            };
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = step => outcome,
                // A newer layout makes what is under way pointless.
                changed = superseded(known.clone(), target.as_deref()) => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a step of the layout's change will be taken again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY_AFTER) => continue,
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = known.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn follow(&self, wire: &v1::StorageLayout) -> Result<(), Again> {
        let Some(layout) = Layout::new(wire.clone()) else { return Ok(()) };
        let inner = &self.coordinator.inner;
        let store = inner.replica.store();
        let adopted = store.layout().await?;
        let adopted_version = adopted.as_ref().map_or(0, |adopted| adopted.version);
        if layout.version() < adopted_version {
            // The map is read from its log again: this one is history.
            return self.adopt_known(adopted);
        }
        let lost = adopted.is_none() && self.had_a_store(&layout);
        if layout.version() > adopted_version {
            if lost {
                tracing::warn!("the storage of this node was lost: it copies what the others have");
            } else if layout.phase() == Phase::WriteBoth {
                self.forget(|partition| !layout.current().holds(inner.node, partition)).await?;
            }
            store.adopt(wire.clone(), lost).await?;
        }
        let unix_ms = inner.clock.unix_ms();
        if inner.layouts.adopted().is_none_or(|view| view.version() < layout.version()) {
            inner.layouts.set_adopted(layout.clone(), unix_ms);
            inner.metrics.set_layout(layout.version());
        }
        self.tell(&layout, 0).await?;
        if layout.phase() == Phase::WriteBoth || !inner.replica.store().is_whole() {
            self.copy_all(&layout).await?;
        }
        if layout.phase() == Phase::Stable && self.tidy_for.load(Ordering::Relaxed) != layout.version() {
            self.forget(|partition| !layout.current().holds(inner.node, partition)).await?;
            self.tidy_for.store(layout.version(), Ordering::Relaxed);
        }
        Ok(())
    }

    fn adopt_known(&self, adopted: Option<v1::StorageLayout>) -> Result<(), Again> {
        let layouts = &self.coordinator.inner.layouts;
        if layouts.adopted().is_none()
            && let Some(layout) = adopted.and_then(Layout::new)
        {
            layouts.set_adopted(layout, self.coordinator.inner.clock.unix_ms());
        }
        Ok(())
    }

    /// Whether an empty store means that one was lost: this node has said before that it has one.
    fn had_a_store(&self, layout: &Layout) -> bool {
        let node = self.coordinator.inner.node;
        let told = layout.wire().progress.iter().any(|told| told.node_id == node.0);
        let holds = layout.current().peers().contains_key(&node);
        told || (holds && layout.version() > 1)
    }

    async fn tell(&self, layout: &Layout, copied: u64) -> Result<(), Again> {
        let node = self.coordinator.inner.node;
        let progress = v1::LayoutProgress { node_id: node.0, acknowledged: layout.version(), copied };
        let known = layout.wire().progress.iter().find(|known| known.node_id == node.0);
        let news = known
            .is_none_or(|known| known.acknowledged < progress.acknowledged || known.copied < progress.copied);
        // A first layout or a settled one waits for nobody, but a lost store shows by what was said here.
        if news {
            (self.report)(progress).await.map_err(Again::Report)?;
        }
        Ok(())
    }

    /// Drops what is kept of the partitions that are not this node's.
    async fn forget(&self, foreign: impl Fn(u16) -> bool) -> Result<(), Again> {
        let store = self.coordinator.inner.replica.store();
        let foreign: Vec<u16> = (0..PARTITIONS).filter(|partition| foreign(*partition)).collect();
        let looked_at = foreign.clone();
        let held = move |snapshot: &super::store::Snapshot<'_>| {
            let mut held = Vec::new();
            for partition in looked_at {
                if !snapshot.is_empty(partition)? {
                    held.push(partition);
                }
            }
            Ok(held)
        };
        let held = store.read(held).await?;
        for partition in foreign {
            if held.contains(&partition) || store.fenced(partition) > 0 {
                while store.clear(partition).await? {}
            }
        }
        Ok(())
    }

    async fn copy_all(&self, layout: &Layout) -> Result<(), Again> {
        let inner = &self.coordinator.inner;
        let store = inner.replica.store();
        let whole = inner.replica.store().is_whole();
        if whole && store.copied().await? == layout.version() {
            return self.tell(layout, layout.version()).await;
        }
        let lacking: BTreeSet<u16> =
            (0..PARTITIONS).filter(|partition| lacks(layout, inner.node, *partition, whole)).collect();
        let mut left = lacking.len();
        inner.metrics.set_to_copy(left);
        let skip = is_planted(Bug::LayoutBeforeCopy);
        let partitions = lacking.into_iter().filter(|_| !skip);
        let mut copies = stream::iter(partitions)
            .map(|partition| self.copy(layout, partition))
            .buffer_unordered(COPIES_AT_A_TIME);
        while let Some(copied) = copies.next().await {
            copied?;
            left -= 1;
            inner.metrics.set_to_copy(left);
        }
        drop(copies);
        inner.metrics.set_to_copy(0);
        store.set_whole().await?;
        if layout.phase() != Phase::WriteBoth {
            return Ok(());
        }
        store.set_copied(layout.version()).await?;
        self.tell(layout, layout.version()).await
    }

    /// Copies a partition from as many nodes of the old set as no acknowledged write can have missed.
    async fn copy(&self, layout: &Layout, partition: u16) -> Result<(), Again> {
        let inner = &self.coordinator.inner;
        let old = layout.current();
        let own = usize::from(old.holds(inner.node, partition) && inner.replica.store().is_whole());
        let needed = old.replicas() - majority(old.replicas()) + 1 - own;
        let (mut copied, mut collected) = (0, 0);
        for source in old.nodes_of(partition).iter().filter(|source| **source != inner.node) {
            if copied >= needed {
                break;
            }
            match self.copy_from(layout, *source, partition).await {
                Ok(theirs) => {
                    copied += 1;
                    collected = collected.max(theirs);
                }
                Err(CopyError::Store(error)) => return Err(error.into()),
                Err(CopyError::Source(status)) => {
                    tracing::debug!(node = source.0, partition, %status, "a partition could not be copied");
                }
            }
        }
        // With a single old replica that was lost there is nobody left to copy from.
        let alone = old.replicas() == 1 && old.holds(inner.node, partition);
        if copied < needed && !alone {
            return Err(Again::TooFewSources(partition));
        }
        inner.replica.store().set_collected(partition, collected).await?;
        inner.replica.drop_collected(partition).await?;
        Ok(())
    }

    /// Copies a partition from one node; gives how far that has collected it.
    async fn copy_from(&self, layout: &Layout, source: NodeId, partition: u16) -> Result<u64, CopyError> {
        let inner = &self.coordinator.inner;
        let peer = layout.peer_of(source).and_then(|peer| peer.parse().ok());
        let peer = peer.filter(|peer| inner.links.is_connected(*peer));
        let peer = peer.ok_or_else(|| CopyError::Source(tonic::Status::unavailable("not in reach")))?;
        let header =
            v1::RequestHeader { namespace: super::SYSTEM_NAMESPACE.to_owned(), ..Default::default() };
        let request = v1::CopyRequest {
            header: Some(header),
            layout: layout.version(),
            partition: u32::from(partition),
        };
        let mut client = inner.links.client(peer, Lane::Bulk);
        let opened = silence(client.copy(request)).await?;
        let mut parts = opened.into_inner();
        let mut collected = 0;
        while let Some(part) = silence(parts.message()).await? {
            let v1::ReplicaEntries { entries, collected_to } = part;
            collected = collected_to;
            self.keep(partition, entries, collected_to).await?;
        }
        Ok(collected)
    }

    async fn keep(
        &self,
        partition: u16,
        entries: Vec<v1::ReplicaEntry>,
        collected_to: u64,
    ) -> Result<(), CopyError> {
        let started = Instant::now();
        let entries = entries.into_iter().map(|entry| Entry::from_wire(partition, entry));
        let malformed = || CopyError::Source(tonic::Status::data_loss("a record that cannot be read"));
        let entries = entries.collect::<Option<Vec<Entry>>>().ok_or_else(malformed)?;
        let bytes: usize = entries.iter().map(|entry| entry.key.len() + entry.record.value.len()).sum();
        let count = entries.len() as u64;
        let puts = entries.into_iter().map(|entry| Put { entry }).collect();
        let inner = &self.coordinator.inner;
        inner
            .replica
            .store()
            .put(Origin::Replica(collected_to), Durability::Flushed, puts)
            .await
            .map_err(CopyError::Store)?;
        inner.metrics.copied(count);
        let pace =
            Duration::from_micros(bytes as u64 * 1_000_000 * COPIES_AT_A_TIME as u64 / COPY_BYTES_PER_SECOND);
        tokio::time::sleep_until(started + pace).await;
        Ok(())
    }
}

enum CopyError {
    Store(StoreError),
    Source(tonic::Status),
}

async fn silence<T>(work: impl Future<Output = Result<T, tonic::Status>>) -> Result<T, CopyError> {
    let silent = || tonic::Status::deadline_exceeded("the source fell silent");
    let answer = tokio::time::timeout(COPY_SILENCE, work).await;
    answer.unwrap_or_else(|_| Err(silent())).map_err(CopyError::Source)
}

/// Whether this node has to copy a partition for the change under way.
fn lacks(layout: &Layout, node: NodeId, partition: u16, whole: bool) -> bool {
    let old = layout.current();
    let gains = layout.next().is_some_and(|next| {
        next.holds(node, partition) && (!old.holds(node, partition) || !quorums_meet(old, next))
    });
    gains || (!whole && layout.holds(node, partition))
}

/// Whether every quorum of reads of the next set that lies in the old one meets every quorum of its writes.
fn quorums_meet(old: &Placement, next: &Placement) -> bool {
    majority(next.replicas()) + majority(old.replicas()) > old.replicas()
}

/// Resolves when a layout of another version than this is known.
async fn superseded(
    mut known: tokio::sync::watch::Receiver<Option<Arc<v1::StorageLayout>>>,
    target: Option<&v1::StorageLayout>,
) -> Result<(), tokio::sync::watch::error::RecvError> {
    let version = target.map_or(0, |target| target.version);
    known.wait_for(|known| known.as_ref().is_some_and(|known| known.version > version)).await.map(drop)
}
