//! Peers kept over a restart, in `<data_dir>/peers.json`: a hint, never the truth.
//!
//! Invariants: the file appears whole or not at all; a file that cannot be read costs its hints and
//! nothing else; at most [`SAVED_PEERS_MAX`] peers, those seen last.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use debros_proto::limits;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

use crate::network::KnownPeer;

/// A full mesh.
const SAVED_PEERS_MAX: usize = limits::MESH_NODES_MAX;
/// That many peers with all their addresses, generously.
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedPeer {
    peer_id: String,
    addresses: Vec<Multiaddr>,
    last_seen_ms: u64,
}

/// Those worth keeping: seen by this node itself and dialable, the last seen first.
pub(super) fn worth_saving(known: Vec<KnownPeer>) -> Vec<SavedPeer> {
    let mut saved: Vec<SavedPeer> = known
        .into_iter()
        .filter(|known| !known.addresses.is_empty())
        .filter_map(|known| {
            let KnownPeer { peer, addresses, last_seen_ms, .. } = known;
            Some(SavedPeer { peer_id: peer.to_base58(), addresses, last_seen_ms: last_seen_ms? })
        })
        .collect();
    saved.sort_by_key(|saved| (std::cmp::Reverse(saved.last_seen_ms), saved.peer_id.clone()));
    saved.truncate(SAVED_PEERS_MAX);
    saved
}

/// Reads the file; an absent one is empty.
pub(super) fn load(path: &Path) -> io::Result<Vec<(PeerId, Vec<Multiaddr>)>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let saved: Vec<SavedPeer> = serde_json::from_str(&text)?;
    let parsed = saved.into_iter().take(SAVED_PEERS_MAX);
    Ok(parsed.filter_map(|saved| Some((saved.peer_id.parse().ok()?, saved.addresses))).collect())
}

/// Replaces the file.
pub(super) fn save(path: &Path, peers: &[SavedPeer]) -> io::Result<()> {
    let draft = path.with_extension("json.new");
    let mut file = File::create(&draft)?;
    file.write_all(serde_json::to_string_pretty(peers)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(last_seen_ms: Option<u64>) -> KnownPeer {
        KnownPeer {
            peer: PeerId::random(),
            addresses: vec!["/ip4/10.0.0.1/tcp/1".parse().unwrap()],
            connected: false,
            last_seen_ms,
            transport: None,
            round_trip: None,
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_the_last_seen_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        assert!(load(&path).unwrap().is_empty());
        let peers = vec![known(Some(1)), known(None), known(Some(2))];
        let order = [peers[2].peer, peers[0].peer];
        save(&path, &worth_saving(peers)).unwrap();
        let loaded: Vec<PeerId> = load(&path).unwrap().into_iter().map(|(peer, _)| peer).collect();
        assert_eq!(loaded, order);
        save(&path, &[]).unwrap();
        assert!(load(&path).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peers.json");
        for damaged in ["", "{", "[1]", r#"[{"peer_id":1}]"#] {
            fs::write(&path, damaged).unwrap();
            assert!(load(&path).is_err(), "{damaged}");
        }
    }
}
