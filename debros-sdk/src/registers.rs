//! Registers as an application sees them: linearizable keys in a space of their own. The trait, its types, and
//! what both implementations check alike. Retrying and sessions are `call` and `writer`.

mod election;
mod lock;
mod remote;
mod watch;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::{ErrorCode, limits, v1};

use crate::error::Error;

pub use election::{Election, Leader, Leadership, Observer};
pub use lock::{Lock, LockGuard};
pub use remote::RemoteRegisters;
#[cfg(feature = "memory")]
pub(crate) use watch::Told;
pub use watch::{RegisterEvent, RegisterWatch};

/// A key as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// Grows with every write of the key, also across a deletion, and across a drop of the default database. Never 0.
    pub version: u64,
    /// The lease it goes with.
    pub lease: Option<LeaseId>,
}

/// A key does not have the expected version; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The version it has; 0 when there is no such key.
    pub version: u64,
    /// Its value; `None` when there is no such key, and when the value has more than 32 KiB: then read it.
    pub value: Option<Bytes>,
}

/// A number after something was added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The sum.
    pub value: i64,
    /// The key's new version.
    pub version: u64,
}

/// Keys in the order of their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterPage {
    /// In order; perhaps fewer than asked for, because a page is bounded in bytes too.
    pub registers: Vec<Register>,
    /// Where the next page begins, for [`RegisterListOptions::after`]; `None` at the end.
    pub next: Option<Bytes>,
    /// A watch from here tells of everything that came after this page.
    pub revision: u64,
}

/// Which keys to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterListOptions {
    /// So many at most; `None` for as many as a page may have.
    pub limit: Option<u32>,
    /// Those behind this key.
    pub after: Option<Bytes>,
}

/// How to set a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegisterPutOptions {
    /// The lease it goes with from now on. Without one the key stays.
    pub lease: Option<LeaseId>,
}

impl RegisterPutOptions {
    /// The key goes when this lease ends.
    pub fn lease(lease: LeaseId) -> Self {
        Self { lease: Some(lease) }
    }
}

/// A lease by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lease: keys put under it go when it ends, which is when it was not kept alive for its time, or was revoked.
///
/// It lasts its whole time at least, counted from when it was asked for, whatever the nodes' clocks are set to: it
/// goes by how long they run. It ends a fraction of a second later; where another node took over the lead meanwhile,
/// later by the time in which nobody led, and up to 10 seconds. A holder whose process was paused may learn late that
/// it has ended: what must hold then is to be guarded by versions, [`LockGuard::token`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// How long it lasts without being kept alive.
    pub ttl: Duration,
}

/// A lease as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// Its number.
    pub id: LeaseId,
    /// How long it lasts without being kept alive.
    pub ttl: Duration,
    /// It ends in this time, or a little later, unless it is kept alive.
    pub left: Duration,
    /// The keys that go with it, in the order of their bytes.
    pub keys: Vec<Bytes>,
}

/// Leases in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeasePage {
    /// In order; perhaps fewer than asked for, because a page is bounded in bytes too.
    pub leases: Vec<LeaseInfo>,
    /// Where the next page begins, for [`LeaseListOptions::after`]; `None` at the end.
    pub next: Option<LeaseId>,
}

/// Which leases to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseListOptions {
    /// So many at most; `None` for as many as a page may have.
    pub limit: Option<u32>,
    /// Those behind this one.
    pub after: Option<LeaseId>,
}

/// Linearizable keys. Keys have 1 to 1024 bytes of any kind, values at most 1 MiB. Every operation sees whatever
/// was acknowledged before it began; writes are applied exactly once, however often they had to be sent; one
/// whose outcome nobody knows fails with [`Error::maybe_applied`].
#[async_trait]
pub trait Registers: Send + Sync {
    /// Reads a key.
    async fn get(&self, key: &[u8]) -> Result<Option<Register>, Error>;

    /// Sets a key, whatever it was; gives its new version.
    async fn put(&self, key: &[u8], value: &[u8]) -> Result<u64, Error> {
        self.put_with(key, value, RegisterPutOptions::default()).await
    }

    /// Sets a key, whatever it was; gives its new version. `NotFound` when the lease has ended.
    async fn put_with(&self, key: &[u8], value: &[u8], options: RegisterPutOptions) -> Result<u64, Error>;

    /// Sets a key only if it has this version; 0 stands for a key that is not there. Gives its new version.
    async fn compare_and_set(
        &self,
        key: &[u8],
        expected: u64,
        value: &[u8],
    ) -> Result<Result<u64, Conflict>, Error> {
        self.compare_and_set_with(key, expected, value, RegisterPutOptions::default()).await
    }

    /// As [`Self::compare_and_set`], with options.
    async fn compare_and_set_with(
        &self,
        key: &[u8],
        expected: u64,
        value: &[u8],
        options: RegisterPutOptions,
    ) -> Result<Result<u64, Conflict>, Error>;

    /// Deletes a key; gives the version it had, `None` when it was not there.
    async fn delete(&self, key: &[u8]) -> Result<Option<u64>, Error>;

    /// Deletes a key only if it has this version.
    async fn compare_and_delete(&self, key: &[u8], expected: u64) -> Result<Result<(), Conflict>, Error>;

    /// Adds to a decimal number; a key that is not there counts as 0. `InvalidArgument` when the value is no
    /// number, or the sum does not fit 64 bits. The key's lease stays.
    async fn increment(&self, key: &[u8], delta: i64) -> Result<Counter, Error>;

    /// Lists keys that begin with these bytes, taken literally, in the order of their bytes. Each page sees
    /// whatever was acknowledged before it was asked for; several pages are no single moment.
    async fn list(&self, prefix: &[u8], options: RegisterListOptions) -> Result<RegisterPage, Error>;

    /// Watches keys that begin with these bytes: changes after this revision, or from now on. Returns when the
    /// watch stands; it goes on over broken connections by itself. It tells of changes in the order in which they
    /// were applied, a little later than a read would see them.
    async fn watch(&self, prefix: &[u8], after: Option<u64>) -> Result<RegisterWatch, Error>;

    /// Begins a lease of 2 seconds to 24 hours.
    async fn grant_lease(&self, ttl: Duration) -> Result<Lease, Error>;

    /// Gives a lease its whole time again. `NotFound` when it has ended.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Lease, Error>;

    /// Ends a lease; gives how many keys went with it. `NotFound` when it has ended.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<u64, Error>;

    /// Lists the leases that are alive, whoever has them, with the keys that go with each. Each page sees whatever
    /// was acknowledged before it was asked for; several pages are no single moment.
    async fn list_leases(&self, options: LeaseListOptions) -> Result<LeasePage, Error>;
}

/// The operations of the trait, as they go into a log.
pub(crate) mod operation {
    use std::time::Duration;

    use debros_proto::v1;
    use v1::register_operation::Kind;

    use super::{LeaseId, RegisterPutOptions};

    pub(crate) fn put(
        key: &[u8],
        value: &[u8],
        expected_version: Option<u64>,
        options: RegisterPutOptions,
    ) -> Kind {
        let lease = options.lease.map_or(0, |lease| lease.0);
        let (key, value) = (key.to_vec().into(), value.to_vec().into());
        Kind::Put(v1::RegisterPut { key, value, lease, expected_version })
    }

    pub(crate) fn delete(key: &[u8], expected_version: Option<u64>) -> Kind {
        Kind::Delete(v1::RegisterDelete { key: key.to_vec().into(), expected_version })
    }

    pub(crate) fn increment(key: &[u8], delta: i64) -> Kind {
        Kind::Increment(v1::RegisterIncrement { key: key.to_vec().into(), delta })
    }

    pub(crate) fn grant(ttl: Duration) -> Kind {
        Kind::GrantLease(v1::LeaseGrant { ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) })
    }

    pub(crate) fn keep_alive(lease: LeaseId) -> Kind {
        Kind::KeepAlive(v1::LeaseKeepAlive { lease: lease.0 })
    }

    pub(crate) fn revoke(lease: LeaseId) -> Kind {
        Kind::RevokeLease(v1::LeaseRevoke { lease: lease.0 })
    }
}

/// What the trait's methods make of an outcome.
pub(crate) mod outcome {
    use std::time::Duration;

    use debros_proto::v1::register_outcome::Kind;

    use super::{Conflict, Counter, Lease, LeaseId};
    use crate::error::{Error, ErrorKind};

    fn unexpected<T>(outcome: &Kind) -> Result<T, Error> {
        Err(Error::new(
            ErrorKind::Internal,
            format!("a node answered something else than was asked: {outcome:?}"),
        ))
    }

    pub(crate) fn written(outcome: Kind) -> Result<Result<u64, Conflict>, Error> {
        match outcome {
            Kind::Written(written) => Ok(Ok(written.version)),
            Kind::Conflict(conflict) => {
                Ok(Err(Conflict { version: conflict.version, value: conflict.value }))
            }
            other => unexpected(&other),
        }
    }

    pub(crate) fn deleted(outcome: Kind) -> Result<Result<u64, Conflict>, Error> {
        match outcome {
            Kind::Deleted(deleted) => Ok(Ok(deleted.version)),
            Kind::Conflict(conflict) => {
                Ok(Err(Conflict { version: conflict.version, value: conflict.value }))
            }
            other => unexpected(&other),
        }
    }

    pub(crate) fn counter(outcome: Kind) -> Result<Counter, Error> {
        match outcome {
            Kind::Incremented(sum) => Ok(Counter { value: sum.value, version: sum.version }),
            other => unexpected(&other),
        }
    }

    pub(crate) fn lease(outcome: Kind) -> Result<Lease, Error> {
        match outcome {
            Kind::Lease(lease) => {
                Ok(Lease { id: LeaseId(lease.id), ttl: Duration::from_millis(lease.ttl_ms) })
            }
            other => unexpected(&other),
        }
    }

    pub(crate) fn revoked(outcome: Kind) -> Result<u64, Error> {
        match outcome {
            Kind::Revoked(revoked) => Ok(revoked.keys),
            other => unexpected(&other),
        }
    }

    /// A conflict where nothing was expected.
    pub(crate) fn unconditional<T>(outcome: Result<T, Conflict>) -> Result<T, Error> {
        outcome.map_err(|conflict| {
            Error::new(ErrorKind::Internal, format!("a node found a conflict with nothing: {conflict:?}"))
        })
    }
}

/// What an operation came to; a refusal is an error that changed nothing.
pub(crate) fn settled(outcome: Option<v1::RegisterOutcome>) -> Result<v1::register_outcome::Kind, Error> {
    use v1::register_outcome::Kind;
    match outcome.and_then(|outcome| outcome.kind) {
        Some(Kind::Refused(refused)) => {
            let code = match refused.code() {
                ErrorCode::Unspecified => ErrorCode::Internal,
                code => code,
            };
            let mut failure = debros_proto::Failure::new(code, refused.message);
            failure.maybe_applied = false;
            Err(failure.into())
        }
        Some(outcome) => Ok(outcome),
        None => Err(Error::new(
            crate::error::ErrorKind::Internal,
            "a node answered something that this version does not know",
        )),
    }
}

pub(crate) fn from_wire(register: v1::Register) -> Register {
    let v1::Register { key, value, version, lease } = register;
    Register { key, value, version, lease: (lease != 0).then_some(LeaseId(lease)) }
}

/// What a listing asks for on the wire.
pub(crate) fn list_request(
    prefix: &[u8],
    options: &RegisterListOptions,
) -> Result<v1::RegisterListRequest, Error> {
    let after = options.after.clone().unwrap_or_default();
    debros_proto::registers::check_prefix(prefix)?;
    debros_proto::registers::check_prefix(&after)?;
    let limit = options.limit.unwrap_or(limits::REGISTERS_PER_PAGE_MAX);
    if limit == 0 {
        return Err(Error::invalid("a page of no keys tells nothing; ask for 1 or more"));
    }
    debros_proto::registers::page_limit(limit)?;
    Ok(v1::RegisterListRequest { header: None, prefix: prefix.to_vec().into(), after, limit })
}

/// A page as it came over the wire.
pub(crate) fn page(answer: v1::RegisterListResponse) -> RegisterPage {
    let v1::RegisterListResponse { registers, more, revision, leader: _ } = answer;
    let registers: Vec<Register> = registers.into_iter().map(from_wire).collect();
    let next = registers.last().filter(|_| more).map(|last| last.key.clone());
    RegisterPage { registers, next, revision }
}

/// What a listing of leases asks for on the wire.
pub(crate) fn lease_list_request(options: LeaseListOptions) -> Result<v1::LeaseListRequest, Error> {
    let LeaseListOptions { limit, after } = options;
    let limit = limit.unwrap_or(limits::LEASES_PER_PAGE_MAX);
    if limit == 0 {
        return Err(Error::invalid("a page of no leases tells nothing; ask for 1 or more"));
    }
    debros_proto::registers::lease_page_limit(limit)?;
    Ok(v1::LeaseListRequest { header: None, after: after.map_or(0, |after| after.0), limit })
}

/// A page of leases as it came over the wire.
pub(crate) fn lease_page(answer: v1::LeaseListResponse) -> LeasePage {
    let v1::LeaseListResponse { leases, more, leader: _ } = answer;
    let lease = |v1::LeaseInfo { id, ttl_ms, left_ms, keys }: v1::LeaseInfo| LeaseInfo {
        id: LeaseId(id),
        ttl: Duration::from_millis(ttl_ms),
        left: Duration::from_millis(left_ms),
        keys,
    };
    let leases: Vec<LeaseInfo> = leases.into_iter().map(lease).collect();
    let next = leases.last().filter(|_| more).map(|last| last.id);
    LeasePage { leases, next }
}
