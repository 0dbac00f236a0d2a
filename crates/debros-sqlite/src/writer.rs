//! The one writer of a database: applies batches of entries.
//!
//! One transaction per batch with a savepoint per entry or statement. Some statements end the
//! whole transaction whatever the savepoints (`OR ROLLBACK`, `RAISE(ROLLBACK)`, a spent budget):
//! what they gave is remembered as a *loss*, the batch is run again, and the statement is not
//! executed the second time. So how entries are batched never shows in what they give.
//!
//! Invariant: outside of [`Writer::apply_batch`] no transaction is open, and the numbers in
//! `state` are those in the database.

use std::path::Path;

use crate::batch::{Attempt, Losses, Stop};
use crate::connection::{Connection, Place};
use crate::control::Control;
use crate::execute::run_read;
use crate::growth::Growth;
use crate::prepared::StatementCache;
use crate::registers::RegisterStore;
use crate::sessions::Sessions;
use crate::state::{self, State, StateWriter};
use crate::{
    AppliedEntry, Batch, BatchEntry, CacheAccesses, EntryEnvironment, EntryOutcome, Fault, LeasePage,
    LeaseQuery, LeaseTime, Options, Register, RegisterPage, RegisterQuery, SnapshotInfo, Statement,
    StatementOutcome, content_hash, environment, execute, options, snapshot,
};

/// The write-ahead log's file shrinks to this after it was checkpointed.
const WAL_BYTES_KEPT: u64 = 64 << 20;

/// Encodes an outcome for the session it belongs to.
pub type Encode<'a> = &'a dyn Fn(&EntryOutcome) -> Vec<u8>;

/// How a database's pages are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageStatistics {
    /// Pages of the file, with those that are only in the write-ahead log.
    pub pages: u64,
    /// Those of them that hold nothing: they are used before the file grows.
    pub free: u64,
    /// What the writer's cache did.
    pub cache: CacheAccesses,
}

/// The one writer of a database.
#[derive(Debug)]
pub struct Writer {
    // Statements are finalised before their connection closes: the order of fields matters.
    pub(crate) control: Control,
    pub(crate) sessions: Sessions,
    /// `None` until the first entry about registers.
    pub(crate) registers: Option<RegisterStore>,
    pub(crate) state_writer: StateWriter,
    /// Statements compiled under the rules for reads, which are wider than those for writes.
    read_cache: StatementCache,
    pub(crate) connection: Connection,
    pub(crate) options: Options,
    pub(crate) state: State,
    pub(crate) growth: Growth,
    /// There may be virtual tables, which hold writes back until they are told.
    pub(crate) virtual_tables: bool,
    bookkeeping: Vec<u8>,
    in_file: bool,
}

impl Writer {
    /// Opens or creates the database at `path`. There must be no other writer.
    ///
    /// # Errors
    /// A fault when the file cannot be opened or is not one of ours.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, Fault> {
        let connection = Connection::open(Place::File(path.as_ref()), &options)?;
        connection.internal_batch(
            "setting up the write-ahead log",
            &format!(
                "PRAGMA page_size = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; \
                 PRAGMA wal_autocheckpoint = 0; PRAGMA journal_size_limit = {WAL_BYTES_KEPT};",
                options::PAGE_BYTES
            ),
        )?;
        Self::start(connection, options, true)
    }

    /// A database in memory that goes with its writer; read it with [`Self::query`].
    ///
    /// # Errors
    /// A fault when there is no memory.
    pub fn in_memory(options: Options) -> Result<Self, Fault> {
        let connection = Connection::open(Place::Memory, &options)?;
        Self::start(connection, options, false)
    }

    fn start(connection: Connection, options: Options, in_file: bool) -> Result<Self, Fault> {
        if !state::exists(&connection)? {
            connection.internal_batch(
                "creating the hidden tables",
                &format!("BEGIN IMMEDIATE; {} COMMIT;", state::CREATE),
            )?;
        }
        let (state, bookkeeping) = state::load(&connection)?;
        let mut control = Control::new(&connection)?;
        let virtual_tables = control.has_virtual_tables(&connection)?;
        let sessions = Sessions::new(&connection)?;
        let registers = RegisterStore::find(&connection)?;
        let state_writer = StateWriter::new(&connection)?;
        connection.watch_steps();
        let read_cache = StatementCache::new(options.statement_cache);
        let writer = Self {
            control,
            sessions,
            registers,
            state_writer,
            read_cache,
            connection,
            options,
            state,
            growth: Growth::unknown(),
            virtual_tables,
            bookkeeping,
            in_file,
        };
        writer.limit_pages()?;
        Ok(writer)
    }

    /// The log index up to which everything is applied.
    #[must_use]
    pub fn applied_index(&self) -> u64 {
        self.state.applied_index
    }

    /// The number of the entry at that index: no register has a greater version.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.state.number(self.state.applied_index)
    }

    /// The caller's bookkeeping at that index; empty in a new database.
    #[must_use]
    pub fn bookkeeping(&self) -> &[u8] {
        &self.bookkeeping
    }

    /// Log time in milliseconds since the Unix epoch; 0 before the first entry.
    #[must_use]
    pub fn log_time_unix_ms(&self) -> u64 {
        self.state.log_time_ms
    }

    /// Where the time of leases stands.
    #[must_use]
    pub fn lease_time(&self) -> LeaseTime {
        self.state.lease_time
    }

    /// Bytes the database may grow to; 0 means no limit.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.state.max_bytes
    }

    /// Applies entries in one transaction and returns what each gave, in order, once they are
    /// committed. `encode` is called once per executed write of a session.
    ///
    /// # Errors
    /// A fault: nothing of the batch was kept, and it may be applied again.
    pub fn apply_batch(&mut self, batch: Batch<'_>, encode: Encode<'_>) -> Result<Vec<AppliedEntry>, Fault> {
        let before = self.state;
        if let Some(BatchEntry { index, .. }) = batch.entries.first()
            && *index <= before.applied_index
        {
            return Err(Fault::AppliedBefore { index: *index, applied_index: before.applied_index });
        }
        let mut losses = Losses::default();
        loop {
            match Attempt::new(self, &mut losses, encode).run(batch) {
                Ok(applied) => {
                    self.bookkeeping.clear();
                    self.bookkeeping.extend_from_slice(batch.bookkeeping);
                    return Ok(applied);
                }
                Err(Stop::Again) => self.abandon(before)?,
                Err(Stop::Fault(fault)) => {
                    // The first fault is the cause; a second one from rolling back adds nothing.
                    let _ = self.abandon(before);
                    return Err(fault);
                }
            }
        }
    }

    /// Records that the log is applied further, without SQL: as an empty batch.
    ///
    /// # Errors
    /// A fault, as [`Self::apply_batch`].
    pub fn note_applied(&mut self, applied_index: u64, bookkeeping: &[u8]) -> Result<(), Fault> {
        let batch = Batch { entries: &[], applied_index, bookkeeping };
        self.apply_batch(batch, &|_| Vec::new()).map(drop)
    }

    fn abandon(&mut self, before: State) -> Result<(), Fault> {
        self.connection.cache.clear();
        self.state_writer.forget();
        self.state = before;
        self.growth = Growth::unknown();
        if !self.connection.is_autocommit() {
            self.control.rollback(&self.connection)?;
        }
        self.virtual_tables = self.control.has_virtual_tables(&self.connection)?;
        // The tables may have been made in this very transaction.
        self.registers = RegisterStore::find(&self.connection)?;
        self.limit_pages()
    }

    /// Tells SQLite the largest file it may make: the replicated limit and some overshoot. Where the file was
    /// larger than its limit from the start, the overshoot is on top of what it was then, so that the hidden
    /// tables can go on. It follows from the entries alone: SQLite's own floor would be the size of this moment.
    pub(crate) fn limit_pages(&self) -> Result<(), Fault> {
        let allowed = match self.state.max_bytes {
            0 => u64::MAX,
            bytes => (bytes / options::PAGE_BYTES).max(self.state.pages_then),
        };
        let pages = allowed.saturating_add(self.options.overshoot_bytes / options::PAGE_BYTES);
        let pages = pages.min(u64::from(u32::MAX - 1));
        self.connection
            .internal_batch("limiting the file's size", &format!("PRAGMA max_page_count = {pages}"))
    }

    /// Reads on the writer's own connection, between batches: for a database in memory, and for
    /// reads that must see exactly what is applied.
    ///
    /// # Errors
    /// A fault.
    pub fn query(
        &mut self,
        statements: &[Statement],
        environment: &EntryEnvironment,
        expired: &dyn Fn() -> bool,
    ) -> Result<Vec<StatementOutcome>, Fault> {
        environment::install(environment.unix_ms, environment.seed);
        let options = &self.options;
        std::mem::swap(&mut self.connection.cache, &mut self.read_cache);
        let outcomes = self.connection.with_deadline(expired, |connection| {
            statements
                .iter()
                .map(|statement| match run_read(connection, statement, options) {
                    execute::Ran::Done(outcome) => Ok(outcome),
                    execute::Ran::Fault(fault) => Err(fault),
                    execute::Ran::FalseAlarm => unreachable!("reads have deadlines, not budgets"),
                })
                .collect()
        });
        std::mem::swap(&mut self.connection.cache, &mut self.read_cache);
        self.connection.watch_steps();
        outcomes
    }

    /// Reads a register on the writer's own connection, as [`Self::query`].
    ///
    /// # Errors
    /// A fault.
    pub fn get_register(&mut self, key: &[u8]) -> Result<Option<Register>, Fault> {
        match &mut self.registers {
            Some(registers) => registers.reads().get(&self.connection, key),
            None => Ok(None),
        }
    }

    /// Reads registers on the writer's own connection, as [`Self::query`].
    ///
    /// # Errors
    /// A fault.
    pub fn list_registers(&mut self, query: &RegisterQuery) -> Result<RegisterPage, Fault> {
        match &mut self.registers {
            Some(registers) => registers.reads().list(&self.connection, query),
            None => Ok(RegisterPage::default()),
        }
    }

    /// Reads leases on the writer's own connection, as [`Self::query`].
    ///
    /// # Errors
    /// A fault.
    pub fn list_leases(&mut self, query: LeaseQuery) -> Result<LeasePage, Fault> {
        match &mut self.registers {
            Some(registers) => registers.reads().leases(&self.connection, query),
            None => Ok(LeasePage::default()),
        }
    }

    /// When the next lease is due, by [`Self::lease_time`]; `None` while there is none.
    ///
    /// # Errors
    /// A fault.
    pub fn next_lease_due_ms(&mut self) -> Result<Option<u64>, Fault> {
        match &mut self.registers {
            Some(registers) => registers.next_due_ms(&self.connection),
            None => Ok(None),
        }
    }

    /// The hash of everything replicas agree on.
    ///
    /// # Errors
    /// A fault.
    pub fn content_hash(&mut self) -> Result<[u8; 32], Fault> {
        content_hash::content_hash(&self.connection, &self.state)
    }

    /// Moves the write-ahead log into the database file. Returns the durable index: the applied
    /// index as of before, if all of the log was moved and synced; `None` when a reader still
    /// needs some of it, or the database is in memory.
    ///
    /// # Errors
    /// A fault.
    pub fn checkpoint(&mut self) -> Result<Option<u64>, Fault> {
        if !self.in_file {
            return Ok(None);
        }
        let applied = self.state.applied_index;
        let complete = self.connection.checkpoint()?;
        Ok(complete.then_some(applied))
    }

    /// The pages of the file, and what the cache did since this was last asked. To be asked between batches.
    ///
    /// # Errors
    /// A fault.
    pub fn page_statistics(&mut self) -> Result<PageStatistics, Fault> {
        let pages = self.control.page_count(&self.connection)?;
        let free = self.control.freelist_count(&self.connection)?;
        Ok(PageStatistics { pages, free, cache: self.connection.take_cache_accesses() })
    }

    /// Copies the database into a new file at `path`, synced.
    ///
    /// # Errors
    /// A fault; the file may be left behind.
    pub fn snapshot_to(&mut self, path: impl AsRef<Path>) -> Result<SnapshotInfo, Fault> {
        snapshot::copy(&self.connection, path.as_ref())
    }
}
