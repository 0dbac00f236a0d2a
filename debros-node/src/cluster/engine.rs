//! The state machine of the meta group: the cluster map in memory, with a copy of it in one file.
//!
//! The file is written when the log is about to be purged, never on the way of a command: after a
//! restart openraft applies the log again from where the file ends. Readers get the map from a
//! watch and never wait.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::v1;
use prost::Message;
use tokio::sync::watch;

use super::map::ClusterMap;
use crate::blocking::Blocking;
use crate::raft::{CommittedCommand, Engine, EngineFault, Position};

const FILE: &str = "map";

/// The meta group's engine.
pub(super) struct MetaEngine {
    folder: PathBuf,
    blocking: Blocking,
    state: Mutex<State>,
    map: watch::Sender<Arc<ClusterMap>>,
}

#[derive(Clone, Default)]
struct State {
    map: ClusterMap,
    position: Position,
    /// What the file holds.
    durable: Position,
}

impl MetaEngine {
    /// Reads the map that the folder holds, if any.
    ///
    /// # Errors
    /// When the file is damaged or cannot be read: an empty map in its place would forget nodes.
    pub(super) async fn open(folder: PathBuf, blocking: Blocking) -> Result<Arc<Self>, EngineFault> {
        let path = folder.join(FILE);
        let opened = folder.clone();
        let read = blocking
            .run(move || {
                std::fs::create_dir_all(&opened)?;
                // A folder whose name is not durable takes the map along when the power goes.
                opened.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())?;
                match std::fs::read(&path) {
                    Ok(bytes) => decode(&bytes).map(Some),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await;
        let state = match read.map_err(|error| EngineFault::new("read the cluster map", error))? {
            Some((position, map)) => State { map, durable: position.clone(), position },
            None => State::default(),
        };
        let map = watch::Sender::new(Arc::new(state.map.clone()));
        Ok(Arc::new(Self { folder, blocking, state: Mutex::new(state), map }))
    }

    /// The map as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Arc<ClusterMap>> {
        self.map.subscribe()
    }

    fn state(&self) -> State {
        self.state.lock().expect("not poisoned").clone()
    }

    async fn write(&self, path: PathBuf, state: &State) -> Result<(), EngineFault> {
        let bytes = encode(&state.position, &state.map);
        let written = self.blocking.run(move || write_atomically(&path, &bytes)).await;
        written.map_err(|error| EngineFault::new("write the cluster map", error))
    }

    fn publish(&self, state: State) {
        let map = state.map.clone();
        *self.state.lock().expect("not poisoned") = state;
        self.map.send_if_modified(|published| {
            let changed = published.epoch() != map.epoch();
            if changed {
                *published = Arc::new(map);
            }
            changed
        });
    }
}

#[async_trait]
impl Engine for MetaEngine {
    async fn position(&self) -> Result<Position, EngineFault> {
        Ok(self.state().position)
    }

    async fn apply(
        &self,
        batch: Vec<CommittedCommand>,
        position: Position,
    ) -> Result<Vec<Bytes>, EngineFault> {
        let mut state = self.state();
        let outcomes = batch
            .into_iter()
            .map(|committed| {
                // An entry that this version cannot read changes nothing, on every replica alike.
                let command = v1::MetaCommand::decode(committed.command).unwrap_or_default();
                state.map.apply(committed.index, command).encode_to_vec().into()
            })
            .collect();
        state.position = position;
        self.publish(state);
        Ok(outcomes)
    }

    async fn make_durable(&self) -> Result<Position, EngineFault> {
        let state = self.state();
        if state.position != state.durable {
            self.write(self.folder.join(FILE), &state).await?;
            self.state.lock().expect("not poisoned").durable = state.position.clone();
        }
        Ok(state.position)
    }

    async fn copy_to(&self, file: &Path) -> Result<Position, EngineFault> {
        let state = self.state();
        self.write(file.to_owned(), &state).await?;
        Ok(state.position)
    }

    async fn install(&self, file: &Path, position: Position) -> Result<(), EngineFault> {
        let file = file.to_owned();
        let read = self.blocking.run(move || decode(&std::fs::read(file)?)).await;
        let (_, map) = read.map_err(|error| EngineFault::new("read a received cluster map", error))?;
        let state = State { map, durable: position.clone(), position };
        self.write(self.folder.join(FILE), &state).await?;
        self.publish(state);
        Ok(())
    }
}

/// `crc32c | length of position | position | map`, numbers little-endian.
fn encode(position: &Position, map: &ClusterMap) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(position.0.len() as u32).to_le_bytes());
    body.extend_from_slice(&position.0);
    map.to_wire().encode(&mut body).expect("a vector grows");
    let mut bytes = crc32c::crc32c(&body).to_le_bytes().to_vec();
    bytes.append(&mut body);
    bytes
}

fn decode(bytes: &[u8]) -> io::Result<(Position, ClusterMap)> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the stored cluster map is damaged");
    let (crc, body) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
        return Err(damaged());
    }
    let (length, rest) = body.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (position, map) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(damaged)?;
    let map = v1::ClusterMap::decode(map).map_err(|_| damaged())?;
    let map = ClusterMap::from_wire(map).map_err(io::Error::other)?;
    Ok((Position(Bytes::copy_from_slice(position)), map))
}

/// Replaces a file so that after a power loss either the old or the new content is there.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterMap, Position, decode, encode};

    #[test]
    fn a_damaged_file_is_refused_wherever_the_damage_is() {
        let position = Position(vec![1, 2, 3].into());
        let good = encode(&position, &ClusterMap::default());
        assert_eq!(decode(&good).unwrap(), (position, ClusterMap::default()));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(decode(&bad).is_err(), "a flipped bit in byte {at} went unseen");
            assert!(decode(&good[..at]).is_err(), "{at} of {} bytes were enough", good.len());
        }
    }
}
