//! The log store: one per node, shared by all Raft groups, so that one `fdatasync` serves every
//! group that has work.
//!
//! ```text
//! GroupLog::append -> memory (readable at once) -> queue -> writer: one pwrite, one fdatasync
//!                                                              |-> index: where each entry lies
//!                                                              `-> IOFlushed callbacks
//! GroupLog::read   -> memory tail, else pread through the blocking seam
//! ```
//!
//! Files: `store` names the store's incarnation; `<sequence>.log` are segments of a fixed size that
//! are filled with zeros once and reused, so that appending changes no metadata; `spare-<n>` wait
//! for their turn. A segment begins with the hard state of every group, so an older one can go as
//! soon as no group has a live entry in it.
//!
//! Invariants: a callback fires, and an awaited call returns, only after the `fdatasync` that covers
//! it. What one group asks for is written in the order it asked. A batch is written only after the
//! batch before it is durable, so at recovery only the last one may be torn; anything else that does
//! not verify is [`LogError::Corrupt`] and the store does not open. After a failed write or flush
//! nothing is written any more: the node has to end. Dropping the store flushes nothing.
//!
//! This module knows nothing of what a command means, and takes no lock on its folder: the node
//! locks its whole data folder.

mod compact;
mod error;
mod group;
mod index;
mod queue;
mod reader;
mod record;
mod recovery;
mod segment;
mod spare;
mod storage;
mod store;
#[cfg(test)]
mod tests;
mod traces;
mod writer;

pub use error::{Failure, LogError};
pub use queue::PENDING_BYTES_MAX;
pub use storage::GroupLog;
pub use store::{Flush, Incarnation, LogStore, OnFlush, Options, Statistics};
