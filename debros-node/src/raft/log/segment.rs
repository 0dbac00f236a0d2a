//! Segment files: names, headers, making and reusing them. Knows nothing of records.
//!
//! A segment's header says its sequence, the store it belongs to, and a random salt. It is written
//! twice, on different pages, and is durable before the first record is acknowledged: a segment none
//! of whose headers verifies holds nothing that anyone relies on, or is damaged twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::LogError;

/// Where records begin: after two pages, each with a copy of the header.
pub(super) const DATA_START: u64 = 2 * HEADER_PAGE_BYTES;
const HEADER_PAGE_BYTES: u64 = 4096;
const HEADER_BYTES: usize = 60;
const MAGIC: [u8; 8] = *b"DBROSLOG";
const VERSION: u32 = 1;
/// Zeros are written and flushed in pieces, so that the writer's flushes do not queue behind a
/// whole segment.
const ZEROS_BYTES: usize = 1 << 20;

/// An open segment.
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) salt: u64,
    /// Mixed into every record's checksum.
    pub(super) seed: u32,
    /// The size of the file.
    pub(super) bytes: u64,
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// What a header says.
pub(super) struct Header {
    pub(super) incarnation: [u8; 16],
    pub(super) salt: u64,
}

impl Segment {
    pub(super) fn new(folder: &Path, sequence: u64, file: File, bytes: u64, header: &Header) -> Self {
        let mut seed = crc32c::crc32c(&header.salt.to_le_bytes());
        seed = crc32c::crc32c_append(seed, &sequence.to_le_bytes());
        Self {
            sequence,
            salt: header.salt,
            seed: crc32c::crc32c_append(seed, &header.incarnation),
            bytes,
            file,
            path: path(folder, sequence),
        }
    }
}

/// The file of a segment.
pub(super) fn path(folder: &Path, sequence: u64) -> PathBuf {
    folder.join(format!("{sequence:020}.log"))
}

/// The sequence that a file's name says.
pub(super) fn sequence(name: &str) -> Option<u64> {
    name.strip_suffix(".log").filter(|digits| digits.len() == 20)?.parse().ok()
}

/// Writes both copies of the header; the caller flushes.
pub(super) fn write_header(file: &File, sequence: u64, header: &Header) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&header.salt.to_le_bytes());
    bytes.extend_from_slice(&header.incarnation);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    file.write_all_at(&bytes, 0)?;
    file.write_all_at(&bytes, HEADER_PAGE_BYTES)
}

/// The header of the segment that these bytes begin, if a copy of it verifies.
pub(super) fn parse_header(bytes: &[u8], sequence: u64) -> Option<Header> {
    [0, HEADER_PAGE_BYTES as usize]
        .into_iter()
        .find_map(|at| parse_copy(bytes.get(at..at + HEADER_BYTES)?, sequence))
}

fn parse_copy(bytes: &[u8], sequence: u64) -> Option<Header> {
    let (body, checksum) = bytes.split_at(HEADER_BYTES - 4);
    let fits = crc32c::crc32c(body).to_le_bytes() == checksum
        && body[..8] == MAGIC
        && body[8..12] == VERSION.to_le_bytes()
        && body[16..24] == sequence.to_le_bytes();
    fits.then(|| Header {
        salt: u64::from_le_bytes(body[24..32].try_into().expect("eight bytes")),
        incarnation: body[32..48].try_into().expect("sixteen bytes"),
    })
}

/// Makes a file of zeros that are really on disk, so that later writes into it change no metadata.
pub(super) fn create_zeroed(path: &Path, bytes: u64) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    let zeros = vec![0; ZEROS_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let piece = ZEROS_BYTES.min(usize::try_from(bytes - offset).unwrap_or(ZEROS_BYTES));
        file.write_all_at(&zeros[..piece], offset)?;
        file.sync_data()?;
        offset += piece as u64;
    }
    file.sync_all()?;
    Ok(file)
}

/// Makes names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), LogError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(LogError::io("flush folder", folder))
}
