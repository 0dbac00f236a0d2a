//! This node's part in a change of the layout: adopt each phase durably, copy what it gains, forget what it
//! gave up, and tell the meta group.
//!
//! Invariants: a partition that this node gains is empty when the change begins, and is copied from N-W+1
//! nodes of the old set that refuse the earlier layout, so that nothing acknowledged is missed; a node says
//! that it has copied only when that is on disk. A store that was lost is filled in the same way before
//! anything is read from it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use debros_net::Lane;
use debros_proto::layout::{Layout, PARTITIONS, Phase, Placement, majority};
use debros_proto::{Failure, NodeId, v1};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::coordinator::Coordinator;
use super::record::Entry;
use super::store::{Applied, Durability, Origin, Put, StoreError};
use crate::planted::{Bug, is_planted};

/// Tells the meta group how far this node is.
pub type Reporter = Arc<dyn Fn(v1::LayoutProgress) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// Streams of copies at a time.
const COPIES_AT_A_TIME: usize = 4;
/// Partitions of one stream: most are small, and a stream of its own for each would cost more than they do.
const PARTITIONS_PER_COPY: usize = 64;
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
            // How far the others are is no reason to take the step again.
            tokio::select! {
                () = stop.cancelled() => return,
                changed = superseded(known.clone(), target.as_deref()) => if changed.is_err() { return },
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
        if inner.layouts.adopted().is_none_or(|view| view.version() < layout.version()) {
            inner.layouts.set_adopted(layout.clone());
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
            layouts.set_adopted(layout);
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
        let lacking = (0..PARTITIONS).filter(|partition| lacks(layout, inner.node, *partition, whole));
        let mut lacking: BTreeMap<u16, Lacking> =
            lacking.map(|partition| (partition, self.lacking(layout, partition, whole))).collect();
        inner.metrics.set_to_copy(lacking.len());
        if is_planted(Bug::LayoutBeforeCopy) {
            lacking.clear();
        }
        while !lacking.is_empty() {
            self.copy_round(layout, &mut lacking).await?;
        }
        inner.metrics.set_to_copy(0);
        store.set_whole().await?;
        if layout.phase() != Phase::WriteBoth {
            return Ok(());
        }
        store.set_copied(layout.version()).await?;
        self.tell(layout, layout.version()).await
    }

    /// From how many nodes of the old set a partition has to be copied so that no acknowledged write can
    /// have been missed, and from which it can be.
    fn lacking(&self, layout: &Layout, partition: u16, whole: bool) -> Lacking {
        let (old, node) = (layout.current(), self.coordinator.inner.node);
        let own = usize::from(old.holds(node, partition) && whole);
        // With a single old replica that was lost there is nobody left to copy from.
        let alone = old.replicas() == 1 && old.holds(node, partition);
        let needed = if alone { 0 } else { old.replicas() - majority(old.replicas()) + 1 - own };
        let sources =
            old.nodes_of(partition).iter().rev().filter(|source| **source != node).copied().collect();
        Lacking { needed, sources, collected: 0 }
    }

    /// Copies each partition from as many nodes as it still needs; those that fail are not asked again.
    async fn copy_round(&self, layout: &Layout, lacking: &mut BTreeMap<u16, Lacking>) -> Result<(), Again> {
        let mut by_source: BTreeMap<NodeId, Vec<u16>> = BTreeMap::new();
        for (partition, lacks) in lacking.iter_mut() {
            for _ in 0..lacks.needed {
                let source = lacks.sources.pop().ok_or(Again::TooFewSources(*partition))?;
                by_source.entry(source).or_default().push(*partition);
            }
        }
        let copies = by_source.into_iter().flat_map(|(source, partitions)| {
            let some = partitions.chunks(PARTITIONS_PER_COPY).map(<[u16]>::to_vec);
            some.map(move |partitions| (source, partitions)).collect::<Vec<_>>()
        });
        let (done, mut copied) = mpsc::channel(PARTITIONS_PER_COPY);
        let copying = async {
            let copies = stream::iter(copies).map(|(source, partitions)| {
                let done = done.clone();
                async move {
                    match self.copy_from(layout, source, &partitions, done).await {
                        Ok(()) => Ok(()),
                        Err(CopyError::Store(error)) => Err(error),
                        Err(CopyError::Source(status)) => {
                            tracing::debug!(node = source.0, %status, "partitions could not be copied");
                            Ok(())
                        }
                    }
                }
            });
            let ended = copies.buffer_unordered(COPIES_AT_A_TIME).try_collect::<()>().await;
            drop(done);
            ended
        };
        let settling = async {
            while let Some((partition, collected)) = copied.recv().await {
                let lacks = lacking.get_mut(&partition).expect("asked for only while it is lacking");
                lacks.needed -= 1;
                lacks.collected = lacks.collected.max(collected);
                if lacks.needed == 0 {
                    self.copied(layout, partition, lacks.collected).await?;
                    lacking.remove(&partition);
                    self.coordinator.inner.metrics.set_to_copy(lacking.len());
                }
            }
            Ok(())
        };
        tokio::try_join!(copying, settling)?;
        // Nothing had to be copied for those with a single replica that was lost.
        lacking.retain(|_, lacks| lacks.needed > 0);
        Ok(())
    }

    /// A partition was copied from enough nodes, of which one has collected it up to a clock.
    async fn copied(&self, layout: &Layout, partition: u16, collected: u64) -> Result<(), StoreError> {
        let replica = &self.coordinator.inner.replica;
        if collected > 0 {
            replica.store().set_collected(layout.version(), partition, collected).await?;
            replica.drop_collected(partition).await?;
        }
        Ok(())
    }

    /// Copies partitions from one node; tells each that is done, and how far that node has collected it.
    async fn copy_from(
        &self,
        layout: &Layout,
        source: NodeId,
        partitions: &[u16],
        done: mpsc::Sender<(u16, u64)>,
    ) -> Result<(), CopyError> {
        let inner = &self.coordinator.inner;
        let peer = layout.peer_of(source).and_then(|peer| peer.parse().ok());
        let peer = peer.filter(|peer| inner.links.is_connected(*peer));
        let peer = peer.ok_or_else(|| CopyError::Source(tonic::Status::unavailable("not in reach")))?;
        let header =
            v1::RequestHeader { namespace: super::SYSTEM_NAMESPACE.to_owned(), ..Default::default() };
        let request = v1::CopyRequest {
            header: Some(header),
            layout: layout.version(),
            partitions: partitions.iter().copied().map(u32::from).collect(),
        };
        let mut client = inner.links.client(peer, Lane::Bulk);
        let opened = silence(client.copy(request)).await?;
        let mut parts = opened.into_inner();
        let mut left = partitions.iter().copied();
        let mut current = left.next();
        while let Some(part) = silence(parts.message()).await? {
            let v1::CopyPart { partition, entries, collected_to, last } = part;
            let expected = current.filter(|current| u32::from(*current) == partition);
            let unexpected = || CopyError::Source(tonic::Status::data_loss("a partition nobody asked for"));
            let partition = expected.ok_or_else(unexpected)?;
            if !entries.is_empty() {
                self.keep(layout, partition, entries, collected_to).await?;
            }
            if last {
                // Whoever settles what is done ends with the round.
                let _ = done.send((partition, collected_to)).await;
                current = left.next();
            }
        }
        Ok(())
    }

    async fn keep(
        &self,
        layout: &Layout,
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
        let origin = Origin::Replica { layout: layout.version(), collected_to };
        let kept = inner.replica.store().put(origin, Durability::Flushed, puts).await;
        if let Applied::Fenced(_) = kept.and_then(Applied::all_kept).map_err(CopyError::Store)? {
            return Err(CopyError::Source(tonic::Status::aborted("another layout was adopted meanwhile")));
        }
        inner.metrics.copied(count);
        let pace =
            Duration::from_micros(bytes as u64 * 1_000_000 * COPIES_AT_A_TIME as u64 / COPY_BYTES_PER_SECOND);
        tokio::time::sleep_until(started + pace).await;
        Ok(())
    }
}

/// A partition that is to be copied.
struct Lacking {
    /// From so many more nodes.
    needed: usize,
    /// Those that were not asked yet, the next one last.
    sources: Vec<NodeId>,
    /// The furthest that one of them has collected it.
    collected: u64,
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
