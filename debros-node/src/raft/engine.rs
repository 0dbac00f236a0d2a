//! What a Raft group asks of the state machine behind it.

use std::path::Path;

use async_trait::async_trait;
use bytes::Bytes;

use super::position::Position;

/// A committed command with the index of its log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedCommand {
    /// The log index: equal on all replicas.
    pub index: u64,
    /// As it was proposed.
    pub command: Bytes,
}

/// The engine could not do its work: a full or failing disk, or damaged data. Never the result of
/// a command. The replica stops, and is opened again later.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct EngineFault {
    message: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl EngineFault {
    /// A fault with what was being done and why it failed.
    pub fn new(
        doing: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { message: doing.into(), source: Some(source.into()) }
    }
}

impl From<EngineFault> for std::io::Error {
    fn from(fault: EngineFault) -> Self {
        std::io::Error::other(fault)
    }
}

/// A deterministic state machine with its own store.
///
/// Invariants: equal commands in equal order give equal states and outcomes on every replica,
/// however they are batched; the position is stored atomically with what was applied; `position`
/// never goes back except by a crash, and then not behind what `make_durable` last returned.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// How far the store has got.
    async fn position(&self) -> Result<Position, EngineFault>;

    /// Applies a batch and stores `position` with it; gives one outcome per command, in order.
    /// The batch may be empty: then only the position is stored.
    async fn apply(
        &self,
        batch: Vec<CommittedCommand>,
        position: Position,
    ) -> Result<Vec<Bytes>, EngineFault>;

    /// Makes what was applied survive a power loss; gives the position that does.
    async fn make_durable(&self) -> Result<Position, EngineFault>;

    /// Writes a consistent copy to `file` and syncs it; gives the position of the copy.
    async fn copy_to(&self, file: &Path) -> Result<Position, EngineFault>;

    /// Replaces the whole state, durably, by a copy that another replica wrote.
    async fn install(&self, file: &Path, position: Position) -> Result<(), EngineFault>;
}
