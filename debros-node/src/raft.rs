//! Raft groups: openraft behind one door. An engine hands in a state machine and gets a group it
//! can propose to and read from; the log store, the network between replicas and the life of a
//! group are in here. Nothing in here knows what a command means.
//!
//! ```text
//! service -> Group::propose -> openraft -> log (one fsync for all groups) -> quorum
//!                                 |-> links (one Append stream per peer) -> server -> openraft there
//!                                 `-> state_machine -> Engine::apply -> outcome -> service
//! ```

mod alignment;
pub mod codec;
mod commit_pace;
mod engine;
mod group;
mod groups;
mod link;
pub mod log;
mod metrics;
mod network;
mod position;
mod read_index;
mod server;
mod snapshot;
mod state_machine;
pub mod types;

pub use alignment::Desired;
pub use engine::{CommittedCommand, Engine, EngineFault};
pub use group::{Committed, Group, Leader, MembershipError, ProposeError, ReadIndexError, Role, Status};
pub use groups::{Believes, Claim, Groups, GroupsParts, OpenGroupError, RaftOptions};
pub use metrics::{RaftMetrics, bound_queues, observe_log, register_groups};
pub use position::Position;
pub use server::RaftService;
