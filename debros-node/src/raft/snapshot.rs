//! Snapshots as files: made when one is sent, removed when it was sent or installed.
//!
//! What openraft calls "building a snapshot" only makes the engine durable: purging the log then
//! costs a checkpoint, not a copy of the database. The copy is made at the moment a replica needs
//! it, with its own, newer position.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use debros_proto::limits;

use super::engine::{Engine, EngineFault};
use super::position::Position;
use crate::blocking::Blocking;

/// The folder in which a node keeps snapshot files while they are sent or received.
#[derive(Clone, Debug)]
pub(super) struct SnapshotFolder {
    folder: PathBuf,
    next: Arc<AtomicU64>,
}

impl SnapshotFolder {
    /// Opens the folder and removes what an earlier run left in it.
    ///
    /// # Errors
    /// When the folder can be neither emptied nor made.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::fs::create_dir_all(&folder)?,
        }
        Ok(Self { folder, next: Arc::default() })
    }

    /// A file that removes itself when it is dropped.
    pub(super) fn file(&self) -> SnapshotFile {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        SnapshotFile { path: self.folder.join(format!("{number}.snapshot")) }
    }
}

/// A snapshot's file; removed when dropped.
#[derive(Debug)]
pub(super) struct SnapshotFile {
    path: PathBuf,
}

impl SnapshotFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "a snapshot file could not be removed");
        }
    }
}

impl SnapshotFile {
    pub(super) async fn reader(self: &Arc<Self>, blocking: Blocking) -> io::Result<SnapshotReader> {
        let path = self.path.clone();
        let file = blocking.run(move || File::open(path)).await?;
        Ok(SnapshotReader { file: Arc::new(file), blocking })
    }

    pub(super) async fn writer(&self, blocking: Blocking) -> io::Result<SnapshotWriter> {
        let path = self.path.clone();
        let file = blocking.run(move || File::create_new(path)).await?;
        Ok(SnapshotWriter { file: Arc::new(file), blocking, bytes: 0, crc32c: 0 })
    }
}

/// Reads a snapshot's file in chunks of [`limits::SNAPSHOT_CHUNK_BYTES`].
pub(super) struct SnapshotReader {
    file: Arc<File>,
    blocking: Blocking,
}

impl SnapshotReader {
    /// The chunk at `offset`; empty at the end.
    pub(super) async fn chunk(&self, offset: u64) -> io::Result<Vec<u8>> {
        let file = self.file.clone();
        self.blocking.run(move || read_chunk(&file, offset)).await
    }

    /// The file's size in bytes and its CRC-32C.
    pub(super) async fn checksum(&self) -> io::Result<(u64, u32)> {
        let file = self.file.clone();
        self.blocking
            .run(move || {
                let (mut bytes, mut crc) = (0, 0);
                loop {
                    let chunk = read_chunk(&file, bytes)?;
                    if chunk.is_empty() {
                        return Ok((bytes, crc));
                    }
                    bytes += chunk.len() as u64;
                    crc = crc32c::crc32c_append(crc, &chunk);
                }
            })
            .await
    }
}

fn read_chunk(file: &File, offset: u64) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; limits::SNAPSHOT_CHUNK_BYTES];
    let mut filled = 0;
    while filled < chunk.len() {
        match file.read_at(&mut chunk[filled..], offset + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    chunk.truncate(filled);
    Ok(chunk)
}

/// Writes a received snapshot and knows what it has so far.
pub(super) struct SnapshotWriter {
    file: Arc<File>,
    blocking: Blocking,
    bytes: u64,
    crc32c: u32,
}

impl SnapshotWriter {
    pub(super) async fn append(&mut self, chunk: Bytes) -> io::Result<()> {
        let (file, offset) = (self.file.clone(), self.bytes);
        self.bytes += chunk.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, &chunk);
        self.blocking.run(move || file.write_all_at(&chunk, offset)).await
    }

    /// Syncs the file; gives its size in bytes and its CRC-32C.
    pub(super) async fn finish(self) -> io::Result<(u64, u32)> {
        let file = self.file;
        self.blocking.run(move || file.sync_all()).await?;
        Ok((self.bytes, self.crc32c))
    }
}

/// What openraft hands around as a snapshot's data.
#[derive(Clone)]
pub(super) enum SnapshotData {
    /// This replica's own state: copied to a file when it is sent.
    Own {
        /// Whose state it is.
        engine: Arc<dyn Engine>,
        /// Where the copy goes.
        folder: SnapshotFolder,
    },
    /// A copy received from the leader, complete and checked.
    Received(Arc<SnapshotFile>),
}

impl SnapshotData {
    /// Gives the file to send and the position of the state in it.
    pub(super) async fn open(&self) -> Result<(Arc<SnapshotFile>, Position), EngineFault> {
        match self {
            Self::Own { engine, folder } => {
                let file = folder.file();
                let position = engine.copy_to(file.path()).await?;
                Ok((Arc::new(file), position))
            }
            Self::Received(_) => {
                Err(EngineFault::new("send a snapshot", "a received snapshot is installed, never sent on"))
            }
        }
    }
}
