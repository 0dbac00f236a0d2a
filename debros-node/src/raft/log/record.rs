//! The bytes of a record: framing, checksums, and what each kind holds.
//!
//! A record is `body length (u32) | checksum (u32) | kind (u8) | group (u64) | payload`, little
//! endian. The checksum is CRC-32C over length and body, XORed with the segment's seed: whoever
//! appends computes the checksum on his own thread without knowing the segment, and a record that a
//! reused file still holds from its former life does not verify.
//!
//! A batch is what one `fdatasync` makes durable. It begins with a [`Kind::Batch`] record that
//! repeats the segment's salt, its own offset and the batch's length. A batch record is proof that
//! all bytes before it are durable, because the writer writes no batch before the last is flushed.

use bytes::Bytes;
use debros_proto::{limits, v1};
use prost::Message;

/// Length and checksum.
pub(super) const HEADER_BYTES: usize = 8;
/// Kind and group.
const BODY_FIXED_BYTES: usize = 9;
/// What a record adds to its payload.
pub(super) const OVERHEAD_BYTES: usize = HEADER_BYTES + BODY_FIXED_BYTES;
/// A batch record: salt, offset, length.
pub(super) const BATCH_BYTES: usize = OVERHEAD_BYTES + 24;
/// The longest body that is believed.
const BODY_BYTES_MAX: usize = BODY_FIXED_BYTES + limits::LOG_ENTRY_BYTES_MAX;

/// What a record holds. The numbers are on disk: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The begin of a batch.
    Batch = 1,
    /// A [`v1::Entry`] at the end of the group's log.
    Entry = 2,
    /// A copy of an entry the log has, so that the segment of the first one can go.
    Moved = 3,
    /// A [`v1::Vote`].
    Vote = 4,
    /// The Raft node id of this group's log, u64.
    NodeId = 5,
    /// A [`Position`]: what is committed.
    Committed = 6,
    /// The log ends before this index, u64.
    TruncateAfter = 7,
    /// A [`Position`]: everything up to it is gone.
    Purge = 8,
    /// The group is gone.
    Remove = 9,
    /// A [`HardState`], at the head of a segment.
    Checkpoint = 10,
    /// All groups have been told; segments before this sequence, u64, are not needed.
    CheckpointEnd = 11,
    /// The segment is full; the next one continues.
    Seal = 12,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Batch,
            2 => Self::Entry,
            3 => Self::Moved,
            4 => Self::Vote,
            5 => Self::NodeId,
            6 => Self::Committed,
            7 => Self::TruncateAfter,
            8 => Self::Purge,
            9 => Self::Remove,
            10 => Self::Checkpoint,
            11 => Self::CheckpointEnd,
            12 => Self::Seal,
            _ => return None,
        })
    }
}

/// An optional log id: a bare one that is all zero would be no bytes at all.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Position {
    #[prost(message, optional, tag = "1")]
    pub(super) log_id: Option<v1::LogId>,
}

/// Everything of a group but its entries. Its live entries are `first..next`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HardState {
    #[prost(uint64, tag = "1")]
    pub(super) node_id: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) vote: Option<v1::Vote>,
    #[prost(message, optional, tag = "3")]
    pub(super) committed: Option<v1::LogId>,
    #[prost(message, optional, tag = "4")]
    pub(super) purged: Option<v1::LogId>,
    #[prost(uint64, tag = "5")]
    pub(super) first: u64,
    #[prost(uint64, tag = "6")]
    pub(super) next: u64,
}

/// A record that verified.
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) group: u64,
    pub(super) payload: Bytes,
    /// Where the next record begins.
    pub(super) end: usize,
}

/// Appends a record whose payload is a message; its checksum is not seeded yet.
pub(super) fn push_message(buffer: &mut Vec<u8>, kind: Kind, group: u64, message: &impl Message) {
    let start = begin(buffer, kind, group);
    message.encode(buffer).expect("a Vec grows");
    finish(buffer, start);
}

/// Appends a record whose payload is numbers; its checksum is not seeded yet.
pub(super) fn push_numbers(buffer: &mut Vec<u8>, kind: Kind, group: u64, numbers: &[u64]) {
    let start = begin(buffer, kind, group);
    for number in numbers {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
    finish(buffer, start);
}

/// Appends a record with this payload; its checksum is not seeded yet.
pub(super) fn push_payload(buffer: &mut Vec<u8>, kind: Kind, group: u64, payload: &[u8]) {
    let start = begin(buffer, kind, group);
    buffer.extend_from_slice(payload);
    finish(buffer, start);
}

fn begin(buffer: &mut Vec<u8>, kind: Kind, group: u64) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER_BYTES]);
    buffer.push(kind as u8);
    buffer.extend_from_slice(&group.to_le_bytes());
    start
}

fn finish(buffer: &mut [u8], start: usize) {
    let length = u32::try_from(buffer.len() - start - HEADER_BYTES).expect("records are limited");
    buffer[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(length, &buffer[start + HEADER_BYTES..]);
    buffer[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// Overwrites the batch record at the begin of `batch` and seeds every record's checksum. Gives how
/// many records there are, the batch record included.
pub(super) fn seal_batch(batch: &mut [u8], salt: u64, seed: u32, offset: u64) -> u64 {
    let mut head = Vec::with_capacity(BATCH_BYTES);
    push_numbers(&mut head, Kind::Batch, 0, &[salt, offset, batch.len() as u64]);
    batch[..BATCH_BYTES].copy_from_slice(&head);
    let (mut at, mut records) = (0, 0);
    while at < batch.len() {
        let seeded = read_u32(batch, at + 4) ^ seed;
        batch[at + 4..at + 8].copy_from_slice(&seeded.to_le_bytes());
        at += record_bytes(batch, at);
        records += 1;
    }
    records
}

/// The size of the record that begins at `at`, which must be one that we wrote.
pub(super) fn record_bytes(buffer: &[u8], at: usize) -> usize {
    HEADER_BYTES + read_u32(buffer, at) as usize
}

/// The record at `at`, if it verifies.
pub(super) fn parse(bytes: &Bytes, at: usize, seed: u32) -> Option<Record> {
    let header = bytes.get(at..at.checked_add(HEADER_BYTES)?)?;
    let (length, stored) = (read_u32(header, 0), read_u32(header, 4));
    if !(BODY_FIXED_BYTES..=BODY_BYTES_MAX).contains(&(length as usize)) {
        return None;
    }
    let start = at + HEADER_BYTES;
    let end = start + length as usize;
    let body = bytes.get(start..end)?;
    let kind = Kind::from_byte(body[0])?;
    if checksum(length, body) ^ seed != stored {
        return None;
    }
    let group = read_u64(body, 1);
    Some(Record { kind, group, payload: bytes.slice(start + BODY_FIXED_BYTES..end), end })
}

/// The batch record at `at`: where its batch ends.
pub(super) fn parse_batch(bytes: &Bytes, at: usize, salt: u64, seed: u32) -> Option<usize> {
    // Cheap first: recovery tries this at every byte.
    let head = bytes.get(at..at + BATCH_BYTES)?;
    if read_u32(head, 0) as usize != BATCH_BYTES - HEADER_BYTES || read_u64(head, OVERHEAD_BYTES) != salt {
        return None;
    }
    let record = parse(bytes, at, seed).filter(|record| record.kind == Kind::Batch)?;
    let (offset, length) = (read_u64(&record.payload, 8), read_u64(&record.payload, 16));
    (offset == at as u64).then(|| at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX)))
}

/// The number a payload is.
pub(super) fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

fn checksum(length: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), body)
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
