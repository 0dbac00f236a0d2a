//! The HTTP listeners: the API that rqlite's clients speak ([`rqlite`]), and health, metrics and
//! status for operators ([`admin`]).
//!
//! They read requests, hand over to [`crate::service`] and write what it answers; they decide
//! nothing about data. [`serve`] runs a router on an address, with TLS where asked, and sees to it
//! that no client holds a connection, memory or a task for ever:
//!
//! ```text
//! TcpStream -> StallTimeout -> TLS (optional) -> HTTP/1.1 -> router -> service
//! ```
//!
//! HTTP/1.1 only: every rqlite client speaks it, and one request at a time per connection makes the
//! number of connections the bound on requests under way.

pub mod admin;
mod body;
mod meter;
pub mod rqlite;
mod serve;
mod stall;
mod tls;

pub use meter::HttpMetrics;
pub use serve::{CONNECTIONS_MAX, Listen, ListenError, LocalAddress, serve};
pub use tls::{TlsError, TlsFiles};
