//! Reading entries back from segments: neighbours with one `pread`, every record verified.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use debros_proto::{GroupId, v1};
use prost::Message;

use super::error::LogError;
use super::index::Location;
use super::record::{self, Kind, Record};
use super::segment::Segment;
use crate::raft::codec::entry_from_wire;
use crate::raft::types::Entry;

/// One read covers at most this much of a segment.
const SPAN_BYTES_MAX: u64 = 1 << 20;
/// Records of other groups between two of ours are read along up to this size: cheaper than a
/// second system call.
const GAP_BYTES_MAX: u64 = 16 << 10;

/// Reads the entries of consecutive indexes, from `start` on.
pub(super) fn read_entries(
    segments: &BTreeMap<u64, Arc<Segment>>,
    group: GroupId,
    start: u64,
    locations: &[Location],
) -> Result<Vec<Entry>, LogError> {
    let mut entries = Vec::with_capacity(locations.len());
    for span in locations.chunk_by(is_near).flat_map(split) {
        let segment = &segments[&span[0].segment];
        let begin = u64::from(span[0].offset);
        let last = span[span.len() - 1];
        let bytes = segment.read(begin, u64::from(last.offset) + u64::from(last.bytes) - begin)?;
        for location in span {
            let record = segment.parse(&bytes, u64::from(location.offset), begin)?;
            let index = start + entries.len() as u64;
            entries.push(decode(segment, &record, u64::from(location.offset), (group, index))?);
        }
    }
    Ok(entries)
}

fn is_near(one: &Location, next: &Location) -> bool {
    let end = u64::from(one.offset) + u64::from(one.bytes);
    let next_start = u64::from(next.offset);
    one.segment == next.segment && next_start >= end && next_start - end <= GAP_BYTES_MAX
}

/// Cuts a run of near locations into spans of a limited size.
fn split(mut run: &[Location]) -> Vec<&[Location]> {
    let mut spans = Vec::new();
    while let Some(first) = run.first() {
        let begin = u64::from(first.offset);
        let fits = |location: &Location| {
            u64::from(location.offset) + u64::from(location.bytes) - begin <= SPAN_BYTES_MAX
        };
        let count = run.iter().take_while(|location| fits(location)).count().max(1);
        let (span, rest) = run.split_at(count);
        spans.push(span);
        run = rest;
    }
    spans
}

fn decode(
    segment: &Segment,
    record: &Record,
    offset: u64,
    (group, index): (GroupId, u64),
) -> Result<Entry, LogError> {
    let is_entry = matches!(record.kind, Kind::Entry | Kind::Moved) && record.group == group.0;
    let entry = is_entry
        .then(|| v1::Entry::decode(record.payload.clone()).ok())
        .flatten()
        .and_then(|entry| entry_from_wire(entry).ok())
        .filter(|entry| entry.log_id.index == index);
    entry.ok_or_else(|| segment.damaged(offset, format!("it should hold entry {index} of group {group}")))
}

impl Segment {
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, LogError> {
        let mut buffer = vec![0; usize::try_from(bytes).expect("records are limited")];
        self.file.read_exact_at(&mut buffer, offset).map_err(LogError::io("read", &self.path))?;
        Ok(Bytes::from(buffer))
    }

    /// The record at a location.
    pub(super) fn read_record(&self, location: Location) -> Result<Record, LogError> {
        let offset = u64::from(location.offset);
        let bytes = self.read(offset, u64::from(location.bytes))?;
        self.parse(&bytes, offset, offset)
    }

    fn parse(&self, bytes: &Bytes, offset: u64, begin: u64) -> Result<Record, LogError> {
        let at = usize::try_from(offset - begin).expect("records are limited");
        record::parse(bytes, at, self.seed)
            .ok_or_else(|| self.damaged(offset, "the checksum does not fit".to_owned()))
    }

    pub(super) fn damaged(&self, offset: u64, reason: String) -> LogError {
        LogError::Corrupt { path: self.path.clone(), offset, reason }
    }
}
