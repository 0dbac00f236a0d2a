//! The registers of a database on this node.
//!
//! Leases end by log time, in the entry that says so; whoever leads proposes that entry when one is due. Log time
//! follows the leaders' clocks: it never goes back, but a new leader whose clock is ahead ends leases early by so
//! much. Who must not rely on clocks compares versions: that is what they are for.

use bytes::Bytes;
use debros_proto::{ErrorCode, Failure, limits, v1};
use debros_sqlite::RegisterQuery;
use futures::future::join_all;
use tokio::time::Instant;
use v1::register_operation::Kind;
use v1::sql_command::Operation;

use super::super::registers;
use super::super::watchers::Watcher;
use super::Database;

/// Entries under way at a time that only move log time forward.
const TICKS_UNDER_WAY: u64 = 64;

impl Database {
    /// Applies one operation through the log, as [`Self::execute`].
    ///
    /// # Errors
    /// Says whether the write may have been applied.
    pub async fn write_register(
        &self,
        operation: v1::RegisterOperation,
        session: Option<v1::WriteSession>,
        deadline: Instant,
    ) -> Result<v1::RegisterWriteResponse, Failure> {
        if matches!(operation.kind, Some(Kind::GrantLease(_) | Kind::KeepAlive(_))) {
            self.move_log_time(deadline).await?;
        }
        let session = session.unwrap_or_default();
        let write = v1::SqlRegisterWrite {
            operation: Some(operation),
            session: session.id,
            sequence: session.sequence,
            acknowledged: session.acknowledged,
        };
        let (log_index, outcome) = self.propose(Operation::Register(write), deadline).await?;
        let outcome = outcome.register.ok_or_else(|| {
            Failure::new(ErrorCode::Internal, "the leader is of a version that does not know registers")
        })?;
        Ok(v1::RegisterWriteResponse { outcome: Some(outcome), log_index, leader: None })
    }

    /// Reads a key; this replica must lead.
    ///
    /// # Errors
    /// When the leadership cannot be confirmed, or the reader fails.
    pub async fn get_register(
        &self,
        key: Bytes,
        deadline: Instant,
    ) -> Result<v1::RegisterGetResponse, Failure> {
        self.confirm(deadline).await?;
        let revision = self.engine.changes().revision();
        let found = self.engine.with_reader(deadline, move |reader, _| reader.get_register(&key)).await?;
        Ok(v1::RegisterGetResponse { register: found.map(registers::register), revision, leader: None })
    }

    /// Reads a page of keys; this replica must lead.
    ///
    /// # Errors
    /// As [`Self::get_register`].
    pub async fn list_registers(
        &self,
        query: RegisterQuery,
        deadline: Instant,
    ) -> Result<v1::RegisterListResponse, Failure> {
        self.confirm(deadline).await?;
        let revision = self.engine.changes().revision();
        let page = self.engine.with_reader(deadline, move |reader, _| reader.list_registers(&query)).await?;
        Ok(registers::page(page, revision))
    }

    /// Watches this replica, once it shows nothing older than it did before it was started.
    ///
    /// # Errors
    /// When that is not so in time.
    pub async fn watch_registers(
        &self,
        prefix: Bytes,
        after: Option<u64>,
        deadline: Instant,
    ) -> Result<Watcher, Failure> {
        self.recover(deadline).await?;
        let changes = self.engine.changes();
        let lost = after.is_some_and(|after| self.never_was_at(after));
        Ok(if lost { changes.watch_lost(prefix) } else { changes.watch(prefix, after) })
    }

    /// Whether a place is certainly one of another database of the same name, which was dropped since.
    fn never_was_at(&self, revision: u64) -> bool {
        let first = self.group.id().numbers_from();
        // A leader has whatever any replica has applied.
        let ahead = || self.group.is_leader() && revision > first + self.group.status().last_log_index;
        (revision > 0 && revision < first) || ahead()
    }

    /// Whether this replica leads and a lease is due.
    pub fn has_due_lease(&self) -> bool {
        let due = self.engine.changes().lease_due_ms();
        due.is_some_and(|due| due <= self.clock.unix_ms()) && self.group.is_leader()
    }

    /// Ends the leases that are due.
    ///
    /// # Errors
    /// As [`Self::write_register`]; repeating it does no harm.
    pub async fn expire_leases(&self, deadline: Instant) -> Result<(), Failure> {
        let operation = v1::RegisterOperation { kind: Some(Kind::ExpireLeases(v1::LeasesExpire {})) };
        self.write_register(operation, None, deadline).await.map(drop)
    }

    /// Brings log time near the clock. One entry moves it forward by a bounded step, and a database may have been
    /// idle for longer: a lease granted at its old log time would be over at once.
    async fn move_log_time(&self, deadline: Instant) -> Result<(), Failure> {
        let step = limits::LOG_TIME_STEP_MAX.as_millis() as u64;
        loop {
            let log_time = self.engine.changes().log_time_ms();
            let behind = self.clock.unix_ms().saturating_sub(log_time);
            if log_time == 0 || behind < step || !self.group.is_leader() {
                return Ok(());
            }
            let ticks = (behind / step).min(TICKS_UNDER_WAY);
            let passed = join_all((0..ticks).map(|_| self.pass_log(deadline))).await;
            passed.into_iter().collect::<Result<(), Failure>>()?;
        }
    }
}
