//! The tables of the LMDB environment and what their keys and values are.
//!
//! `data`: place -> record. `hints`: target node, place -> time of the hint, record. `state`: the adopted
//! layout, and what is known of each partition.

use std::path::Path;
use std::sync::atomic::Ordering;

use debros_proto::{limits, v1};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, MdbError, RwTxn, WithoutTls};
use prost::Message;

use super::journal::Journal;
use super::layers::Layer;
use super::{PartitionStates, StoreError};

/// Tables of the environment.
const TABLES: u32 = 3;
/// Snapshots at a time: the reader's, those from which trees are counted, and copies.
const READERS_MAX: u32 = 2048;
/// LMDB wants whole pages; no system in use has larger ones.
const MAP_BYTES_UNIT: usize = 64 << 10;

/// A store of the smallest size frees room within this.
const RESERVE_BYTES_MIN: u64 = 512 << 10;
/// The reserve, in records of one transaction: each may copy a leaf and the branches above it, and what a
/// transaction leaves free is there for the second one after it.
const RESERVE_PER_RECORD: u64 = 16;
const RECORDS_PER_TRANSACTION_MIN: usize = 8;
/// A usual page, of which larger ones hold more.
const PAGE_BYTES: u64 = 4096;

/// The keys of `state`.
const LAYOUT: &[u8] = b"layout";
const COPIED: &[u8] = b"copied";
const LACKING: &[u8] = b"lacking";
const APPLIED: &[u8] = b"applied";
const COLLECTED: u8 = b'c';
const FENCED: u8 = b'f';

type Table = Database<'static, Bytes, Bytes>;

/// The environment and its tables. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) env: Env<WithoutTls>,
    pub(super) data: Table,
    pub(super) hints: Table,
    state: Table,
}

/// What LMDB says of its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kv) struct Statistics {
    /// What the map has room for.
    pub(in crate::kv) map_bytes: u64,
    /// In pages of the tables.
    pub(in crate::kv) used_bytes: u64,
    /// Snapshots that keep old pages alive, and places that former ones have left.
    pub(in crate::kv) readers: u64,
    pub(in crate::kv) branch_pages: u64,
    pub(in crate::kv) leaf_pages: u64,
    pub(in crate::kv) overflow_pages: u64,
    /// Of the tables data, hints and state.
    pub(in crate::kv) entries: [u64; 3],
}

pub(super) fn failed(error: heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(MdbError::MapFull) => StoreError::Full,
        heed::Error::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => StoreError::Full,
        error => StoreError::Failed(error.to_string()),
    }
}

impl Tables {
    pub(super) fn open(folder: &Path, map_bytes: usize) -> Result<Self, StoreError> {
        let cannot = |reason: String| StoreError::Open { folder: folder.to_owned(), reason };
        std::fs::create_dir_all(folder).map_err(|error| cannot(error.to_string()))?;
        let env = Self::environment(folder, map_bytes).map_err(|error| cannot(error.to_string()))?;
        // The files' names are durable before anything is acknowledged.
        for named in [Some(folder), folder.parent()].into_iter().flatten() {
            let synced = std::fs::File::open(named).and_then(|file| file.sync_all());
            synced.map_err(|error| cannot(error.to_string()))?;
        }
        let txn = env.write_txn().map_err(|error| cannot(error.to_string()))?;
        let tables = env.create_databases_and_commit(txn, |opener, txn| {
            let data = opener.create_database::<Bytes, Bytes>(txn, Some("data"))?;
            let hints = opener.create_database::<Bytes, Bytes>(txn, Some("hints"))?;
            let state = opener.create_database::<Bytes, Bytes>(txn, Some("state"))?;
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((data, hints, state)))
        });
        let (data, hints, state) = tables.map_err(|error| cannot(error.to_string()))?.unwrap_commit();
        Ok(Self { env, data, hints, state })
    }

    fn environment(folder: &Path, map_bytes: usize) -> Result<Env<WithoutTls>, heed::Error> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        let map_bytes = map_bytes / MAP_BYTES_UNIT * MAP_BYTES_UNIT;
        options.map_size(map_bytes).max_dbs(TABLES).max_readers(READERS_MAX);
        // SAFETY: the folder is this node's own, which it locks; the files are changed by LMDB alone.
        unsafe { options.open(folder) }
    }

    /// Reads what is known of each partition, and gives the bytes of all hints.
    pub(super) fn load(&self, states: &PartitionStates) -> Result<u64, StoreError> {
        let txn = self.env.read_txn().map_err(failed)?;
        for item in self.state.iter(&txn).map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            let [kind, partition @ ..] = key else { continue };
            let (Ok(partition), Ok(clock)) = (partition.try_into(), value.try_into()) else { continue };
            let (partition, clock) = (u16::from_be_bytes(partition), u64::from_be_bytes(clock));
            let table = match *kind {
                COLLECTED => &states.collected,
                FENCED => &states.fenced,
                _ => continue,
            };
            if let Some(state) = table.get(usize::from(partition)) {
                state.store(clock, Ordering::Release);
            }
        }
        let adopted = self.layout(&txn)?.map_or(0, |layout| layout.version);
        states.layout.store(adopted, Ordering::Release);
        states.whole.store(!self.is_lacking(&txn)?, Ordering::Release);
        let mut hinted = 0;
        for item in self.hints.iter(&txn).map_err(failed)? {
            let (key, value) = item.map_err(failed)?;
            hinted += (key.len() + value.len()) as u64;
        }
        Ok(hinted)
    }

    pub(super) fn layout(&self, txn: &heed::RoTxn<'_>) -> Result<Option<v1::StorageLayout>, StoreError> {
        let Some(bytes) = self.state.get(txn, LAYOUT).map_err(failed)? else { return Ok(None) };
        let damaged = |_| StoreError::Damaged("the adopted layout cannot be read".to_owned());
        v1::StorageLayout::decode(bytes).map(Some).map_err(damaged)
    }

    pub(super) fn copied(&self, txn: &heed::RoTxn<'_>) -> Result<u64, StoreError> {
        let bytes = self.state.get(txn, COPIED).map_err(failed)?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    /// The last generation of the journal that LMDB has.
    pub(super) fn applied(&self, txn: &heed::RoTxn<'_>) -> Result<u64, StoreError> {
        let bytes = self.state.get(txn, APPLIED).map_err(failed)?;
        Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
    }

    pub(super) fn set_applied(&self, txn: &mut RwTxn<'_>, generation: u64) -> Result<(), heed::Error> {
        self.state.put(txn, APPLIED, &generation.to_be_bytes())
    }

    fn map_bytes(&self) -> u64 {
        self.env.info().map_size as u64
    }

    /// Room that values do not take.
    pub(super) fn reserve_bytes(&self) -> u64 {
        let map = self.map_bytes();
        (map / 8).clamp(RESERVE_BYTES_MIN, limits::STORAGE_RESERVE_BYTES_MAX).min(map / 2)
    }

    /// What the map has room for, the reserve included.
    pub(super) fn free_bytes(&self) -> Result<u64, StoreError> {
        let txn = self.env.read_txn().map_err(failed)?;
        let mut used = 0;
        for table in [&self.data, &self.hints, &self.state] {
            used += table.stat(&txn).map_err(failed)?.non_free_page_size() as u64;
        }
        Ok(self.map_bytes().saturating_sub(used))
    }

    /// What LMDB says of its environment. Asks the disk for little more than its first pages.
    pub(super) fn statistics(&self) -> Result<Statistics, StoreError> {
        let txn = self.env.read_txn().map_err(failed)?;
        let info = self.env.info();
        let mut statistics = Statistics {
            map_bytes: info.map_size as u64,
            readers: u64::from(info.number_of_readers),
            ..Statistics::default()
        };
        for (place, table) in [&self.data, &self.hints, &self.state].into_iter().enumerate() {
            let stat = table.stat(&txn).map_err(failed)?;
            statistics.used_bytes += stat.non_free_page_size() as u64;
            statistics.branch_pages += stat.branch_pages as u64;
            statistics.leaf_pages += stat.leaf_pages as u64;
            statistics.overflow_pages += stat.overflow_pages as u64;
            statistics.entries[place] = stat.entries as u64;
        }
        Ok(statistics)
    }

    /// Records that one transaction may change where there is nothing left but the reserve.
    pub(super) fn records_per_transaction(&self) -> usize {
        let records = self.reserve_bytes() / PAGE_BYTES / RESERVE_PER_RECORD;
        usize::try_from(records).unwrap_or(usize::MAX).max(RECORDS_PER_TRANSACTION_MIN)
    }

    /// As [`Self::apply`], in transactions that fit into the reserve.
    pub(super) fn apply_in_parts(&self, layer: &Layer, generation: u64) -> Result<(), StoreError> {
        let data = layer.data.iter().map(|(place, record)| (&self.data, &place[..], &record[..]));
        let hints = layer.hints.iter().map(|(key, value)| (&self.hints, &key[..], &value[..]));
        self.put_in_parts(data.chain(hints), generation, self.records_per_transaction())
    }

    /// Puts records, so many in a transaction, of which the last one notes the generation of the journal that is
    /// applied. When one fails, all of it is put again. Stops when somebody else has applied the generation meanwhile:
    /// older records must not come after newer ones.
    fn put_in_parts<'r>(
        &self,
        records: impl Iterator<Item = (&'r Table, &'r [u8], &'r [u8])>,
        generation: u64,
        at_once: usize,
    ) -> Result<(), StoreError> {
        let mut records = records.peekable();
        loop {
            let mut txn = self.env.write_txn().map_err(failed)?;
            if self.applied(&txn)? >= generation {
                return Ok(());
            }
            for (table, key, value) in records.by_ref().take(at_once) {
                table.put(&mut txn, key, value).map_err(failed)?;
            }
            let last = records.peek().is_none();
            if last {
                self.set_applied(&mut txn, generation).map_err(failed)?;
            }
            txn.commit().map_err(failed)?;
            if last {
                return Ok(());
            }
        }
    }

    /// Puts what was in memory. It is newer than what is here.
    pub(super) fn apply(&self, txn: &mut RwTxn<'_>, layer: &Layer) -> Result<(), heed::Error> {
        for (place, record) in &layer.data {
            self.data.put(txn, place, record)?;
        }
        for (key, value) in &layer.hints {
            self.hints.put(txn, key, value)?;
        }
        Ok(())
    }

    /// Opens the journal, and brings what only that has into LMDB.
    pub(super) fn recover(&self, folder: &Path) -> Result<Journal, StoreError> {
        let cannot =
            |error: std::io::Error| StoreError::Failed(format!("the journal cannot be read: {error}"));
        let applied = self.applied(&*self.env.read_txn().map_err(failed)?)?;
        let (journal, found) = Journal::open(folder, applied).map_err(cannot)?;
        let generation = journal.generation() - 1;
        let records = || found.iter().map(|(place, record)| (&self.data, &place[..], &record[..]));
        match self.put_in_parts(records(), generation, usize::MAX) {
            Err(StoreError::Full) => {
                self.put_in_parts(records(), generation, self.records_per_transaction())?;
            }
            done => done?,
        }
        Ok(journal)
    }

    pub(super) fn is_lacking(&self, txn: &heed::RoTxn<'_>) -> Result<bool, StoreError> {
        Ok(self.state.get(txn, LACKING).map_err(failed)?.is_some())
    }

    pub(super) fn set_lacking(&self, txn: &mut RwTxn<'_>, lacking: bool) -> Result<(), heed::Error> {
        if lacking { self.state.put(txn, LACKING, &[]) } else { self.state.delete(txn, LACKING).map(drop) }
    }

    pub(super) fn set_layout(
        &self,
        txn: &mut RwTxn<'_>,
        layout: &v1::StorageLayout,
    ) -> Result<(), heed::Error> {
        self.state.put(txn, LAYOUT, &layout.encode_to_vec())
    }

    pub(super) fn set_copied(&self, txn: &mut RwTxn<'_>, version: u64) -> Result<(), heed::Error> {
        self.state.put(txn, COPIED, &version.to_be_bytes())
    }

    pub(super) fn set_collected(
        &self,
        txn: &mut RwTxn<'_>,
        partition: u16,
        clock: u64,
    ) -> Result<(), heed::Error> {
        self.state.put(txn, &partition_key(COLLECTED, partition), &clock.to_be_bytes())
    }

    pub(super) fn set_fenced(
        &self,
        txn: &mut RwTxn<'_>,
        partition: u16,
        clock: u64,
    ) -> Result<(), heed::Error> {
        self.state.put(txn, &partition_key(FENCED, partition), &clock.to_be_bytes())
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.env.real_disk_size().unwrap_or(0)
    }
}

fn partition_key(kind: u8, partition: u16) -> [u8; 3] {
    let [high, low] = partition.to_be_bytes();
    [kind, high, low]
}

/// The key of a hint: all hints of a node lie together.
pub(super) fn hint_key(target: u64, place: &[u8]) -> Vec<u8> {
    [&target.to_be_bytes(), place].concat()
}

/// Reads a hint: when it was kept, where its record belongs, and the record.
pub(super) fn parse_hint<'b>(key: &'b [u8], value: &'b [u8]) -> Option<(u64, &'b [u8], &'b [u8])> {
    let place = key.get(8..)?;
    let (kept_unix_ms, record) = value.split_at_checked(8)?;
    Some((u64::from_be_bytes(kept_unix_ms.try_into().ok()?), place, record))
}
