//! Connections that only read, and a bounded pool of them.
//!
//! Three walls keep a reader from writing: statements are classified before they run, the sandbox
//! refuses what reaches beyond the database, and the connection is `query_only`. A read ends when
//! the caller's `expired` says so; no clock is read here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::connection::{Connection, Place};
use crate::execute::{Ran, run_read};
use crate::registers::RegisterReads;
use crate::snapshot::{self, SnapshotInfo};
use crate::{
    EntryEnvironment, Fault, LeasePage, LeaseQuery, Options, Register, RegisterPage, RegisterQuery,
    Statement, StatementOutcome, content_hash, environment, state,
};

/// What a read gave.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOutcome {
    /// Each statement's outcome, in order.
    pub outcomes: Vec<StatementOutcome>,
    /// The log index up to which the data read was applied.
    pub applied_index: u64,
}

/// A connection that only reads.
#[derive(Debug)]
pub struct Reader {
    // Its statements are finalised before the connection closes: the order of fields matters.
    registers: Option<RegisterReads>,
    connection: Connection,
    options: Options,
}

impl Reader {
    /// Opens the database of an existing [`crate::Writer`].
    ///
    /// # Errors
    /// A fault when the file cannot be opened or is not one of ours.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, Fault> {
        let path = path.as_ref();
        if !path.exists() {
            return Err(Fault::Unusable { path: path.into(), reason: "it does not exist".to_owned() });
        }
        let connection = Connection::open(Place::File(path), &options)?;
        if !state::exists(&connection)? {
            return Err(Fault::Unusable { path: path.into(), reason: "it has no bookkeeping".to_owned() });
        }
        // A reader that closes last must not write, so the log is left to the writer.
        connection.keep_wal_on_close()?;
        connection.internal_batch("making the connection read-only", "PRAGMA query_only = ON")?;
        Ok(Self { registers: None, connection, options })
    }

    /// Runs statements that read, all on the same state of the database.
    ///
    /// # Errors
    /// A fault of this machine. What is wrong with a statement is in its outcome.
    pub fn query(
        &mut self,
        statements: &[Statement],
        environment: &EntryEnvironment,
        expired: &dyn Fn() -> bool,
    ) -> Result<ReadOutcome, Fault> {
        environment::install(environment.unix_ms, environment.seed);
        let options = &self.options;
        self.connection.internal_batch("beginning a read", "BEGIN")?;
        let read = self.connection.with_deadline(expired, |connection| {
            let mut outcomes = Vec::with_capacity(statements.len());
            for statement in statements {
                match run_read(connection, statement, options) {
                    Ran::Done(outcome) => outcomes.push(outcome),
                    Ran::Fault(fault) => return Err(fault),
                    Ran::FalseAlarm => unreachable!("reads have deadlines, not budgets"),
                }
            }
            Ok(outcomes)
        });
        let applied = state::load(&self.connection);
        let ended = self.connection.internal_batch("ending a read", "COMMIT");
        let outcomes = read?;
        let applied_index = applied?.0.applied_index;
        ended?;
        Ok(ReadOutcome { outcomes, applied_index })
    }

    /// Reads a register.
    ///
    /// # Errors
    /// A fault.
    pub fn get_register(&mut self, key: &[u8]) -> Result<Option<Register>, Fault> {
        match self.registers()? {
            Some((registers, connection)) => registers.get(connection, key),
            None => Ok(None),
        }
    }

    /// Reads registers, all on the same state of the database.
    ///
    /// # Errors
    /// A fault.
    pub fn list_registers(&mut self, query: &RegisterQuery) -> Result<RegisterPage, Fault> {
        match self.registers()? {
            Some((registers, connection)) => registers.list(connection, query),
            None => Ok(RegisterPage::default()),
        }
    }

    /// Reads leases, all on the same state of the database.
    ///
    /// # Errors
    /// A fault.
    pub fn list_leases(&mut self, query: LeaseQuery) -> Result<LeasePage, Fault> {
        match self.registers()? {
            Some((registers, connection)) => registers.leases(connection, query),
            None => Ok(LeasePage::default()),
        }
    }

    /// `None` while the database has no registers.
    fn registers(&mut self) -> Result<Option<(&mut RegisterReads, &Connection)>, Fault> {
        if self.registers.is_none() {
            self.registers = RegisterReads::find(&self.connection)?;
        }
        Ok(self.registers.as_mut().map(|registers| (registers, &self.connection)))
    }

    /// The log index up to which the database is applied, as committed.
    ///
    /// # Errors
    /// A fault.
    pub fn applied_index(&mut self) -> Result<u64, Fault> {
        Ok(state::load(&self.connection)?.0.applied_index)
    }

    /// The hash of everything replicas agree on, and the log index it belongs to.
    ///
    /// # Errors
    /// A fault.
    pub fn content_hash(&mut self) -> Result<([u8; 32], u64), Fault> {
        self.connection.internal_batch("beginning a read", "BEGIN")?;
        let hashed = state::load(&self.connection).and_then(|(state, _)| {
            Ok((content_hash::content_hash(&self.connection, &state)?, state.applied_index))
        });
        let ended = self.connection.internal_batch("ending a read", "COMMIT");
        let hashed = hashed?;
        ended?;
        Ok(hashed)
    }

    /// Copies the database into a new file at `path`, synced; writes go on meanwhile.
    ///
    /// # Errors
    /// A fault; the file may be left behind.
    pub fn snapshot_to(&mut self, path: impl AsRef<Path>) -> Result<SnapshotInfo, Fault> {
        snapshot::copy(&self.connection, path.as_ref())
    }
}

/// Why there is no reader.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// All readers are in use.
    #[error("all {0} readers of the database are in use; try again later")]
    Busy(usize),
    /// A reader could not be opened.
    #[error(transparent)]
    Fault(#[from] Fault),
}

#[derive(Debug, Default)]
struct Pooled {
    idle: Vec<Reader>,
    in_use: usize,
}

#[derive(Debug)]
struct PoolShared {
    path: PathBuf,
    options: Options,
    readers_max: usize,
    pooled: Mutex<Pooled>,
}

/// Readers of one database file, opened as needed up to a limit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReaderPool(Arc<PoolShared>);

impl ReaderPool {
    /// A pool of at most `readers_max` readers.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, options: Options, readers_max: usize) -> Self {
        Self(Arc::new(PoolShared { path: path.into(), options, readers_max, pooled: Mutex::default() }))
    }

    /// A reader, returned to the pool when dropped. Never waits.
    ///
    /// # Errors
    /// [`PoolError::Busy`] when all are in use.
    pub fn take(&self) -> Result<PooledReader, PoolError> {
        let shared = &self.0;
        let idle = {
            let mut pooled = shared.pooled.lock().unwrap_or_else(PoisonError::into_inner);
            if pooled.in_use >= shared.readers_max {
                return Err(PoolError::Busy(shared.readers_max));
            }
            pooled.in_use += 1;
            pooled.idle.pop()
        };
        // From here on the place is given back when this is dropped.
        let mut place = PooledReader { pool: Arc::clone(shared), reader: idle };
        if place.reader.is_none() {
            place.reader = Some(Reader::open(&shared.path, shared.options.clone())?);
        }
        Ok(place)
    }
}

/// A reader out of a pool.
#[derive(Debug)]
pub struct PooledReader {
    pool: Arc<PoolShared>,
    reader: Option<Reader>,
}

impl std::ops::Deref for PooledReader {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader.as_ref().expect("present until dropped")
    }
}

impl std::ops::DerefMut for PooledReader {
    fn deref_mut(&mut self) -> &mut Reader {
        self.reader.as_mut().expect("present until dropped")
    }
}

impl Drop for PooledReader {
    fn drop(&mut self) {
        let mut pooled = self.pool.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        pooled.in_use -= 1;
        // A reader that panicked in a transaction is not used again.
        if let Some(reader) = self.reader.take()
            && reader.connection.is_autocommit()
        {
            pooled.idle.push(reader);
        }
    }
}
