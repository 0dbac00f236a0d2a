//! What a request for registers may ask for: the grammar of keys and the limits, checked alike by a node and by
//! an implementation without one. Knows no engine.

use crate::v1::register_operation::Kind;
use crate::{Failure, limits, v1};

/// Checks a key: 1 to [`limits::REGISTER_KEY_BYTES_MAX`] bytes of any kind.
///
/// # Errors
/// `INVALID_ARGUMENT` for an empty one, `LIMIT_EXCEEDED` for one that is too long.
pub fn check_key(key: &[u8]) -> Result<(), Failure> {
    if key.is_empty() {
        return Err(Failure::invalid("a key has at least one byte"));
    }
    check_prefix(key)
}

/// Checks a prefix or a cursor, which may be empty.
///
/// # Errors
/// `LIMIT_EXCEEDED` when no key can be so long.
pub fn check_prefix(prefix: &[u8]) -> Result<(), Failure> {
    if prefix.len() > limits::REGISTER_KEY_BYTES_MAX {
        return Err(Failure::limit("REGISTER_KEY_BYTES_MAX", limits::REGISTER_KEY_BYTES_MAX, prefix.len()));
    }
    Ok(())
}

/// Checks what a client may ask for.
///
/// # Errors
/// `INVALID_ARGUMENT` or `LIMIT_EXCEEDED`.
pub fn check_operation(operation: Option<&v1::RegisterOperation>) -> Result<(), Failure> {
    match operation.and_then(|operation| operation.kind.as_ref()) {
        Some(Kind::Put(put)) => {
            check_key(&put.key)?;
            check_value(&put.value)
        }
        Some(Kind::Delete(delete)) => check_key(&delete.key),
        Some(Kind::Increment(increment)) => check_key(&increment.key),
        Some(Kind::GrantLease(grant)) => check_ttl(grant.ttl_ms),
        Some(Kind::KeepAlive(_) | Kind::RevokeLease(_)) => Ok(()),
        Some(Kind::ExpireLeases(_)) => Err(Failure::invalid("leases expire by themselves; revoke one")),
        None => Err(Failure::invalid("the request asks for nothing this version knows")),
    }
}

/// Registers of one page: what was asked for, or as many as there may be.
///
/// # Errors
/// `LIMIT_EXCEEDED` for more than that.
pub fn page_limit(asked: u32) -> Result<usize, Failure> {
    within("REGISTERS_PER_PAGE_MAX", limits::REGISTERS_PER_PAGE_MAX, asked)
}

/// Leases of one page, as [`page_limit`].
///
/// # Errors
/// `LIMIT_EXCEEDED` for more than there may be.
pub fn lease_page_limit(asked: u32) -> Result<usize, Failure> {
    within("LEASES_PER_PAGE_MAX", limits::LEASES_PER_PAGE_MAX, asked)
}

fn within(name: &str, max: u32, asked: u32) -> Result<usize, Failure> {
    match asked {
        0 => Ok(max as usize),
        asked if asked > max => Err(Failure::limit(name, max, asked)),
        asked => Ok(asked as usize),
    }
}

fn check_value(value: &[u8]) -> Result<(), Failure> {
    let max = limits::REGISTER_VALUE_BYTES_MAX;
    if value.len() > max {
        return Err(Failure::limit("REGISTER_VALUE_BYTES_MAX", max, value.len()));
    }
    Ok(())
}

fn check_ttl(ttl_ms: u64) -> Result<(), Failure> {
    let (min, max) = (limits::LEASE_TTL_MIN.as_millis() as u64, limits::LEASE_TTL_MAX.as_millis() as u64);
    if !(min..=max).contains(&ttl_ms) {
        return Err(Failure::invalid(format!(
            "the ttl of a lease is between LEASE_TTL_MIN, {min} ms, and LEASE_TTL_MAX, {max} ms, not {ttl_ms} ms"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Kind, check_key, check_operation, page_limit};
    use crate::{ErrorCode, limits, v1};

    #[test]
    fn what_breaks_a_limit_is_told_which_one() {
        assert_eq!(check_key(b"").unwrap_err().code, ErrorCode::InvalidArgument);
        assert!(check_key(&[0xff; limits::REGISTER_KEY_BYTES_MAX]).is_ok());
        let long = check_key(&[0; limits::REGISTER_KEY_BYTES_MAX + 1]).unwrap_err();
        assert_eq!(long.code, ErrorCode::LimitExceeded);
        assert!(long.message.starts_with("REGISTER_KEY_BYTES_MAX"), "{long}");
        assert_eq!(page_limit(0).unwrap(), limits::REGISTERS_PER_PAGE_MAX as usize);
        assert_eq!(
            page_limit(limits::REGISTERS_PER_PAGE_MAX + 1).unwrap_err().code,
            ErrorCode::LimitExceeded
        );
    }

    #[test]
    fn only_what_a_client_may_ask_for_passes() {
        let check = |kind| check_operation(Some(&v1::RegisterOperation { kind }));
        let refused = |kind| check(kind).unwrap_err().code;
        assert_eq!(refused(None), ErrorCode::InvalidArgument);
        assert_eq!(refused(Some(Kind::ExpireLeases(v1::LeasesExpire {}))), ErrorCode::InvalidArgument);
        assert_eq!(refused(Some(Kind::GrantLease(v1::LeaseGrant { ttl_ms: 1 }))), ErrorCode::InvalidArgument);
        assert!(check(Some(Kind::GrantLease(v1::LeaseGrant { ttl_ms: 10_000 }))).is_ok());
        let value = vec![0; limits::REGISTER_VALUE_BYTES_MAX + 1].into();
        let put = v1::RegisterPut { key: "k".into(), value, ..Default::default() };
        assert_eq!(refused(Some(Kind::Put(put))), ErrorCode::LimitExceeded);
    }
}
