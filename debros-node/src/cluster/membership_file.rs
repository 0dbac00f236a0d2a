//! Which cluster this node belongs to and under which node id: one small file in its data folder.
//!
//! It is written before the meta group is first opened, so a node that was admitted and then lost
//! power comes back as the same member. It vouches for one log store only: with another
//! incarnation it still says which cluster to join, but not as whom.

use std::io;
use std::path::Path;

use debros_proto::{ClusterId, NodeId};
use serde::{Deserialize, Serialize};

use super::engine::write_atomically;

const FILE: &str = "member.json";

/// This node's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The node id that the meta group minted.
    pub node_id: NodeId,
    /// The log store for which it was minted.
    pub incarnation: String,
}

/// Reads the file; `None` when the node never belonged to a cluster.
///
/// # Errors
/// When it cannot be read or understood.
pub fn read(data_folder: &Path) -> io::Result<Option<Membership>> {
    match std::fs::read(data_folder.join(FILE)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{FILE} is damaged: {error}"))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the file durably.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn write(data_folder: &Path, membership: &Membership) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(membership).expect("plain data");
    write_atomically(&data_folder.join(FILE), &text)
}
