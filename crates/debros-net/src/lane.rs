//! The lanes: which kinds of traffic exist between two nodes and which connection each travels on.
//!
//! A lane is one long-lived byte stream per peer and direction of opening. It says nothing of what
//! is spoken on it: above the seam every lane carries HTTP/2.
//!
//! Invariant: [`Lane::Bulk`] never shares a connection with another lane, because one bulk transfer
//! takes the Raft lane's median round trip from 0.16 to 5.4 ms.

use std::fmt;

/// One kind of traffic between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Consensus: small frames, latency above all.
    Raft,
    /// Quorum reads and writes of the key-value storage.
    Kv,
    /// Published messages and interest.
    Pubsub,
    /// Requests of SDK clients and what nodes ask each other on their behalf.
    Client,
    /// Snapshots and repair: throughput, on a connection of its own.
    Bulk,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Lane; 5] = [Lane::Raft, Lane::Kv, Lane::Pubsub, Lane::Client, Lane::Bulk];

    /// The lane's name, as metrics and messages say it.
    pub const fn name(self) -> &'static str {
        match self {
            Lane::Raft => "raft",
            Lane::Kv => "kv",
            Lane::Pubsub => "pubsub",
            Lane::Client => "client",
            Lane::Bulk => "bulk",
        }
    }

    /// The lane of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }

    /// The lane's place in tables that have one entry per lane.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
