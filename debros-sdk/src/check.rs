//! What people write, checked without a cluster: for programs that want to tell a mistake before they
//! connect. The calls that take these texts check them, too.

use debros_proto::DatabaseName;

use crate::address;
use crate::error::Error;
use crate::pubsub;
use crate::storage::checked;

/// Whether this is a multiaddr.
///
/// # Errors
/// `InvalidArgument` with a good one as an example.
pub fn multiaddr(text: &str) -> Result<(), Error> {
    address::parse(text).map(drop)
}

/// Whether a database may have this name.
///
/// # Errors
/// `InvalidArgument` with the grammar.
pub fn database_name(text: &str) -> Result<(), Error> {
    DatabaseName::new(text)?;
    Ok(())
}

/// Whether a value may be stored under this key.
///
/// # Errors
/// `InvalidArgument` for an empty key, `LimitExceeded` for one that is too long.
pub fn storage_key(text: &str) -> Result<(), Error> {
    checked::key(text)
}

/// Whether stored keys may begin like this.
///
/// # Errors
/// `LimitExceeded` when it is too long.
pub fn storage_prefix(text: &str) -> Result<(), Error> {
    checked::prefix(text)
}

/// Whether this is a topic that can be published to.
///
/// # Errors
/// `InvalidArgument` or `LimitExceeded`, with the rule that it breaks.
pub fn topic(text: &str) -> Result<(), Error> {
    pubsub::topic(text)
}

/// Whether this is a topic or a pattern that can be subscribed to.
///
/// # Errors
/// `InvalidArgument` or `LimitExceeded`, with the rule that it breaks.
pub fn pattern(text: &str) -> Result<(), Error> {
    pubsub::pattern(text)
}

/// The key of a register: 1 to 1024 bytes.
///
/// # Errors
/// `InvalidArgument` or `LimitExceeded`, with the rule that the key breaks.
pub fn register_key(key: &[u8]) -> Result<(), Error> {
    Ok(debros_proto::registers::check_key(key)?)
}
