//! The hidden row of bookkeeping: how far the log is applied, the log time, the replicated limits
//! and the caller's own bytes, in the same transaction as the data they describe.
//!
//! Invariant: writing it never allocates a page. Batches end at different entries on different
//! replicas; if the row grew and shrank with them, pages would be laid out differently, and the
//! limit on the database's size would strike at different entries. So it is a fixed number of
//! rows of fixed size, each filling a page of its own.

use crate::connection::Connection;
use crate::prepared::Prepared;
use crate::{Fault, LeaseTime, Value};

const FORMAT: u32 = 2;
/// Before there were numbers beside the first three.
const FORMAT_OF_THREE: u32 = 1;
/// Numbers of the row.
const NUMBERS: usize = 8;
const HEADER_BYTES: usize = 4 + 8 * NUMBERS + 4;
/// More than half of a page, so that each row has its own; less than what spills.
const ROW_BYTES: usize = 3000;
/// Room for the membership of a group with all its addresses.
const ROWS: usize = 8;
/// The most a caller may keep.
pub(crate) const BOOKKEEPING_BYTES_MAX: usize = ROW_BYTES * ROWS - HEADER_BYTES;

/// The numbers in the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct State {
    pub(crate) applied_index: u64,
    pub(crate) log_time_ms: u64,
    /// 0 means no limit.
    pub(crate) max_bytes: u64,
    /// Pages of the file when that limit was set, which may have been more than it allows.
    pub(crate) pages_then: u64,
    /// What is added to an index where a number must grow from one database of a name to the next.
    pub(crate) numbers_from: u64,
    pub(crate) lease_time: LeaseTime,
}

impl State {
    /// An index as it is told to those who keep it: sessions, leases, versions.
    pub(crate) fn number(&self, index: u64) -> u64 {
        self.numbers_from.saturating_add(index)
    }

    /// In the order of the row.
    fn numbers(&self) -> [u64; NUMBERS] {
        let Self { applied_index, log_time_ms, max_bytes, numbers_from, pages_then, lease_time } = *self;
        let LeaseTime { now_ms, clock, clock_ms } = lease_time;
        [applied_index, log_time_ms, max_bytes, numbers_from, pages_then, now_ms, clock, clock_ms]
    }

    fn of_numbers(numbers: [u64; NUMBERS]) -> Self {
        let [applied_index, log_time_ms, max_bytes, numbers_from, pages_then, now_ms, clock, clock_ms] =
            numbers;
        let lease_time = LeaseTime { now_ms, clock, clock_ms };
        Self { applied_index, log_time_ms, max_bytes, numbers_from, pages_then, lease_time }
    }
}

/// Creates the hidden tables and fills the row, in a fixed order, so that files begin alike.
pub(crate) const CREATE: &str = "
    CREATE TABLE _debros_state (part INTEGER PRIMARY KEY, data BLOB NOT NULL);
    CREATE TABLE _debros_session (
        id INTEGER PRIMARY KEY, expires_ms INTEGER NOT NULL, lifetime_ms INTEGER NOT NULL,
        forgotten INTEGER NOT NULL);
    CREATE INDEX _debros_session_by_expiry ON _debros_session (expires_ms, id);
    CREATE TABLE _debros_result (
        session INTEGER NOT NULL, sequence INTEGER NOT NULL, outcome BLOB,
        PRIMARY KEY (session, sequence)) WITHOUT ROWID;
    WITH RECURSIVE parts(part) AS (SELECT 0 UNION ALL SELECT part + 1 FROM parts WHERE part < 7)
    INSERT INTO _debros_state SELECT part, zeroblob(3000) FROM parts;
";

fn encode(state: &State, bookkeeping: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    if bookkeeping.len() > BOOKKEEPING_BYTES_MAX {
        return Err(Fault::BookkeepingTooLarge { bytes: bookkeeping.len(), max: BOOKKEEPING_BYTES_MAX });
    }
    out.clear();
    out.extend_from_slice(&FORMAT.to_le_bytes());
    state.numbers().iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    out.extend_from_slice(&(bookkeeping.len() as u32).to_le_bytes());
    out.extend_from_slice(bookkeeping);
    out.resize(ROW_BYTES * ROWS, 0);
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<(State, Vec<u8>), String> {
    let number = |from: usize, length: usize| -> u64 {
        let mut word = [0; 8];
        word[..length].copy_from_slice(&bytes[from..from + length]);
        u64::from_le_bytes(word)
    };
    if bytes.len() != ROW_BYTES * ROWS {
        return Err(format!("its bookkeeping has {} bytes instead of {}", bytes.len(), ROW_BYTES * ROWS));
    }
    let known = match number(0, 4) as u32 {
        // As created.
        0 => return Ok((State::default(), Vec::new())),
        FORMAT => NUMBERS,
        FORMAT_OF_THREE => 3,
        format => return Err(format!("its bookkeeping has format {format}, this version knows {FORMAT}")),
    };
    let header = 4 + 8 * known + 4;
    let length = number(header - 4, 4) as usize;
    let Some(bookkeeping) = bytes.get(header..header + length) else {
        return Err("its bookkeeping is cut short".to_owned());
    };
    let mut numbers = [0; NUMBERS];
    numbers[..known].iter_mut().enumerate().for_each(|(place, found)| *found = number(4 + 8 * place, 8));
    Ok((State::of_numbers(numbers), bookkeeping.to_vec()))
}

/// Reads the row, within the caller's transaction if there is one.
pub(crate) fn load(connection: &Connection) -> Result<(State, Vec<u8>), Fault> {
    let during = "reading the bookkeeping";
    let mut parts = connection.internal(during, "SELECT data FROM _debros_state ORDER BY part")?;
    let mut bytes = Vec::with_capacity(ROW_BYTES * ROWS);
    connection.run_internal(during, &mut parts, &[], |row| bytes.extend_from_slice(row.column_bytes(0)))?;
    decode(&bytes)
        .map_err(|reason| Fault::Unusable { path: connection.raw.path().unwrap_or_default().into(), reason })
}

/// Whether the hidden tables are there.
pub(crate) fn exists(connection: &Connection) -> Result<bool, Fault> {
    let during = "looking for the bookkeeping";
    let mut look = connection.internal(during, "SELECT 1 FROM sqlite_schema WHERE name = '_debros_state'")?;
    let mut found = false;
    connection.run_internal(during, &mut look, &[], |_| found = true)?;
    Ok(found)
}

/// Writes the row, only the parts that changed.
#[derive(Debug)]
pub(crate) struct StateWriter {
    update: Prepared,
    written: Vec<u8>,
    scratch: Vec<u8>,
}

impl StateWriter {
    /// For a row that holds `state` and `bookkeeping`.
    pub(crate) fn new(connection: &Connection) -> Result<Self, Fault> {
        let update = connection
            .internal("preparing bookkeeping", "UPDATE _debros_state SET data = ?2 WHERE part = ?1")?;
        Ok(Self { update, written: Vec::new(), scratch: Vec::new() })
    }

    /// Writes within the caller's transaction.
    pub(crate) fn write(
        &mut self,
        connection: &Connection,
        state: &State,
        bookkeeping: &[u8],
    ) -> Result<(), Fault> {
        encode(state, bookkeeping, &mut self.scratch)?;
        for (part, bytes) in self.scratch.chunks(ROW_BYTES).enumerate() {
            let range = part * ROW_BYTES..part * ROW_BYTES + bytes.len();
            if self.written.get(range) == Some(bytes) {
                continue;
            }
            let values = [Value::Integer(part as i64), Value::Blob(bytes.to_vec())];
            connection.run_internal("writing the bookkeeping", &mut self.update, &values, |_| ())?;
        }
        std::mem::swap(&mut self.written, &mut self.scratch);
        Ok(())
    }

    /// Forgets what was written: the transaction was rolled back.
    pub(crate) fn forget(&mut self) {
        self.written.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{FORMAT_OF_THREE, ROW_BYTES, ROWS, State, decode, encode};

    #[test]
    fn a_row_is_read_as_it_was_written_also_one_of_the_first_format() {
        let state = State::of_numbers(std::array::from_fn(|place| place as u64 + 7));
        let mut row = Vec::new();
        encode(&state, b"kept", &mut row).expect("it fits");
        assert_eq!(decode(&row), Ok((state, b"kept".to_vec())));
        let mut old = FORMAT_OF_THREE.to_le_bytes().to_vec();
        [9u64, 8, 7].iter().for_each(|number| old.extend_from_slice(&number.to_le_bytes()));
        old.extend_from_slice(&4u32.to_le_bytes());
        old.extend_from_slice(b"kept");
        old.resize(ROW_BYTES * ROWS, 0);
        let found = State { applied_index: 9, log_time_ms: 8, max_bytes: 7, ..State::default() };
        assert_eq!(decode(&old), Ok((found, b"kept".to_vec())));
        old[0] = 99;
        assert!(decode(&old).unwrap_err().contains("format 99"));
    }
}
