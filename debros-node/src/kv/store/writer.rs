//! The store's one writer: everything that waits goes into one transaction, and is answered when that is
//! on disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use debros_proto::layout::PARTITIONS;
use debros_proto::{NodeId, v1};
use heed::RwTxn;
use tokio::sync::{broadcast, oneshot, watch};

use super::reader::Snapshot;
use super::tables::{Tables, failed, hint_key, parse_hint};
use super::{
    Applied, Changes, Fence, Options, Origin, PartitionStates, Put, PutOutcome, StoreError, damaged, fence,
};
use crate::kv::record::{Entry, Place, Record, Version};
use crate::kv::tree::Tree;

/// Entries of a partition that are forgotten in one transaction.
const CLEARED_PER_COMMIT_MAX: usize = 1024;

type Done<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked for. See [`super::Store`].
pub(super) enum Job {
    Put { origin: Origin, puts: Vec<Put>, done: Done<Applied> },
    Adopt { layout: v1::StorageLayout, done: Done<()> },
    SetCopied { version: u64, done: Done<()> },
    Clear { partition: u16, done: Done<bool> },
    FencePartition { partition: u16, clock: u64, done: Done<()> },
    SetCollected { partition: u16, clock: u64, done: Done<()> },
    DropCollected { partition: u16, clock: u64, places: Vec<Place>, done: Done<u64> },
    DropExactly { dropped: Vec<(Place, Version)>, done: Done<u64> },
    Hint { target: NodeId, entry: Entry, unix_ms: u64, done: Done<()> },
    DropHints { target: NodeId, dropped: Vec<(Place, Version)>, done: Done<()> },
    Tree { partition: u16, count: bool, done: Done<TreeState> },
    SetTree { partition: u16, counted: Tree, done: Done<()> },
}

/// What is known of a partition's tree.
pub(super) enum TreeState {
    Known(Tree),
    /// The asker counts it from this snapshot.
    Counting(Snapshot<'static>),
    /// It was not counted yet, and the asker does not want to.
    Unknown,
}

/// A tree that the writer keeps up to date.
enum KeptTree {
    Known(Tree),
    /// What has changed since its snapshot was taken.
    Since(Tree),
}

/// What answers a job once the transaction is on disk, or is not.
type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub(super) struct Writer {
    tables: Tables,
    states: Arc<PartitionStates>,
    trees: HashMap<u16, KeptTree>,
    changes: broadcast::Sender<Changes>,
    hinted: Arc<AtomicU64>,
    fail: watch::Sender<Option<StoreError>>,
    options: Options,
}

/// What a transaction under way will have changed.
#[derive(Default)]
struct Effects {
    answers: Vec<Answer>,
    /// Entries in and out of trees: place, and the record before and after.
    toggles: Vec<Toggle>,
    changed: Vec<Entry>,
    hinted: i64,
    adopted: Option<u64>,
    collected: Vec<(u16, u64)>,
    fenced: Vec<(u16, u64)>,
}

struct Toggle {
    partition: u16,
    place: Vec<u8>,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
}

fn answer<T: Send + 'static>(done: Done<T>, value: T) -> Answer {
    Box::new(move |committed| drop(done.send(committed.map(|()| value))))
}

impl Writer {
    pub(super) fn new(
        tables: Tables,
        states: Arc<PartitionStates>,
        changes: broadcast::Sender<Changes>,
        hinted: Arc<AtomicU64>,
        fail: watch::Sender<Option<StoreError>>,
        options: Options,
    ) -> Self {
        Self { tables, states, trees: HashMap::new(), changes, hinted, fail, options }
    }

    /// Carries out everything that waits; says whether the store goes on.
    pub(super) fn commit(&mut self, jobs: &mut Vec<Job>) -> bool {
        let (trees, jobs): (Vec<Job>, Vec<Job>) =
            jobs.drain(..).partition(|job| matches!(job, Job::Tree { .. } | Job::SetTree { .. }));
        let mut go_on = true;
        if !jobs.is_empty() {
            go_on = self.transaction(jobs);
        }
        // After the transaction, so that a snapshot holds all that the kept trees do.
        trees.into_iter().for_each(|job| self.tree_job(job));
        go_on
    }

    fn transaction(&mut self, jobs: Vec<Job>) -> bool {
        let tables = self.tables.clone();
        if self.options.acknowledges_early() {
            // The transaction before this one: it was not flushed when it was acknowledged.
            let _ = tables.env.force_sync();
        }
        let mut effects = Effects::default();
        let mut txn = match tables.env.write_txn() {
            Ok(txn) => txn,
            Err(error) => {
                refuse(jobs, &failed(error));
                return true;
            }
        };
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            if let Err(error) = self.apply(&mut txn, job, &mut effects) {
                drop(txn);
                effects.answers.into_iter().for_each(|answer| answer(Err(error.clone())));
                refuse(jobs.collect(), &error);
                return true;
            }
        }
        match txn.commit().map_err(failed) {
            Ok(()) => self.settle(effects),
            Err(error) => {
                effects.answers.into_iter().for_each(|answer| answer(Err(error.clone())));
                if !matches!(error, StoreError::Full) {
                    // What is on disk is not known any more: nothing may be acknowledged from here on.
                    self.fail.send_replace(Some(error));
                    return false;
                }
            }
        }
        true
    }

    /// The transaction is on disk.
    fn settle(&mut self, effects: Effects) {
        let Effects { answers, toggles, changed, hinted, adopted, collected, fenced } = effects;
        for toggle in toggles {
            if let Some(KeptTree::Known(tree) | KeptTree::Since(tree)) = self.trees.get_mut(&toggle.partition)
            {
                toggle.before.iter().for_each(|record| tree.toggle(&toggle.place, record));
                toggle.after.iter().for_each(|record| tree.toggle(&toggle.place, record));
            }
        }
        for (partition, clock) in collected {
            self.states.collected[usize::from(partition)].store(clock, Ordering::Release);
        }
        for (partition, clock) in fenced {
            self.states.fenced[usize::from(partition)].store(clock, Ordering::Release);
        }
        if let Some(version) = adopted {
            self.states.layout.store(version, Ordering::Release);
        }
        // Only this thread changes it.
        self.hinted
            .store(self.hinted.load(Ordering::Relaxed).saturating_add_signed(hinted), Ordering::Relaxed);
        if !changed.is_empty() {
            // Nobody may be watching.
            let _ = self.changes.send(Arc::new(changed));
        }
        answers.into_iter().for_each(|answer| answer(Ok(())));
    }

    fn apply(&mut self, txn: &mut RwTxn<'_>, job: Job, effects: &mut Effects) -> Result<(), StoreError> {
        let answer = match job {
            Job::Put { origin, puts, done } => answer(done, self.put_all(txn, origin, puts, effects)?),
            Job::Adopt { layout, done } => {
                // The map is read from its log again after a restart: what was adopted stays adopted.
                if layout.version > effects.adopted.unwrap_or(self.states.layout.load(Ordering::Relaxed)) {
                    self.tables.set_layout(txn, &layout).map_err(failed)?;
                    effects.adopted = Some(layout.version);
                }
                answer(done, ())
            }
            Job::SetCopied { version, done } => {
                self.tables.set_copied(txn, version).map_err(failed)?;
                answer(done, ())
            }
            Job::Clear { partition, done } => answer(done, self.clear(txn, partition, effects)?),
            Job::FencePartition { partition, clock, done } => {
                if clock > self.states.fenced[usize::from(partition)].load(Ordering::Relaxed) {
                    self.tables.set_fenced(txn, partition, clock).map_err(failed)?;
                    effects.fenced.push((partition, clock));
                }
                answer(done, ())
            }
            Job::SetCollected { partition, clock, done } => {
                if clock > self.states.collected[usize::from(partition)].load(Ordering::Relaxed) {
                    self.tables.set_collected(txn, partition, clock).map_err(failed)?;
                    effects.collected.push((partition, clock));
                }
                answer(done, ())
            }
            Job::DropCollected { partition, clock, places, done } => {
                let dropped =
                    self.drop_if(txn, partition, places, effects, |_, record| record.is_collected_by(clock))?;
                answer(done, dropped)
            }
            Job::DropExactly { dropped, done } => answer(done, self.drop_exactly(txn, dropped, effects)?),
            Job::Hint { target, entry, unix_ms, done } => {
                self.hint(txn, target, &entry, unix_ms, effects)?;
                answer(done, ())
            }
            Job::DropHints { target, dropped, done } => {
                self.drop_hints(txn, target, dropped, effects)?;
                answer(done, ())
            }
            Job::Tree { .. } | Job::SetTree { .. } => unreachable!("set aside before the transaction"),
        };
        effects.answers.push(answer);
        Ok(())
    }

    fn put_all(
        &self,
        txn: &mut RwTxn<'_>,
        origin: Origin,
        puts: Vec<Put>,
        effects: &mut Effects,
    ) -> Result<Applied, StoreError> {
        if let Origin::Coordinator(layout) = origin {
            let adopted = effects.adopted.unwrap_or(self.states.layout.load(Ordering::Relaxed));
            match fence(adopted, layout) {
                Fence::Open => {}
                closed => return Ok(Applied::Fenced(closed)),
            }
        }
        let outcomes = puts.into_iter().map(|put| self.put(txn, origin, put, effects));
        outcomes.collect::<Result<_, _>>().map(Applied::Each)
    }

    fn put(
        &self,
        txn: &mut RwTxn<'_>,
        origin: Origin,
        Put { entry }: Put,
        effects: &mut Effects,
    ) -> Result<PutOutcome, StoreError> {
        let version = entry.record.version;
        let refused_to = self.refused_to(origin, entry.partition, effects);
        let place = entry.place();
        let before = self.tables.data.get(txn, place.as_bytes()).map_err(failed)?;
        let known = before.map(|bytes| Record::header(bytes).ok_or_else(|| damaged(place.as_bytes())));
        match known.transpose()? {
            Some(known) if known.version >= version => {
                return Ok(if known.version == version {
                    PutOutcome::Stored
                } else {
                    PutOutcome::Superseded(known.version)
                });
            }
            _ if version.clock <= refused_to => return Ok(PutOutcome::Collected(refused_to)),
            _ => {}
        }
        let before = before.map(<[u8]>::to_vec);
        let after = entry.record.to_bytes();
        self.tables.data.put(txn, place.as_bytes(), &after).map_err(failed)?;
        if self.trees.contains_key(&entry.partition) {
            effects.toggles.push(Toggle {
                partition: entry.partition,
                place: place.as_bytes().to_vec(),
                before,
                after: Some(after.to_vec()),
            });
        }
        if self.changes.receiver_count() > 0 {
            effects.changed.push(entry);
        }
        Ok(PutOutcome::Stored)
    }

    /// The clock at and below which a version is refused.
    fn refused_to(&self, origin: Origin, partition: u16, effects: &Effects) -> u64 {
        let latest = |pending: &[(u16, u64)], known: &AtomicU64| {
            let pending = pending.iter().filter(|(of, _)| *of == partition).map(|(_, clock)| *clock);
            pending.max().unwrap_or_else(|| known.load(Ordering::Relaxed))
        };
        let place = usize::from(partition);
        let collected = latest(&effects.collected, &self.states.collected[place]);
        match origin {
            Origin::Coordinator(_) | Origin::Hint => {
                collected.max(latest(&effects.fenced, &self.states.fenced[place]))
            }
            // From one that has collected as far: it has every live record, and no other, up to there.
            Origin::Replica(theirs) if theirs >= collected => 0,
            Origin::Replica(_) => collected,
        }
    }

    fn remove(
        &self,
        txn: &mut RwTxn<'_>,
        partition: u16,
        place: &[u8],
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        if self.trees.contains_key(&partition) {
            let before = self.tables.data.get(txn, place).map_err(failed)?.map(<[u8]>::to_vec);
            effects.toggles.push(Toggle { partition, place: place.to_vec(), before, after: None });
        }
        self.tables.data.delete(txn, place).map_err(failed).map(drop)
    }

    fn clear(&self, txn: &mut RwTxn<'_>, partition: u16, effects: &mut Effects) -> Result<bool, StoreError> {
        let prefix = partition.to_be_bytes();
        let places = {
            let entries = self.tables.data.prefix_iter(txn, &prefix).map_err(failed)?;
            let places = entries.take(CLEARED_PER_COMMIT_MAX).map(|item| Ok(item?.0.to_vec()));
            places.collect::<Result<Vec<_>, heed::Error>>().map_err(failed)?
        };
        for place in &places {
            self.remove(txn, partition, place, effects)?;
        }
        // What was collected here says nothing of what will be copied.
        self.tables.set_collected(txn, partition, 0).map_err(failed)?;
        self.tables.set_fenced(txn, partition, 0).map_err(failed)?;
        effects.collected.push((partition, 0));
        effects.fenced.push((partition, 0));
        Ok(places.len() == CLEARED_PER_COMMIT_MAX)
    }

    fn drop_if(
        &self,
        txn: &mut RwTxn<'_>,
        partition: u16,
        places: Vec<Place>,
        effects: &mut Effects,
        goes: impl Fn(&Place, &Record) -> bool,
    ) -> Result<u64, StoreError> {
        let mut dropped = 0;
        for place in places {
            let Some(bytes) = self.tables.data.get(txn, place.as_bytes()).map_err(failed)? else { continue };
            let record = Record::header(bytes).ok_or_else(|| damaged(place.as_bytes()))?;
            if goes(&place, &record) {
                self.remove(txn, partition, place.as_bytes(), effects)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    fn drop_exactly(
        &self,
        txn: &mut RwTxn<'_>,
        dropped: Vec<(Place, Version)>,
        effects: &mut Effects,
    ) -> Result<u64, StoreError> {
        let mut count = 0;
        for (place, version) in dropped {
            let partition = Place::parse(place.as_bytes()).map_or(PARTITIONS, |parts| parts.partition);
            let exactly = |_: &Place, record: &Record| record.version == version;
            count += self.drop_if(txn, partition, vec![place], effects, exactly)?;
        }
        Ok(count)
    }

    fn hint(
        &self,
        txn: &mut RwTxn<'_>,
        target: NodeId,
        entry: &Entry,
        unix_ms: u64,
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        let key = hint_key(target.0, entry.place().as_bytes());
        let before = self.tables.hints.get(txn, &key).map_err(failed)?;
        let known =
            before.and_then(|value| parse_hint(&key, value)).and_then(|(.., bytes)| Record::header(bytes));
        if known.is_some_and(|known| known.version >= entry.record.version) {
            return Ok(());
        }
        let replaced = before.map_or(0, |value| key.len() + value.len());
        let value = [&unix_ms.to_be_bytes()[..], &entry.record.to_bytes()].concat();
        self.tables.hints.put(txn, &key, &value).map_err(failed)?;
        effects.hinted += (key.len() + value.len()) as i64 - replaced as i64;
        Ok(())
    }

    fn drop_hints(
        &self,
        txn: &mut RwTxn<'_>,
        target: NodeId,
        dropped: Vec<(Place, Version)>,
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        for (place, version) in dropped {
            let key = hint_key(target.0, place.as_bytes());
            let Some(value) = self.tables.hints.get(txn, &key).map_err(failed)? else { continue };
            let known = parse_hint(&key, value).and_then(|(.., bytes)| Record::header(bytes));
            let bytes = key.len() + value.len();
            // A newer one that came meanwhile is not delivered yet.
            if known.is_none_or(|known| known.version <= version) {
                self.tables.hints.delete(txn, &key).map_err(failed)?;
                effects.hinted -= bytes as i64;
            }
        }
        Ok(())
    }

    fn tree_job(&mut self, job: Job) {
        match job {
            Job::Tree { partition, count, done } => {
                let state = match self.trees.get(&partition) {
                    Some(KeptTree::Known(tree)) => Ok(TreeState::Known(tree.clone())),
                    Some(KeptTree::Since(_)) | None if !count => Ok(TreeState::Unknown),
                    // One asker counts at a time: whoever began before has given up.
                    Some(KeptTree::Since(_)) | None => Snapshot::kept(&self.tables).map(|snapshot| {
                        self.trees.insert(partition, KeptTree::Since(Tree::default()));
                        TreeState::Counting(snapshot)
                    }),
                };
                let _ = done.send(state);
            }
            Job::SetTree { partition, mut counted, done } => {
                if let Some(KeptTree::Since(since)) = self.trees.get(&partition) {
                    counted.combine(since);
                    self.trees.insert(partition, KeptTree::Known(counted));
                }
                let _ = done.send(Ok(()));
            }
            _ => unreachable!("only the jobs of trees are set aside"),
        }
    }
}

/// Answers jobs that were not carried out.
fn refuse(jobs: Vec<Job>, error: &StoreError) {
    fn no<T>(done: Done<T>, error: &StoreError) {
        let _ = done.send(Err(error.clone()));
    }
    for job in jobs {
        match job {
            Job::Put { done, .. } => no(done, error),
            Job::Adopt { done, .. }
            | Job::SetCopied { done, .. }
            | Job::FencePartition { done, .. }
            | Job::SetCollected { done, .. }
            | Job::Hint { done, .. }
            | Job::DropHints { done, .. }
            | Job::SetTree { done, .. } => no(done, error),
            Job::Clear { done, .. } => no(done, error),
            Job::DropCollected { done, .. } | Job::DropExactly { done, .. } => no(done, error),
            Job::Tree { done, .. } => no(done, error),
        }
    }
}
