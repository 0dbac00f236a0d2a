//! Registers: keys with a value, a version and perhaps a lease, in hidden tables.
//!
//! A register's version is the number of the entry that set it, its index and [`crate::Stamp::numbers_from`], so
//! it grows with every write of the key, also across a deletion. A lease ends when an entry says so ([`RegisterOperation::ExpireLeases`], by [`crate::LeaseTime`], or
//! [`RegisterOperation::RevokeLease`]), and in no other way: its registers go in that very entry. What a key
//! or a value may look like is the caller's affair. All of it follows from the entries alone.
//!
//! The tables are made by the first entry that needs them: databases from before there were registers, and
//! those that never use them, stay as they are.

mod read;
mod store;

use crate::SessionWrite;

pub(crate) use read::RegisterReads;
pub(crate) use store::{Moment, RegisterStore};

/// An operation on registers, with its place in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterWrite {
    /// What to do.
    pub operation: RegisterOperation,
    /// Set for a write exactly once.
    pub session: Option<SessionWrite>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOperation {
    /// Set a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
        /// The lease it goes with from now on; 0 for none.
        lease: u64,
        /// Only if the key has this version; 0: only if there is no such key.
        expected: Option<u64>,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: Vec<u8>,
        /// Only if the key has this version.
        expected: Option<u64>,
    },
    /// Add to a key that holds a decimal number, or is not there, which counts as 0. Its lease stays.
    Increment {
        /// The key.
        key: Vec<u8>,
        /// What to add.
        delta: i64,
    },
    /// Begin a lease; its id is the entry's number.
    GrantLease {
        /// How long it lasts without a sign of life.
        ttl_ms: u64,
    },
    /// Give a lease its whole time again.
    KeepAlive {
        /// The lease.
        lease: u64,
    },
    /// End a lease.
    RevokeLease {
        /// The lease.
        lease: u64,
    },
    /// End leases whose time is up, the longest overdue first, so many at most.
    ExpireLeases,
}

impl RegisterOperation {
    /// Whether it can make the database larger.
    pub(crate) fn grows(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Increment { .. } | Self::GrantLease { .. } => true,
            Self::Delete { .. } | Self::KeepAlive { .. } | Self::RevokeLease { .. } | Self::ExpireLeases => {
                false
            }
        }
    }
}

/// What an operation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// The key was set.
    Written {
        /// Its new version.
        version: u64,
    },
    /// The key does not have the expected version; nothing was changed.
    Conflict {
        /// The version it has; 0 when there is no such key.
        version: u64,
        /// Its value, unless it is larger than [`crate::Options::conflict_value_bytes_max`].
        value: Option<Vec<u8>>,
    },
    /// The key is not there any more.
    Deleted {
        /// The version it had; 0 when there was no such key.
        version: u64,
    },
    /// The key was added to.
    Incremented {
        /// Its new value.
        value: i64,
        /// Its new version.
        version: u64,
    },
    /// The lease was granted, or has its whole time again.
    Lease {
        /// Its id.
        id: u64,
        /// How long it lasts without a sign of life.
        ttl_ms: u64,
    },
    /// The lease was ended.
    Revoked {
        /// Registers that went with it.
        keys: u64,
    },
    /// Leases whose time was up were ended.
    Expired {
        /// How many.
        leases: u64,
    },
    /// Nothing was changed.
    Refused(RegisterRefusal),
}

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterRefusal {
    /// The lease is not there.
    #[error("lease {0} has ended, or never was: grant a new one")]
    NoSuchLease(u64),
    /// What is to be added to is no number.
    #[error("the register's value is no decimal number of 64 bits, so nothing can be added to it")]
    NotANumber,
    /// The sum has no place.
    #[error("the sum of {value} and {delta} does not fit 64 bits")]
    Overflow {
        /// What is there.
        value: i64,
        /// What was to be added.
        delta: i64,
    },
    /// There is no room for another lease.
    #[error("LEASES_MAX is {0}, and so many leases are alive: revoke some")]
    TooManyLeases(usize),
    /// There is no room for another register of this lease.
    #[error("REGISTERS_PER_LEASE_MAX is {0}, and so many registers go with this lease: grant another")]
    TooManyOfLease(usize),
    /// There is no room for anything.
    #[error(
        "the database has reached its limit of {max_bytes} bytes; delete rows or registers, or raise the limit"
    )]
    DatabaseFull {
        /// The limit.
        max_bytes: u64,
    },
}

/// A key as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    /// The key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// The number of the entry that set it.
    pub version: u64,
    /// The lease it goes with; 0 for none.
    pub lease: u64,
}

/// Which registers to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterQuery {
    /// Those that begin with these bytes.
    pub prefix: Vec<u8>,
    /// Those behind this key; empty from the first.
    pub after: Vec<u8>,
    /// So many at most.
    pub limit: usize,
    /// Bytes of keys and values after which no further one is read.
    pub bytes_max: usize,
}

/// Registers in the order of their keys' bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegisterPage {
    /// In order.
    pub registers: Vec<Register>,
    /// There are more behind the last of them.
    pub more: bool,
}

/// A lease as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// Its id.
    pub id: u64,
    /// How long it lasts without a sign of life.
    pub ttl_ms: u64,
    /// The lease time at which it is due.
    pub due_ms: u64,
    /// The registers that go with it, in the order of their bytes.
    pub keys: Vec<Vec<u8>>,
}

/// Which leases to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseQuery {
    /// Those with a greater id.
    pub after: u64,
    /// So many at most.
    pub limit: usize,
    /// Bytes of keys after which no further lease is read.
    pub bytes_max: usize,
}

/// Leases in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeasePage {
    /// In order, each with all its keys.
    pub leases: Vec<HeldLease>,
    /// There are more behind the last of them.
    pub more: bool,
}

/// A change that an applied entry made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterChange {
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; `None` when it was deleted.
    pub value: Option<Vec<u8>>,
    /// The number of the entry.
    pub version: u64,
    /// The lease it goes with; 0 for none.
    pub lease: u64,
}
