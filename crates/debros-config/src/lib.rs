//! The schema of a node's configuration.
//!
//! This crate decides which keys exist, what each may hold, what they default to and how a file and the
//! environment combine into one [`Config`]. It is plain data: it opens the one file it is given and nothing
//! else, takes the environment as an iterator, and knows nothing of what a key sets in motion. The node and the
//! operator use the same types, so what one renders the other reads.
//!
//! Invariants:
//! - Precedence is environment, then file, then default.
//! - An unknown key is an error that names the nearest key, in a file and in the environment alike.
//! - All wrong keys and values are reported together; how keys relate is judged once each of them is right.
//! - Every key is in [`KEYS`], which says whether it has its effect, does not have it yet, or was replaced.
//! - [`Config::to_yaml`] prints every key, and reading that text gives the same configuration.
//!
//! An empty file is valid: a node of type `node` that listens on loopback only.
//!
//! ```
//! let loaded = debros_config::Config::from_yaml("node: { zone: a }\ndatabase: { max_database_size: 64MiB }")?;
//! assert_eq!(loaded.config.node.zone.as_deref(), Some("a"));
//! assert_eq!(loaded.config.database.max_database_size.bytes(), 64 << 20);
//!
//! let error = debros_config::Config::from_yaml("database: { replication_facter: 3 }").unwrap_err();
//! assert!(error.to_string().contains("did you mean `replication_factor`?"));
//! # Ok::<(), debros_config::ConfigError>(())
//! ```

mod address;
mod byte_size;
mod check;
mod document;
mod error;
mod interval;
mod keys;
mod kind;
mod load;
mod nearest;
mod ratio;
mod schema;

pub use address::{InvalidAddress, ListenAddress, PeerAddress, Transport};
pub use byte_size::{ByteSize, InvalidByteSize};
pub use error::{ConfigError, NotInEffect, Origin, Problem, Warning};
pub use interval::{Interval, InvalidInterval};
pub use keys::{Effect, KEYS, KeyDoc};
pub use kind::Kind;
pub use load::{CONFIG_BYTES_MAX, Loaded};
pub use ratio::{InvalidRatio, Ratio};
pub use schema::{
    Admin, Cluster, Config, Database, Discovery, LogFormat, Logging, Node, NodeType, Security, Storage,
    Tracing,
};
