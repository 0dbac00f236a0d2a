//! Registers between the wire contract and the SQLite door, as `convert` does it for statements.

use debros_proto::{ErrorCode, v1};
use debros_sqlite::{
    HeldLease, LeasePage, Register, RegisterChange, RegisterOperation, RegisterOutcome, RegisterPage,
    RegisterRefusal,
};
use v1::register_operation::Kind;

/// Reads an operation; `None` for one that this version does not know.
pub(super) fn operation(operation: v1::RegisterOperation) -> Option<RegisterOperation> {
    Some(match operation.kind? {
        Kind::Put(put) => RegisterOperation::Put {
            key: put.key.into(),
            value: put.value.into(),
            lease: put.lease,
            expected: put.expected_version,
        },
        Kind::Delete(delete) => {
            RegisterOperation::Delete { key: delete.key.into(), expected: delete.expected_version }
        }
        Kind::Increment(increment) => {
            RegisterOperation::Increment { key: increment.key.into(), delta: increment.delta }
        }
        Kind::GrantLease(grant) => RegisterOperation::GrantLease { ttl_ms: grant.ttl_ms },
        Kind::KeepAlive(keep) => RegisterOperation::KeepAlive { lease: keep.lease },
        Kind::RevokeLease(revoke) => RegisterOperation::RevokeLease { lease: revoke.lease },
        Kind::ExpireLeases(_) => RegisterOperation::ExpireLeases,
    })
}

/// Writes what an operation gave.
pub(super) fn outcome(outcome: RegisterOutcome) -> v1::RegisterOutcome {
    use v1::register_outcome::Kind;
    let kind = match outcome {
        RegisterOutcome::Written { version } => Kind::Written(v1::RegisterWritten { version }),
        RegisterOutcome::Conflict { version, value } => {
            Kind::Conflict(v1::RegisterConflict { version, value: value.map(Into::into) })
        }
        RegisterOutcome::Deleted { version } => Kind::Deleted(v1::RegisterDeleted { version }),
        RegisterOutcome::Incremented { value, version } => {
            Kind::Incremented(v1::RegisterIncremented { value, version })
        }
        RegisterOutcome::Lease { id, ttl_ms } => Kind::Lease(v1::Lease { id, ttl_ms }),
        RegisterOutcome::Revoked { keys } => Kind::Revoked(v1::LeaseRevoked { keys }),
        RegisterOutcome::Expired { leases } => Kind::Expired(v1::LeasesExpired { leases }),
        RegisterOutcome::Refused(refusal) => {
            Kind::Refused(v1::RegisterRefused { code: code(&refusal) as i32, message: refusal.to_string() })
        }
    };
    v1::RegisterOutcome { kind: Some(kind) }
}

fn code(refusal: &RegisterRefusal) -> ErrorCode {
    match refusal {
        RegisterRefusal::NoSuchLease(_) => ErrorCode::NotFound,
        RegisterRefusal::NotANumber | RegisterRefusal::Overflow { .. } => ErrorCode::InvalidArgument,
        RegisterRefusal::TooManyLeases(_)
        | RegisterRefusal::TooManyOfLease(_)
        | RegisterRefusal::DatabaseFull { .. } => ErrorCode::LimitExceeded,
    }
}

/// Writes a register.
pub(super) fn register(register: Register) -> v1::Register {
    let Register { key, value, version, lease } = register;
    v1::Register { key: key.into(), value: value.into(), version, lease }
}

/// Writes a page of registers.
pub(super) fn page(page: RegisterPage, revision: u64) -> v1::RegisterListResponse {
    let RegisterPage { registers, more } = page;
    let registers = registers.into_iter().map(register).collect();
    v1::RegisterListResponse { registers, more, revision, leader: None }
}

/// Writes a page of leases, at this lease time.
pub(super) fn leases(page: LeasePage, now_ms: u64) -> v1::LeaseListResponse {
    let LeasePage { leases, more } = page;
    let lease = |HeldLease { id, ttl_ms, due_ms, keys }: HeldLease| v1::LeaseInfo {
        id,
        ttl_ms,
        // One that was kept alive since then has no more than its whole time.
        left_ms: due_ms.saturating_sub(now_ms).min(ttl_ms),
        keys: keys.into_iter().map(Into::into).collect(),
    };
    v1::LeaseListResponse { leases: leases.into_iter().map(lease).collect(), more, leader: None }
}

/// Writes a change.
pub(super) fn change(change: RegisterChange) -> v1::RegisterChange {
    let RegisterChange { key, value, version, lease } = change;
    v1::RegisterChange { key: key.into(), value: value.map(Into::into), version, lease }
}
