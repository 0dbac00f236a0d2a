//! The types that every Raft group of a node shares. Engines see commands and outcomes as opaque
//! bytes here: the log and the network never need to know what an entry means.

use std::fmt;

use bytes::Bytes;
use debros_proto::TraceContext;

/// What an engine proposes.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// An encoded `SqlCommand` or `MetaCommand`.
    pub bytes: Bytes,
    /// Whose trace the entry is a part of, as long as it is in memory: replicas are told, disks are not.
    pub trace: Option<Box<EntryTrace>>,
}

/// The sampled request that proposed an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTrace {
    /// The span that proposed it.
    pub parent: TraceContext,
    /// It was proposed at another node.
    pub replicated: bool,
}

impl From<Bytes> for Command {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, trace: None }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command of {} bytes", self.bytes.len())
    }
}
impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What applying a command gave, encoded by its engine; empty for blank and membership entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome(pub Bytes);

/// What Raft membership knows of a replica beside its node id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replica {
    /// The PeerId in base58: where to find it is the network's business.
    pub peer_id: String,
}

openraft::declare_raft_types!(
    /// One configuration for all groups of a node.
    pub TypeConfig:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = Replica,
);

/// A log entry.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// Term, leader and index of an entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote as it is stored and sent.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, Replica>;
/// Voters and learners with the entry that set them.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
