//! Opening a folder: finds which segments count, folds their records, and cuts off a torn end.
//!
//! Every segment but the last must verify to its seal. In the last one, the first record that does
//! not verify is the torn end of an unacknowledged batch, unless a batch record lies behind it: that
//! one was written after everything before it was durable, so the record was damaged later.
//!
//! What is found counts as durable from now on, so the last batch is written and flushed again: its
//! bytes may have come from a page cache that a killed process, or a failed flush, has left behind.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use debros_proto::{GroupId, v1};
use openraft::type_config::alias::LeaderIdOf;
use prost::Message;

use super::error::LogError;
use super::group::State;
use super::index::{Location, Written};
use super::record::{self, BATCH_BYTES, HardState, Kind, Position, Record};
use super::segment::{self, DATA_START, Segment};
use super::spare::Spares;
use super::store::{Incarnation, begin_segment};
use super::writer;
use crate::raft::codec::{log_id_from_wire, vote_from_wire};
use crate::raft::types::TypeConfig;

/// Names the store. Written after the first segment, so where it is there is a log.
const STORE_FILE: &str = "store";
const STORE_MAGIC: [u8; 8] = *b"DBROSTOR";
const PAGE_BYTES: usize = 4096;

pub(super) struct Recovered {
    pub(super) incarnation: Incarnation,
    pub(super) groups: BTreeMap<GroupId, State>,
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    /// Where the last segment goes on.
    pub(super) offset: u64,
}

/// A segment's file with its content.
struct Loaded {
    segment: Segment,
    bytes: Bytes,
}

/// How far a segment verifies.
struct Scan {
    end: usize,
    last_batch: usize,
    sealed: bool,
    /// The oldest segment that its checkpoint needs, if the checkpoint is whole.
    oldest: Option<u64>,
}

pub(super) fn recover(folder: &Path, spares: &Spares) -> Result<Recovered, LogError> {
    create_folder(folder)?;
    let mut sequences = list(folder, spares)?;
    let store_path = folder.join(STORE_FILE);
    let Some(incarnation) = read_incarnation(&store_path)? else {
        discard_unfinished(folder, spares, &sequences, &store_path)?;
        return create(folder, spares, &store_path);
    };
    let (last, scan) = find_last(folder, spares, incarnation, &mut sequences)?;
    let newest = last.segment.sequence;
    let oldest = scan.oldest.expect("the last segment's checkpoint is whole");

    let mut replay = Replay::default();
    let mut segments = BTreeMap::new();
    for sequence in oldest..newest {
        if !sequences.remove(&sequence) {
            return Err(LogError::MissingSegment { path: segment::path(folder, sequence) });
        }
        let path = segment::path(folder, sequence);
        let loaded = load(folder, sequence, incarnation)?.ok_or_else(|| LogError::Corrupt {
            path,
            offset: 0,
            reason: "its header does not verify".to_owned(),
        })?;
        let scan = scan_segment(&loaded, &mut |offset, record| replay.fold(&loaded.segment, offset, record))?;
        if !scan.sealed {
            return Err(loaded
                .segment
                .damaged(scan.end as u64, "a record before the seal does not verify".into()));
        }
        segments.insert(sequence, Arc::new(loaded.segment));
    }
    scan_segment(&last, &mut |offset, record| replay.fold(&last.segment, offset, record))?;
    settle(&last, &scan)?;
    sequences.remove(&newest);
    for leftover in sequences {
        discard(folder, spares, leftover)?;
    }
    let groups = replay.finish(&last.segment)?;
    let mut recovered = Recovered { incarnation, groups, segments, offset: scan.end as u64 };
    recovered.segments.insert(newest, Arc::new(last.segment));
    if scan.sealed {
        begin_next(folder, spares, &mut recovered, oldest)?;
    }
    segment::sync_folder(folder)?;
    Ok(recovered)
}

/// Makes the folder. The one it is in may be new as well, and a process that was killed may have made
/// both without making their names durable.
fn create_folder(folder: &Path) -> Result<(), LogError> {
    std::fs::create_dir_all(folder).map_err(LogError::io("create folder", folder))?;
    let mut parents = folder.ancestors().skip(1).take(2).filter(|parent| !parent.as_os_str().is_empty());
    parents.try_for_each(segment::sync_folder)
}

/// The sequences of all segments; spare files are kept or removed on the way.
fn list(folder: &Path, spares: &Spares) -> Result<BTreeSet<u64>, LogError> {
    let mut sequences = BTreeSet::new();
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
        .map_err(LogError::io("list folder", folder))?;
    names.sort();
    for name in names.iter().filter_map(|name| name.to_str()) {
        if let Some(sequence) = segment::sequence(name) {
            sequences.insert(sequence);
        } else if Spares::is_spare(name) {
            let path = folder.join(name);
            let file = open_file(&path)?;
            spares.keep(&path, Some(file))?;
        }
    }
    Ok(sequences)
}

fn open_file(path: &Path) -> Result<File, LogError> {
    OpenOptions::new().read(true).write(true).open(path).map_err(LogError::io("open", path))
}

fn read_incarnation(path: &Path) -> Result<Option<Incarnation>, LogError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LogError::io("read", path)(error)),
    };
    let parsed = bytes.split_last_chunk::<4>().filter(|(body, checksum)| {
        body.len() == 24 && body[..8] == STORE_MAGIC && crc32c::crc32c(body).to_le_bytes() == **checksum
    });
    match parsed {
        Some((body, _)) => Ok(Some(Incarnation::from_bytes(body[8..24].try_into().expect("sixteen bytes")))),
        None => {
            let reason = "it does not name a log store".to_owned();
            Err(LogError::Corrupt { path: path.to_owned(), offset: 0, reason })
        }
    }
}

/// Without the store's file, the only segment there may be is the first one, from a creation that
/// did not come to its end, with nothing in it.
fn discard_unfinished(
    folder: &Path,
    spares: &Spares,
    sequences: &BTreeSet<u64>,
    store: &Path,
) -> Result<(), LogError> {
    let foreign = || LogError::Foreign {
        path: store.to_owned(),
        reason: "there are log segments, but the file that names their store is gone",
    };
    for sequence in sequences {
        let path = segment::path(folder, *sequence);
        let bytes = Bytes::from(std::fs::read(&path).map_err(LogError::io("read", &path))?);
        if let Some(header) = segment::parse_header(&bytes, *sequence) {
            let segment = Segment::new(folder, *sequence, open_file(&path)?, bytes.len() as u64, &header);
            let mut records = 0;
            let scan = scan_segment(&Loaded { segment, bytes }, &mut |_, _| {
                records += 1;
                Ok(())
            })?;
            if *sequence != 1 || records > 1 || scan.sealed {
                return Err(foreign());
            }
        } else if *sequence != 1 {
            return Err(foreign());
        }
        discard(folder, spares, *sequence)?;
    }
    Ok(())
}

fn create(folder: &Path, spares: &Spares, store: &Path) -> Result<Recovered, LogError> {
    let incarnation = Incarnation::mint();
    let mut checkpoint = writer::checkpoint(&[], 1);
    let (segment, offset) = begin_segment(folder, spares, (1, incarnation), &mut checkpoint, 0)?;

    let mut bytes = STORE_MAGIC.to_vec();
    bytes.extend_from_slice(incarnation.as_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    let unnamed = folder.join("store.new");
    std::fs::write(&unnamed, &bytes).map_err(LogError::io("write", &unnamed))?;
    open_file(&unnamed)?.sync_all().map_err(LogError::io("flush", &unnamed))?;
    std::fs::rename(&unnamed, store).map_err(LogError::io("rename", &unnamed))?;
    segment::sync_folder(folder)?;

    let segments = BTreeMap::from([(1, Arc::new(segment))]);
    Ok(Recovered { incarnation, groups: BTreeMap::new(), segments, offset })
}

/// The last segment that was begun completely. One that was not holds nothing yet: its predecessor
/// is sealed, and the writer begins anew.
fn find_last(
    folder: &Path,
    spares: &Spares,
    incarnation: Incarnation,
    sequences: &mut BTreeSet<u64>,
) -> Result<(Loaded, Scan), LogError> {
    let mut unfinished = None;
    loop {
        let Some(newest) = sequences.last().copied() else {
            let path = segment::path(folder, unfinished.unwrap_or(1));
            return Err(LogError::MissingSegment { path });
        };
        let found = match load(folder, newest, incarnation)? {
            Some(loaded) => Some((scan_segment(&loaded, &mut |_, _| Ok(()))?, loaded)),
            None => None,
        };
        match found {
            Some((scan, loaded)) if scan.oldest.is_some() => {
                if let Some(sequence) = unfinished {
                    if !scan.sealed || sequence != newest + 1 {
                        let reason = "it has a successor, but no seal".to_owned();
                        return Err(loaded.segment.damaged(scan.end as u64, reason));
                    }
                    discard(folder, spares, sequence)?;
                }
                return Ok((loaded, scan));
            }
            _ if unfinished.is_some() || newest == 1 => {
                let reason = "neither header nor checkpoint verify".to_owned();
                return Err(LogError::Corrupt { path: segment::path(folder, newest), offset: 0, reason });
            }
            _ => {
                unfinished = Some(newest);
                sequences.remove(&newest);
            }
        }
    }
}

fn discard(folder: &Path, spares: &Spares, sequence: u64) -> Result<(), LogError> {
    let path = segment::path(folder, sequence);
    let file = open_file(&path)?;
    spares.keep(&path, Some(file))
}

/// Reads a segment; nothing when no copy of its header verifies.
fn load(folder: &Path, sequence: u64, incarnation: Incarnation) -> Result<Option<Loaded>, LogError> {
    let path = segment::path(folder, sequence);
    let mut file = open_file(&path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(LogError::io("read", &path))?;
    let Some(header) = segment::parse_header(&bytes, sequence) else { return Ok(None) };
    if header.incarnation != *incarnation.as_bytes() {
        return Err(LogError::Foreign { path, reason: "it comes from another log store" });
    }
    let segment = Segment::new(folder, sequence, file, bytes.len() as u64, &header);
    Ok(Some(Loaded { segment, bytes: Bytes::from(bytes) }))
}

type Visit<'a> = dyn FnMut(usize, &Record) -> Result<(), LogError> + 'a;

/// Visits every record that verifies, up to the seal or to the first that does not.
fn scan_segment(Loaded { segment, bytes }: &Loaded, visit: &mut Visit<'_>) -> Result<Scan, LogError> {
    let start = usize::try_from(DATA_START).expect("two pages");
    let mut scan = Scan { end: start, last_batch: start, sealed: false, oldest: None };
    let mut batch_end = start;
    loop {
        let at = scan.end;
        if let Some(end) = record::parse_batch(bytes, at, segment.salt, segment.seed) {
            // Also within a batch: recovery has cut it off here once.
            (scan.last_batch, batch_end) = (at, end);
            scan.end = at + BATCH_BYTES;
        } else if at < batch_end
            && let Some(record) = record::parse(bytes, at, segment.seed)
            && record.kind != Kind::Batch
        {
            scan.end = record.end;
            if record.kind == Kind::Seal {
                scan.sealed = true;
                return Ok(scan);
            }
            if record.kind == Kind::CheckpointEnd {
                scan.oldest = record::number(&record.payload);
            }
            visit(at, &record)?;
        } else {
            break;
        }
    }
    match later_batch(bytes, scan.end, segment) {
        Some(_) => Err(segment.damaged(scan.end as u64, "a record does not verify, later ones do".into())),
        None => Ok(scan),
    }
}

/// A batch record behind a place where records end.
fn later_batch(bytes: &Bytes, end: usize, segment: &Segment) -> Option<usize> {
    // Most of a young segment is zeros; comparing pages skips them quickly.
    let rest = &bytes[end.min(bytes.len())..];
    let used = rest.chunks(PAGE_BYTES).rposition(|page| page != &[0; PAGE_BYTES][..page.len()])?;
    let used_end = bytes.len().min(end + (used + 1) * PAGE_BYTES);
    (end + 1..used_end).find(|at| record::parse_batch(bytes, *at, segment.salt, segment.seed).is_some())
}

/// Makes what was found in the last segment durable.
fn settle(Loaded { segment, bytes }: &Loaded, scan: &Scan) -> Result<(), LogError> {
    // The first batch was written together with the header.
    let first = scan.last_batch as u64 == DATA_START;
    let start = if first { 0 } else { scan.last_batch };
    segment
        .write(&bytes[start..scan.end], start as u64)
        .and_then(|()| segment.file.sync_data())
        .map_err(LogError::io("write", &segment.path))
}

/// The process ended between sealing a segment and beginning the next.
fn begin_next(
    folder: &Path,
    spares: &Spares,
    recovered: &mut Recovered,
    oldest: u64,
) -> Result<(), LogError> {
    let sequence = recovered.segments.keys().next_back().expect("one was found") + 1;
    let states = recovered.groups.iter().map(|(id, state)| (id.0, state.written.to_checkpoint()));
    let mut checkpoint = writer::checkpoint(&states.collect::<Vec<_>>(), oldest);
    let identity = (sequence, recovered.incarnation);
    let (segment, offset) = begin_segment(folder, spares, identity, &mut checkpoint, 0)?;
    recovered.segments.insert(sequence, Arc::new(segment));
    recovered.offset = offset;
    Ok(())
}

/// The fold of all records, in order.
#[derive(Default)]
struct Replay {
    groups: BTreeMap<u64, Written>,
    leaders: BTreeMap<u64, BTreeMap<u64, LeaderIdOf<TypeConfig>>>,
    /// Groups of the checkpoint that is being read.
    checkpointed: BTreeSet<u64>,
}

impl Replay {
    fn fold(&mut self, segment: &Segment, offset: usize, record: &Record) -> Result<(), LogError> {
        let bytes = u32::try_from(record.end - offset).expect("records are limited");
        let place = Location {
            segment: segment.sequence,
            offset: u32::try_from(offset).expect("segments are limited"),
            bytes,
        };
        let reason = format!("a {:?} record of group {} does not make sense here", record.kind, record.group);
        self.fold_record(place, record).ok_or_else(|| segment.damaged(offset as u64, reason))
    }

    /// Nothing when the record cannot be what the writer wrote.
    fn fold_record(&mut self, place: Location, record: &Record) -> Option<()> {
        let group = record.group;
        let payload = || record.payload.clone();
        match record.kind {
            Kind::Entry | Kind::Moved => return self.fold_entry(place, record),
            Kind::Vote => self.written(group).vote = Some(vote_from_wire(&v1::Vote::decode(payload()).ok()?)),
            Kind::NodeId => self.written(group).node_id = record::number(&record.payload)?,
            Kind::Committed => {
                let position = Position::decode(payload()).ok()?;
                self.written(group).committed = position.log_id.as_ref().map(log_id_from_wire);
            }
            Kind::TruncateAfter => self.written(group).truncate(record::number(&record.payload)?),
            Kind::Purge => {
                let position = Position::decode(payload()).ok()?;
                self.written(group).purge(log_id_from_wire(&position.log_id?));
            }
            Kind::Remove => {
                self.groups.remove(&group);
                self.leaders.remove(&group);
            }
            Kind::Checkpoint => {
                let state = HardState::decode(payload()).ok()?;
                self.checkpointed.insert(group);
                self.written(group).restore(&state);
            }
            Kind::CheckpointEnd => {
                let known = std::mem::take(&mut self.checkpointed);
                self.groups.retain(|group, _| known.contains(group));
            }
            Kind::Batch | Kind::Seal => return None,
        }
        Some(())
    }

    fn fold_entry(&mut self, place: Location, record: &Record) -> Option<()> {
        let log_id = log_id_from_wire(&v1::Entry::decode(record.payload.clone()).ok()?.log_id?);
        let written = self.written(record.group);
        let fits = match record.kind {
            Kind::Moved => written.moved(log_id.index, place),
            _ => written.entry(log_id.index, place),
        };
        self.leaders.entry(record.group).or_default().insert(log_id.index, log_id.leader_id);
        fits.then_some(())
    }

    fn written(&mut self, group: u64) -> &mut Written {
        self.groups.entry(group).or_default()
    }

    fn finish(mut self, last: &Segment) -> Result<BTreeMap<GroupId, State>, LogError> {
        let mut states = BTreeMap::new();
        for (group, mut written) in std::mem::take(&mut self.groups) {
            let missing = written.locations(0).find(|(_, location)| *location == Location::PROMISED);
            if let Some((index, _)) = missing {
                let reason = format!("entry {index} of group {group} is in no segment");
                return Err(last.damaged(0, reason));
            }
            let leaders = self.leaders.remove(&group).unwrap_or_default();
            let mut runs: VecDeque<(u64, LeaderIdOf<TypeConfig>)> = VecDeque::new();
            for (index, leader) in leaders.range(written.first()..written.next()) {
                if runs.back().is_none_or(|(_, known)| known != leader) {
                    runs.push_back((*index, *leader));
                }
            }
            written.clamp_committed(|index| leaders.get(&index).copied());
            states.insert(GroupId(group), State::recovered(written, runs));
        }
        Ok(states)
    }
}
