//! The wire contract of debros: the generated gRPC types, the names that travel in them, every
//! limit, and the error contract. It does no I/O and knows no engine.
//!
//! Invariants: a value of a newtype of [`names`] satisfies its grammar; whatever crosses the wire as
//! a plain string is parsed into one at the edge, once. Every request message has a
//! [`v1::RequestHeader`] ([`HasHeader`]).

pub mod calls;
pub mod coverage;
pub mod error;
pub mod layout;
pub mod limits;
pub mod names;
pub mod packed;
pub mod registers;
pub mod trace;

/// The generated messages, clients and servers of package `debros.v1`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("debros.v1");
}

mod header;

pub use error::{ErrorCode, Failure, LeaderHint, RetryHint};
pub use header::HasHeader;
pub use names::{ClusterId, DatabaseName, Epoch, GroupId, InvalidName, Namespace, NodeId};
pub use trace::TraceContext;

/// This build's version, as peers and `/status` see it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
