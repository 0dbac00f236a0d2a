//! The SQL engine: one Raft group and one SQLite database per database of an application.
//!
//! A write becomes a command of the group's log (`database`), every replica applies it alike
//! (`engine`, through the SQLite door), and its outcome goes back to whoever proposed it. Reads
//! never enter the log unless they are asked to. Registers are rows of hidden tables of the same database, and
//! take the same way.

mod convert;
mod database;
mod engine;
mod metrics;
mod registers;
mod request;
mod watchers;

pub use database::{Database, Freshness, Write};
pub use engine::{FailedFlush, Files, SqlEngine, SqlEngines};
pub use metrics::{SqlMetrics, register_files};
pub use request::check_statements;
pub use watchers::Watcher;
