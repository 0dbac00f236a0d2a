//! The statements that frame users' statements: transactions, savepoints, the size of the file.
//!
//! Savepoints have two levels, the entry's and the statement's; each level has one name.

use crate::Fault;
use crate::connection::{Connection, Trouble};
use crate::prepared::Prepared;

/// Which savepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Around a whole entry.
    Entry,
    /// Around one statement.
    Statement,
}

/// Kept statements of a writer.
#[derive(Debug)]
pub(crate) struct Control {
    begin: Prepared,
    commit: Prepared,
    rollback: Prepared,
    savepoint: [Prepared; 2],
    release: [Prepared; 2],
    rollback_to: [Prepared; 2],
    page_count: Prepared,
    freelist_count: Prepared,
    virtual_tables: Prepared,
}

impl Control {
    pub(crate) fn new(connection: &Connection) -> Result<Self, Fault> {
        let prepare = |sql| connection.internal("preparing transactions", sql);
        Ok(Self {
            begin: prepare("BEGIN IMMEDIATE")?,
            commit: prepare("COMMIT")?,
            rollback: prepare("ROLLBACK")?,
            savepoint: [prepare("SAVEPOINT entry")?, prepare("SAVEPOINT statement")?],
            release: [prepare("RELEASE entry")?, prepare("RELEASE statement")?],
            rollback_to: [prepare("ROLLBACK TO entry")?, prepare("ROLLBACK TO statement")?],
            page_count: prepare("PRAGMA page_count")?,
            freelist_count: prepare("PRAGMA freelist_count")?,
            virtual_tables: prepare(
                "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND rootpage = 0 LIMIT 1",
            )?,
        })
    }

    pub(crate) fn begin(&mut self, connection: &Connection) -> Result<(), Fault> {
        connection.run_internal("beginning a batch", &mut self.begin, &[], |_| ())
    }

    pub(crate) fn commit(&mut self, connection: &Connection) -> Result<(), Fault> {
        connection.run_internal("committing a batch", &mut self.commit, &[], |_| ())
    }

    pub(crate) fn rollback(&mut self, connection: &Connection) -> Result<(), Fault> {
        connection.run_internal("rolling back a batch", &mut self.rollback, &[], |_| ())
    }

    pub(crate) fn savepoint(&mut self, connection: &Connection, level: Level) -> Result<(), Fault> {
        connection.run_internal("setting a savepoint", &mut self.savepoint[level as usize], &[], |_| ())
    }

    pub(crate) fn release(&mut self, connection: &Connection, level: Level) -> Result<(), Fault> {
        connection.run_internal("releasing a savepoint", &mut self.release[level as usize], &[], |_| ())
    }

    /// Undoes everything since the savepoint and removes it.
    pub(crate) fn undo(&mut self, connection: &Connection, level: Level) -> Result<(), Fault> {
        connection.run_internal("undoing a statement", &mut self.rollback_to[level as usize], &[], |_| ())?;
        self.release(connection, level)
    }

    /// Pages of the file, with those the transaction added.
    pub(crate) fn page_count(&mut self, connection: &Connection) -> Result<u64, Fault> {
        let mut pages = 0;
        connection.run_internal("reading the file's size", &mut self.page_count, &[], |row| {
            pages = u64::try_from(row.column_integer(0)).unwrap_or(0);
        })?;
        Ok(pages)
    }

    /// Pages of the file that hold nothing.
    pub(crate) fn freelist_count(&mut self, connection: &Connection) -> Result<u64, Fault> {
        let mut pages = 0;
        connection.run_internal("reading the file's free pages", &mut self.freelist_count, &[], |row| {
            pages = u64::try_from(row.column_integer(0)).unwrap_or(0);
        })?;
        Ok(pages)
    }

    /// Whether there are virtual tables.
    pub(crate) fn has_virtual_tables(&mut self, connection: &Connection) -> Result<bool, Fault> {
        let mut found = false;
        connection.run_internal("looking for virtual tables", &mut self.virtual_tables, &[], |_| {
            found = true;
        })?;
        Ok(found)
    }

    /// Makes virtual tables write what they hold back, as they do at any savepoint. What goes
    /// wrong then is the last statement's doing.
    pub(crate) fn flush(&mut self, connection: &Connection) -> Result<(), Trouble> {
        let during = "writing what virtual tables held back";
        let level = Level::Statement as usize;
        connection
            .run_raw(&mut self.savepoint[level], &[], |_| ())
            .map_err(|error| connection.trouble(during, error))?;
        self.release(connection, Level::Statement).map_err(Trouble::Fault)
    }
}
