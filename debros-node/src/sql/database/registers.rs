//! The registers of a database on this node.
//!
//! Leases end in the entry that says so; whoever leads proposes that entry when one is due. Their time is what the
//! steady clocks of leaders have gone on by between the entries that they stamped (`debros_sqlite::LeaseTime`): no
//! lease ends early because a clock was set, and one lasts longer where leaders change, because the time between
//! the last entry of one and the first of the next counts for nothing. So a leader stamps one as soon as it leads,
//! and then one each [`limits::LEASE_CLOCK_INTERVAL`] at least, as long as there are leases.

use bytes::Bytes;
use debros_proto::{ErrorCode, Failure, limits, v1};
use debros_sqlite::{LeaseQuery, RegisterQuery};
use tokio::time::Instant;
use v1::register_operation::Kind;
use v1::sql_command::Operation;

use super::super::registers;
use super::super::watchers::Watcher;
use super::Database;

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

    /// Reads a page of leases; this replica must lead.
    ///
    /// # Errors
    /// As [`Self::get_register`].
    pub async fn list_leases(
        &self,
        query: LeaseQuery,
        deadline: Instant,
    ) -> Result<v1::LeaseListResponse, Failure> {
        self.confirm(deadline).await?;
        let (_, time) = self.engine.changes().leases();
        let since = time.since(self.steady.id, self.steady.read_ms()).unwrap_or(0);
        let page = self.engine.with_reader(deadline, move |reader, _| reader.list_leases(query)).await?;
        Ok(registers::leases(page, time.now_ms.saturating_add(since)))
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

    /// Whether this replica leads and is to propose [`Self::expire_leases`]: one is due, or there are some and the
    /// log has not had its clock for long.
    pub fn must_tend_leases(&self) -> bool {
        let (due, time) = self.engine.changes().leases();
        let Some(due) = due else { return false };
        let interval_ms = limits::LEASE_CLOCK_INTERVAL.as_millis() as u64;
        let waits = time
            .since(self.steady.id, self.steady.read_ms())
            .is_some_and(|since| since < interval_ms && time.now_ms.saturating_add(since) < due);
        !waits && self.group.is_leader()
    }

    /// Ends the leases that are due by the time at which the log has this.
    ///
    /// # Errors
    /// As [`Self::write_register`]; repeating it does no harm.
    pub async fn expire_leases(&self, deadline: Instant) -> Result<(), Failure> {
        let operation = v1::RegisterOperation { kind: Some(Kind::ExpireLeases(v1::LeasesExpire {})) };
        self.write_register(operation, None, deadline).await.map(drop)
    }
}
