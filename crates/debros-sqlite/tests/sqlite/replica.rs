//! A replica under test, and short ways to write entries.

use debros_sqlite::{
    AppliedEntry, Batch, BatchEntry, EntryEnvironment, EntryOutcome, ErrorClass, Operation, Options,
    SessionWrite, SqlError, Stamp, Statement, StatementOutcome, Value, Write, Writer,
};

pub(crate) const START_MS: u64 = 1_700_000_000_000;
pub(crate) const STEPS: u64 = 10_000_000;

/// An environment that differs from entry to entry, as a leader's would.
pub(crate) fn environment(index: u64) -> EntryEnvironment {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&index.to_le_bytes());
    EntryEnvironment { unix_ms: START_MS + index * 1000, seed, step_budget: STEPS }
}

pub(crate) fn entry(index: u64, operation: Operation) -> BatchEntry {
    BatchEntry { index, environment: environment(index), stamp: Stamp::default(), operation }
}

pub(crate) fn write(index: u64, write: Write) -> BatchEntry {
    entry(index, Operation::Write(write))
}

/// Statements for themselves, with their rows.
pub(crate) fn each(sql: &[&str]) -> Write {
    Write {
        statements: sql.iter().map(|sql| Statement::new(*sql)).collect(),
        return_rows: true,
        ..Write::default()
    }
}

/// Statements all or none, with their rows.
pub(crate) fn together(sql: &[&str]) -> Write {
    Write { transaction: true, ..each(sql) }
}

pub(crate) fn in_session(write: Write, session: u64, sequence: u64, acknowledged: u64) -> Write {
    Write { session: Some(SessionWrite { session, sequence, acknowledged }), ..write }
}

/// Stands in for the caller's encoding: it shows every part of an outcome.
pub(crate) fn encode(outcome: &EntryOutcome) -> Vec<u8> {
    format!("{outcome:?}").into_bytes()
}

/// A writer that numbers its entries.
pub(crate) struct Replica {
    pub(crate) writer: Writer,
}

impl Replica {
    pub(crate) fn in_memory() -> Self {
        Self { writer: Writer::in_memory(Options::default()).expect("memory") }
    }

    pub(crate) fn apply(&mut self, entries: &[BatchEntry]) -> Vec<AppliedEntry> {
        let applied_index = entries.last().expect("entries").index;
        let bookkeeping = applied_index.to_string();
        let batch = Batch { entries, applied_index, bookkeeping: bookkeeping.as_bytes() };
        self.writer.apply_batch(batch, &encode).expect("no fault")
    }

    /// Applies one write as the next entry.
    pub(crate) fn run(&mut self, statements: Write) -> EntryOutcome {
        let index = self.writer.applied_index() + 1;
        self.apply(&[write(index, statements)]).remove(0).outcome
    }

    /// Runs statements for themselves; each must succeed.
    pub(crate) fn must(&mut self, sql: &[&str]) -> Vec<StatementOutcome> {
        let EntryOutcome::Executed(outcomes) = self.run(each(sql)) else { panic!("not executed") };
        for (sql, outcome) in sql.iter().zip(&outcomes) {
            assert!(outcome.error().is_none(), "{sql}: {outcome:?}");
        }
        outcomes
    }

    /// Runs one statement that must fail.
    pub(crate) fn refused(&mut self, sql: &str) -> SqlError {
        let EntryOutcome::Executed(mut outcomes) = self.run(each(&[sql])) else { panic!("not executed") };
        match outcomes.remove(0) {
            StatementOutcome::Error(error) => error,
            outcome => panic!("{sql} should be refused, but gave {outcome:?}"),
        }
    }

    /// Asserts that a statement is refused by the sandbox.
    pub(crate) fn denied(&mut self, sql: &str) {
        let error = self.refused(sql);
        assert_eq!(error.class, ErrorClass::Denied, "{sql}: {error:?}");
    }

    /// The only value of the only row of a read, made as a write.
    pub(crate) fn value(&mut self, sql: &str) -> Value {
        only_value(&self.must(&[sql])[0])
    }

    pub(crate) fn integer(&mut self, sql: &str) -> i64 {
        match self.value(sql) {
            Value::Integer(number) => number,
            other => panic!("{sql}: {other:?}"),
        }
    }

    pub(crate) fn hash(&mut self) -> [u8; 32] {
        self.writer.content_hash().expect("no fault")
    }
}

pub(crate) fn only_value(outcome: &StatementOutcome) -> Value {
    match outcome {
        StatementOutcome::Rows(rows) if rows.rows.len() == 1 => rows.rows[0][0].clone(),
        other => panic!("one row expected: {other:?}"),
    }
}
