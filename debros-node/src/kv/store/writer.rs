//! The store's one writer: it takes everything that waits, in order, puts together and other changes
//! together, and answers when that is on disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use debros_proto::{NodeId, v1};
use tokio::sync::{oneshot, watch};

use super::applier::Frozen;
use super::changes::ChangeRing;
use super::journal::Journal;
use super::layers::SharedLayers;
use super::reader::KeptPartition;
use super::tables::Tables;
use super::{Applied, Durability, Options, Origin, PartitionStates, Put, StoreError};
use crate::blocking::Jobs;
use crate::kv::record::{Entry, Place, Version};
use crate::kv::tree::{Tree, hash_of, leaf_of, tombstones_in};

/// Puts of this size are committed before more are taken.
const COMMIT_BYTES: usize = 16 << 20;

pub(super) type Done<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for. See [`super::Store`].
pub(super) enum Job {
    Put {
        origin: Origin,
        puts: Vec<Put>,
        durability: Durability,
        done: Done<Applied>,
    },
    Adopt {
        layout: v1::StorageLayout,
        lacking: bool,
        done: Done<()>,
    },
    SetWhole {
        done: Done<()>,
    },
    SetCopied {
        version: u64,
        done: Done<()>,
    },
    Clear {
        partition: u16,
        done: Done<bool>,
    },
    FencePartition {
        partition: u16,
        clock: u64,
        done: Done<()>,
    },
    SetCollected {
        layout: u64,
        partition: u16,
        clock: u64,
        done: Done<()>,
    },
    DropCollected {
        partition: u16,
        clock: u64,
        places: Vec<Place>,
        done: Done<u64>,
    },
    DropExactly {
        dropped: Vec<(Place, Version)>,
        done: Done<u64>,
    },
    Hint {
        target: NodeId,
        entry: Entry,
        unix_ms: u64,
        done: Done<()>,
    },
    DropHints {
        target: NodeId,
        dropped: Vec<(Place, Version)>,
        done: Done<()>,
    },
    Tree {
        partition: u16,
        count: bool,
        done: Done<TreeState>,
    },
    SetTree {
        partition: u16,
        counted: Tree,
        done: Done<()>,
    },
    /// Time has passed.
    Tick,
}

impl Drop for Writer {
    /// A writer that panics has failed: the node must not go on without one.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail.send_replace(Some(StoreError::Failed("its writer panicked".to_owned())));
        }
    }
}

/// What is known of a partition's tree.
pub(super) enum TreeState {
    Known(Tree),
    /// The asker counts it from this snapshot.
    Counting(KeptPartition),
    /// It was not counted yet, and the asker does not want to.
    Unknown,
}

/// A tree that the writer keeps up to date.
pub(super) enum KeptTree {
    Known(Tree),
    /// What has changed since its snapshot was taken.
    Since(Tree),
}

/// What answers a job once the transaction is on disk, or is not.
pub(super) type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub(super) struct Writer {
    pub(super) tables: Tables,
    pub(super) states: Arc<PartitionStates>,
    pub(super) layers: SharedLayers,
    pub(super) journal: Journal,
    /// What values may take before it is looked again how much room there is.
    pub(super) credit: u64,
    /// There was no room for a value, or for a transaction, when that was tried last.
    pub(super) no_room: bool,
    /// The journal has writes that were not flushed.
    pub(super) unflushed: bool,
    /// The generation of the journal that holds the frozen layer.
    pub(super) frozen_generation: u64,
    pub(super) applier: Jobs<Frozen>,
    pub(super) trees: HashMap<u16, KeptTree>,
    pub(super) changes: ChangeRing,
    pub(super) hinted: Arc<AtomicU64>,
    /// Deletions in the partitions whose trees are known.
    pub(super) tombstones: Arc<AtomicI64>,
    pub(super) fail: watch::Sender<Option<StoreError>>,
    pub(super) options: Options,
}

/// A step of a partition's tree: an entry goes out of a leaf, or in, or both.
pub(super) struct Toggle {
    partition: u16,
    leaf: usize,
    hashes: u128,
    tombstones: i64,
}

impl Toggle {
    /// A record takes the place of another one.
    pub(super) fn new(partition: u16, place: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) -> Self {
        let tombstones = after.map_or(0, tombstones_in) - before.map_or(0, tombstones_in);
        let records = before.into_iter().chain(after);
        let hashes = records.fold(0, |hashes, record| hashes ^ hash_of(place, record));
        Self { partition, leaf: leaf_of(place), hashes, tombstones }
    }
}

pub(super) fn answer<T: Send + 'static>(done: Done<T>, value: T) -> Answer {
    Box::new(move |committed| drop(done.send(committed.map(|()| value))))
}

impl Writer {
    /// Carries out everything that waits; says whether the store goes on.
    pub(super) fn commit(&mut self, jobs: &mut Vec<Job>) -> bool {
        let mut jobs = jobs.drain(..).peekable();
        while let Some(job) = jobs.next() {
            let kind = job.kind();
            let mut bytes = job.bytes();
            let mut same = vec![job];
            while bytes < COMMIT_BYTES
                && let Some(next) = jobs.next_if(|next| next.kind() == kind)
            {
                bytes += next.bytes();
                same.push(next);
            }
            let go_on = match kind {
                Kind::Put => self.put_all(same),
                Kind::Alter => self.transaction(same),
                Kind::Tree => same.into_iter().all(|job| self.tree_job(job)),
                Kind::Tick => self.tick(),
            };
            if !go_on {
                return false;
            }
        }
        true
    }

    /// Ends the store, and with it the node.
    pub(super) fn fail(&self, error: StoreError) -> bool {
        self.fail.send_replace(Some(error));
        false
    }

    /// Follows changes in the trees that are kept.
    pub(super) fn toggle(&mut self, toggles: Vec<Toggle>) {
        for toggle in toggles {
            let Toggle { partition, leaf, hashes, tombstones } = toggle;
            match self.trees.get_mut(&partition) {
                Some(KeptTree::Known(tree)) => {
                    tree.step(leaf, hashes, tombstones);
                    self.tombstones.fetch_add(tombstones, Ordering::Relaxed);
                }
                Some(KeptTree::Since(tree)) => tree.step(leaf, hashes, tombstones),
                None => {}
            }
        }
    }

    pub(super) fn add_hinted(&self, bytes: i64) {
        // Only this thread changes it.
        let hinted = self.hinted.load(Ordering::Relaxed).saturating_add_signed(bytes);
        self.hinted.store(hinted, Ordering::Relaxed);
    }

    fn tree_job(&mut self, job: Job) -> bool {
        match job {
            Job::Tree { partition, count, done } => {
                let state = match self.trees.get(&partition) {
                    Some(KeptTree::Known(tree)) => Ok(TreeState::Known(tree.clone())),
                    Some(KeptTree::Since(_)) | None if !count => Ok(TreeState::Unknown),
                    // One asker counts at a time: whoever began before has given up.
                    Some(KeptTree::Since(_)) | None => {
                        KeptPartition::new(&self.tables, &self.layers, partition).map(|kept| {
                            self.trees.insert(partition, KeptTree::Since(Tree::default()));
                            TreeState::Counting(kept)
                        })
                    }
                };
                let _ = done.send(state);
            }
            Job::SetTree { partition, mut counted, done } => {
                if let Some(KeptTree::Since(since)) = self.trees.get(&partition) {
                    counted.combine(since);
                    self.tombstones.fetch_add(counted.tombstones(), Ordering::Relaxed);
                    self.trees.insert(partition, KeptTree::Known(counted));
                }
                let _ = done.send(Ok(()));
            }
            _ => unreachable!("only the jobs of trees are given here"),
        }
        true
    }
}

/// Jobs of one kind are carried out together.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Alter,
    Tree,
    Tick,
}

impl Job {
    /// About how much it will add to the journal and to memory.
    pub(super) fn bytes(&self) -> usize {
        let size = |entry: &Entry| entry.key.len() + entry.record.value.len();
        match self {
            Self::Put { puts, .. } => puts.iter().map(|put| size(&put.entry)).sum(),
            Self::Hint { entry, .. } => size(entry),
            _ => 0,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Put { .. } | Self::Hint { .. } => Kind::Put,
            Self::Tree { .. } | Self::SetTree { .. } => Kind::Tree,
            Self::Tick => Kind::Tick,
            Self::Adopt { .. }
            | Self::SetWhole { .. }
            | Self::SetCopied { .. }
            | Self::Clear { .. }
            | Self::FencePartition { .. }
            | Self::SetCollected { .. }
            | Self::DropCollected { .. }
            | Self::DropExactly { .. }
            | Self::DropHints { .. } => Kind::Alter,
        }
    }
}

/// Answers jobs that were not carried out.
pub(super) fn refuse(jobs: Vec<Job>, error: &StoreError) {
    fn no<T>(done: Done<T>, error: &StoreError) {
        let _ = done.send(Err(error.clone()));
    }
    for job in jobs {
        match job {
            Job::Put { done, .. } => no(done, error),
            Job::Adopt { done, .. }
            | Job::SetWhole { done }
            | Job::SetCopied { done, .. }
            | Job::FencePartition { done, .. }
            | Job::SetCollected { done, .. }
            | Job::Hint { done, .. }
            | Job::DropHints { done, .. }
            | Job::SetTree { done, .. } => no(done, error),
            Job::Clear { done, .. } => no(done, error),
            Job::DropCollected { done, .. } | Job::DropExactly { done, .. } => no(done, error),
            Job::Tree { done, .. } => no(done, error),
            Job::Tick => {}
        }
    }
}
