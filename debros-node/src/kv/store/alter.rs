//! What changes more than records: layouts, collections, cleared partitions. Each is a transaction of its
//! own in LMDB, into which goes whatever is in memory, so that nothing older comes after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use debros_proto::NodeId;
use debros_proto::layout::PARTITIONS;
use heed::RwTxn;

use super::layers::Layer;
use super::tables::{failed, hint_key, parse_hint};
use super::writer::{Answer, Job, Toggle, Writer, answer, refuse};
use super::{StoreError, damaged};
use crate::kv::record::{Place, Record, Version};

/// Entries of a partition that are forgotten in one transaction.
const CLEARED_PER_COMMIT_MAX: usize = 1024;

/// What a transaction under way will have changed.
#[derive(Default)]
struct Effects {
    answers: Vec<Answer>,
    toggles: Vec<Toggle>,
    hinted: i64,
    adopted: Option<u64>,
    whole: Option<bool>,
    collected: Vec<(u16, u64)>,
    fenced: Vec<(u16, u64)>,
}

/// What a transaction under way has said of a partition last, or else what was so before it.
fn last_of(said: &[(u16, u64)], partition: u16, before: &[AtomicU64]) -> u64 {
    let here = said.iter().rev().find(|(other, _)| *other == partition);
    here.map_or_else(|| before[usize::from(partition)].load(Ordering::Relaxed), |(_, clock)| *clock)
}

impl Writer {
    /// Carries out jobs with all that is in memory; says whether the store goes on. In one transaction, or where
    /// there is little room in several small ones.
    pub(super) fn transaction(&mut self, jobs: Vec<Job>) -> bool {
        if !self.no_room {
            return self.transact(jobs);
        }
        match self.absorb_in_parts() {
            Ok(()) => jobs.into_iter().all(|job| self.transact(vec![job])),
            Err(error) => self.refused_by(jobs, error),
        }
    }

    fn refused_by(&self, jobs: Vec<Job>, error: StoreError) -> bool {
        self.refused(Vec::new(), jobs, error.clone());
        matches!(error, StoreError::Full) || self.fail(error)
    }

    fn transact(&mut self, jobs: Vec<Job>) -> bool {
        let tables = self.tables.clone();
        let mut effects = Effects::default();
        let mut txn = match tables.env.write_txn() {
            Ok(txn) => txn,
            Err(error) => return self.refused(Vec::new(), jobs, failed(error)),
        };
        match self.absorb(&mut txn) {
            Ok(()) => {}
            Err(StoreError::Full) if !self.no_room => {
                drop(txn);
                self.no_room = true;
                return self.transaction(jobs);
            }
            Err(error) => {
                drop(txn);
                return self.refused(Vec::new(), jobs, error);
            }
        }
        let mut jobs = jobs.into_iter();
        while let Some(job) = jobs.next() {
            if let Err(error) = self.alter(&mut txn, job, &mut effects) {
                drop(txn);
                return self.refused(effects.answers, jobs.collect(), error);
            }
        }
        match txn.commit().map_err(failed) {
            Ok(()) => {
                self.absorbed();
                self.settle(effects);
                true
            }
            Err(StoreError::Full) => {
                self.no_room = true;
                self.refused(effects.answers, Vec::new(), StoreError::Full)
            }
            Err(error) => {
                self.refused(effects.answers, Vec::new(), error.clone());
                // What is on disk is not known any more: nothing may be acknowledged from here on.
                self.fail(error)
            }
        }
    }

    /// Nothing was changed.
    fn refused(&self, answers: Vec<Answer>, jobs: Vec<Job>, error: StoreError) -> bool {
        answers.into_iter().for_each(|answer| answer(Err(error.clone())));
        refuse(jobs, &error);
        true
    }

    /// Puts what is in memory into the transaction.
    fn absorb(&self, txn: &mut RwTxn<'_>) -> Result<(), StoreError> {
        let layers = self.layers.read();
        for layer in layers.frozen.iter().map(Arc::as_ref).chain([&layers.active]) {
            self.tables.apply(txn, layer).map_err(failed)?;
        }
        self.tables.set_applied(txn, self.journal.generation()).map_err(failed)
    }

    /// Brings what is in memory into LMDB, the older layer first.
    fn absorb_in_parts(&mut self) -> Result<(), StoreError> {
        let layers = self.layers.read();
        if layers.is_empty() {
            return Ok(());
        }
        if let Some(frozen) = &layers.frozen {
            self.tables.apply_in_parts(frozen, self.frozen_generation)?;
        }
        self.tables.apply_in_parts(&layers.active, self.journal.generation())?;
        drop(layers);
        self.absorbed();
        Ok(())
    }

    /// What was in memory is in LMDB, on disk.
    fn absorbed(&mut self) {
        let mut layers = self.layers.write();
        layers.active = Layer::default();
        layers.frozen = None;
        drop(layers);
        self.turn_journal();
    }

    /// The transaction is on disk.
    fn settle(&mut self, effects: Effects) {
        let Effects { answers, toggles, hinted, adopted, whole, collected, fenced } = effects;
        self.toggle(toggles);
        for (partition, clock) in collected {
            self.states.collected[usize::from(partition)].store(clock, Ordering::Release);
        }
        for (partition, clock) in fenced {
            self.states.fenced[usize::from(partition)].store(clock, Ordering::Release);
        }
        // Before the layout: nobody reads from a lost store under it.
        if let Some(whole) = whole {
            self.states.whole.store(whole, Ordering::Release);
        }
        if let Some(version) = adopted {
            self.states.layout.store(version, Ordering::Release);
        }
        self.add_hinted(hinted);
        answers.into_iter().for_each(|answer| answer(Ok(())));
    }

    fn alter(&self, txn: &mut RwTxn<'_>, job: Job, effects: &mut Effects) -> Result<(), StoreError> {
        let answer = match job {
            Job::Adopt { layout, lacking, done } => {
                // The map is read from its log again after a restart: what was adopted stays adopted.
                if layout.version > effects.adopted.unwrap_or(self.states.layout.load(Ordering::Relaxed)) {
                    self.tables.set_layout(txn, &layout).map_err(failed)?;
                    effects.adopted = Some(layout.version);
                    if lacking {
                        self.tables.set_lacking(txn, true).map_err(failed)?;
                        effects.whole = Some(false);
                    }
                }
                answer(done, ())
            }
            Job::SetWhole { done } => {
                self.tables.set_lacking(txn, false).map_err(failed)?;
                effects.whole = Some(true);
                answer(done, ())
            }
            Job::SetCopied { version, done } => {
                self.tables.set_copied(txn, version).map_err(failed)?;
                answer(done, ())
            }
            Job::Clear { partition, done } => answer(done, self.clear(txn, partition, effects)?),
            Job::FencePartition { partition, clock, done } => {
                if clock > last_of(&effects.fenced, partition, &self.states.fenced) {
                    self.tables.set_fenced(txn, partition, clock).map_err(failed)?;
                    effects.fenced.push((partition, clock));
                }
                answer(done, ())
            }
            Job::SetCollected { layout, partition, clock, done } => {
                let adopted = effects.adopted.unwrap_or(self.states.layout.load(Ordering::Relaxed));
                if layout == adopted && clock > last_of(&effects.collected, partition, &self.states.collected)
                {
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
            Job::DropHints { target, dropped, done } => {
                self.drop_hints(txn, target, dropped, effects)?;
                answer(done, ())
            }
            Job::Put { .. } | Job::Hint { .. } | Job::Tree { .. } | Job::SetTree { .. } | Job::Tick => {
                unreachable!("no transaction is made for these")
            }
        };
        effects.answers.push(answer);
        Ok(())
    }

    fn remove(
        &self,
        txn: &mut RwTxn<'_>,
        partition: u16,
        place: &[u8],
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        if self.trees.contains_key(&partition) {
            let before = self.tables.data.get(txn, place).map_err(failed)?;
            effects.toggles.push(Toggle::new(partition, place, before, None));
        }
        self.tables.data.delete(txn, place).map_err(failed).map(drop)
    }

    fn clear(&self, txn: &mut RwTxn<'_>, partition: u16, effects: &mut Effects) -> Result<bool, StoreError> {
        let prefix = partition.to_be_bytes();
        let at_once = CLEARED_PER_COMMIT_MAX.min(self.tables.records_per_transaction());
        let places = {
            let entries = self.tables.data.prefix_iter(txn, &prefix).map_err(failed)?;
            let places = entries.take(at_once).map(|item| Ok(item?.0.to_vec()));
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
        Ok(places.len() == at_once)
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
}
