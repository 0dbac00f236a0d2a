//! Entries of a replicated log as this crate sees them, and what applying them gives.

use crate::{RegisterChange, RegisterOutcome, RegisterWrite, SqlError, Statement, StatementOutcome};

/// What an entry may see of the world: the same on every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryEnvironment {
    /// The proposer's wall clock in milliseconds since the Unix epoch. Writes run at the log time
    /// derived from it, reads at this very time.
    pub unix_ms: u64,
    /// Seed of `random()` and `randomblob()`.
    pub seed: [u8; 32],
    /// Virtual-machine steps the whole entry may use. Reads ignore it.
    pub step_budget: u64,
}

/// The place of a write in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionWrite {
    /// The session, as [`EntryOutcome::SessionOpened`] gave it.
    pub session: u64,
    /// Grows with every write of the session, from 1.
    pub sequence: u64,
    /// Every sequence below this one is acknowledged: its result is forgotten.
    pub acknowledged: u64,
}

/// Statements to apply.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Write {
    /// In order.
    pub statements: Vec<Statement>,
    /// All statements or none. Without it each statement stands for itself.
    pub transaction: bool,
    /// Return the rows of statements that give any.
    pub return_rows: bool,
    /// Set for a write exactly once.
    pub session: Option<SessionWrite>,
}

/// What an entry asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Apply statements.
    Write(Write),
    /// Change registers or their leases.
    Register(RegisterWrite),
    /// Open a write session; its id is the entry's number ([`Stamp::numbers_from`]).
    OpenSession {
        /// How long it outlives its last write, in log time; 0 or more than
        /// [`crate::Options::session_lifetime_max_ms`] means that maximum.
        lifetime_ms: u64,
    },
    /// Change the limits that are part of the replicated state.
    SetLimits {
        /// Bytes the database file may grow to; 0 means no limit.
        max_bytes: u64,
    },
    /// Compute the content hash of all entries before this one.
    Barrier,
}

/// What an entry's proposer says beside what it asks for; all of it is absent in logs from before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// What is added to an index to give the id of a session or a lease, and the version of a register: the same
    /// for all entries of a database, and so much more for the next one of its name that none comes twice.
    pub numbers_from: u64,
    /// The proposer's steady clock, drawn at random for each; 0 is none.
    pub clock: u64,
    /// What that clock read, in milliseconds.
    pub clock_ms: u64,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchEntry {
    /// Its log index.
    pub index: u64,
    /// What it may see.
    pub environment: EntryEnvironment,
    /// What else is said of it.
    pub stamp: Stamp,
    /// What it asks for.
    pub operation: Operation,
}

/// What applying an entry gave: the same on every replica, however entries were batched.
#[derive(Debug, Clone, PartialEq)]
pub enum EntryOutcome {
    /// Each statement's outcome, in order. With `transaction`, all of them succeeded.
    Executed(Vec<StatementOutcome>),
    /// A statement of a `transaction` failed, so none of its statements has had an effect.
    RolledBack {
        /// Which statement, from 0; the number of statements when it was the end of the
        /// transaction (a deferred foreign key).
        statement: usize,
        /// Why.
        error: SqlError,
    },
    /// What an operation on registers gave.
    Register(RegisterOutcome),
    /// This sequence was applied before; nothing was executed now.
    Repeated(
        /// The bytes kept of the first outcome; `None` when they were too large to keep.
        Option<Vec<u8>>,
    ),
    /// The session is not known: expired, or given way to others. The write may have been
    /// applied earlier; nothing was executed now.
    SessionExpired,
    /// The sequence was acknowledged, or is too far behind the session's newest. It may have been
    /// applied earlier; nothing was executed now.
    ResultForgotten,
    /// A session was opened.
    SessionOpened {
        /// Its id.
        session: u64,
        /// Its lifetime after the last write, in milliseconds of log time.
        lifetime_ms: u64,
    },
    /// The limits hold from the next statement on.
    LimitsSet,
    /// The content hash before this entry.
    ContentHash([u8; 32]),
}

/// One applied entry.
#[derive(Debug, Clone, PartialEq)]
pub struct AppliedEntry {
    /// What it gave.
    pub outcome: EntryOutcome,
    /// The outcome as the caller encoded it for the session; `None` without a session, or when
    /// nothing was executed.
    pub encoded: Option<Vec<u8>>,
    /// The registers that it changed, in the order of their keys where there are several.
    pub changes: Vec<RegisterChange>,
}

/// A run of entries applied in one transaction.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The entries in log order.
    pub entries: &'a [BatchEntry],
    /// The log index up to which everything is applied once this batch is; at least the last
    /// entry's (entries without SQL may follow it).
    pub applied_index: u64,
    /// The caller's own state at `applied_index`, kept in the same transaction.
    pub bookkeeping: &'a [u8],
}
