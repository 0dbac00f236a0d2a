//! How far a replica has applied, in the form an engine stores beside its data.

use bytes::Bytes;
use debros_proto::v1;
use prost::Message;

use super::codec::{self, Malformed};
use super::types::{LogId, StoredMembership};

/// An encoded position: opaque to engines, which keep it in the same transaction as the data.
/// Empty before anything was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(pub Bytes);

impl Position {
    pub(super) fn new(last: Option<&LogId>, membership: &StoredMembership) -> Self {
        let wire = v1::AppliedPosition {
            last: last.map(codec::log_id_to_wire),
            membership_log_id: membership.log_id().as_ref().map(codec::log_id_to_wire),
            membership: Some(codec::membership_to_wire(membership.membership())),
        };
        Self(wire.encode_to_vec().into())
    }

    pub(super) fn decode(&self) -> Result<(Option<LogId>, StoredMembership), Malformed> {
        let wire = v1::AppliedPosition::decode(self.0.clone()).map_err(|_| Malformed("applied position"))?;
        let membership = match wire.membership {
            Some(membership) => codec::membership_from_wire(membership)?,
            None => Default::default(),
        };
        let membership_log_id = wire.membership_log_id.as_ref().map(codec::log_id_from_wire);
        Ok((
            wire.last.as_ref().map(codec::log_id_from_wire),
            StoredMembership::new(membership_log_id, membership),
        ))
    }

    /// The index of the last applied entry; 0 before the first.
    ///
    /// # Errors
    /// [`Malformed`] when these are not the bytes of a position.
    pub fn index(&self) -> Result<u64, Malformed> {
        Ok(self.decode()?.0.map_or(0, |id| id.index))
    }
}
