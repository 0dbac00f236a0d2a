//! Running one statement of a user's: bind, step, collect, judge.
//!
//! Decides what a statement's outcome is, with the checks that only running shows. Does not undo
//! anything: the caller holds the savepoint. Invariant: an outcome depends on the statement, the
//! database and the entry alone, never on what this process did before.

use rusqlite::ffi;

use crate::connection::{Connection, STEPS_PER_LOOK, Trouble};
use crate::prepared::{BindError, Prepared, Slot};
use crate::sandbox::{Facts, Mode};
use crate::{ErrorClass, Fault, Options, Rows, SqlError, Statement, StatementOutcome, Value, environment};

/// The steps of one entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) limit: u64,
    pub(crate) used: u64,
}

impl Budget {
    fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// What the statements of an entry so far mean for those that follow.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) budget: Budget,
    pub(crate) history: History,
    /// A statement may have changed the schema.
    pub(crate) schema_touched: bool,
}

/// What `changes()` and its like say to the next statement of the entry. SQLite's own values go
/// on from entry to entry, and virtual tables that write what they had held back set them too.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct History {
    last_insert: i64,
    changes: i64,
    total_changes: u64,
}

/// How a statement is to be run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Collect its rows.
    pub(crate) return_rows: bool,
    /// Multiplies the looks allowed before it is stopped: more after a false alarm.
    pub(crate) patience: u64,
}

/// What running gave.
#[derive(Debug)]
pub(crate) enum Ran {
    /// An outcome, which may be an error.
    Done(StatementOutcome),
    /// It was stopped for work inside virtual tables, which does not count: run it again with
    /// more patience.
    FalseAlarm,
    /// This machine's trouble.
    Fault(Fault),
}

impl From<Trouble> for Ran {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Refused(error) => Self::Done(StatementOutcome::Error(error)),
            Trouble::Stopped => Self::FalseAlarm,
            Trouble::Fault(fault) => Self::Fault(fault),
        }
    }
}

fn failed(class: ErrorClass, message: impl Into<String>) -> Ran {
    Ran::Done(StatementOutcome::Error(SqlError::ours(class, message)))
}

fn budget_exceeded(budget: Budget) -> Ran {
    failed(
        ErrorClass::BudgetExceeded,
        format!("the request used up its {} steps; make it smaller or add an index", budget.limit),
    )
}

/// Runs one statement of a write.
pub(crate) fn run_write(
    connection: &mut Connection,
    statement: &Statement,
    manner: Manner,
    progress: &mut Progress,
    options: &Options,
) -> Ran {
    if progress.budget.left() == 0 {
        return budget_exceeded(progress.budget);
    }
    let slot = match connection.prepare(Mode::Apply, &statement.sql) {
        Ok(slot) => slot,
        Err(trouble) => return trouble.into(),
    };
    let prepared = connection.cache.at(slot);
    if prepared.is_explain() {
        return failed(ErrorClass::Denied, "EXPLAIN is refused in writes; send it as a query");
    }
    let facts = prepared.facts;
    if facts.has(Facts::CHANGES_FUNCTION)
        && let Err(fault) = restore_changes(connection, progress.history.changes)
    {
        return Ran::Fault(fault);
    }
    let ran = run_slot(connection, slot, statement, manner, progress, options);
    if facts.has(Facts::SCHEMA) {
        progress.schema_touched = true;
        connection.cache.clear();
        if let Ran::Done(StatementOutcome::Counts { .. } | StatementOutcome::Rows(_)) = ran {
            return check_schema(connection, facts).unwrap_or(ran);
        }
    }
    ran
}

fn run_slot(
    connection: &mut Connection,
    slot: Slot,
    statement: &Statement,
    manner: Manner,
    progress: &mut Progress,
    options: &Options,
) -> Ran {
    let handle = connection.handle().as_ptr();
    let prepared = connection.cache.at(slot);
    let facts = prepared.facts;
    let counts = facts.has(Facts::ROWS) && !facts.has(Facts::SCHEMA);
    if let Err(error) = prepared.bind(&statement.parameters) {
        prepared.reset();
        return bind_failed(connection, error);
    }
    // From 0, so that an insert that inserts nothing says so, unless the statement itself asks.
    let watch_insert = counts && !facts.has(Facts::LAST_INSERT_FUNCTION);
    let insert_before = if watch_insert { 0 } else { progress.history.last_insert };
    // SAFETY: the handle is valid while the connection is borrowed.
    unsafe { ffi::sqlite3_set_last_insert_rowid(handle, insert_before) };
    connection.gate.take_largest_rowid();
    connection.gate.switch(Mode::Nested);
    let left = progress.budget.left();
    connection.allow_looks((left / STEPS_PER_LOOK + 2).saturating_mul(manner.patience));
    let prepared = connection.cache.at(slot);
    prepared.take_steps();
    let collected = collect(prepared, manner.return_rows, true, options);
    let steps = prepared.take_steps();
    let stepped = collected.map_err(|failure| match failure {
        CollectError::Limit(error) => Trouble::Refused(error),
        CollectError::Sqlite(raw) => connection.trouble("running a statement", raw),
    });
    // A virtual table may swallow the interruption and go on.
    let stepped = if connection.was_stopped() && stepped.is_ok() { Err(Trouble::Stopped) } else { stepped };
    connection.cache.at(slot).reset();
    connection.allow_looks(u64::MAX);
    connection.gate.switch(Mode::Internal);
    // SAFETY: as above.
    let (changes, inserted) =
        unsafe { (ffi::sqlite3_changes64(handle), ffi::sqlite3_last_insert_rowid(handle)) };
    if counts {
        progress.history.note(changes, inserted, watch_insert);
    }
    let budget = progress.budget;
    progress.budget.used = budget.used.saturating_add(steps).min(budget.limit);
    if connection.gate.take_largest_rowid() {
        return failed(
            ErrorClass::LimitExceeded,
            "rowid 9223372036854775807 is refused: SQLite would choose the next rowids at random; use smaller ids",
        );
    }
    if steps > left && !matches!(stepped, Err(Trouble::Fault(_))) {
        progress.budget.used = budget.limit;
        return budget_exceeded(budget);
    }
    match stepped {
        Err(trouble) => trouble.into(),
        Ok(Some(rows)) => Ran::Done(StatementOutcome::Rows(rows)),
        Ok(None) => Ran::Done(StatementOutcome::Counts {
            last_insert_id: if counts { inserted } else { 0 },
            rows_affected: if counts { changes.cast_unsigned() } else { 0 },
        }),
    }
}

fn bind_failed(connection: &Connection, error: BindError) -> Ran {
    match error {
        BindError::Mismatch(message) => failed(ErrorClass::Parameters, message),
        BindError::Sqlite(raw) => connection.trouble("binding parameters", raw).into(),
    }
}

impl History {
    fn note(&mut self, changes: i64, inserted: i64, inserted_is_new: bool) {
        if !inserted_is_new || inserted != 0 {
            self.last_insert = inserted;
        }
        self.changes = changes;
        self.total_changes += changes.cast_unsigned();
        environment::set_total_changes(self.total_changes);
    }
}

/// Makes `changes()` what the entry's last statement left. It cannot be set, so that many rows
/// are changed and put back.
fn restore_changes(connection: &Connection, changes: i64) -> Result<(), Fault> {
    // SAFETY: the handle is valid while the connection is borrowed.
    if unsafe { ffi::sqlite3_changes64(connection.handle().as_ptr()) } == changes {
        return Ok(());
    }
    connection.internal_batch(
        "restoring changes()",
        &format!(
            "SAVEPOINT changes; \
             WITH RECURSIVE counted(row) AS (SELECT 1 UNION ALL SELECT row + 1 FROM counted LIMIT {changes}) \
             INSERT INTO _debros_result SELECT -1, row, NULL FROM counted LIMIT {changes}; \
             ROLLBACK TO changes; RELEASE changes;"
        ),
    )
}

enum CollectError {
    Limit(SqlError),
    Sqlite(crate::prepared::RawError),
}

/// Runs a bound statement to its end and collects its rows, if it has any and they are wanted.
fn collect(
    prepared: &mut Prepared,
    return_rows: bool,
    refuse_made_up_names: bool,
    options: &Options,
) -> Result<Option<Rows>, CollectError> {
    let columns = prepared.column_count();
    if columns == 0 || !return_rows {
        while prepared.step().map_err(CollectError::Sqlite)? {}
        return Ok(None);
    }
    let mut rows = Rows::default();
    let mut bytes = 0;
    while prepared.step().map_err(CollectError::Sqlite)? {
        let row: Vec<Value> = (0..columns).map(|column| prepared.column_value(column)).collect();
        bytes += row.iter().map(Value::size_bytes).sum::<usize>();
        rows.rows.push(row);
        if rows.rows.len() > options.result_rows_max || bytes > options.result_bytes_max {
            return Err(CollectError::Limit(SqlError::ours(
                ErrorClass::LimitExceeded,
                format!(
                    "the result is larger than {} rows or {} bytes; read it in pages with LIMIT",
                    options.result_rows_max, options.result_bytes_max
                ),
            )));
        }
    }
    // After the first step, which recompiles a statement whose schema has changed.
    rows.columns = (0..columns).map(|column| prepared.column_name(column)).collect();
    rows.types = (0..columns).map(|column| prepared.column_type(column)).collect();
    if refuse_made_up_names && let Some(name) = made_up(&rows.columns) {
        return Err(CollectError::Limit(made_up_name(name)));
    }
    Ok(Some(rows))
}

/// A column name that SQLite may have drawn at random: when columns share a name it appends
/// `:1` to `:4`, and from the sixth column on a random number.
fn made_up(columns: &[String]) -> Option<&String> {
    let has = |name: &str| columns.iter().any(|other| other.eq_ignore_ascii_case(name));
    columns.iter().find(|name| {
        name.rsplit_once(':').is_some_and(|(base, number)| {
            !number.is_empty()
                && number.bytes().all(|digit| digit.is_ascii_digit())
                && !matches!(number, "1" | "2" | "3" | "4")
                && (1..=4).all(|taken| has(&format!("{base}:{taken}")))
        })
    })
}

fn made_up_name(name: &str) -> SqlError {
    SqlError::ours(
        ErrorClass::Denied,
        format!(
            "column name {name} is refused: SQLite makes such names at random when columns share a name; name each column with AS"
        ),
    )
}

/// What a statement that changed the schema must not have done.
fn check_schema(connection: &Connection, facts: Facts) -> Option<Ran> {
    let created = connection.gate.take_created_table();
    let check = || -> Result<Option<Ran>, Fault> {
        let during = "checking a new schema";
        // Also what refers to a hidden table: foreign keys, renames, FTS5 content tables.
        let mut reserved = connection.internal(
            during,
            "SELECT 1 FROM sqlite_schema WHERE (sql LIKE '%\\_debros\\_%' ESCAPE '\\' OR name LIKE '\\_debros\\_%' ESCAPE '\\') \
             AND tbl_name NOT IN ('_debros_state', '_debros_session', '_debros_result', '_debros_register', '_debros_lease') \
             LIMIT 1",
        )?;
        let mut found = false;
        connection.run_internal(during, &mut reserved, &[], |_| found = true)?;
        if found {
            return Ok(Some(failed(
                ErrorClass::Denied,
                "names beginning with _debros_ are reserved; choose another name",
            )));
        }
        let Some(table) = created.filter(|_| facts.has(Facts::CREATE_TABLE) && facts.has(Facts::SELECT))
        else {
            return Ok(None);
        };
        let mut columns = connection.internal(during, "SELECT name FROM pragma_table_xinfo(?1)")?;
        let mut names = Vec::new();
        connection.run_internal(during, &mut columns, &[Value::Text(table)], |row| {
            names.push(String::from_utf8_lossy(row.column_bytes(0)).into_owned());
        })?;
        Ok(made_up(&names).map(|name| Ran::Done(StatementOutcome::Error(made_up_name(name)))))
    };
    check().unwrap_or_else(|fault| Some(Ran::Fault(fault)))
}

/// Runs one statement of a read.
pub(crate) fn run_read(connection: &mut Connection, statement: &Statement, options: &Options) -> Ran {
    let slot = match connection.prepare(Mode::Read, &statement.sql) {
        Ok(slot) => slot,
        Err(trouble) => return read_failed(trouble),
    };
    let prepared = connection.cache.at(slot);
    if !prepared.is_readonly() {
        return failed(
            ErrorClass::NotReadOnly,
            "the statement writes, and this is a read; send it to execute (POST /db/execute over HTTP) instead",
        );
    }
    if let Err(error) = prepared.bind(&statement.parameters) {
        prepared.reset();
        return bind_failed(connection, error);
    }
    connection.gate.switch(Mode::Nested);
    let collected = collect(connection.cache.at(slot), true, false, options);
    let ran = match collected {
        Ok(rows) => Ran::Done(rows.map_or(
            StatementOutcome::Counts { last_insert_id: 0, rows_affected: 0 },
            StatementOutcome::Rows,
        )),
        Err(CollectError::Limit(error)) => Ran::Done(StatementOutcome::Error(error)),
        Err(CollectError::Sqlite(raw)) => read_failed(connection.trouble("reading", raw)),
    };
    connection.cache.at(slot).reset();
    connection.gate.switch(Mode::Internal);
    ran
}

fn read_failed(trouble: Trouble) -> Ran {
    match trouble {
        Trouble::Stopped => failed(
            ErrorClass::BudgetExceeded,
            "the read took longer than its deadline; give it more time, make it smaller or add an index",
        ),
        other => other.into(),
    }
}
