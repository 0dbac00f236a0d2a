//! This node as a replica: it answers what coordinators and other replicas ask, from its store.
//!
//! Knows neither who else holds a partition nor what a quorum is. Invariants: a request of another layout
//! than the adopted one is refused, also when that is adopted while the request is carried out; a version
//! from the future is not taken from its coordinator, and taken from everybody else; while the store lacks
//! what it once had, nothing is read from it.

use std::sync::Arc;

use debros_proto::layout::PARTITIONS;
use debros_proto::{ErrorCode, Failure, limits, v1};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::clock::VersionClock;
use super::layouts::Layouts;
use super::metrics::KvMetrics;
use super::record::{Entry, Place, Version};
use super::store::{Applied, Durability, Fence, Origin, Put, PutOutcome, ScanLimits, Store, StoreError};

/// Entries of one answer of [`Operation::Keys`].
pub(super) const KEYS_PER_ANSWER_MAX: usize = 1000;
/// Reads of one message that are answered where they arrive.
const READS_AT_ONCE_MAX: usize = 64;
/// Entries looked at in one step of a collection.
const COLLECT_STEP_ENTRIES: usize = 4096;

/// This node's replica of whatever it holds. Cheap to clone.
#[derive(Clone)]
pub(super) struct Replica {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    clock: Arc<VersionClock>,
    layouts: Layouts,
    metrics: KvMetrics,
}

/// One read of a key.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) place: Place,
    pub(super) partition: u16,
    pub(super) with_value: bool,
}

impl Replica {
    /// A replica over a store.
    pub(super) fn new(store: Store, clock: Arc<VersionClock>, layouts: Layouts, metrics: KvMetrics) -> Self {
        Self { inner: Arc::new(Inner { store, clock, layouts, metrics }) }
    }

    /// The store below.
    pub(super) fn store(&self) -> &Store {
        &self.inner.store
    }

    fn may_read(&self, layout: u64) -> Result<(), Outcome> {
        if !self.inner.store.is_whole() {
            return Err(failure(not_ready("this replica lost its disk and copies what it lacks")));
        }
        match self.inner.store.fence_of(layout) {
            Fence::Open => Ok(()),
            closed => Err(self.fenced(closed)),
        }
    }

    fn fenced(&self, fence: Fence) -> Outcome {
        match (fence, self.inner.layouts.adopted()) {
            (Fence::SenderIsBehind, Some(layout)) => Outcome::NewerLayout(layout.wire().clone()),
            _ => failure(not_ready("this replica has not adopted that layout yet")),
        }
    }

    /// Answers the calls of one message. Writes and reads of single keys are done together.
    pub(super) fn answer(
        &self,
        calls: Vec<v1::ReplicaCall>,
    ) -> Vec<BoxFuture<'static, Vec<v1::ReplicaReply>>> {
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        let mut work: Vec<BoxFuture<'static, Vec<v1::ReplicaReply>>> = Vec::new();
        for v1::ReplicaCall { id, layout, operation, trace: _ } in calls {
            match operation {
                Some(Operation::Write(write)) => writes.push((id, layout, write)),
                Some(Operation::Read(read)) => reads.push((id, layout, read)),
                Some(operation) => work.push(self.clone().answer_one(id, layout, operation).boxed()),
                None => work.push(std::future::ready(vec![reply(id, failure(unknown()))]).boxed()),
            }
        }
        if !writes.is_empty() {
            work.push(self.clone().answer_writes(writes).boxed());
        }
        if !reads.is_empty() {
            work.push(self.clone().answer_reads(reads).boxed());
        }
        work
    }

    async fn answer_writes(self, writes: Vec<(u64, u64, v1::ReplicaWrite)>) -> Vec<v1::ReplicaReply> {
        let mut replies = Vec::with_capacity(writes.len());
        let mut puts: Vec<(u64, (u64, Durability), Put)> = Vec::with_capacity(writes.len());
        for (id, layout, write) in writes {
            let durability = durability(write.relaxed);
            match self.check_write(write) {
                Ok(put) => puts.push((id, (layout, durability), put)),
                Err(refused) => replies.push(reply(id, failure(refused))),
            }
        }
        // Nearly always one layout and one durability.
        while let Some((_, (layout, durability), _)) = puts.first() {
            let (layout, durability) = (*layout, *durability);
            let (same, others): (Vec<_>, Vec<_>) =
                puts.into_iter().partition(|(_, of, _)| *of == (layout, durability));
            puts = others;
            let ids: Vec<(u64, Version)> =
                same.iter().map(|(id, _, put)| (*id, put.entry.record.version)).collect();
            let same = same.into_iter().map(|(.., put)| put).collect();
            let applied = self.inner.store.put(Origin::Coordinator(layout), durability, same).await;
            replies.extend(self.written(ids, applied));
        }
        replies
    }

    fn check_write(&self, write: v1::ReplicaWrite) -> Result<Put, Failure> {
        let v1::ReplicaWrite { partition, namespace, key, record, relaxed: _ } = write;
        let partition = partition_from_wire(partition)?;
        let entry = v1::ReplicaEntry { namespace, key, record };
        let entry = Entry::from_wire(partition, entry).ok_or_else(malformed)?;
        self.check_birth(entry.record.version)?;
        Ok(Put { entry })
    }

    /// Refuses a version from the future, where it is born.
    pub(super) fn check_birth(&self, version: Version) -> Result<(), Failure> {
        if self.inner.clock.is_ahead(version) {
            self.inner.metrics.clock_refused();
            return Err(Failure::new(
                ErrorCode::Unavailable,
                "the version lies in this replica's future: synchronise the nodes' clocks",
            ));
        }
        self.inner.clock.observe(version.clock);
        Ok(())
    }

    fn written(
        &self,
        ids: Vec<(u64, Version)>,
        applied: Result<Applied, StoreError>,
    ) -> Vec<v1::ReplicaReply> {
        match applied {
            Ok(Applied::Each(outcomes)) => {
                let outcomes = ids.into_iter().zip(outcomes);
                outcomes.map(|((id, version), outcome)| reply(id, written(version, outcome))).collect()
            }
            Ok(Applied::Fenced(fence)) => {
                ids.into_iter().map(|(id, _)| reply(id, self.fenced(fence))).collect()
            }
            Err(error) => ids.into_iter().map(|(id, _)| reply(id, failure(error.clone().into()))).collect(),
        }
    }

    /// The answer of a read under a layout that was open before it, if it is still: what was read after a newer
    /// one was adopted may have been written under that, or lack what this replica has given up.
    fn still<T>(&self, layout: u64, answer: T) -> Result<T, Outcome> {
        self.may_read(layout).map(|()| answer)
    }

    async fn answer_reads(self, reads: Vec<(u64, u64, v1::ReplicaRead)>) -> Vec<v1::ReplicaReply> {
        let mut replies = Vec::with_capacity(reads.len());
        let mut asked = Vec::with_capacity(reads.len());
        for (id, layout, read) in reads {
            let v1::ReplicaRead { partition, namespace, key, without_value } = read;
            match (self.may_read(layout), partition_from_wire(partition)) {
                (Ok(()), Ok(partition)) => {
                    let place = Place::new(partition, &namespace, &key);
                    asked.push(((id, layout), Read { place, partition, with_value: !without_value }));
                }
                (Err(refused), _) => replies.push(reply(id, refused)),
                (_, Err(refused)) => replies.push(reply(id, failure(refused))),
            }
        }
        let (ids, reads): (Vec<(u64, u64)>, Vec<Read>) = asked.into_iter().unzip();
        match self.read_all(reads).await {
            Ok(found) => {
                let found = ids.into_iter().zip(found);
                replies.extend(found.map(|((id, layout), found)| {
                    let answer = self.still(layout, Outcome::Read(found));
                    reply(id, answer.unwrap_or_else(|refused| refused))
                }));
            }
            Err(error) => {
                replies.extend(ids.into_iter().map(|(id, _)| reply(id, failure(error.clone().into()))));
            }
        }
        replies
    }

    /// Reads keys from one snapshot.
    async fn read_all(&self, reads: Vec<Read>) -> Result<Vec<v1::ReplicaReadResult>, StoreError> {
        let few = reads.len() <= READS_AT_ONCE_MAX;
        // Before the records: a collection that comes between makes the answer seem older than it is, never newer.
        let collected: Vec<u64> =
            reads.iter().map(|read| self.inner.store.collected(read.partition)).collect();
        let work = move |snapshot: &super::store::Snapshot<'_>| {
            let found = reads.into_iter().zip(collected).map(|(read, collected_to)| {
                let record = snapshot.get(&read.place, read.with_value)?;
                Ok(v1::ReplicaReadResult { record: record.map(|record| record.into_wire()), collected_to })
            });
            found.collect()
        };
        if few { self.inner.store.read_points(work).await } else { self.inner.store.read(work).await }
    }

    /// Reads one key for a coordinator on this node.
    pub(super) async fn read(&self, layout: u64, read: Read) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let mut found = self.read_all(vec![read]).await.map_err(|error| failure(error.into()))?;
        self.still(layout, Outcome::Read(found.remove(0)))
    }

    /// Writes one key for a coordinator on this node.
    pub(super) async fn write(&self, layout: u64, relaxed: bool, entry: Entry) -> Outcome {
        let version = entry.record.version;
        if let Err(refused) = self.check_birth(version) {
            return failure(refused);
        }
        let put = self.inner.store.put(Origin::Coordinator(layout), durability(relaxed), vec![Put { entry }]);
        match put.await {
            Ok(Applied::Each(outcomes)) => written(version, outcomes[0]),
            Ok(Applied::Fenced(fence)) => self.fenced(fence),
            Err(error) => failure(error.into()),
        }
    }

    async fn answer_one(self, id: u64, layout: u64, operation: Operation) -> Vec<v1::ReplicaReply> {
        let outcome = self.carry_out(layout, operation).await;
        vec![reply(id, outcome.unwrap_or_else(|refused| refused))]
    }

    /// Carries out one operation; also for callers on this node.
    pub(super) async fn carry_out(&self, layout: u64, operation: Operation) -> Result<Outcome, Outcome> {
        match operation {
            Operation::Probe(_) => Ok(Outcome::Time(v1::ReplicaTime { unix_ms: self.inner.clock.unix_ms() })),
            Operation::Scan(scan) => self.scan(layout, scan).await,
            Operation::Roots(asked) => self.roots(layout, asked).await,
            Operation::Leaves(asked) => self.leaves(layout, asked.partition).await,
            Operation::Keys(asked) => self.keys(layout, asked).await,
            Operation::Store(store) => self.keep(layout, store).await,
            Operation::Fence(fence) => self.fence_partition(layout, fence).await,
            Operation::Advance(advance) => self.advance(layout, advance).await,
            Operation::Write(write) => {
                let relaxed = write.relaxed;
                let put = self.check_write(write).map_err(failure)?;
                Ok(self.write(layout, relaxed, put.entry).await)
            }
            Operation::Read(read) => {
                let v1::ReplicaRead { partition, namespace, key, without_value } = read;
                let partition = partition_from_wire(partition).map_err(failure)?;
                let place = Place::new(partition, &namespace, &key);
                self.read(layout, Read { place, partition, with_value: !without_value }).await
            }
        }
    }

    async fn scan(&self, layout: u64, scan: v1::ReplicaScan) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let v1::ReplicaScan { partition, namespace, prefix, after, limit, with_values, bytes } = scan;
        let partition = partition_from_wire(partition).map_err(failure)?;
        let entries = limit.clamp(1, limits::STORAGE_PAGE_KEYS_MAX) as usize;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(usize::MAX);
        let limits = ScanLimits { entries, bytes: bytes.min(limits::STORAGE_PAGE_BYTES_MAX), with_values };
        let collected_to = self.inner.store.collected(partition);
        let work = move |snapshot: &super::store::Snapshot<'_>| {
            snapshot.scan(partition, &namespace, &prefix, &after, limits)
        };
        let scanned = self.inner.store.read(work).await.map_err(stopped)?;
        let entries = scanned.entries.into_iter().map(Entry::into_wire).collect();
        let scanned = v1::ReplicaScanned { entries, complete: scanned.complete, collected_to };
        self.still(layout, Outcome::Scanned(scanned))
    }

    async fn roots(&self, layout: u64, asked: v1::ReplicaRoots) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let mut result = v1::ReplicaRootsResult::default();
        for partition in asked.partitions {
            let partition = partition_from_wire(partition).map_err(failure)?;
            result.collected_to.push(self.inner.store.collected(partition));
            let tree = self.inner.store.tree(partition).await.map_err(stopped)?;
            result.roots.push(tree.root().to_vec().into());
        }
        self.still(layout, Outcome::Roots(result))
    }

    async fn leaves(&self, layout: u64, partition: u32) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let partition = partition_from_wire(partition).map_err(failure)?;
        let tree = self.inner.store.tree(partition).await.map_err(stopped)?;
        self.still(layout, Outcome::Leaves(v1::ReplicaLeavesResult { leaves: tree.to_bytes().into() }))
    }

    async fn keys(&self, layout: u64, asked: v1::ReplicaKeys) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let v1::ReplicaKeys { partition, leaves, after, with_values } = asked;
        let partition = partition_from_wire(partition).map_err(failure)?;
        let leaves: Vec<usize> = leaves.into_iter().map(|leaf| leaf as usize).collect();
        let limits =
            ScanLimits { entries: KEYS_PER_ANSWER_MAX, bytes: limits::STORAGE_PAGE_BYTES_MAX, with_values };
        let collected_to = self.inner.store.collected(partition);
        let work = move |snapshot: &super::store::Snapshot<'_>| {
            snapshot.partition(partition, &after, &leaves, limits)
        };
        let scanned = self.inner.store.read(work).await.map_err(stopped)?;
        let result = v1::ReplicaKeysResult {
            entries: scanned.entries.into_iter().map(Entry::into_wire).collect(),
            complete: scanned.complete,
            scanned_to: scanned.scanned_to,
            collected_to,
        };
        self.still(layout, Outcome::Keys(result))
    }

    async fn keep(&self, layout: u64, store: v1::ReplicaStore) -> Result<Outcome, Outcome> {
        let v1::ReplicaStore { partition, entries, collected_to, hints } = store;
        let partition = partition_from_wire(partition).map_err(failure)?;
        let entries =
            entries.into_iter().map(|entry| Entry::from_wire(partition, entry).map(|entry| Put { entry }));
        let puts = entries.collect::<Option<Vec<Put>>>().ok_or_else(|| failure(malformed()))?;
        for put in &puts {
            self.inner.clock.observe(put.entry.record.version.clock);
        }
        let origin = if hints { Origin::Hint(layout) } else { Origin::Replica { layout, collected_to } };
        let applied = self.inner.store.put(origin, Durability::Flushed, puts).await;
        let applied = applied.and_then(Applied::all_kept).map_err(stopped)?;
        let outcomes = match applied {
            Applied::Each(outcomes) => outcomes,
            Applied::Fenced(fence) => return Err(self.fenced(fence)),
        };
        let applied = outcomes.iter().filter(|outcome| **outcome == PutOutcome::Stored).count();
        Ok(Outcome::Stored(v1::ReplicaStored { applied: applied as u32 }))
    }

    async fn fence_partition(&self, layout: u64, fence: v1::ReplicaFence) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let v1::ReplicaFence { partition, clock } = fence;
        let partition = partition_from_wire(partition).map_err(failure)?;
        self.inner.store.fence(partition, clock).await.map_err(stopped)?;
        let work = move |snapshot: &super::store::Snapshot<'_>| snapshot.tree_up_to(partition, clock);
        let tree = self.inner.store.read(work).await.map_err(stopped)?;
        self.still(layout, Outcome::Fenced(v1::ReplicaFenced { root: tree.root().to_vec().into() }))
    }

    async fn advance(&self, layout: u64, advance: v1::ReplicaAdvance) -> Result<Outcome, Outcome> {
        self.may_read(layout)?;
        let v1::ReplicaAdvance { partition, clock } = advance;
        let partition = partition_from_wire(partition).map_err(failure)?;
        self.inner.store.set_collected(layout, partition, clock).await.map_err(stopped)?;
        self.drop_collected(partition).await.map_err(stopped)?;
        self.still(layout, Outcome::Advanced(v1::ReplicaAdvanced {}))
    }

    /// Drops the tombstones that every replica has.
    pub(super) async fn drop_collected(&self, partition: u16) -> Result<u64, StoreError> {
        let clock = self.inner.store.collected(partition);
        if clock == 0 {
            return Ok(0);
        }
        let (mut after, mut dropped) = (Some(bytes::Bytes::new()), 0);
        while let Some(from) = after {
            let work = move |snapshot: &super::store::Snapshot<'_>| {
                snapshot.collectable(partition, clock, &from, COLLECT_STEP_ENTRIES)
            };
            let (places, next) = self.inner.store.read(work).await?;
            if !places.is_empty() {
                dropped += self.inner.store.drop_collected(partition, clock, places).await?;
            }
            after = next;
        }
        self.inner.metrics.collected(dropped);
        Ok(dropped)
    }

    /// Everything of some partitions, one after the other and in parts, for a replica that copies them.
    ///
    /// # Errors
    /// When this replica does not hold the layout that the other one copies under, or no longer.
    pub(super) fn copy(
        &self,
        layout: u64,
        partitions: Vec<u32>,
    ) -> Result<impl futures::Stream<Item = Result<v1::CopyPart, tonic::Status>> + Send + use<>, Failure>
    {
        let partitions = partitions.into_iter().map(partition_from_wire);
        let partitions = partitions.collect::<Result<Vec<u16>, Failure>>()?;
        self.may_read(layout).map_err(refusal)?;
        let mut partitions = partitions.into_iter();
        let first = partitions.next().map(|partition| (partition, bytes::Bytes::new()));
        let state = (self.clone(), partitions, first);
        let parts = futures::stream::try_unfold(state, move |(replica, mut partitions, next)| async move {
            let Some((partition, after)) = next else { return Ok::<_, Failure>(None) };
            let (part, more) = replica.copy_part(partition, after).await?;
            // After a newer layout this replica may have begun to forget what it gives up.
            replica.may_read(layout).map_err(refusal)?;
            let next = match more {
                Some(after) => Some((partition, after)),
                None => partitions.next().map(|partition| (partition, bytes::Bytes::new())),
            };
            Ok(Some((part, (replica, partitions, next))))
        });
        Ok(parts.map_err(tonic::Status::from))
    }

    async fn copy_part(
        &self,
        partition: u16,
        after: bytes::Bytes,
    ) -> Result<(v1::CopyPart, Option<bytes::Bytes>), StoreError> {
        let limits = ScanLimits {
            entries: KEYS_PER_ANSWER_MAX,
            bytes: limits::STORAGE_PAGE_BYTES_MAX,
            with_values: true,
        };
        let collected_to = self.inner.store.collected(partition);
        let work =
            move |snapshot: &super::store::Snapshot<'_>| snapshot.partition(partition, &after, &[], limits);
        let scanned = self.inner.store.read(work).await?;
        let entries = scanned.entries.into_iter().map(Entry::into_wire).collect();
        let part =
            v1::CopyPart { partition: u32::from(partition), entries, collected_to, last: scanned.complete };
        Ok((part, (!scanned.complete).then_some(scanned.scanned_to)))
    }
}

fn durability(relaxed: bool) -> Durability {
    if relaxed { Durability::Relaxed } else { Durability::Flushed }
}

fn written(version: Version, outcome: PutOutcome) -> Outcome {
    let (holds, collected_to) = match outcome {
        PutOutcome::Stored => (version, 0),
        PutOutcome::Superseded(newer) => (newer, 0),
        PutOutcome::Collected(clock) => (Version::default(), clock),
        PutOutcome::NoRoom => return failure(StoreError::Full.into()),
    };
    Outcome::Written(v1::ReplicaWritten { holds: Some(holds.into()), collected_to })
}

fn reply(id: u64, outcome: Outcome) -> v1::ReplicaReply {
    v1::ReplicaReply { id, outcome: Some(outcome) }
}

fn failure(failure: Failure) -> Outcome {
    Outcome::Failure(failure.into_call())
}

/// The failure in a refusal.
fn refusal(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failure(failure) => Failure::from_call(failure),
        _ => Failure::new(ErrorCode::StaleEpoch, "this replica knows a newer layout"),
    }
}

fn stopped(error: StoreError) -> Outcome {
    failure(error.into())
}

fn not_ready(message: &str) -> Failure {
    Failure::new(ErrorCode::NotReady, message)
}

fn malformed() -> Failure {
    Failure::invalid("a record without a version, or of another partition")
}

fn unknown() -> Failure {
    Failure::invalid("an operation of a newer version")
}

fn partition_from_wire(partition: u32) -> Result<u16, Failure> {
    u16::try_from(partition)
        .ok()
        .filter(|partition| *partition < PARTITIONS)
        .ok_or_else(|| Failure::invalid(format!("there is no partition {partition}")))
}
