//! Snapshots: a copy of the database at one moment, in a local file.
//!
//! The copy is made page by page in one read transaction, and what describes it is read in that
//! same transaction. Streaming from a read transaction instead would pin the write-ahead log for
//! as long as the slowest receiver takes.

use std::fs::{self, File};
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{OpenFlags, ffi};

use crate::connection::Connection;
use crate::generations::sync_folder;
use crate::{Fault, state, vfs};

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The log index up to which the snapshot is applied.
    pub applied_index: u64,
    /// Log time in milliseconds since the Unix epoch.
    pub log_time_unix_ms: u64,
    /// The caller's bookkeeping at that index.
    pub bookkeeping: Vec<u8>,
    /// Size of the file.
    pub bytes: u64,
}

/// Copies the database the connection sees into a new, synced file.
pub(crate) fn copy(source: &Connection, path: &Path) -> Result<SnapshotInfo, Fault> {
    remove_if_present(path)?;
    source.internal_batch("beginning a snapshot", "BEGIN")?;
    let copied = copy_in_transaction(source, path);
    let ended = source.internal_batch("ending a snapshot", "COMMIT");
    let mut info = copied?;
    ended?;
    let file = File::open(path).map_err(|error| Fault::file("opening", path, error))?;
    file.sync_all().map_err(|error| Fault::file("syncing", path, error))?;
    info.bytes = file.metadata().map_err(|error| Fault::file("reading the size of", path, error))?.len();
    if let Some(folder) = path.parent() {
        sync_folder(folder)?;
    }
    Ok(info)
}

fn copy_in_transaction(source: &Connection, path: &Path) -> Result<SnapshotInfo, Fault> {
    // Reading first makes the transaction see one moment; the backup then goes on within it.
    let (state, bookkeeping) = state::load(source)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
    let copy = || -> rusqlite::Result<()> {
        let mut target = rusqlite::Connection::open_with_flags_and_vfs(path, flags, vfs::NAME)?;
        // A broken copy is thrown away, so it needs no journal; it is synced once, by the caller.
        target.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
        let backup = Backup::new(&source.raw, &mut target)?;
        match backup.step(-1)? {
            StepResult::Done => Ok(()),
            other => Err(rusqlite::Error::SqliteFailure(
                ffi::Error::new(ffi::SQLITE_BUSY),
                Some(format!("the copy did not finish: {other:?}")),
            )),
        }
    };
    copy().map_err(|error| Fault::from_rusqlite("copying the database", &error))?;
    Ok(SnapshotInfo {
        applied_index: state.applied_index,
        log_time_unix_ms: state.log_time_ms,
        bookkeeping,
        bytes: 0,
    })
}

/// Reads what a snapshot file holds, without changing it or leaving files beside it.
///
/// # Errors
/// A fault when it cannot be read or is not one of our databases.
pub fn inspect_snapshot(path: impl AsRef<Path>) -> Result<SnapshotInfo, Fault> {
    let path = path.as_ref();
    vfs::register()?;
    let bytes = fs::metadata(path).map_err(|error| Fault::file("reading the size of", path, error))?.len();
    let connection = Connection::open_snapshot(path)?;
    let unusable = |reason: String| Fault::Unusable { path: path.into(), reason };
    if !state::exists(&connection)? {
        return Err(unusable("it has no bookkeeping".to_owned()));
    }
    let (state, bookkeeping) = state::load(&connection)?;
    Ok(SnapshotInfo {
        applied_index: state.applied_index,
        log_time_unix_ms: state.log_time_ms,
        bookkeeping,
        bytes,
    })
}

fn remove_if_present(path: &Path) -> Result<(), Fault> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(Path::new(&name)) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Fault::file("removing", Path::new(&name), error)),
        }
    }
    Ok(())
}
