//! The SDK of debros: a SQL database that survives its nodes, from an application.
//!
//! ```no_run
//! use debros_sdk::{Client, Database, NetworkInfo, Statement, params};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Ship {
//!     id: i64,
//!     name: String,
//! }
//!
//! # async fn quickstart() -> Result<(), debros_sdk::Error> {
//! // The name of the application is its namespace: its data is its own.
//! let client = Client::builder("my-app")
//!     .bootstrap_peers(["/ip4/127.0.0.1/tcp/4001"])
//!     .connect()
//!     .await?;
//! let database = client.database();
//!
//! database.create_table("CREATE TABLE IF NOT EXISTS ships (id INTEGER PRIMARY KEY, name TEXT NOT NULL)").await?;
//! database.execute("INSERT INTO ships (name) VALUES (?)", params!["Beagle"]).await?;
//! database
//!     .transaction(vec![
//!         Statement::new("UPDATE ships SET name = upper(name) WHERE id = ?", (1,)),
//!         Statement::new("INSERT INTO ships (name) VALUES (:name)", params! { "name" => "Fram" }),
//!     ])
//!     .await?;
//!
//! let result = database.query("SELECT id, name FROM ships ORDER BY id", params![]).await?;
//! for ship in result.rows_as::<Ship>()? {
//!     println!("{} {}", ship.id, ship.name);
//! }
//! println!("the cluster is {}", client.network().health().await?.status);
//! client.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **A write is applied exactly once**, however often it had to be sent, on whichever node it landed.
//!   When nobody can know whether it was applied, because the deadline passed first, the error says so:
//!   [`Error::maybe_applied`]. A write that failed otherwise changed nothing.
//! - **A read sees every write acknowledged before it** ([`Consistency::Linearizable`], the default).
//!   Older and cheaper reads are asked for: [`ReadOptions`], [`ClientBuilder::consistency`].
//! - **A node may die at any moment.** The client learns all members from the one it met first, goes
//!   straight to a database's leader, and to the others when it is gone, within the operation's
//!   timeout (10 s by default).
//!
//! # Map
//!
//! [`Client`] is a cheap handle; [`Database`], [`Registers`] and [`NetworkInfo`] are the interfaces an
//! application should depend on; [`RemoteDatabase`], [`RemoteRegisters`] and [`RemoteNetwork`] implement them
//! against a cluster; [`Lock`] and [`Election`] are built on [`Registers`]. Inside,
//! `call` retries one operation, `writer` and `session` make writes exactly-once, `nodes` chooses whom
//! to ask, `refresh` keeps that fresh. Nothing but `host` knows what carries the bytes: a client runs
//! unchanged over any [`transport::Network`].

mod address;
mod builder;
mod call;
pub mod check;
mod classify;
mod client;
mod cluster;
#[cfg(feature = "conformance")]
pub mod conformance;
mod database;
mod error;
mod host;
#[cfg(feature = "memory")]
pub mod memory;
mod network_info;
mod nodes;
mod refresh;
mod registers;
mod result;
mod rows;
mod rpc;
mod schema;
mod session;
mod shared;
mod statement;
mod value;
mod writer;

pub use builder::{
    ATTEMPTS_DEFAULT, CONNECT_TIMEOUT_DEFAULT, ClientBuilder, OPERATION_TIMEOUT_MAX, RETRY_DELAY_DEFAULT,
};
pub use client::{Client, ConnectedNode, CreateOptions, DatabaseInfo};
pub use cluster::{Cluster, LEAVE_TIMEOUT_MIN, Member, MemberState, Members};
pub use database::{Consistency, Database, ReadOptions, RemoteDatabase};
pub use error::{Error, ErrorKind};
pub use network_info::{
    GroupInfo, Health, HealthCheck, HealthStatus, NetworkInfo, NetworkStatus, PeerInfo, RemoteNetwork,
};
pub use registers::{
    Conflict, Counter, Election, Leader, Leadership, Lease, LeaseId, ListOptions, Lock, LockGuard, Observer,
    PutOptions, Register, RegisterPage, Registers, RemoteRegisters, Watch, WatchEvent,
};
pub use result::{ExecuteResult, QueryResult};
pub use schema::{ColumnInfo, SchemaInfo, TableInfo};
pub use statement::{IntoParameters, Parameters, Statement};
pub use value::Value;

/// The seam below a client, for [`ClientBuilder::network`].
pub mod transport {
    pub use debros_net::Network;
}
