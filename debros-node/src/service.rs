//! Requests, whoever sends them: authorised in one place, answered by the engines, across engines
//! where one is not enough. Knows nothing of gRPC or HTTP.

pub mod authorise;
mod cluster;
mod databases;
mod disk;
mod health;
mod membership;
mod metrics;
mod pubsub;
mod registers;
mod replicas;
mod storage;

pub use authorise::Principal;
pub use cluster::{ClusterService, Parts as ClusterParts};
pub use databases::Databases;
pub use disk::DiskState;
pub use health::Health;
pub use membership::{ClusterSlot, Members, Standing};
pub use metrics::{bound_watches, register_disks};
pub use pubsub::Messages;
pub use registers::{Registers, Watch, end_leases};
pub use replicas::Replicas;
pub use storage::Storage;
