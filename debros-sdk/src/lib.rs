//! The SDK of debros: SQL databases, a key-value storage and live messages that survive their nodes, from an
//! application.
//!
//! ```no_run
//! use debros_sdk::{Client, Database, NetworkInfo, PubSub, Statement, Storage, params};
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
//!
//! // Values by key, for what needs no SQL.
//! let storage = client.storage();
//! storage.put("ships/1/log", "calm seas".into()).await?;
//! assert_eq!(storage.list("ships/", 10).await?, ["ships/1/log"]);
//!
//! // Messages for whoever listens now.
//! let mut subscription = client.pubsub().subscribe("ships.*.position").await?;
//! client.pubsub().publish("ships.1.position", b"54.8 S 68.3 W").await?;
//! println!("{:?}", subscription.next().await);
//!
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
//! - **A stored value is on most of its key's nodes** before a put is acknowledged, and a read asks most of
//!   them, so it sees that put ([`Quorum::Majority`], the default). Of several writers the last one wins;
//!   a put is not exactly-once, see [`Storage`].
//! - **A subscription misses nothing in silence.** It gets the messages of each publisher in order and once,
//!   also when it or the publisher goes on at another node; what could not be delivered is told
//!   ([`SubscriptionEvent::Lagged`]).
//! - **A node may die at any moment.** The client learns all members from the one it met first, goes
//!   straight to a database's leader, and to the others when it is gone, within the operation's
//!   timeout (10 s by default).
//!
//! # Map
//!
//! [`Client`] is a cheap handle; [`Database`], [`Storage`], [`Registers`], [`PubSub`] and [`NetworkInfo`] are
//! the interfaces an application should depend on; [`RemoteDatabase`], [`RemoteStorage`], [`RemoteRegisters`],
//! [`RemotePubSub`] and [`RemoteNetwork`] implement them against a cluster. [`StorageExt`] adds JSON,
//! [encryption](EncryptedStorage) and [blobs](Blobs) to any storage, [`PubSubExt`] JSON, handlers and
//! [encryption](EncryptedPubSub) to any pub/sub; [`Lock`] and [`Election`] are built on [`Registers`]. Inside, `call` retries one operation, `writer` and `session` make SQL writes
//! exactly-once, `nodes` chooses whom to ask, `storage::routes` knows which of them hold a key, `pubsub::session` is
//! what a client says to the node that its messages go through, `refresh` keeps what is known fresh. Nothing but `host` knows what carries the bytes: a client runs
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
mod metrics;
mod network_info;
mod nodes;
#[cfg(feature = "otel")]
mod otel;
#[cfg(not(feature = "otel"))]
#[path = "untraced.rs"]
mod otel;
mod overview;
mod pubsub;
mod refresh;
mod registers;
mod result;
mod rows;
mod rpc;
mod schema;
mod session;
mod shared;
mod statement;
mod storage;
mod value;
mod writer;

pub use builder::{
    ATTEMPTS_DEFAULT, CONNECT_TIMEOUT_DEFAULT, ClientBuilder, OPERATION_TIMEOUT_MAX, RETRY_DELAY_DEFAULT,
};
pub use client::{Client, ConnectedNode, CreateOptions, DatabaseInfo};
pub use cluster::{Cluster, ClusterNode, LEAVE_TIMEOUT_MIN, LogLevel, Member, MemberState, Members};
pub use database::{Consistency, Database, ReadOptions, RemoteDatabase};
pub use error::{Error, ErrorKind};
pub use host::mint_identity;
pub use network_info::{
    GroupInfo, Health, HealthCheck, HealthStatus, NetworkInfo, NetworkStatus, PeerInfo, RemoteNetwork,
    StorageInfo,
};
pub use overview::{EngineActivity, NodeAnswer, NodeOverview, Overview};
pub use pubsub::batch::{MessageBatch, Outgoing};
pub use pubsub::encrypted::EncryptedPubSub;
pub use pubsub::extension::PubSubExt;
pub use pubsub::handler::HandledSubscription;
pub use pubsub::message::{Headers, Message, Messages, SubscriptionBatch, SubscriptionEvent};
pub use pubsub::presence::{Member as PresentMember, Presence, PresenceEvent, PresenceWatch};
pub use pubsub::remote::RemotePubSub;
pub use pubsub::subscription::Subscription;
pub use pubsub::{Acknowledge, MESSAGE_BYTES_MAX, Overflow, PubSub, SubscribeOptions, TopicInfo};
pub use registers::{
    Conflict, Counter, Election, Leader, Leadership, Lease, LeaseId, LeaseInfo, LeaseListOptions, LeasePage,
    Lock, LockGuard, Observer, Register, RegisterEvent, RegisterListOptions, RegisterPage,
    RegisterPutOptions, RegisterWatch, Registers, RemoteRegisters,
};
pub use result::{ExecuteResult, QueryResult};
pub use schema::{ColumnInfo, SchemaInfo, TableInfo};
pub use statement::{IntoParameters, Parameters, Statement};
pub use storage::blobs::{BLOB_CHUNK_BYTES, BLOB_CHUNKS_PREFIX, Blob, BlobInfo, BlobPut, Blobs};
pub use storage::encrypted::{EncryptedStorage, Rotation};
pub use storage::extension::StorageExt;
pub use storage::keyring::{EncryptionKey, Keyring};
pub use storage::remote::RemoteStorage;
pub use storage::watch::Watch;
pub use storage::{
    Cursor, DeleteOptions, Entry, GetOptions, ListOptions, Page, PutOptions, Quorum, ResumeToken,
    STORAGE_PAGE_KEYS_MAX, STORAGE_TTL_MAX, Storage, StorageOperation, StorageOutcome, Version, WatchEvent,
    WatchOptions,
};
pub use value::Value;

/// The seam below a client, for [`ClientBuilder::network`].
pub mod transport {
    pub use debros_net::Network;
}
