//! The line between a result and a fault.
//!
//! A [`SqlError`] is a result: it follows from the statement and the database alone, every
//! replica meets it alike, and it is stored and returned like any other outcome. A [`Fault`] is
//! this machine's trouble (disk, memory, locks): it is never a result, the batch is rolled back
//! and the replica stops applying until it can retry.

use std::path::PathBuf;

use rusqlite::ffi;

/// What kind of refusal a statement met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// SQLite rejected it: syntax, unknown table, type mismatch, a function's own error.
    Statement,
    /// A constraint does not hold.
    Constraint,
    /// The sandbox refuses what it asks for.
    Denied,
    /// Parameters do not match the statement.
    Parameters,
    /// It used up its virtual-machine steps (a write) or its time (a read).
    BudgetExceeded,
    /// A named limit was met: size of a value, of the statement, of the result, of the database.
    LimitExceeded,
    /// A statement that writes was sent to a reader.
    NotReadOnly,
}

/// A statement's failure: a deterministic result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// What went wrong and what to do about it.
    pub message: String,
    /// SQLite's extended result code; 0 when the refusal is ours.
    pub sqlite_code: i32,
    /// The kind of refusal.
    pub class: ErrorClass,
}

impl SqlError {
    /// A refusal of ours.
    pub(crate) fn ours(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { message: message.into(), sqlite_code: 0, class }
    }
}

/// Trouble of this machine, never a result of a statement. The transaction is rolled back: the
/// caller stops applying and retries, reopens the database, or rebuilds the replica.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// SQLite could not do its work.
    #[error("SQLite failed while {during}: {message} (code {code}); nothing of the batch was kept")]
    Sqlite {
        /// SQLite's extended result code.
        code: i32,
        /// SQLite's words.
        message: String,
        /// What was under way.
        during: &'static str,
    },
    /// The file system failed.
    #[error("{during} {path} failed")]
    File {
        /// What was under way.
        during: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not one this version can open.
    #[error("{path} cannot be used: {reason}; restore it from a snapshot of another replica")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The log went back: applying an entry twice would make this replica unlike the others.
    #[error(
        "entry {index} was given to a database that is applied up to {applied_index}; open the replica again"
    )]
    AppliedBefore {
        /// The entry.
        index: u64,
        /// How far the database is.
        applied_index: u64,
    },
    /// The caller's bookkeeping does not fit.
    #[error("bookkeeping of {bytes} bytes exceeds the {max} reserved for it; shorten the membership")]
    BookkeepingTooLarge {
        /// Its size.
        bytes: usize,
        /// The room.
        max: usize,
    },
}

impl Fault {
    /// Whether SQLite or the file system said that the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite { code, .. } => code & 0xff == ffi::SQLITE_FULL,
            Self::File { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Unusable { .. } | Self::AppliedBefore { .. } | Self::BookkeepingTooLarge { .. } => false,
        }
    }

    /// Whether a flush to the disk failed. The kernel may take the pages for written all the same, so a
    /// second flush that succeeds proves nothing.
    #[must_use]
    pub fn is_failed_flush(&self) -> bool {
        let codes = [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC];
        matches!(self, Self::Sqlite { code, .. } if codes.contains(code))
    }

    /// A fault told by rusqlite.
    pub(crate) fn from_rusqlite(during: &'static str, error: &rusqlite::Error) -> Self {
        let code = match error {
            rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
            _ => ffi::SQLITE_ERROR,
        };
        Self::Sqlite { code, message: error.to_string(), during }
    }

    /// A fault of the file system.
    pub(crate) fn file(during: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File { during, path: path.into(), source }
    }
}

/// How SQLite's result code is to be taken while a statement runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A deterministic result of this class.
    Result(ErrorClass),
    /// Trouble of this machine.
    Fault,
}

/// Sorts an extended result code. `disk_full` tells whether the file system itself refused bytes:
/// SQLite uses the same code for its own limits (page limit, exhausted AUTOINCREMENT).
pub(crate) fn judge(extended_code: i32, disk_full: bool) -> Verdict {
    // Virtual tables speak of their own content with these: external-content FTS5 that does not
    // match its table, an R-tree written while it is read. A user can bring them about at will,
    // so taking them for broken disks would let one statement stop every replica.
    if extended_code == ffi::SQLITE_CORRUPT_VTAB {
        return Verdict::Result(ErrorClass::Statement);
    }
    match extended_code & 0xff {
        ffi::SQLITE_ERROR | ffi::SQLITE_MISMATCH | ffi::SQLITE_RANGE | ffi::SQLITE_FORMAT => {
            Verdict::Result(ErrorClass::Statement)
        }
        // The writer's database has no second writer and no shared cache: a lock conflict is one
        // of the statement with itself.
        ffi::SQLITE_LOCKED => Verdict::Result(ErrorClass::Statement),
        ffi::SQLITE_CONSTRAINT => Verdict::Result(ErrorClass::Constraint),
        ffi::SQLITE_AUTH => Verdict::Result(ErrorClass::Denied),
        ffi::SQLITE_TOOBIG => Verdict::Result(ErrorClass::LimitExceeded),
        ffi::SQLITE_FULL if !disk_full => Verdict::Result(ErrorClass::LimitExceeded),
        _ => Verdict::Fault,
    }
}
