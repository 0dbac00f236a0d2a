//! Putting records: into the journal, then into memory, then acknowledged. LMDB gets them later, many at a
//! time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use debros_proto::NodeId;

use super::applier::Frozen;
use super::journal::JournalBatch;
use super::layers::{Layer, Layers};
use super::tables::{failed, hint_key, parse_hint};
use super::writer::{Answer, Done, Job, Toggle, Writer, answer, refuse};
use super::{Applied, Durability, Fence, Origin, Put, PutOutcome, StoreError, damaged, fence};
use crate::kv::record::{Entry, HEADER_BYTES, Record};
use crate::metrics::Stopwatch;

/// A layer of this size goes into LMDB: large enough that neighbours share pages.
const LAYER_BYTES: usize = 16 << 20;
/// While one layer goes into LMDB the next one grows to this; past it the writer waits.
const LAYER_BYTES_MAX: usize = 64 << 20;
/// A generation of the journal of this size ends, however few keys it was written for: all of it is read after
/// a crash.
const JOURNAL_BYTES: u64 = 64 << 20;
/// How much room there is, is looked at again after so many bytes.
const CREDIT_BYTES_MAX: u64 = 64 << 20;
/// LMDB's pages are half full at worst.
const PAGES_PER_BYTES: u64 = 2;
/// As [`LAYER_BYTES_MAX`].
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

type ReadTxn<'t> = heed::RoTxn<'t, heed::WithoutTls>;

/// What there is room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Room {
    #[default]
    Everything,
    /// Values that others hold already, and deletions.
    Repairs,
    Deletions,
}

impl Room {
    fn is_for(self, origin: Origin, record: &Record) -> bool {
        match (self, origin) {
            _ if record.tombstone => true,
            (Self::Everything, _) | (Self::Repairs, Origin::Replica { .. }) => true,
            (Self::Repairs | Self::Deletions, _) => false,
        }
    }
}

/// Puts that wait for the same flush.
struct PutJob {
    origin: Origin,
    puts: Vec<Put>,
    done: Done<Applied>,
}

/// Records that are accepted, on their way to the journal.
#[derive(Default)]
struct Accepted {
    room: Room,
    batch: JournalBatch,
    records: HashMap<Bytes, Bytes>,
    toggles: Vec<Toggle>,
    changed: Vec<Entry>,
    answers: Vec<Answer>,
}

impl Writer {
    /// Carries out puts and hints; says whether the store goes on.
    pub(super) fn put_all(&mut self, jobs: Vec<Job>) -> bool {
        if self.is_full() {
            refuse(jobs, &StoreError::Full);
            return true;
        }
        let room = match self.room_for(jobs.iter().map(Job::bytes).sum()) {
            Ok(room) => room,
            Err(error) => {
                refuse(jobs, &error);
                return true;
            }
        };
        let (mut relaxed, mut flushed) = (Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Job::Put { origin, puts, durability: Durability::Relaxed, done } => {
                    relaxed.push(PutJob { origin, puts, done });
                }
                Job::Put { origin, puts, durability: Durability::Flushed, done } => {
                    flushed.push(PutJob { origin, puts, done });
                }
                Job::Hint { done, .. } if room != Room::Everything => {
                    let _ = done.send(Err(StoreError::Full));
                }
                Job::Hint { target, entry, unix_ms, done } => {
                    let _ = done.send(self.hint(target, &entry, unix_ms));
                }
                _ => unreachable!("only puts and hints are put"),
            }
        }
        // Those that need not wait for the flush go first.
        let go_on = self.put_jobs(relaxed, room, false) && self.put_jobs(flushed, room, true);
        if go_on { self.make_room() } else { false }
    }

    fn put_jobs(&mut self, jobs: Vec<PutJob>, room: Room, flush: bool) -> bool {
        if jobs.is_empty() {
            return true;
        }
        let (layers, tables) = (self.layers.clone(), self.tables.clone());
        // First the memory: what goes from there into LMDB meanwhile is seen in both.
        let layers = layers.read();
        let txn = match tables.env.read_txn() {
            Ok(txn) => txn,
            Err(error) => {
                let error = failed(error);
                jobs.into_iter().for_each(|job| drop(job.done.send(Err(error.clone()))));
                return true;
            }
        };
        let mut accepted = Accepted { room, ..Default::default() };
        for PutJob { origin, puts, done } in jobs {
            match self.accept_all(&txn, &layers, origin, puts, &mut accepted) {
                Ok(applied) => accepted.answers.push(answer(done, applied)),
                Err(error) => drop(done.send(Err(error))),
            }
        }
        drop(txn);
        drop(layers);
        self.make_durable(accepted, flush)
    }

    fn make_durable(&mut self, accepted: Accepted, flush: bool) -> bool {
        let Accepted { room: _, batch, records, toggles, changed, answers } = accepted;
        if !batch.is_empty() {
            if let Err(error) = self.journal(batch, flush) {
                answers.into_iter().for_each(|answer| answer(Err(error.clone())));
                return matches!(error, StoreError::Full) || self.fail(error);
            }
            let mut layers = self.layers.write();
            records.into_iter().for_each(|(place, record)| layers.active.put(place, record));
        } else if flush
            && self.unflushed
            && let Err(error) = self.flush_journal()
        {
            // They have been there already, but as relaxed writes.
            answers.into_iter().for_each(|answer| answer(Err(error.clone())));
            return self.fail(error);
        }
        self.toggle(toggles);
        if !changed.is_empty() {
            self.changes.tell(changed);
        }
        answers.into_iter().for_each(|answer| answer(Ok(())));
        true
    }

    fn accept_all(
        &self,
        txn: &ReadTxn<'_>,
        layers: &Layers,
        origin: Origin,
        puts: Vec<Put>,
        accepted: &mut Accepted,
    ) -> Result<Applied, StoreError> {
        match fence(self.states.layout.load(Ordering::Relaxed), origin.layout()) {
            Fence::Open => {}
            closed => return Ok(Applied::Fenced(closed)),
        }
        let outcomes = puts.into_iter().map(|put| self.accept(txn, layers, origin, put, accepted));
        outcomes.collect::<Result<_, _>>().map(Applied::Each)
    }

    fn accept(
        &self,
        txn: &ReadTxn<'_>,
        layers: &Layers,
        origin: Origin,
        Put { entry }: Put,
        accepted: &mut Accepted,
    ) -> Result<PutOutcome, StoreError> {
        let version = entry.record.version;
        let refused_to = self.refused_to(origin, entry.partition);
        let place = entry.place().into_bytes();
        let in_memory = accepted.records.get(&place).or_else(|| layers.get(&place)).map(|bytes| &bytes[..]);
        let before = match in_memory {
            Some(bytes) => Some(bytes),
            None => self.tables.data.get(txn, &place).map_err(failed)?,
        };
        let known = before.map(|bytes| Record::header(bytes).ok_or_else(|| damaged(&place)));
        match known.transpose()? {
            Some(known) if known.version >= version => {
                return Ok(if known.version == version {
                    PutOutcome::Stored
                } else {
                    PutOutcome::Superseded(known.version)
                });
            }
            _ if version.clock <= refused_to => return Ok(PutOutcome::Collected(refused_to)),
            _ if !accepted.room.is_for(origin, &entry.record) => return Ok(PutOutcome::NoRoom),
            _ => {}
        }
        let record = entry.record.to_bytes().freeze();
        accepted.batch.add(&place, &record);
        if self.trees.contains_key(&entry.partition) {
            accepted.toggles.push(Toggle::new(entry.partition, &place, before, Some(&record)));
        }
        if self.changes.is_heard() {
            // What is kept for watchers must not keep the message alive in which the value came.
            let record = Record { value: record.slice(HEADER_BYTES..), ..entry.record };
            accepted.changed.push(Entry { record, ..entry });
        }
        accepted.records.insert(place, record);
        Ok(PutOutcome::Stored)
    }

    /// The clock at and below which a version is refused.
    fn refused_to(&self, origin: Origin, partition: u16) -> u64 {
        let place = usize::from(partition);
        let collected = self.states.collected[place].load(Ordering::Relaxed);
        match origin {
            Origin::Coordinator(_) | Origin::Hint(_) => {
                collected.max(self.states.fenced[place].load(Ordering::Relaxed))
            }
            // From one that has collected as far: it has every live record, and no other, up to there.
            Origin::Replica { collected_to, .. } if collected_to >= collected => 0,
            Origin::Replica { .. } => collected,
        }
    }

    fn journal(&mut self, batch: JournalBatch, flush: bool) -> Result<(), StoreError> {
        self.journal.append(batch).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => StoreError::Full,
            _ => StoreError::Failed(format!("the journal: {error}")),
        })?;
        self.unflushed = true;
        if flush { self.flush_journal() } else { Ok(()) }
    }

    /// Whatever its error, what is on disk is not known after it.
    fn flush_journal(&mut self) -> Result<(), StoreError> {
        if self.flushes() {
            let failed = |error| StoreError::Failed(format!("the journal cannot be flushed: {error}"));
            let stopwatch = Stopwatch::start();
            self.journal.flush().map_err(failed)?;
            self.options.metrics.flushed(stopwatch.took());
        }
        self.unflushed = false;
        Ok(())
    }

    #[cfg(feature = "planted-bugs")]
    fn flushes(&self) -> bool {
        !self.options.acknowledge_before_fsync
    }

    #[cfg(not(feature = "planted-bugs"))]
    fn flushes(&self) -> bool {
        let super::Options { map_bytes: _, metrics: _ } = self.options;
        true
    }

    /// What is relaxed is on disk from now on, and what waits in memory is on its way.
    pub(super) fn tick(&mut self) -> bool {
        if self.unflushed
            && let Err(error) = self.flush_journal()
        {
            return self.fail(error);
        }
        let layers = self.layers.read();
        // Where there is no room, deletions make some when they are in LMDB.
        let urgent = self.no_room && !layers.active.is_empty();
        let (waiting, hints) = (layers.frozen.is_some(), !layers.active.hints.is_empty() || urgent);
        drop(layers);
        if waiting {
            // One that could not be applied is tried again; one that was is passed over.
            self.send_frozen();
            return true;
        }
        !hints || self.freeze()
    }

    /// What there is room for when so many bytes are added.
    fn room_for(&mut self, bytes: usize) -> Result<Room, StoreError> {
        let needed = bytes as u64 * PAGES_PER_BYTES;
        let mut room = Room::Everything;
        if self.credit < needed || self.no_room {
            let layers = self.layers.read();
            let frozen = layers.frozen.as_ref().map_or(0, |frozen| frozen.bytes());
            let waiting = (layers.active.bytes() + frozen) as u64 * PAGES_PER_BYTES;
            drop(layers);
            let (free, reserve) =
                (self.tables.free_bytes()?.saturating_sub(waiting), self.tables.reserve_bytes());
            room = match free {
                _ if free >= needed + reserve => Room::Everything,
                _ if free >= needed + reserve / 2 => Room::Repairs,
                _ => Room::Deletions,
            };
            self.no_room = room != Room::Everything;
            self.credit = free.saturating_sub(reserve).min(CREDIT_BYTES_MAX);
        }
        self.credit = self.credit.saturating_sub(needed);
        Ok(room)
    }

    /// Whether LMDB has had no room for what is in memory: more would fill the memory. Each tick tries again.
    fn is_full(&self) -> bool {
        let layers = self.layers.read();
        layers.frozen.is_some() && self.is_large(&layers, LAYER_BYTES_MAX, JOURNAL_BYTES_MAX)
    }

    fn is_large(&self, layers: &Layers, layer_bytes: usize, journal_bytes: u64) -> bool {
        layers.active.bytes() >= layer_bytes || self.journal.bytes() >= journal_bytes
    }

    /// Lets a large layer go into LMDB.
    fn make_room(&mut self) -> bool {
        let layers = self.layers.read();
        let waiting = layers.frozen.is_some();
        let large = self.is_large(&layers, LAYER_BYTES, JOURNAL_BYTES);
        let too_large = self.is_large(&layers, LAYER_BYTES_MAX, JOURNAL_BYTES_MAX);
        drop(layers);
        match waiting {
            false if large => self.freeze(),
            true if too_large => self.transaction(Vec::new()),
            _ => true,
        }
    }

    /// Begins a new layer; says whether the store goes on.
    fn freeze(&mut self) -> bool {
        // Nobody would flush this generation any more.
        if self.unflushed
            && let Err(error) = self.flush_journal()
        {
            return self.fail(error);
        }
        let mut layers = self.layers.write();
        let full = std::mem::take(&mut layers.active);
        layers.frozen = Some(Arc::new(full));
        drop(layers);
        self.frozen_generation = self.journal.generation();
        self.turn_journal();
        self.send_frozen();
        true
    }

    fn send_frozen(&self) {
        let layer = self.layers.read().frozen.clone();
        if let Some(layer) = layer {
            // When the queue is full, one is on its way already.
            let _ = self.applier.try_send(Frozen { layer, generation: self.frozen_generation });
        }
    }

    pub(super) fn turn_journal(&mut self) {
        self.journal.turn();
        self.unflushed = false;
    }

    fn hint(&mut self, target: NodeId, entry: &Entry, unix_ms: u64) -> Result<(), StoreError> {
        let key = Bytes::from(hint_key(target.0, entry.place().as_bytes()));
        let value = Bytes::from([&unix_ms.to_be_bytes()[..], &entry.record.to_bytes()].concat());
        let mut layers = self.layers.write();
        let txn = self.tables.env.read_txn().map_err(failed)?;
        let known = |layer: &Layer| layer.hints.get(&key).cloned();
        let in_memory = known(&layers.active).or_else(|| layers.frozen.as_deref().and_then(known));
        let before = match &in_memory {
            Some(value) => Some(&value[..]),
            None => self.tables.hints.get(&txn, &key).map_err(failed)?,
        };
        let version =
            before.and_then(|value| parse_hint(&key, value)).and_then(|(.., record)| Record::header(record));
        if version.is_some_and(|known| known.version >= entry.record.version) {
            return Ok(());
        }
        let replaced = before.map_or(0, |value| key.len() + value.len());
        let added = (key.len() + value.len()) as i64 - replaced as i64;
        layers.active.hint(key, value);
        drop(layers);
        self.add_hinted(added);
        Ok(())
    }
}
