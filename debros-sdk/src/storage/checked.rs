//! What can be told about a storage operation without a node: keys, values, times and pages within
//! their limits. Every implementation asks here, so all of them refuse alike.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use debros_proto::{Failure, limits};

use crate::error::Error;
use crate::statement::too_large;
use crate::storage::ResumeToken;

/// A key that can be stored.
pub(crate) fn key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::invalid("a key has at least one character"));
    }
    prefix(key)
}

/// A beginning of keys; an empty one is that of all keys.
pub(crate) fn prefix(prefix: &str) -> Result<(), Error> {
    if prefix.len() > limits::STORAGE_KEY_BYTES_MAX {
        return Err(too_large("STORAGE_KEY_BYTES_MAX", limits::STORAGE_KEY_BYTES_MAX, prefix.len()));
    }
    Ok(())
}

/// A value that fits.
pub(crate) fn value(value: &Bytes) -> Result<(), Error> {
    if value.len() > limits::STORAGE_VALUE_BYTES_MAX {
        return Err(too_large("STORAGE_VALUE_BYTES_MAX", limits::STORAGE_VALUE_BYTES_MAX, value.len()));
    }
    Ok(())
}

/// A time to live in milliseconds as the wire has it: 0 is for ever.
pub(crate) fn ttl_ms(ttl: Option<Duration>) -> Result<u64, Error> {
    match ttl {
        None => Ok(0),
        Some(Duration::ZERO) => Err(Error::invalid("a time to live is more than nothing")),
        Some(ttl) if ttl > limits::STORAGE_TTL_MAX => {
            let told = |duration: Duration| format!("{} s", duration.as_secs());
            Err(Failure::limit("STORAGE_TTL_MAX", told(limits::STORAGE_TTL_MAX), told(ttl)).into())
        }
        // Whoever asks for less than a millisecond wants it to expire, not to stay.
        Some(ttl) => Ok(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)),
    }
}

/// A token to go on from, as the wire has it: an empty one is none.
pub(crate) fn resume(token: &ResumeToken) -> Result<(), Error> {
    if token.as_bytes().is_empty() {
        return Err(Error::invalid(
            "the resume token of a watch is what an earlier watch gave: this one is empty",
        ));
    }
    Ok(())
}

/// The keys of one page.
pub(crate) fn page_limit(limit: Option<u32>) -> Result<u32, Error> {
    match limit {
        None => Ok(limits::STORAGE_PAGE_KEYS_DEFAULT),
        Some(0) => Err(Error::invalid("a page has room for at least one key")),
        Some(limit) if limit > limits::STORAGE_PAGE_KEYS_MAX => {
            Err(Failure::limit("STORAGE_PAGE_KEYS_MAX", limits::STORAGE_PAGE_KEYS_MAX, limit).into())
        }
        Some(limit) => Ok(limit),
    }
}

/// A point in time as the wire has it: 0 is never.
pub(crate) fn expires_at(unix_ms: u64) -> Option<SystemTime> {
    (unix_ms > 0).then(|| UNIX_EPOCH + Duration::from_millis(unix_ms))
}
