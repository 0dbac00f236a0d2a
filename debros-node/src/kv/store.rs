//! What this node holds of the storage: one LMDB environment, and the one door to it.
//!
//! ```text
//! puts  --> queue --> writer: journal, one flush for all that waits --> layers in memory --> acknowledged
//!                                                    large layers --> applier --> LMDB
//! reads --> queue --> reader: one snapshot of layers and LMDB for all that waits
//! ```
//!
//! It knows versions and layouts' numbers, not who the replicas are. Invariants: nothing is acknowledged
//! before it is flushed; of two records of a key the one with the greater version stays, in whatever
//! order they come; whatever comes under an older layout than the adopted one changes nothing, from the
//! transaction on that adopted it: a repair or hint that passed the replica's own check and was overtaken
//! by an adoption is neither missed by those who copy from here under the newer layout, nor left behind in
//! a partition that was cleared meanwhile; a transaction that fails changes nothing, and one whose flush fails
//! ends the node.

mod alter;
mod applier;
mod at_once;
mod changes;
mod journal;
mod layers;
mod puts;
mod reader;
mod tables;
mod writer;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use debros_proto::layout::PARTITIONS;
use debros_proto::{ErrorCode, Failure, NodeId, limits, v1};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::Instant;

use super::metrics::StoreMetrics;
use super::record::{Entry, Place, Record, Version};
use super::tree::Tree;
use crate::blocking::{Blocking, Jobs};
use crate::planted::{Bug, is_planted};
use applier::Applier;
use at_once::AtOnce;
use changes::ChangeRing;
use layers::SharedLayers;
use reader::{ReadJob, Reader};
use tables::Tables;
use writer::{Job, TreeState, Writer};

pub(super) use changes::{Heard, Listener};
pub(super) use reader::{ScanLimits, Snapshot};
pub(super) use tables::Statistics;

/// Jobs that wait for the writer; past it askers wait.
pub(super) const WRITES_WAITING_MAX: usize = 4096;
/// Jobs of one transaction: more would let the first of them wait for long.
const WRITES_PER_COMMIT_MAX: usize = 512;
/// Layers that wait for the applier: the one that is frozen, and once more in vain.
const LAYERS_WAITING_MAX: usize = 2;
/// Reads that wait for the reader.
pub(super) const READS_WAITING_MAX: usize = 4096;
/// Reads of one snapshot: a snapshot that lives long keeps old pages alive.
const READS_PER_SNAPSHOT_MAX: usize = 256;

/// Pause between looks whether the files are closed.
const CLOSED_YET: Duration = Duration::from_millis(5);

/// How the store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The environment's address space, and so the most that it can hold. It takes no memory and no disk
    /// until it is used.
    pub map_bytes: usize,
    /// What it measures.
    pub metrics: StoreMetrics,
    /// Planted bug: the journal is never flushed, so power loss loses acknowledged writes.
    #[cfg(feature = "planted-bugs")]
    pub acknowledge_before_fsync: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            map_bytes: 1 << 40,
            metrics: StoreMetrics::default(),
            #[cfg(feature = "planted-bugs")]
            acknowledge_before_fsync: false,
        }
    }
}

impl Options {
    /// The same for another address space; what is beyond whole pages is not used.
    #[must_use]
    pub fn with_map_bytes(mut self, map_bytes: usize) -> Self {
        self.map_bytes = map_bytes;
        self
    }
}

/// Why the store cannot do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened.
    #[error("the storage in {folder} cannot be opened: {reason}")]
    Open {
        /// Where it is.
        folder: PathBuf,
        /// What the operating system or LMDB says.
        reason: String,
    },
    /// There is no room. Nothing was changed.
    #[error("there is no room for the storage: free disk space, grow the volume or raise storage.max_size")]
    Full,
    /// A stored record cannot be read.
    #[error("the storage is damaged: {0}")]
    Damaged(String),
    /// Reading or writing failed.
    #[error("the storage failed: {0}")]
    Failed(String),
    /// The node is shutting down, or the store has failed.
    #[error("the storage has stopped")]
    Stopped,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Full => ErrorCode::DiskFull,
            StoreError::Stopped => ErrorCode::ShuttingDown,
            StoreError::Open { .. } | StoreError::Damaged(_) | StoreError::Failed(_) => ErrorCode::Internal,
        };
        let failure = Failure::new(code, error.to_string());
        // What was in the journal when it failed may be found there after a restart.
        if matches!(error, StoreError::Failed(_)) { failure.maybe_applied() } else { failure }
    }
}

/// A record to be kept if it is newer than what is there.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) entry: Entry,
}

/// What became of a [`Put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    /// The store now has this version, and it is the one that was put.
    Stored,
    /// It has this one, at least as new.
    Superseded(Version),
    /// The partition has been collected up to this clock: whether an older version is new cannot be told.
    Collected(u64),
    /// It was not kept: what room there is, is for deletions.
    NoRoom,
}

/// Whether a write may be applied under the layout that its sender knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    /// It is.
    Open,
    /// This node has adopted a newer layout.
    SenderIsBehind,
    /// This node has not adopted that layout yet.
    ReceiverIsBehind,
}

/// When a put is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// When it is flushed to disk.
    Flushed,
    /// When it survives the end of the process; it is on disk some tenths of a second later.
    Relaxed,
}

/// Which writes a batch of puts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A coordinator's, under this layout version.
    Coordinator(u64),
    /// Repair and copies under this layout version, from a replica that has collected up to this clock.
    Replica { layout: u64, collected_to: u64 },
    /// Writes that were missed, from whoever kept them, under this layout version.
    Hint(u64),
}

impl Origin {
    fn layout(self) -> u64 {
        match self {
            Self::Coordinator(layout) | Self::Replica { layout, .. } | Self::Hint(layout) => layout,
        }
    }
}

/// Puts that were applied together, or were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// What became of each, in order.
    Each(Vec<PutOutcome>),
    /// Nothing was changed: the layouts differ.
    Fenced(Fence),
}

impl Applied {
    /// The same if there was room for all.
    pub(super) fn all_kept(self) -> Result<Self, StoreError> {
        match self {
            Self::Each(outcomes) if outcomes.contains(&PutOutcome::NoRoom) => Err(StoreError::Full),
            applied => Ok(applied),
        }
    }
}

/// What is known of each partition without asking the disk.
pub(super) struct PartitionStates {
    collected: Vec<AtomicU64>,
    fenced: Vec<AtomicU64>,
    layout: AtomicU64,
    /// The store has all that the layout says it has.
    whole: AtomicBool,
}

impl PartitionStates {
    fn new() -> Self {
        let zeros = || (0..PARTITIONS).map(|_| AtomicU64::new(0)).collect();
        Self { collected: zeros(), fenced: zeros(), layout: AtomicU64::new(0), whole: AtomicBool::new(true) }
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    writer: Jobs<Job>,
    readers: Jobs<ReadJob>,
    tables: Tables,
    states: Arc<PartitionStates>,
    changes: ChangeRing,
    failed: watch::Receiver<Option<StoreError>>,
    /// Bytes of hints kept for absent replicas.
    hinted: Arc<AtomicU64>,
    /// Deletions in the partitions whose trees are known.
    tombstones: Arc<AtomicI64>,
    /// Trees are counted one after the other.
    counting: Arc<Mutex<()>>,
    blocking: Blocking,
    layers: SharedLayers,
    at_once: Arc<AtOnce>,
}

impl Store {
    /// Opens the store in a folder of its own.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Damaged`].
    pub async fn open(folder: &Path, blocking: Blocking, options: Options) -> Result<Self, StoreError> {
        let (opened, opening) = (folder.to_owned(), options.clone());
        let states = Arc::new(PartitionStates::new());
        let loading = states.clone();
        let opening = move || {
            let tables = Tables::open(&opened, opening.map_bytes)?;
            let journal = tables.recover(&opened)?;
            let hinted = tables.load(&loading)?;
            Ok::<_, StoreError>((tables, journal, hinted))
        };
        let (tables, journal, hinted) = blocking.run(opening).await?;
        let hinted = Arc::new(AtomicU64::new(hinted));
        let tombstones = Arc::new(AtomicI64::new(0));
        let (fail, failed) = watch::channel(None);
        let changes = ChangeRing::new();
        let layers = SharedLayers::default();
        let applier = Applier { tables: tables.clone(), layers: layers.clone(), fail: fail.clone() };
        let applier = blocking.worker("kv-apply", (LAYERS_WAITING_MAX, 1), applier, Applier::apply);
        let writer = Writer {
            tables: tables.clone(),
            states: states.clone(),
            layers: layers.clone(),
            journal,
            credit: 0,
            no_room: false,
            unflushed: false,
            frozen_generation: 0,
            applier,
            trees: HashMap::new(),
            changes: changes.clone(),
            hinted: hinted.clone(),
            tombstones: tombstones.clone(),
            fail: fail.clone(),
            options,
        };
        let limits = (WRITES_WAITING_MAX, WRITES_PER_COMMIT_MAX);
        let writer = blocking.worker("kv-write", limits, writer, Writer::commit);
        let limits = (READS_WAITING_MAX, READS_PER_SNAPSHOT_MAX);
        let reader = Reader { tables: tables.clone(), layers: layers.clone(), fail };
        let readers = blocking.worker("kv-read", limits, reader, reader::serve);
        let counting = Arc::default();
        let at_once = Arc::new(AtOnce::new());
        Ok(Self {
            writer,
            readers,
            tables,
            states,
            changes,
            failed,
            hinted,
            tombstones,
            counting,
            blocking,
            layers,
            at_once,
        })
    }

    /// Keeps records that are newer than what is there.
    pub(super) async fn put(
        &self,
        origin: Origin,
        durability: Durability,
        puts: Vec<Put>,
    ) -> Result<Applied, StoreError> {
        let (done, applied) = oneshot::channel();
        self.writer
            .send(Job::Put { origin, puts, durability, done })
            .await
            .map_err(|_| StoreError::Stopped)?;
        applied.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Reads from one snapshot.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshot<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, result) = oneshot::channel();
        let job: ReadJob = Box::new(move |snapshot| drop(done.send(snapshot.and_then(work))));
        self.readers.send(job).await.map_err(|_| StoreError::Stopped)?;
        result.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Reads a few points, at once when that does not wait for the disk.
    pub(super) async fn read_points<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshot<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.read_here(work) {
            Ok(found) => found,
            Err(work) => self.read(work).await,
        }
    }

    /// Reads on this thread; gives the work back when that might take long.
    fn read_here<T, W>(&self, work: W) -> Result<Result<T, StoreError>, W>
    where
        W: FnOnce(&Snapshot<'_>) -> Result<T, StoreError>,
    {
        let began = Instant::now();
        if !self.at_once.may(began) {
            return Err(work);
        }
        let Some(layers) = self.layers.try_read() else { return Err(work) };
        let found = Snapshot::over(&self.tables, layers).and_then(|snapshot| work(&snapshot));
        self.at_once.took(began);
        Ok(found)
    }

    /// Lets relaxed writes become durable. To be called again and again.
    pub(super) async fn tick(&self) -> Result<(), StoreError> {
        self.writer.send(Job::Tick).await.map_err(|_| StoreError::Stopped)
    }

    async fn alter<T: Send + 'static>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Job,
    ) -> Result<T, StoreError> {
        let (done, result) = oneshot::channel();
        self.writer.send(make(done)).await.map_err(|_| StoreError::Stopped)?;
        result.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Adopts a layout: from now on requests of older ones are refused. A store that is `lacking` what it
    /// once had stays so until [`Self::set_whole`].
    pub(super) async fn adopt(&self, layout: v1::StorageLayout, lacking: bool) -> Result<(), StoreError> {
        self.alter(|done| Job::Adopt { layout, lacking, done }).await
    }

    /// Notes that the store has again all that the layout says it has.
    pub(super) async fn set_whole(&self) -> Result<(), StoreError> {
        self.alter(|done| Job::SetWhole { done }).await
    }

    /// Whether the store has all that the layout says it has: not after it was lost.
    pub(super) fn is_whole(&self) -> bool {
        self.states.whole.load(Ordering::Acquire)
    }

    /// Notes that this node has copied all it lacked in that version's change.
    pub(super) async fn set_copied(&self, version: u64) -> Result<(), StoreError> {
        self.alter(|done| Job::SetCopied { version, done }).await
    }

    /// Forgets everything of a partition, a part at a time; says whether there is more.
    pub(super) async fn clear(&self, partition: u16) -> Result<bool, StoreError> {
        self.alter(|done| Job::Clear { partition, done }).await
    }

    /// Refuses new versions at or below this clock from now on.
    pub(super) async fn fence(&self, partition: u16, clock: u64) -> Result<(), StoreError> {
        if clock <= self.fenced(partition) {
            return Ok(());
        }
        self.alter(|done| Job::FencePartition { partition, clock, done }).await
    }

    /// Notes that every replica has everything up to this clock, if this layout is still the adopted one: a
    /// partition that was given up meanwhile and gained again begins anew.
    pub(super) async fn set_collected(
        &self,
        layout: u64,
        partition: u16,
        clock: u64,
    ) -> Result<(), StoreError> {
        if clock <= self.collected(partition) {
            return Ok(());
        }
        self.alter(|done| Job::SetCollected { layout, partition, clock, done }).await
    }

    /// Drops these places if they are still what a collection up to `clock` drops; gives how many were.
    pub(super) async fn drop_collected(
        &self,
        partition: u16,
        clock: u64,
        places: Vec<Place>,
    ) -> Result<u64, StoreError> {
        let mut dropped = 0;
        for places in places.chunks(self.tables.records_per_transaction()) {
            let places = places.to_vec();
            dropped += self.alter(|done| Job::DropCollected { partition, clock, places, done }).await?;
        }
        Ok(dropped)
    }

    /// Drops these places whose versions are exactly these: what a replica that has collected further does
    /// not have any more.
    pub(super) async fn drop_exactly(&self, dropped: Vec<(Place, Version)>) -> Result<u64, StoreError> {
        let mut count = 0;
        for dropped in dropped.chunks(self.tables.records_per_transaction()) {
            let dropped = dropped.to_vec();
            count += self.alter(|done| Job::DropExactly { dropped, done }).await?;
        }
        Ok(count)
    }

    /// Keeps a record for a replica that is absent. `false` when there is no room for more.
    pub(super) async fn hint(&self, target: NodeId, entry: Entry, unix_ms: u64) -> Result<bool, StoreError> {
        if self.hinted.load(Ordering::Relaxed) >= limits::HINTS_BYTES_MAX {
            return Ok(false);
        }
        self.alter(|done| Job::Hint { target, entry, unix_ms, done }).await.map(|()| true)
    }

    /// Forgets hints that were delivered or are of no use any more.
    pub(super) async fn drop_hints(
        &self,
        target: NodeId,
        dropped: Vec<(Place, Version)>,
    ) -> Result<(), StoreError> {
        for dropped in dropped.chunks(self.tables.records_per_transaction()) {
            let dropped = dropped.to_vec();
            self.alter(|done| Job::DropHints { target, dropped, done }).await?;
        }
        Ok(())
    }

    /// The tree of a partition; computed when it is first asked for.
    pub(super) async fn tree(&self, partition: u16) -> Result<Tree, StoreError> {
        if let TreeState::Known(tree) = self.alter(|done| Job::Tree { partition, count: false, done }).await?
        {
            return Ok(tree);
        }
        let _one_at_a_time = self.counting.lock().await;
        loop {
            match self.alter(|done| Job::Tree { partition, count: true, done }).await? {
                TreeState::Known(tree) => return Ok(tree),
                TreeState::Counting(kept) => {
                    // Beside the reader, which others wait for.
                    let counted = self.blocking.run(move || kept.tree()).await?;
                    self.alter(|done| Job::SetTree { partition, counted, done }).await?;
                }
                TreeState::Unknown => unreachable!("this asker counts"),
            }
        }
    }

    /// Has a partition counted, if it was not.
    pub(super) async fn count(&self, partition: u16) -> Result<(), StoreError> {
        self.tree(partition).await.map(drop)
    }

    /// The layout that was adopted last.
    pub(super) async fn layout(&self) -> Result<Option<v1::StorageLayout>, StoreError> {
        self.read(|snapshot| snapshot.layout()).await
    }
    /// The version in whose change this node has copied all it lacked.
    pub(super) async fn copied(&self) -> Result<u64, StoreError> {
        self.read(|snapshot| snapshot.copied()).await
    }

    /// Whether a read under that layout may be answered.
    pub(super) fn fence_of(&self, layout: u64) -> Fence {
        fence(self.states.layout.load(Ordering::Acquire), layout)
    }
    /// The clock up to which a partition has been collected.
    pub(super) fn collected(&self, partition: u16) -> u64 {
        self.states.collected[usize::from(partition)].load(Ordering::Acquire)
    }
    /// The clock up to which a partition takes no new versions.
    pub(super) fn fenced(&self, partition: u16) -> u64 {
        self.states.fenced[usize::from(partition)].load(Ordering::Acquire).max(self.collected(partition))
    }
    /// Bytes of hints kept for absent replicas.
    pub(super) fn hinted_bytes(&self) -> u64 {
        self.hinted.load(Ordering::Relaxed)
    }
    /// Deletions that are remembered, in the partitions that were counted: all, from the first round of repairs on.
    pub(super) fn tombstones(&self) -> u64 {
        self.tombstones.load(Ordering::Relaxed).try_into().unwrap_or(0)
    }
    /// Writes, and reads, that wait.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.writer.waiting(), self.readers.waiting())
    }
    /// What LMDB says of its environment.
    pub(super) fn statistics(&self) -> Result<Statistics, StoreError> {
        self.tables.statistics()
    }
    /// Bytes on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.tables.disk_bytes()
    }
    /// Changes as they become durable.
    pub(super) fn watch(&self) -> Listener {
        self.changes.listen()
    }

    /// Closes the files, once every other handle is gone; waits no longer than this.
    pub(super) async fn close(self, patience: Duration) {
        // Relaxed writes are not lost by a stop that was asked for.
        let _ = self.tick().await;
        let folder = self.tables.env.path().to_owned();
        drop(self);
        // Heed's own wait would hold up the thread that the last holders may need to end.
        let closed = async {
            while heed::env_closing_event(&folder).is_some() {
                tokio::time::sleep(CLOSED_YET).await;
            }
        };
        if tokio::time::timeout(patience, closed).await.is_err() {
            tracing::warn!("the storage is still in use while the node stops");
        }
    }
    /// Resolves when a flush has failed: what is on disk is not known any more.
    pub(super) async fn failed(&self) -> StoreError {
        let mut failed = self.failed.clone();
        match failed.wait_for(Option::is_some).await.map(|error| error.clone()) {
            Ok(Some(error)) => error,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

fn fence(adopted: u64, sender: u64) -> Fence {
    match sender.cmp(&adopted) {
        std::cmp::Ordering::Less if is_planted(Bug::OldLayoutAccepted) => Fence::Open,
        std::cmp::Ordering::Less => Fence::SenderIsBehind,
        std::cmp::Ordering::Equal => Fence::Open,
        std::cmp::Ordering::Greater => Fence::ReceiverIsBehind,
    }
}

/// A record as it was stored; damage is told with its place.
fn decode(place: &[u8], record: &[u8]) -> Result<Record, StoreError> {
    Record::from_bytes(record).ok_or_else(|| damaged(place))
}

fn damaged(place: &[u8]) -> StoreError {
    StoreError::Damaged(format!("the record at {} cannot be read", place.escape_ascii()))
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;
