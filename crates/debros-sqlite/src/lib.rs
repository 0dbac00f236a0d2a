//! SQLite as a deterministic state machine: the one door to rusqlite.
//!
//! A [`Writer`] applies [`Batch`]es of log entries. Two writers that are given the same entries
//! hold the same data and give the same outcomes, however the entries were batched, whenever each
//! writer was started, and whatever the entries try: time and chance come from the entry
//! ([`EntryEnvironment`]), a sandbox keeps statements from everything else, and trouble of one
//! machine ([`Fault`]) is never taken for a result ([`SqlError`]).
//!
//! [`Reader`]s (from a [`ReaderPool`]) read the same file at the same time. [`Generations`] keeps
//! a database's files and installs snapshots. All calls block; nothing here knows of networks,
//! Raft or tasks.
//!
//! ```
//! use debros_sqlite::{
//!     Batch, BatchEntry, EntryEnvironment, EntryOutcome, Operation, Options, Stamp, Statement, Writer,
//!     Write,
//! };
//!
//! let mut writer = Writer::in_memory(Options::default())?;
//! let entry = BatchEntry {
//!     index: 1,
//!     environment: EntryEnvironment { unix_ms: 1_700_000_000_000, seed: [7; 32], step_budget: 1_000_000 },
//!     stamp: Stamp::default(),
//!     operation: Operation::Write(Write {
//!         statements: vec![
//!             Statement::new("CREATE TABLE note (id INTEGER PRIMARY KEY, text)"),
//!             Statement::with("INSERT INTO note (text) VALUES (?)", ["hello".into()]),
//!         ],
//!         transaction: true,
//!         ..Write::default()
//!     }),
//! };
//! let batch = Batch { entries: &[entry], applied_index: 1, bookkeeping: b"log id" };
//! let applied = writer.apply_batch(batch, &|_| Vec::new())?;
//! assert!(matches!(applied[0].outcome, EntryOutcome::Executed(_)));
//! assert_eq!(writer.applied_index(), 1);
//! # Ok::<(), debros_sqlite::Fault>(())
//! ```

mod batch;
mod connection;
mod content_hash;
mod control;
mod entry;
mod environment;
mod error;
mod execute;
mod generations;
mod growth;
mod lease_time;
mod log_time;
mod options;
mod prepared;
mod reader;
mod registers;
mod sandbox;
mod sessions;
mod snapshot;
mod state;
mod value;
mod vfs;
mod writer;

pub use connection::CacheAccesses;
pub use entry::{
    AppliedEntry, Batch, BatchEntry, EntryEnvironment, EntryOutcome, Operation, SessionWrite, Stamp, Write,
};
pub use error::{ErrorClass, Fault, SqlError};
pub use generations::{Generations, Incoming};
pub use lease_time::LeaseTime;
pub use log_time::advance_log_time;
pub use options::Options;
pub use reader::{PoolError, PooledReader, ReadOutcome, Reader, ReaderPool};
pub use registers::{
    HeldLease, LeasePage, LeaseQuery, Register, RegisterChange, RegisterOperation, RegisterOutcome,
    RegisterPage, RegisterQuery, RegisterRefusal, RegisterWrite,
};
pub use snapshot::{SnapshotInfo, inspect_snapshot};
pub use value::{Parameters, Rows, Statement, StatementOutcome, Value};
pub use writer::{Encode, PageStatistics, Writer};
