//! Requests, whoever sends them: authorised in one place, answered by the engines, across engines
//! where one is not enough. Knows nothing of gRPC or HTTP.

pub mod authorise;
mod cluster;
mod databases;
mod disk;
mod forward;
mod health;
mod log_level;
mod membership;
mod metrics;
mod prober;
mod pubsub;
mod registers;
mod replicas;
mod storage;

pub use authorise::Principal;
pub use cluster::{Activity, ClusterService, Parts as ClusterParts};
pub use databases::Databases;
pub use disk::DiskState;
pub use health::{Health, HealthParts};
pub use log_level::log_level;
pub use membership::{ClusterSlot, Members, Standing};
pub use metrics::{bound_watches, register_disks};
pub use prober::{ProbeMetrics, Prober, ProberParts};
pub use pubsub::Messages;
pub use registers::{Registers, Watch, end_leases};
pub use replicas::Replicas;
pub use storage::Storage;
