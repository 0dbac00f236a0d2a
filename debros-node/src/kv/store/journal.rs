//! The journal: where writes are made durable before they are acknowledged, one flush for all that wait.
//!
//! Two files take turns. Each holds the batches of one generation, which is in the checksum of every batch,
//! so that a file is written over from its beginning without being cleared, and grows by large steps: hardly a
//! flush has to wait for the file system's own books. A generation is written over once LMDB has what it holds,
//! on disk.
//!
//! ```text
//! batch: length u32, checksum u32 (CRC-32C of the rest), generation u64, writes
//! write: length of place u16, place, length of record u32, record
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Files that take turns: one is written while what the other holds goes into LMDB.
const FILES: u64 = 2;
const HEADER_BYTES: usize = 16;
/// A batch is never larger; what says that it is was damaged.
const BATCH_BYTES_MAX: usize = 1 << 30;
/// A file grows by so many zeros at a time. Only a flush after growth has to write the file's own books too.
const GROWTH_BYTES: usize = 256 << 10;
static GROWTH: [u8; GROWTH_BYTES] = [0; GROWTH_BYTES];

/// Writes on their way to the journal.
#[derive(Default)]
pub(super) struct JournalBatch {
    bytes: BytesMut,
}

impl JournalBatch {
    /// Adds a write.
    pub(super) fn add(&mut self, place: &[u8], record: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.put_bytes(0, HEADER_BYTES);
        }
        self.bytes.put_u16(u16::try_from(place.len()).expect("a place is shorter than 64 KiB"));
        self.bytes.put_slice(place);
        self.bytes.put_u32(u32::try_from(record.len()).expect("a record is shorter than 4 GiB"));
        self.bytes.put_slice(record);
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn seal(&mut self, generation: u64) {
        let length = (self.bytes.len() - HEADER_BYTES) as u32;
        self.bytes[8..16].copy_from_slice(&generation.to_be_bytes());
        let checksum = crc32c::crc32c(&self.bytes[8..]);
        self.bytes[..4].copy_from_slice(&length.to_be_bytes());
        self.bytes[4..8].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// A write that was found after a restart: its place and record.
pub(super) type Found = (Bytes, Bytes);

/// The journal, open for writing.
pub(super) struct Journal {
    files: [File; FILES as usize],
    lengths: [u64; FILES as usize],
    generation: u64,
    end: u64,
}

impl Journal {
    /// Opens the journal in a folder and gives the writes that LMDB does not have: those of generations
    /// after `applied`, in order. Once LMDB has them, everything before [`Self::generation`] is applied.
    pub(super) fn open(folder: &Path, applied: u64) -> io::Result<(Self, Vec<Found>)> {
        let open = |number: u64| {
            let path = folder.join(format!("journal-{number}"));
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
        };
        let files = [open(0)?, open(1)?];
        File::open(folder)?.sync_all()?;
        let mut generations = Vec::new();
        for file in &files {
            generations.extend(read_generation(file)?);
        }
        generations.sort_by_key(|(generation, _)| *generation);
        let last = generations.last().map_or(0, |(generation, _)| *generation).max(applied);
        let missing = generations.into_iter().filter(|(generation, _)| *generation > applied);
        let found = missing.flat_map(|(_, found)| found).collect();
        // Some generations may have begun and left only their later batches on disk. No number is given again,
        // so that none of these is taken for a part of a new one.
        let generation = last + 1 + FILES;
        let lengths = [files[0].metadata()?.len(), files[1].metadata()?.len()];
        Ok((Self { files, lengths, generation, end: 0 }, found))
    }

    /// The generation that is being written.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// How much the generation holds.
    pub(super) fn bytes(&self) -> u64 {
        self.end
    }

    fn turn_of_file(&self) -> usize {
        (self.generation % FILES) as usize
    }

    fn file(&self) -> &File {
        &self.files[self.turn_of_file()]
    }

    /// Writes a batch. It survives the end of the process from now on, and the loss of power from the next
    /// [`Self::flush`] on.
    pub(super) fn append(&mut self, mut batch: JournalBatch) -> io::Result<()> {
        if batch.bytes.len() > BATCH_BYTES_MAX {
            return Err(io::Error::other("a batch of more than BATCH_BYTES_MAX would not be found again"));
        }
        batch.seal(self.generation);
        let end = self.end + batch.bytes.len() as u64;
        self.file().write_all_at(&batch.bytes, self.end)?;
        self.end = end;
        self.grow_past(end);
        Ok(())
    }

    /// Keeps the file longer than what it holds. A disk without room for that may have room for the batches.
    fn grow_past(&mut self, end: u64) {
        let file = self.turn_of_file();
        if end > self.lengths[file] {
            self.lengths[file] = match self.files[file].write_all_at(&GROWTH, end) {
                Ok(()) => end + GROWTH_BYTES as u64,
                Err(_) => end,
            };
        }
    }

    /// Flushes what was written.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    /// Begins the next generation. What the one before the present one holds must be in LMDB.
    pub(super) fn turn(&mut self) {
        self.generation += 1;
        self.end = 0;
    }
}

/// The generation that a file begins with, and its writes up to the first batch that is not whole.
fn read_generation(file: &File) -> io::Result<Option<(u64, Vec<Found>)>> {
    let (mut first, mut found, mut at) = (None, Vec::new(), 0);
    while let Some((generation, batch)) = next_batch(file, &mut at)? {
        if *first.get_or_insert(generation) != generation {
            break;
        }
        let Some(writes) = read_batch(batch) else { break };
        found.extend(writes);
    }
    Ok(first.map(|generation| (generation, found)))
}

fn next_batch(file: &File, at: &mut u64) -> io::Result<Option<(u64, Bytes)>> {
    let left = file.metadata()?.len().saturating_sub(*at);
    if left < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut header = [0; 8];
    file.read_exact_at(&mut header, *at)?;
    let mut header = &header[..];
    let (length, checksum) = (header.get_u32() as usize, header.get_u32());
    if length == 0 || length > BATCH_BYTES_MAX || left < (HEADER_BYTES + length) as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; 8 + length];
    file.read_exact_at(&mut bytes, *at + 8)?;
    if crc32c::crc32c(&bytes) != checksum {
        return Ok(None);
    }
    *at += (HEADER_BYTES + length) as u64;
    let mut bytes = Bytes::from(bytes);
    let generation = bytes.get_u64();
    Ok(Some((generation, bytes)))
}

fn read_batch(mut batch: Bytes) -> Option<Vec<Found>> {
    let mut writes = Vec::new();
    while !batch.is_empty() {
        let place = take(&mut batch, 2)?;
        let record = take(&mut batch, 4)?;
        writes.push((place, record));
    }
    Some(writes)
}

/// Takes a part with its length, which has so many bytes, before it.
fn take(bytes: &mut Bytes, length_bytes: usize) -> Option<Bytes> {
    if bytes.len() < length_bytes {
        return None;
    }
    let length = usize::try_from(bytes.get_uint(length_bytes)).ok()?;
    (bytes.len() >= length).then(|| bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::{FILES, Journal, JournalBatch};

    fn batch(writes: &[(&str, &str)]) -> JournalBatch {
        let mut batch = JournalBatch::default();
        writes.iter().for_each(|(place, record)| batch.add(place.as_bytes(), record.as_bytes()));
        batch
    }

    fn found(folder: &std::path::Path, applied: u64) -> (Vec<(String, String)>, u64) {
        let (journal, found) = Journal::open(folder, applied).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let last = journal.generation() - 1 - FILES;
        (found.iter().map(|(place, record)| (text(place), text(record))).collect(), last)
    }

    #[test]
    fn what_was_written_is_found_until_it_is_applied() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, nothing) = Journal::open(folder.path(), 0).unwrap();
        assert!(nothing.is_empty());
        let generation = journal.generation();
        journal.append(batch(&[("a", "1"), ("b", "2")])).unwrap();
        journal.append(batch(&[("c", "3")])).unwrap();
        journal.turn();
        journal.append(batch(&[("a", "4")])).unwrap();
        let pair = |place: &str, record: &str| (place.to_owned(), record.to_owned());
        let all = [pair("a", "1"), pair("b", "2"), pair("c", "3"), pair("a", "4")];
        assert_eq!(found(folder.path(), generation - 1), (all.to_vec(), generation + 1));
        assert_eq!(found(folder.path(), generation), (vec![pair("a", "4")], generation + 1));
        assert_eq!(found(folder.path(), generation + 1), (vec![], generation + 1));
    }

    #[test]
    fn an_older_generation_behind_a_shorter_one_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        let first = journal.generation();
        for number in 0..10 {
            journal.append(batch(&[("old", &number.to_string())])).unwrap();
        }
        journal.turn();
        journal.turn();
        journal.append(batch(&[("new", "1")])).unwrap();
        assert_eq!(found(folder.path(), first + 1), (vec![("new".into(), "1".into())], first + 2));
    }

    #[test]
    fn what_is_left_of_a_generation_that_lost_its_beginning_is_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        for record in ["1", "2", "3"] {
            journal.append(batch(&[("a", record)])).unwrap();
        }
        // Power was lost before a flush, and of the first batch no page was written.
        journal.file().write_all_at(&[0; 16], 0).unwrap();
        let applied = journal.generation() - 1;
        let (mut journal, nothing) = Journal::open(folder.path(), applied).unwrap();
        assert!(nothing.is_empty());
        journal.append(batch(&[("a", "4")])).unwrap();
        let (writes, _) = found(folder.path(), applied);
        assert_eq!(writes, [("a".to_owned(), "4".to_owned())]);
    }

    #[test]
    fn a_torn_batch_ends_the_journal_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(folder.path(), 0).unwrap();
        journal.append(batch(&[("a", "whole")])).unwrap();
        let whole = journal.end;
        journal.append(batch(&[("b", "torn"), ("c", "torn")])).unwrap();
        let end = journal.end;
        let file = journal.file().try_clone().unwrap();
        for torn in whole..end {
            let mut byte = [0];
            file.read_exact_at(&mut byte, torn).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], torn).unwrap();
            let (writes, _) = found(folder.path(), 0);
            assert_eq!(writes, [("a".to_owned(), "whole".to_owned())], "torn at {torn}");
            file.write_all_at(&byte, torn).unwrap();
        }
    }
}
