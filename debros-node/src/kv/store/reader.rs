//! Reading from snapshots of the store: points, ranges, hints.

use std::ops::Bound;
use std::sync::RwLockReadGuard;

use bytes::Bytes;
use debros_proto::{NodeId, v1};
use heed::{RoTxn, WithoutTls};
use tokio::sync::watch;

use super::layers::{Layers, SharedLayers};
use super::tables::{Tables, failed, hint_key, parse_hint};
use super::{StoreError, damaged, decode};
use crate::kv::record::{Entry, Place, Record, place};
use crate::kv::tree::{Tree, leaf_of};

/// A piece of reading; it gets the snapshot, or why there is none.
pub(super) type ReadJob = Box<dyn FnOnce(Result<&Snapshot<'_>, StoreError>) + Send>;

/// A place and the record there.
type Stored<'s> = (&'s [u8], &'s [u8]);

/// What the reader's thread owns.
pub(super) struct Reader {
    pub(super) tables: Tables,
    pub(super) layers: SharedLayers,
    pub(super) fail: watch::Sender<Option<StoreError>>,
}

impl Drop for Reader {
    /// As for the writer.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail.send_replace(Some(StoreError::Failed("its reader panicked".to_owned())));
        }
    }
}

/// Serves everything that waits from one snapshot.
pub(super) fn serve(reader: &mut Reader, jobs: &mut Vec<ReadJob>) -> bool {
    match Snapshot::new(reader) {
        Ok(snapshot) => jobs.drain(..).for_each(|job| job(Ok(&snapshot))),
        Err(error) => jobs.drain(..).for_each(|job| job(Err(error.clone()))),
    }
    true
}

/// The store at one moment: what is in memory, and LMDB below it.
pub(in crate::kv) struct Snapshot<'t> {
    tables: &'t Tables,
    layers: RwLockReadGuard<'t, Layers>,
    txn: RoTxn<'t, WithoutTls>,
}

/// One partition at one moment; may be kept and sent.
pub(super) struct KeptPartition {
    tables: Tables,
    partition: u16,
    memory: Layers,
    txn: RoTxn<'static, WithoutTls>,
}

impl KeptPartition {
    /// First the memory, as for [`Snapshot::over`].
    pub(super) fn new(tables: &Tables, layers: &SharedLayers, partition: u16) -> Result<Self, StoreError> {
        let memory = layers.read().part(&partition.to_be_bytes());
        let txn = tables.env.clone().static_read_txn().map_err(failed)?;
        Ok(Self { tables: tables.clone(), partition, memory, txn })
    }

    /// Counts its tree.
    pub(super) fn tree(&self) -> Result<Tree, StoreError> {
        let mut tree = Tree::default();
        let prefix = self.partition.to_be_bytes();
        for item in merged(&self.tables, &self.txn, &self.memory, Bound::Included(&prefix))? {
            let (key, value) = item?;
            if !key.starts_with(&prefix) {
                break;
            }
            tree.add(key, value);
        }
        Ok(tree)
    }
}

/// Everything from a place on, in memory and in LMDB, in order, the newest record of each place.
fn merged<'s, 'e>(
    tables: &Tables,
    txn: &'s RoTxn<'e>,
    memory: &'s Layers,
    first: Bound<&[u8]>,
) -> Result<impl Iterator<Item = Result<Stored<'s>, StoreError>> + use<'s, 'e>, StoreError> {
    let range = (first, Bound::Unbounded);
    let mut stored = tables.data.range(txn, &range).map_err(failed)?.peekable();
    let mut memory = memory.range(first).peekable();
    Ok(std::iter::from_fn(move || {
        let Some((newer, _)) = memory.peek() else {
            return stored.next().map(|item| item.map_err(failed));
        };
        match stored.peek() {
            Some(Ok((older, _))) if older < newer => {}
            Some(Ok((older, _))) => {
                if older == newer {
                    stored.next();
                }
                return memory.next().map(Ok);
            }
            Some(Err(_)) => {}
            None => return memory.next().map(Ok),
        }
        stored.next().map(|item| item.map_err(failed))
    }))
}

/// What a scan gives, and whether it saw everything that it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::kv) struct Scanned {
    /// In the order of their places, tombstones included.
    pub(in crate::kv) entries: Vec<Entry>,
    /// Nothing comes after the entries.
    pub(in crate::kv) complete: bool,
    /// The last place that was looked at.
    pub(in crate::kv) scanned_to: Bytes,
}

/// How much a scan may give.
#[derive(Clone, Copy, Debug)]
pub(in crate::kv) struct ScanLimits {
    pub(in crate::kv) entries: usize,
    /// Of keys and values; one entry is given even if it is larger.
    pub(in crate::kv) bytes: usize,
    pub(in crate::kv) with_values: bool,
}

impl<'t> Snapshot<'t> {
    fn new(reader: &'t Reader) -> Result<Self, StoreError> {
        Self::over(&reader.tables, reader.layers.read())
    }

    /// First the memory: what goes from there into LMDB meanwhile is seen in both.
    pub(super) fn over(tables: &'t Tables, layers: RwLockReadGuard<'t, Layers>) -> Result<Self, StoreError> {
        let txn = tables.env.read_txn().map_err(failed)?;
        Ok(Self { tables, layers, txn })
    }

    /// What is kept of a key.
    pub(in crate::kv) fn get(&self, place: &Place, with_value: bool) -> Result<Option<Record>, StoreError> {
        if let Some(bytes) = self.layers.get(place.as_bytes()) {
            let record = if with_value { Record::shared(bytes) } else { Record::header(bytes) };
            return record.map(Some).ok_or_else(|| damaged(place.as_bytes()));
        }
        let Some(bytes) = self.tables.data.get(&self.txn, place.as_bytes()).map_err(failed)? else {
            return Ok(None);
        };
        let record = if with_value { Record::from_bytes(bytes) } else { Record::header(bytes) };
        record.map(Some).ok_or_else(|| damaged(place.as_bytes()))
    }

    /// Everything from a place on, in order, the newest record of each.
    fn from<'s>(
        &'s self,
        first: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Result<Stored<'s>, StoreError>> + use<'s, 't>, StoreError> {
        merged(self.tables, &self.txn, &self.layers, first)
    }

    /// The entries of a namespace in a partition whose keys have a prefix and come after a key.
    pub(in crate::kv) fn scan(
        &self,
        partition: u16,
        namespace: &str,
        prefix: &str,
        after: &str,
        limits: ScanLimits,
    ) -> Result<Scanned, StoreError> {
        let prefix = place(partition, namespace, prefix.as_bytes());
        let after = place(partition, namespace, after.as_bytes());
        // The empty key does not exist, so that "after" it is everything.
        self.range(&prefix, &after, limits, |_| true)
    }

    /// The entries of a partition after a place, in all namespaces; only those of some leaves when any are named.
    pub(in crate::kv) fn partition(
        &self,
        partition: u16,
        after: &[u8],
        leaves: &[usize],
        limits: ScanLimits,
    ) -> Result<Scanned, StoreError> {
        let wanted = |place: &[u8]| leaves.is_empty() || leaves.contains(&leaf_of(place));
        self.range(&partition.to_be_bytes(), after, limits, wanted)
    }

    fn range(
        &self,
        prefix: &[u8],
        after: &[u8],
        limits: ScanLimits,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Scanned, StoreError> {
        let first = if after >= prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let mut scanned = Scanned { complete: true, ..Default::default() };
        let (mut bytes, mut last): (usize, &[u8]) = (0, after);
        for item in self.from(first)? {
            let (key, value) = item?;
            if !key.starts_with(prefix) {
                break;
            }
            if scanned.entries.len() >= limits.entries || bytes >= limits.bytes {
                scanned.complete = false;
                break;
            }
            last = key;
            if !wanted(key) {
                continue;
            }
            let parts = Place::parse(key).ok_or_else(|| damaged(key))?;
            let record = if limits.with_values { Some(decode(key, value)?) } else { Record::header(value) };
            let record = record.ok_or_else(|| damaged(key))?;
            bytes += key.len() + record.value.len();
            scanned.entries.push(Entry {
                partition: parts.partition,
                namespace: parts.namespace.to_owned(),
                key: parts.key.to_owned(),
                record,
            });
        }
        scanned.scanned_to = Bytes::copy_from_slice(last);
        Ok(scanned)
    }

    /// Counts the tree of what is at or below a clock in a partition.
    pub(in crate::kv) fn tree_up_to(&self, partition: u16, clock: u64) -> Result<Tree, StoreError> {
        let mut tree = Tree::default();
        let prefix = partition.to_be_bytes();
        for item in self.from(Bound::Included(&prefix))? {
            let (key, value) = item?;
            if !key.starts_with(&prefix) {
                break;
            }
            if Record::header(value).ok_or_else(|| damaged(key))?.version.clock <= clock {
                tree.add(key, value);
            }
        }
        Ok(tree)
    }

    /// Places that collecting up to a clock drops, at most so many after a place; and where it got to,
    /// `None` at the end.
    pub(in crate::kv) fn collectable(
        &self,
        partition: u16,
        clock: u64,
        after: &[u8],
        looked_at_max: usize,
    ) -> Result<(Vec<Place>, Option<Bytes>), StoreError> {
        let limits = ScanLimits { entries: looked_at_max, bytes: usize::MAX, with_values: false };
        let scanned = self.partition(partition, after, &[], limits)?;
        let dropped = scanned.entries.iter().filter(|entry| entry.record.is_collected_by(clock));
        let dropped = dropped.map(Entry::place).collect();
        Ok((dropped, (!scanned.complete).then_some(scanned.scanned_to)))
    }

    /// Whether anything is kept of a partition.
    pub(in crate::kv) fn is_empty(&self, partition: u16) -> Result<bool, StoreError> {
        let prefix = partition.to_be_bytes();
        let first = self.from(Bound::Included(&prefix))?.next().transpose()?;
        Ok(first.is_none_or(|(place, _)| !place.starts_with(&prefix)))
    }

    /// Hints for a node, the first so many of at most so many bytes: when each was kept, and what it says.
    /// One is given even if it is larger.
    pub(in crate::kv) fn hints(
        &self,
        target: NodeId,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Entry)>, StoreError> {
        let prefix = hint_key(target.0, &[]);
        let (mut hints, mut bytes) = (Vec::new(), 0);
        for item in self.tables.hints.prefix_iter(&self.txn, &prefix).map_err(failed)?.take(entries_max) {
            let (key, value) = item.map_err(failed)?;
            bytes += key.len() + value.len();
            if bytes > bytes_max && !hints.is_empty() {
                break;
            }
            let (kept_unix_ms, place, record) = parse_hint(key, value).ok_or_else(|| damaged(key))?;
            let parts = Place::parse(place).ok_or_else(|| damaged(key))?;
            let entry = Entry {
                partition: parts.partition,
                namespace: parts.namespace.to_owned(),
                key: parts.key.to_owned(),
                record: decode(place, record)?,
            };
            hints.push((kept_unix_ms, entry));
        }
        Ok(hints)
    }

    /// The nodes for which there are hints.
    pub(in crate::kv) fn hinted_nodes(&self) -> Result<Vec<NodeId>, StoreError> {
        let mut nodes = Vec::new();
        let mut from = 0u64;
        loop {
            let first = from.to_be_bytes();
            let next = self.tables.hints.get_greater_than_or_equal_to(&self.txn, &first).map_err(failed)?;
            let Some((key, _)) = next else { return Ok(nodes) };
            let node: [u8; 8] =
                key.get(..8).and_then(|node| node.try_into().ok()).ok_or_else(|| damaged(key))?;
            let node = u64::from_be_bytes(node);
            nodes.push(NodeId(node));
            let Some(following) = node.checked_add(1) else { return Ok(nodes) };
            from = following;
        }
    }

    pub(super) fn layout(&self) -> Result<Option<v1::StorageLayout>, StoreError> {
        self.tables.layout(&self.txn)
    }

    pub(super) fn copied(&self) -> Result<u64, StoreError> {
        self.tables.copied(&self.txn)
    }
}
