//! Between the wire contract and the SQLite door: the one place that knows both.

use debros_proto::{ErrorCode, v1};
use debros_sqlite::{
    BatchEntry, EntryEnvironment, EntryOutcome, ErrorClass, Operation, Parameters, RegisterWrite, Rows,
    SessionWrite, SqlError, Stamp, Statement, StatementOutcome, Value, Write,
};
use prost::Message;

use super::registers;
use crate::planted::{Bug, is_planted};

/// Reads a committed command. One that this version cannot read asks for nothing, on every replica
/// alike.
pub(super) fn entry(index: u64, command: bytes::Bytes) -> Option<BatchEntry> {
    let v1::SqlCommand { stamp_unix_ms, seed, step_budget, operation, numbers_from, clock, clock_ms } =
        v1::SqlCommand::decode(command).ok()?;
    let operation = match operation? {
        v1::sql_command::Operation::Write(write) => Operation::Write(Write {
            statements: write.statements.into_iter().map(statement).collect(),
            transaction: write.transaction,
            return_rows: write.return_rows,
            session: session(write.session, write.sequence, write.acknowledged),
        }),
        v1::sql_command::Operation::Register(write) => Operation::Register(RegisterWrite {
            operation: registers::operation(write.operation?)?,
            session: session(write.session, write.sequence, write.acknowledged),
        }),
        v1::sql_command::Operation::OpenSession(open) => {
            Operation::OpenSession { lifetime_ms: open.lifetime_ms }
        }
        v1::sql_command::Operation::Barrier(_) => Operation::Barrier,
        v1::sql_command::Operation::SetLimits(limits) => Operation::SetLimits { max_bytes: limits.max_bytes },
    };
    let seed = seed[..].try_into().unwrap_or_default();
    Some(BatchEntry {
        index,
        environment: EntryEnvironment { unix_ms: stamp_unix_ms, seed, step_budget },
        stamp: Stamp { numbers_from, clock, clock_ms },
        operation,
    })
}

fn session(session: u64, sequence: u64, acknowledged: u64) -> Option<SessionWrite> {
    let counts = session != 0 && !is_planted(Bug::RetryAppliedTwice);
    counts.then_some(SessionWrite { session, sequence, acknowledged })
}

/// Reads a statement.
pub(super) fn statement(statement: v1::Statement) -> Statement {
    let v1::Statement { sql, positional, named } = statement;
    let parameters = if named.is_empty() {
        Parameters::Positional(positional.into_iter().map(value).collect())
    } else {
        let named = named.into_iter().map(|named| (named.name, value(named.value.unwrap_or_default())));
        Parameters::Named(named.collect())
    };
    Statement { sql, parameters }
}

fn value(value: v1::Value) -> Value {
    match value.kind {
        None => Value::Null,
        Some(v1::value::Kind::Integer(integer)) => Value::Integer(integer),
        Some(v1::value::Kind::Real(real)) => Value::Real(real),
        Some(v1::value::Kind::Text(text)) => Value::Text(text),
        Some(v1::value::Kind::Blob(bytes)) => Value::Blob(bytes.into()),
    }
}

fn value_to_wire(value: Value) -> v1::Value {
    let kind = match value {
        Value::Null => None,
        Value::Integer(integer) => Some(v1::value::Kind::Integer(integer)),
        Value::Real(real) => Some(v1::value::Kind::Real(real)),
        Value::Text(text) => Some(v1::value::Kind::Text(text)),
        Value::Blob(bytes) => Some(v1::value::Kind::Blob(bytes.into())),
    };
    v1::Value { kind }
}

/// Writes what a statement did.
pub(super) fn result(outcome: StatementOutcome) -> v1::StatementResult {
    use v1::statement_result::Outcome;
    let outcome = match outcome {
        StatementOutcome::Rows(Rows { columns, types, rows }) => {
            let row =
                |values: Vec<Value>| v1::Row { values: values.into_iter().map(value_to_wire).collect() };
            Outcome::Rows(v1::Rows { columns, types, rows: rows.into_iter().map(row).collect() })
        }
        StatementOutcome::Counts { last_insert_id, rows_affected } => {
            Outcome::Counts(v1::Counts { last_insert_id, rows_affected })
        }
        StatementOutcome::Error(error) => Outcome::Error(sql_error(error)),
    };
    v1::StatementResult { outcome: Some(outcome) }
}

fn sql_error(error: SqlError) -> v1::SqlError {
    let code = match error.class {
        ErrorClass::Statement | ErrorClass::Constraint => ErrorCode::Sql,
        ErrorClass::Denied => ErrorCode::PermissionDenied,
        ErrorClass::Parameters | ErrorClass::NotReadOnly => ErrorCode::InvalidArgument,
        ErrorClass::BudgetExceeded => ErrorCode::BudgetExceeded,
        ErrorClass::LimitExceeded => ErrorCode::LimitExceeded,
    };
    v1::SqlError { message: error.message, sqlite_code: error.sqlite_code, code: code as i32 }
}

/// Writes what an entry gave, as it is answered and as it is kept for the entry's session.
pub(super) fn outcome(outcome: EntryOutcome) -> v1::SqlOutcome {
    match outcome {
        EntryOutcome::Executed(outcomes) => {
            v1::SqlOutcome { results: outcomes.into_iter().map(result).collect(), ..Default::default() }
        }
        EntryOutcome::RolledBack { statement, mut error } => {
            // The place of the error says which statement failed; those before it have no outcome.
            error.message = format!("{} (the transaction was rolled back)", error.message);
            let mut results = vec![v1::StatementResult::default(); statement];
            results.push(result(StatementOutcome::Error(error)));
            v1::SqlOutcome { results, ..Default::default() }
        }
        EntryOutcome::Register(outcome) => {
            v1::SqlOutcome { register: Some(registers::outcome(outcome)), ..Default::default() }
        }
        EntryOutcome::Repeated(_) => refused(
            ErrorCode::LimitExceeded,
            "the write was applied before, once, and must not be sent again; its result was too large to be kept",
        ),
        EntryOutcome::SessionExpired => refused(
            ErrorCode::SessionExpired,
            "the write session is unknown or has expired: open a new one; an earlier attempt may have been applied",
        ),
        EntryOutcome::ResultForgotten => refused(
            ErrorCode::SessionExpired,
            "the result of this write was acknowledged or is too old to be kept; it may have been applied",
        ),
        EntryOutcome::SessionOpened { session, .. } => v1::SqlOutcome { session, ..Default::default() },
        EntryOutcome::LimitsSet => v1::SqlOutcome::default(),
        EntryOutcome::ContentHash(hash) => {
            v1::SqlOutcome { content_hash: hash.to_vec().into(), ..Default::default() }
        }
    }
}

fn refused(code: ErrorCode, message: &str) -> v1::SqlOutcome {
    let error = v1::SqlError { message: message.to_owned(), sqlite_code: 0, code: code as i32 };
    v1::SqlOutcome { error: Some(error), ..Default::default() }
}
