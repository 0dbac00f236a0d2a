//! One attempt at a batch, and what is remembered between attempts.
//!
//! Invariant: an attempt ends committed, or with nothing of it kept. An attempt that commits has
//! executed no statement that ends the transaction, because those are known from earlier attempts.

use std::collections::HashMap;

use crate::control::Level;
use crate::execute::{Budget, History, Manner, Progress, Ran, run_write};
use crate::log_time::advance_log_time;
use crate::options::{LOST_STATEMENTS_MAX, PAGE_BYTES, STEPS_MAX};
use crate::registers::{Moment, RegisterStore};
use crate::sessions::Admission;
use crate::writer::{Encode, Writer};
use crate::{
    AppliedEntry, Batch, BatchEntry, EntryOutcome, ErrorClass, Fault, Operation, RegisterChange,
    RegisterOperation, RegisterOutcome, RegisterRefusal, SessionWrite, SqlError, StatementOutcome, Write,
    content_hash, environment,
};

/// Where a statement stands in a batch: entry, statement.
type Position = (usize, usize);

/// What an earlier attempt learned of a statement.
#[derive(Debug, Clone)]
enum Loss {
    /// It ended the transaction with this error, having used so many of the entry's steps.
    Ended { error: SqlError, used: u64 },
    /// It was stopped for work that does not count; it needs more patience.
    Patience(u64),
}

/// What earlier attempts learned.
#[derive(Debug, Default)]
pub(crate) struct Losses(HashMap<Position, Loss>);

/// Why an attempt ended without a commit.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Something was learned: run the batch again.
    Again,
    /// This machine's trouble.
    Fault(Fault),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// One attempt at a batch.
pub(crate) struct Attempt<'a> {
    writer: &'a mut Writer,
    losses: &'a mut Losses,
    encode: Encode<'a>,
    /// What the current entry has changed of registers.
    changes: Vec<RegisterChange>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(writer: &'a mut Writer, losses: &'a mut Losses, encode: Encode<'a>) -> Self {
        Self { writer, losses, encode, changes: Vec::new() }
    }

    /// Applies and commits.
    pub(crate) fn run(mut self, batch: Batch<'_>) -> Result<Vec<AppliedEntry>, Stop> {
        self.writer.control.begin(&self.writer.connection)?;
        let mut applied = Vec::with_capacity(batch.entries.len());
        for (place, entry) in batch.entries.iter().enumerate() {
            applied.push(self.apply(place, entry)?);
        }
        let writer = self.writer;
        writer.state.applied_index = batch.applied_index;
        writer.state_writer.write(&writer.connection, &writer.state, batch.bookkeeping)?;
        writer.growth.settle(&writer.connection);
        writer.control.commit(&writer.connection)?;
        Ok(applied)
    }

    fn apply(&mut self, place: usize, entry: &BatchEntry) -> Result<AppliedEntry, Stop> {
        let writer = &mut *self.writer;
        let BatchEntry { index, environment, stamp, operation } = entry;
        // Never back: an entry of an older version's has none.
        writer.state.numbers_from = writer.state.numbers_from.max(stamp.numbers_from);
        let number = writer.state.number(*index);
        let now_ms = advance_log_time(
            writer.state.log_time_ms,
            environment.unix_ms,
            writer.options.log_time_step_max_ms,
        );
        let log_times_ms = (writer.state.log_time_ms, now_ms);
        writer.state.log_time_ms = now_ms;
        let step_max_ms = writer.options.log_time_step_max_ms;
        writer.state.lease_time = writer.state.lease_time.advance(stamp, log_times_ms, step_max_ms);
        let outcome = match operation {
            Operation::Write(write) => {
                return self.in_session(write.session, now_ms, |attempt| {
                    attempt.execute(place, entry, write, now_ms)
                });
            }
            Operation::Register(write) => {
                let moment = Moment { number, now_ms: writer.state.lease_time.now_ms };
                return self.in_session(write.session, now_ms, |attempt| {
                    attempt.change_registers(moment, &write.operation)
                });
            }
            Operation::OpenSession { lifetime_ms } => {
                let lifetime_ms = writer.sessions.open(
                    &writer.connection,
                    number,
                    *lifetime_ms,
                    now_ms,
                    &writer.options,
                )?;
                EntryOutcome::SessionOpened { session: number, lifetime_ms }
            }
            Operation::SetLimits { max_bytes } => {
                writer.state.max_bytes = *max_bytes;
                writer.state.pages_then = writer.control.page_count(&writer.connection)?;
                writer.limit_pages()?;
                EntryOutcome::LimitsSet
            }
            Operation::Barrier => {
                EntryOutcome::ContentHash(content_hash::content_hash(&writer.connection, &writer.state)?)
            }
        };
        Ok(AppliedEntry { outcome, encoded: None, changes: Vec::new() })
    }

    /// Executes a write, unless its session says that it was executed before.
    fn in_session(
        &mut self,
        session: Option<SessionWrite>,
        now_ms: u64,
        execute: impl FnOnce(&mut Self) -> Result<EntryOutcome, Stop>,
    ) -> Result<AppliedEntry, Stop> {
        let Some(session) = session else {
            let outcome = execute(self)?;
            return Ok(AppliedEntry { outcome, encoded: None, changes: std::mem::take(&mut self.changes) });
        };
        let unexecuted = |outcome| Ok(AppliedEntry { outcome, encoded: None, changes: Vec::new() });
        let standing = match self.writer.sessions.admit(&self.writer.connection, session, now_ms)? {
            Admission::Fresh(standing) => standing,
            Admission::Repeated(bytes) => return unexecuted(EntryOutcome::Repeated(bytes)),
            Admission::Expired => return unexecuted(EntryOutcome::SessionExpired),
            Admission::Forgotten => return unexecuted(EntryOutcome::ResultForgotten),
        };
        let outcome = execute(self)?;
        let encoded = (self.encode)(&outcome);
        // Over the database's limit only the fact is kept, so that results cannot fill the room
        // that is left for it.
        let fits = encoded.len() <= self.writer.options.session_result_bytes_max && !self.is_over_limit()?;
        let writer = &mut *self.writer;
        let kept = fits.then_some(encoded.as_slice());
        writer.sessions.keep(&writer.connection, session, standing, kept, now_ms, &writer.options)?;
        let changes = std::mem::take(&mut self.changes);
        Ok(AppliedEntry { outcome, encoded: Some(encoded), changes })
    }

    /// Changes registers, unless the database would outgrow its limit.
    fn change_registers(
        &mut self,
        moment: Moment,
        operation: &RegisterOperation,
    ) -> Result<EntryOutcome, Stop> {
        if self.writer.registers.is_none() {
            self.writer.registers = Some(RegisterStore::create(&self.writer.connection)?);
            // What was compiled before would compile itself again while its steps are counted.
            self.writer.connection.cache.clear();
        }
        let pages_before = self.pages_near_limit()?;
        self.savepoint(Level::Statement)?;
        let writer = &mut *self.writer;
        let registers = writer.registers.as_mut().expect("made above");
        let outcome =
            registers.apply(&writer.connection, moment, operation, &writer.options, &mut self.changes)?;
        if operation.grows() && self.outgrew(pages_before)? {
            self.writer.control.undo(&self.writer.connection, Level::Statement)?;
            self.changes.clear();
            let writer = &mut *self.writer;
            writer.registers.as_mut().expect("made above").forget();
            let max_bytes = writer.state.max_bytes;
            let refusal = RegisterRefusal::DatabaseFull { max_bytes };
            return Ok(EntryOutcome::Register(RegisterOutcome::Refused(refusal)));
        }
        self.release(Level::Statement)?;
        Ok(EntryOutcome::Register(outcome))
    }

    fn is_over_limit(&mut self) -> Result<bool, Fault> {
        let max = self.writer.state.max_bytes;
        Ok(self.pages_near_limit()?.is_some_and(|pages| pages * PAGE_BYTES > max))
    }

    fn execute(
        &mut self,
        place: usize,
        entry: &BatchEntry,
        write: &Write,
        now_ms: u64,
    ) -> Result<EntryOutcome, Stop> {
        environment::install(now_ms, entry.environment.seed);
        let mut progress = Progress {
            budget: Budget { limit: entry.environment.step_budget.min(STEPS_MAX), used: 0 },
            history: History::default(),
            schema_touched: false,
        };
        if write.transaction {
            self.execute_together(place, write, &mut progress)
        } else {
            self.execute_each(place, write, &mut progress)
        }
    }

    /// All statements or none.
    fn execute_together(
        &mut self,
        place: usize,
        write: &Write,
        progress: &mut Progress,
    ) -> Result<EntryOutcome, Stop> {
        for statement in 0..write.statements.len() {
            if let Some(Loss::Ended { error, .. }) = self.losses.0.get(&(place, statement)) {
                return Ok(EntryOutcome::RolledBack { statement, error: error.clone() });
            }
        }
        self.savepoint(Level::Entry)?;
        let mut outcomes = Vec::with_capacity(write.statements.len());
        for statement in 0..write.statements.len() {
            match self.run_one((place, statement), write, progress)? {
                StatementOutcome::Error(error) => {
                    self.undo(Level::Entry, progress)?;
                    return Ok(EntryOutcome::RolledBack { statement, error });
                }
                outcome => outcomes.push(outcome),
            }
        }
        if self.writer.connection.has_deferred_violations() {
            self.undo(Level::Entry, progress)?;
            let error = foreign_key_failed();
            return Ok(EntryOutcome::RolledBack { statement: write.statements.len(), error });
        }
        self.release(Level::Entry)?;
        Ok(EntryOutcome::Executed(outcomes))
    }

    /// Each statement for itself.
    fn execute_each(
        &mut self,
        place: usize,
        write: &Write,
        progress: &mut Progress,
    ) -> Result<EntryOutcome, Stop> {
        let mut outcomes = Vec::with_capacity(write.statements.len());
        let mut lost = 0;
        for statement in 0..write.statements.len() {
            if lost == LOST_STATEMENTS_MAX {
                outcomes.push(StatementOutcome::Error(too_many_lost()));
                continue;
            }
            if let Some(Loss::Ended { error, used }) = self.losses.0.get(&(place, statement)) {
                progress.budget.used = *used;
                outcomes.push(StatementOutcome::Error(error.clone()));
                lost += 1;
                continue;
            }
            self.savepoint(Level::Statement)?;
            let outcome = self.run_one((place, statement), write, progress)?;
            let outcome = if outcome.error().is_none() && self.writer.connection.has_deferred_violations() {
                StatementOutcome::Error(foreign_key_failed())
            } else {
                outcome
            };
            if outcome.error().is_some() {
                self.undo(Level::Statement, progress)?;
            } else {
                self.release(Level::Statement)?;
            }
            outcomes.push(outcome);
        }
        Ok(EntryOutcome::Executed(outcomes))
    }

    /// Runs one statement; the caller undoes it when it gives an error.
    fn run_one(
        &mut self,
        position: Position,
        write: &Write,
        progress: &mut Progress,
    ) -> Result<StatementOutcome, Stop> {
        let patience = match self.losses.0.get(&position) {
            Some(Loss::Patience(patience)) => *patience,
            _ => 1,
        };
        let manner = Manner { return_rows: write.return_rows, patience };
        let pages_before = self.pages_near_limit()?;
        let writer = &mut *self.writer;
        let statement = &write.statements[position.1];
        let ran = run_write(&mut writer.connection, statement, manner, progress, &writer.options);
        let ran = self.flush(ran, progress)?;
        let ended = self.writer.connection.is_autocommit();
        match ran {
            Ran::Fault(fault) => Err(Stop::Fault(fault)),
            Ran::FalseAlarm => {
                self.losses.0.insert(position, Loss::Patience(patience.saturating_mul(4)));
                Err(Stop::Again)
            }
            Ran::Done(outcome) if ended => {
                let error = match outcome {
                    StatementOutcome::Error(error) => error,
                    StatementOutcome::Rows(_) | StatementOutcome::Counts { .. } => {
                        SqlError::ours(ErrorClass::Denied, "the statement ended the transaction")
                    }
                };
                self.losses.0.insert(position, Loss::Ended { error, used: progress.budget.used });
                Err(Stop::Again)
            }
            Ran::Done(StatementOutcome::Error(error)) => Ok(StatementOutcome::Error(error)),
            Ran::Done(outcome) => Ok(self.within_limit(pages_before, outcome)?),
        }
    }

    /// Lets virtual tables write what they hold back of a statement. They would do so at the next
    /// savepoint or commit, whichever comes first, where its failure would be taken for a fault.
    fn flush(&mut self, ran: Ran, progress: &Progress) -> Result<Ran, Fault> {
        let writer = &mut *self.writer;
        if !matches!(ran, Ran::Done(StatementOutcome::Rows(_) | StatementOutcome::Counts { .. }))
            || writer.connection.is_autocommit()
        {
            return Ok(ran);
        }
        if progress.schema_touched {
            writer.virtual_tables = writer.control.has_virtual_tables(&writer.connection)?;
        }
        if !writer.virtual_tables {
            return Ok(ran);
        }
        Ok(match writer.control.flush(&writer.connection) {
            Ok(()) => ran,
            Err(trouble) => trouble.into(),
        })
    }

    /// Pages of the file; `None` while it is certainly within its limit.
    fn pages_near_limit(&mut self) -> Result<Option<u64>, Fault> {
        let writer = &mut *self.writer;
        let max = writer.state.max_bytes;
        if max == 0 || writer.growth.pages_at_most(&writer.connection).saturating_mul(PAGE_BYTES) <= max {
            return Ok(None);
        }
        let pages = writer.control.page_count(&writer.connection)?;
        writer.growth.counted(&writer.connection, pages);
        Ok(Some(pages))
    }

    /// The outcome, unless the statement made the file grow beyond the database's limit.
    fn within_limit(
        &mut self,
        pages_before: Option<u64>,
        outcome: StatementOutcome,
    ) -> Result<StatementOutcome, Fault> {
        if !self.outgrew(pages_before)? {
            return Ok(outcome);
        }
        let max = self.writer.state.max_bytes;
        Ok(StatementOutcome::Error(SqlError::ours(
            ErrorClass::LimitExceeded,
            format!("the database has reached its limit of {max} bytes; delete rows or raise the limit"),
        )))
    }

    /// Whether the file has grown since, and beyond the database's limit.
    fn outgrew(&mut self, pages_before: Option<u64>) -> Result<bool, Fault> {
        let Some(pages) = self.pages_near_limit()? else { return Ok(false) };
        let grew = pages_before.is_none_or(|before| pages > before);
        Ok(grew && pages * PAGE_BYTES > self.writer.state.max_bytes)
    }

    fn savepoint(&mut self, level: Level) -> Result<(), Fault> {
        self.writer.control.savepoint(&self.writer.connection, level)
    }

    fn release(&mut self, level: Level) -> Result<(), Fault> {
        self.writer.control.release(&self.writer.connection, level)
    }

    fn undo(&mut self, level: Level, progress: &Progress) -> Result<(), Fault> {
        self.writer.control.undo(&self.writer.connection, level)?;
        if progress.schema_touched {
            let writer = &mut *self.writer;
            writer.connection.cache.clear();
            writer.virtual_tables = writer.control.has_virtual_tables(&writer.connection)?;
        }
        Ok(())
    }
}

fn foreign_key_failed() -> SqlError {
    SqlError {
        message: "FOREIGN KEY constraint failed".to_owned(),
        sqlite_code: rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
        class: ErrorClass::Constraint,
    }
}

fn too_many_lost() -> SqlError {
    SqlError::ours(
        ErrorClass::LimitExceeded,
        format!(
            "not executed: {LOST_STATEMENTS_MAX} statements of this request rolled back the transaction (OR ROLLBACK, RAISE(ROLLBACK), spent budget); send fewer"
        ),
    )
}
