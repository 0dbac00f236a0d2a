//! One database on this node: what the service asks of it.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::{ErrorCode, Failure, LeaderHint, limits, v1};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use v1::sql_command::Operation;

mod registers;

use super::engine::SqlEngine;
use crate::clock::Clock;
use crate::raft::{Committed, Group, Leader, ProposeError, ReadIndexError};

/// A replica of a database. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    group: Group,
    engine: Arc<SqlEngine>,
    clock: Clock,
    steady: SteadyClock,
    pending: Arc<Semaphore>,
}

/// By which the leases of a leader go; it is read in milliseconds since it began.
#[derive(Clone, Copy)]
struct SteadyClock {
    /// Two clocks never share one; not 0.
    id: u64,
    begun: Instant,
}

impl SteadyClock {
    fn begin() -> Self {
        Self { id: rand::random::<u64>().max(1), begun: Instant::now() }
    }

    fn read_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Statements to apply through the log.
#[derive(Clone, Debug)]
pub struct Write {
    /// In order.
    pub statements: Vec<v1::Statement>,
    /// All or none.
    pub transaction: bool,
    /// Return rows where there are any.
    pub return_rows: bool,
    /// Exactly once.
    pub session: Option<v1::WriteSession>,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Whatever this replica has.
    Any,
    /// The leader's state, without asking whether it still leads.
    Leader,
    /// Sees every write acknowledged before.
    Linearizable,
    /// As linearizable, but behind an entry of the log instead of a round of heartbeats.
    ThroughLog,
}

impl Database {
    /// Joins a running group with its engine.
    pub fn new(group: Group, engine: Arc<SqlEngine>, clock: Clock) -> Self {
        let pending = Arc::new(Semaphore::new(limits::PENDING_WRITES_MAX));
        Self { group, engine, clock, steady: SteadyClock::begin(), pending }
    }

    /// Its Raft group.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Writes that are under way at this replica.
    pub fn pending_writes(&self) -> usize {
        limits::PENDING_WRITES_MAX.saturating_sub(self.pending.available_permits())
    }

    /// How its files are.
    pub fn files(&self) -> super::Files {
        self.engine.files()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.engine.bytes()
    }

    /// Applies statements through the log. Returns once a quorum has them on disk and this replica
    /// has applied them.
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub async fn execute(&self, write: Write, deadline: Instant) -> Result<v1::ExecuteResponse, Failure> {
        let Write { statements, transaction, return_rows, session } = write;
        let session = session.unwrap_or_default();
        let operation = Operation::Write(v1::SqlWrite {
            statements,
            transaction,
            return_rows,
            session: session.id,
            sequence: session.sequence,
            acknowledged: session.acknowledged,
        });
        let (index, outcome) = self.propose(operation, deadline).await?;
        Ok(v1::ExecuteResponse { results: outcome.results, log_index: index, leader: None })
    }

    /// Opens a write session.
    ///
    /// # Errors
    /// As [`Self::execute`]; a session that was opened and never used expires.
    pub async fn open_session(&self, deadline: Instant) -> Result<v1::OpenSessionResponse, Failure> {
        let lifetime_ms = limits::SESSION_LIFETIME.as_millis() as u64;
        let operation = Operation::OpenSession(v1::SqlOpenSession { lifetime_ms });
        let (_, outcome) = self.propose(operation, deadline).await?;
        Ok(v1::OpenSessionResponse { id: outcome.session, lifetime_ms })
    }

    /// Computes the content hash of this point of the log, on every replica alike.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn content_hash(&self, deadline: Instant) -> Result<(u64, Vec<u8>), Failure> {
        let (index, outcome) = self.propose(Operation::Barrier(v1::SqlBarrier::default()), deadline).await?;
        Ok((index, outcome.content_hash.into()))
    }

    /// Sets what the database may grow to, for all replicas alike; 0 is no limit. Also makes numbers begin where
    /// they must, so that a watch of registers has a place from the start. Does nothing when its log says so already.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn limit_bytes(&self, max_bytes: u64, deadline: Instant) -> Result<(), Failure> {
        let numbered = self.engine.changes().revision() >= self.group.id().numbers_from();
        if !numbered || self.engine.bytes_max() != max_bytes {
            self.propose(Operation::SetLimits(v1::SqlSetLimits { max_bytes }), deadline).await?;
        }
        Ok(())
    }

    /// Reads on this replica.
    ///
    /// # Errors
    /// When the asked freshness cannot be had here, or the reader itself fails.
    pub async fn query(
        &self,
        statements: Vec<v1::Statement>,
        freshness: Freshness,
        deadline: Instant,
    ) -> Result<v1::QueryResponse, Failure> {
        match freshness {
            Freshness::Any => self.recover(deadline).await?,
            Freshness::Leader if self.group.is_leader() => {}
            Freshness::Leader => return Err(not_leader(self.group.leader())),
            Freshness::Linearizable => self.confirm(deadline).await?,
            Freshness::ThroughLog => self.pass_log(deadline).await?,
        }
        let applied_index = self.group.applied_index();
        let results = self.engine.read(statements, self.clock.unix_ms(), deadline).await?;
        Ok(v1::QueryResponse { results, applied_index, leader: None })
    }

    /// Waits until this replica shows nothing older than it did before it was started.
    async fn recover(&self, deadline: Instant) -> Result<(), Failure> {
        let recovered = tokio::time::timeout_at(deadline, self.group.recovered()).await;
        recovered.map_err(|_| not_recovered())?.map_err(read_failure)
    }

    /// Waits until this replica, which must lead, has applied whatever was acknowledged before.
    async fn confirm(&self, deadline: Instant) -> Result<(), Failure> {
        let confirmed = tokio::time::timeout_at(deadline, self.group.read_index()).await;
        confirmed.map_err(|_| read_timed_out())?.map(drop).map_err(read_failure)
    }

    /// Puts an entry through the log that changes nothing: this replica has then applied everything
    /// before it.
    async fn pass_log(&self, deadline: Instant) -> Result<(), Failure> {
        let passed = self.propose(Operation::Write(v1::SqlWrite::default()), deadline).await;
        passed.map(|_| ()).map_err(Failure::without_effect)
    }

    async fn propose(
        &self,
        operation: Operation,
        deadline: Instant,
    ) -> Result<(u64, v1::SqlOutcome), Failure> {
        let Ok(_permit) = self.pending.try_acquire() else {
            return Err(Failure::new(
                ErrorCode::Busy,
                format!("{} writes of this database are under way: retry", limits::PENDING_WRITES_MAX),
            )
            .with_retry_after(Duration::from_millis(20)));
        };
        let command = v1::SqlCommand {
            stamp_unix_ms: self.clock.unix_ms(),
            seed: rand::random::<[u8; 32]>().to_vec().into(),
            step_budget: limits::WRITE_STEPS_MAX,
            operation: Some(operation),
            numbers_from: self.group.id().numbers_from(),
            clock: self.steady.id,
            clock_ms: self.steady.read_ms(),
        };
        let command = command.encode_to_vec();
        // What the log refuses after this would stop the whole replica.
        if command.len() > limits::COMMAND_BYTES_MAX {
            return Err(Failure::limit("COMMAND_BYTES_MAX", limits::COMMAND_BYTES_MAX, command.len()));
        }
        let proposed = tokio::time::timeout_at(deadline, self.group.propose(command.into())).await;
        let Committed { index, outcome } = proposed.map_err(|_| write_timed_out())?.map_err(write_failure)?;
        let outcome = v1::SqlOutcome::decode(outcome).map_err(|_| {
            Failure::new(ErrorCode::Internal, "the outcome of a write cannot be read").maybe_applied()
        })?;
        match outcome.error {
            Some(error) => Err(entry_failure(error)),
            None => Ok((index, outcome)),
        }
    }
}

/// A refusal of a whole entry. Nothing of it was applied now; an earlier attempt of a write that belongs
/// to a session may have been.
fn entry_failure(error: v1::SqlError) -> Failure {
    Failure::new(error.code(), error.message).maybe_applied()
}

/// A leader as others are told of it; the service adds its addresses.
fn hint(leader: Option<Leader>) -> Option<LeaderHint> {
    let peer = leader?.peer?;
    Some(LeaderHint { peer_id: peer.to_string(), addresses: Vec::new() })
}

fn not_leader(leader: Option<Leader>) -> Failure {
    Failure::new(ErrorCode::NotLeader, "this node does not lead the database").with_leader(hint(leader))
}

fn write_failure(error: ProposeError) -> Failure {
    match error {
        ProposeError::NotLeader(leader) => not_leader(leader),
        ProposeError::Unknown => Failure::new(ErrorCode::UnknownOutcome, error.to_string()),
        // The replica stopped with the write in its hands: the others may still commit it.
        ProposeError::Stopped(_) => Failure::new(ErrorCode::UnknownOutcome, error.to_string()),
    }
}

fn write_timed_out() -> Failure {
    Failure::new(
        ErrorCode::UnknownOutcome,
        "no quorum of replicas answered in time: the write may still be applied; retry it in the same session",
    )
}

fn read_timed_out() -> Failure {
    Failure::new(ErrorCode::Unavailable, "no quorum of replicas answered in time")
}

fn not_recovered() -> Failure {
    Failure::new(
        ErrorCode::NotReady,
        "this replica has just started and has not heard from a leader yet: it could show an older state than before",
    )
}

fn read_failure(error: ReadIndexError) -> Failure {
    match error {
        ReadIndexError::NotLeader(leader) => not_leader(leader),
        ReadIndexError::NoQuorum | ReadIndexError::Stopped(_) => {
            Failure::new(ErrorCode::Unavailable, error.to_string())
        }
        ReadIndexError::Busy => {
            Failure::new(ErrorCode::Busy, error.to_string()).with_retry_after(Duration::from_millis(20))
        }
    }
}
