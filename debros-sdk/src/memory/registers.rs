//! Registers in memory: the code that a node runs to apply them, watched in this process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use debros_proto::{Failure, limits, v1};
use debros_sqlite::{
    EntryOutcome, HeldLease, LeaseQuery, Operation, RegisterChange, RegisterOperation, RegisterOutcome,
    RegisterQuery, RegisterRefusal, RegisterWrite,
};
use futures::stream;
use tokio::sync::watch;
use tokio::time::sleep;
use v1::register_operation::Kind;
use v1::register_outcome::Kind as Outcome;

use super::{MemoryDatabase, State, broken};
use crate::error::Error;
use crate::registers::{
    Conflict, Counter, Lease, LeaseId, LeaseInfo, LeaseListOptions, LeasePage, Register, RegisterListOptions,
    RegisterPage, RegisterPutOptions, RegisterWatch, Registers, Told, lease_list_request, list_request,
    operation, outcome, settled,
};

/// Registers in memory; clones share them. Leases go by this machine's clock.
#[derive(Clone)]
pub struct MemoryRegisters {
    state: Arc<Mutex<State>>,
}

/// Changes for those who watch: as many as a node remembers.
#[derive(Default)]
pub(super) struct Remembered {
    changes: VecDeque<v1::RegisterChange>,
    /// Every change after this index is remembered.
    since: u64,
    newest: watch::Sender<u64>,
}

impl Remembered {
    pub(super) fn record(&mut self, revision: u64, changes: Vec<RegisterChange>) {
        for RegisterChange { key, value, version, lease } in changes {
            let value = value.map(Into::into);
            self.changes.push_back(v1::RegisterChange { key: key.into(), value, version, lease });
        }
        while self.changes.len() > limits::CHANGES_REMEMBERED_MAX {
            self.since = self.changes.pop_front().map_or(self.since, |change| change.version);
        }
        self.newest.send_replace(revision);
    }

    /// What came after an index.
    fn after(&self, prefix: &[u8], after: u64) -> v1::RegisterWatchResponse {
        let lagged = after < self.since;
        let wanted = |change: &&v1::RegisterChange| {
            !lagged && change.version > after && change.key.starts_with(prefix)
        };
        let changes = self.changes.iter().filter(wanted).cloned().collect();
        v1::RegisterWatchResponse { changes, revision: after.max(*self.newest.borrow()), lagged }
    }
}

impl MemoryRegisters {
    /// No registers yet.
    ///
    /// # Errors
    /// `Internal` when there is no memory.
    pub fn new() -> Result<Self, Error> {
        Ok(MemoryDatabase::new()?.registers())
    }

    pub(super) fn of(database: &MemoryDatabase) -> Self {
        Self { state: Arc::clone(&database.state) }
    }

    /// The state, with the leases ended that are due.
    fn state(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.lease_due_in()?.is_some_and(|wait| wait.is_zero()) {
            apply(&mut state, RegisterOperation::ExpireLeases)?;
        }
        Ok(state)
    }

    fn write(&self, kind: Kind) -> Result<Outcome, Error> {
        let operation = v1::RegisterOperation { kind: Some(kind) };
        debros_proto::registers::check_operation(Some(&operation))?;
        let outcome = apply(&mut *self.state()?, to_sqlite(operation))?;
        settled(Some(to_wire(outcome)))
    }

    /// What a watcher is told next, and how long until a lease is due.
    fn look(
        &self,
        prefix: &[u8],
        after: u64,
    ) -> Result<(v1::RegisterWatchResponse, Option<Duration>), Error> {
        let mut state = self.state()?;
        let wait = state.lease_due_in()?.map(|wait| wait.max(Duration::from_millis(1)));
        Ok((state.remembered.after(prefix, after), wait))
    }

    /// Waits for something to tell.
    async fn told(
        &self,
        newest: &mut watch::Receiver<u64>,
        prefix: &[u8],
        after: u64,
    ) -> Result<Told, Error> {
        loop {
            newest.mark_unchanged();
            let (told, wait) = self.look(prefix, after)?;
            if told.lagged || !told.changes.is_empty() {
                return Ok(Told::from_wire(told));
            }
            let due = async {
                match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = newest.changed() => changed.map_err(|_| Error::closed())?,
                () = due => {}
            }
        }
    }
}

#[async_trait]
impl Registers for MemoryRegisters {
    async fn get(&self, key: &[u8]) -> Result<Option<Register>, Error> {
        debros_proto::registers::check_key(key)?;
        let found = self.state()?.writer.get_register(key).map_err(broken)?;
        Ok(found.map(from_sqlite))
    }

    async fn put_with(&self, key: &[u8], value: &[u8], options: RegisterPutOptions) -> Result<u64, Error> {
        let written = self.write(operation::put(key, value, None, options))?;
        outcome::unconditional(outcome::written(written)?)
    }

    async fn compare_and_set_with(
        &self,
        key: &[u8],
        expected: u64,
        value: &[u8],
        options: RegisterPutOptions,
    ) -> Result<Result<u64, Conflict>, Error> {
        outcome::written(self.write(operation::put(key, value, Some(expected), options))?)
    }

    async fn delete(&self, key: &[u8]) -> Result<Option<u64>, Error> {
        let version = outcome::unconditional(outcome::deleted(self.write(operation::delete(key, None))?)?)?;
        Ok((version != 0).then_some(version))
    }

    async fn compare_and_delete(&self, key: &[u8], expected: u64) -> Result<Result<(), Conflict>, Error> {
        let deleted = self.write(operation::delete(key, Some(expected)))?;
        Ok(outcome::deleted(deleted)?.map(drop))
    }

    async fn increment(&self, key: &[u8], delta: i64) -> Result<Counter, Error> {
        outcome::counter(self.write(operation::increment(key, delta))?)
    }

    async fn list(&self, prefix: &[u8], options: RegisterListOptions) -> Result<RegisterPage, Error> {
        let request = list_request(prefix, &options)?;
        let query = RegisterQuery {
            prefix: prefix.to_vec(),
            after: request.after.to_vec(),
            limit: request.limit as usize,
            bytes_max: limits::REGISTER_PAGE_BYTES_MAX,
        };
        let mut state = self.state()?;
        let page = state.writer.list_registers(&query).map_err(broken)?;
        let revision = state.index;
        drop(state);
        let registers: Vec<Register> = page.registers.into_iter().map(from_sqlite).collect();
        let next = registers.last().filter(|_| page.more).map(|last| last.key.clone());
        Ok(RegisterPage { registers, next, revision })
    }

    async fn watch(&self, prefix: &[u8], after: Option<u64>) -> Result<RegisterWatch, Error> {
        debros_proto::registers::check_prefix(prefix)?;
        let state = self.state()?;
        let newest = state.remembered.newest.subscribe();
        let after = after.unwrap_or(state.index);
        drop(state);
        let place = (self.clone(), newest, prefix.to_vec(), after);
        let messages = stream::unfold(place, |(registers, mut newest, prefix, after)| async move {
            let told = registers.told(&mut newest, &prefix, after).await;
            let after = told.as_ref().map_or(after, |told| told.revision);
            Some((told, (registers, newest, prefix, after)))
        });
        Ok(RegisterWatch::new(messages, after))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error> {
        outcome::lease(self.write(operation::grant(ttl))?)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Lease, Error> {
        outcome::lease(self.write(operation::keep_alive(lease))?)
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, Error> {
        outcome::revoked(self.write(operation::revoke(lease))?)
    }

    async fn list_leases(&self, options: LeaseListOptions) -> Result<LeasePage, Error> {
        let v1::LeaseListRequest { header: _, after, limit } = lease_list_request(options)?;
        let query = LeaseQuery { after, limit: limit as usize, bytes_max: limits::REGISTER_PAGE_BYTES_MAX };
        let mut state = self.state()?;
        let now_ms = state.lease_now_ms();
        let page = state.writer.list_leases(query).map_err(broken)?;
        drop(state);
        let lease = |lease: HeldLease| LeaseInfo {
            id: LeaseId(lease.id),
            ttl: Duration::from_millis(lease.ttl_ms),
            left: Duration::from_millis(lease.due_ms.saturating_sub(now_ms)),
            keys: lease.keys.into_iter().map(Into::into).collect(),
        };
        let leases: Vec<LeaseInfo> = page.leases.into_iter().map(lease).collect();
        let next = leases.last().filter(|_| page.more).map(|last| last.id);
        Ok(LeasePage { leases, next })
    }
}

fn apply(state: &mut State, operation: RegisterOperation) -> Result<RegisterOutcome, Error> {
    match state.apply(Operation::Register(RegisterWrite { operation, session: None }))? {
        EntryOutcome::Register(outcome) => Ok(outcome),
        other => unreachable!("an operation on registers without a session gives its outcome, not {other:?}"),
    }
}

/// As a node reads it from a log.
fn to_sqlite(operation: v1::RegisterOperation) -> RegisterOperation {
    match operation.kind {
        Some(Kind::Put(put)) => RegisterOperation::Put {
            key: put.key.into(),
            value: put.value.into(),
            lease: put.lease,
            expected: put.expected_version,
        },
        Some(Kind::Delete(delete)) => {
            RegisterOperation::Delete { key: delete.key.into(), expected: delete.expected_version }
        }
        Some(Kind::Increment(increment)) => {
            RegisterOperation::Increment { key: increment.key.into(), delta: increment.delta }
        }
        Some(Kind::GrantLease(grant)) => RegisterOperation::GrantLease { ttl_ms: grant.ttl_ms },
        Some(Kind::KeepAlive(keep)) => RegisterOperation::KeepAlive { lease: keep.lease },
        Some(Kind::RevokeLease(revoke)) => RegisterOperation::RevokeLease { lease: revoke.lease },
        Some(Kind::ExpireLeases(_)) | None => RegisterOperation::ExpireLeases,
    }
}

/// As a node sends it, so that both implementations give the same error.
fn to_wire(outcome: RegisterOutcome) -> v1::RegisterOutcome {
    let kind = match outcome {
        RegisterOutcome::Written { version } => Outcome::Written(v1::RegisterWritten { version }),
        RegisterOutcome::Conflict { version, value } => {
            Outcome::Conflict(v1::RegisterConflict { version, value: value.map(Into::into) })
        }
        RegisterOutcome::Deleted { version } => Outcome::Deleted(v1::RegisterDeleted { version }),
        RegisterOutcome::Incremented { value, version } => {
            Outcome::Incremented(v1::RegisterIncremented { value, version })
        }
        RegisterOutcome::Lease { id, ttl_ms } => Outcome::Lease(v1::Lease { id, ttl_ms }),
        RegisterOutcome::Revoked { keys } => Outcome::Revoked(v1::LeaseRevoked { keys }),
        RegisterOutcome::Expired { leases } => Outcome::Expired(v1::LeasesExpired { leases }),
        RegisterOutcome::Refused(refusal) => {
            let failure = refused(&refusal);
            Outcome::Refused(v1::RegisterRefused { code: failure.code as i32, message: failure.message })
        }
    };
    v1::RegisterOutcome { kind: Some(kind) }
}

fn refused(refusal: &RegisterRefusal) -> Failure {
    use debros_proto::ErrorCode;
    let code = match refusal {
        RegisterRefusal::NoSuchLease(_) => ErrorCode::NotFound,
        RegisterRefusal::NotANumber | RegisterRefusal::Overflow { .. } => ErrorCode::InvalidArgument,
        RegisterRefusal::TooManyLeases(_)
        | RegisterRefusal::TooManyOfLease(_)
        | RegisterRefusal::DatabaseFull { .. } => ErrorCode::LimitExceeded,
    };
    Failure::new(code, refusal.to_string())
}

fn from_sqlite(register: debros_sqlite::Register) -> Register {
    let debros_sqlite::Register { key, value, version, lease } = register;
    let lease = (lease != 0).then_some(LeaseId(lease));
    Register { key: key.into(), value: value.into(), version, lease }
}
