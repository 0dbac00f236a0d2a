//! What can go wrong with the log store, and what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use debros_proto::{GroupId, limits};

/// An error of the log store.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The operating system refused. During work this ends the node.
    #[error("cannot {action} {}: look at the disk's health, its free space and the folder's permissions", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Durable records do not verify. The store does not open rather than forget some of them.
    #[error(
        "raft log {} is damaged at byte {offset}: {reason}; restore the data folder, or empty it and let the node join anew",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A segment that is still needed is gone.
    #[error(
        "raft log segment {} is missing; restore the data folder, or empty it and let the node join anew",
        path.display()
    )]
    MissingSegment {
        /// The file that should be there.
        path: PathBuf,
    },
    /// The folder holds segments, but not the file that says whose they are, or another's.
    #[error("{} does not belong to this log store: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: &'static str,
    },
    /// An entry above [`limits::LOG_ENTRY_BYTES_MAX`].
    #[error(
        "a log entry of {bytes} bytes is over the limit of {}; split the request",
        limits::LOG_ENTRY_BYTES_MAX
    )]
    EntryTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The caller appends where the log does not end.
    #[error("group {group} appends index {found} where its log continues at {expected}")]
    Gap {
        /// Which group.
        group: GroupId,
        /// Where the log continues.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// The group was removed from this store.
    #[error("the log of group {0} was removed from this node")]
    Removed(GroupId),
    /// A write or flush failed earlier; nothing is accepted any more.
    #[error("the log store has failed and the node must end: {0}")]
    Failed(Failure),
    /// An invariant of the writer did not hold.
    #[error("the raft log's writer has panicked; this is a bug, please report it with the log")]
    WriterPanicked,
    /// [`super::LogStore::close`] was called.
    #[error("the log store is closed")]
    Closed,
}

impl LogError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

impl From<LogError> for io::Error {
    fn from(error: LogError) -> Self {
        Self::other(error)
    }
}

/// The failed write or flush that ended the store. Cheap to clone: everyone who waits gets it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", Chain(.0))]
pub struct Failure(pub(super) Arc<LogError>);

/// An error with its sources in one line: a failure is shared, so its sources cannot be carried.
struct Chain<'a>(&'a LogError);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
