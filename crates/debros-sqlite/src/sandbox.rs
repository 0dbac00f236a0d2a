//! What statements may do, decided by SQLite's authorizer while they are compiled.
//!
//! Knows names and actions, not values: what only running shows (the largest rowid, names that
//! SQLite makes up) is checked by `execute`. The authorizer also notes facts about each statement
//! that decide how it is run.
//!
//! Invariant: a user's statement reaches no hidden table, no file but its own, no transaction
//! control and no function that tells about this process.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, ffi};

use crate::{Fault, Options};

/// Tables with this prefix are ours.
pub(crate) const HIDDEN_PREFIX: &str = "_debros_";

/// Whose SQL is being compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Ours: everything goes.
    Internal = 0,
    /// A user's write.
    Apply = 1,
    /// A user's read.
    Read = 2,
    /// What SQLite's own modules (FTS5, R-tree) compile while a user's statement runs. They read
    /// PRAGMAs, and take table names from users.
    Nested = 3,
}

/// What the authorizer saw of a statement, as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Facts(u16);

impl Facts {
    pub(crate) const SCHEMA: Self = Self(1);
    pub(crate) const ROWS: Self = Self(1 << 1);
    pub(crate) const SELECT: Self = Self(1 << 2);
    pub(crate) const CREATE_TABLE: Self = Self(1 << 3);
    pub(crate) const CHANGES_FUNCTION: Self = Self(1 << 4);
    pub(crate) const LAST_INSERT_FUNCTION: Self = Self(1 << 5);

    pub(crate) fn has(self, fact: Self) -> bool {
        self.0 & fact.0 == fact.0
    }
}

/// Shared by a connection, its authorizer and its update hook.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    mode: AtomicU8,
    facts: AtomicU16,
    refusal: Mutex<Option<String>>,
    created_table: Mutex<Option<String>>,
    largest_rowid: AtomicBool,
}

impl Gate {
    /// Says whose SQL comes next; facts and refusals start anew.
    pub(crate) fn enter(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        self.facts.store(0, Ordering::Relaxed);
        self.take_refusal();
    }

    /// Says whose SQL comes next; what is known of the current statement stays.
    pub(crate) fn switch(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts(self.facts.load(Ordering::Relaxed))
    }

    /// Why the last statement was refused, if the sandbox refused it.
    pub(crate) fn take_refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The table the last CREATE TABLE statement names.
    pub(crate) fn take_created_table(&self) -> Option<String> {
        self.created_table.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a row got the largest rowid since the last call.
    pub(crate) fn take_largest_rowid(&self) -> bool {
        self.largest_rowid.swap(false, Ordering::Relaxed)
    }

    fn note(&self, fact: Facts) {
        self.facts.fetch_or(fact.0, Ordering::Relaxed);
    }

    fn refuse(&self, reason: String) -> Authorization {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        Authorization::Deny
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Internal,
            1 => Mode::Apply,
            2 => Mode::Read,
            _ => Mode::Nested,
        }
    }
}

/// Functions that tell about this process, or change it.
const FUNCTIONS_DENIED: &[&str] = &[
    "load_extension",
    "sqlite_version",
    "sqlite_source_id",
    "sqlite_log",
    "sqlite_compileoption_get",
    "sqlite_compileoption_used",
    "sqlite_offset",
    "fts3_tokenizer",
    // Its blobs carry a header drawn at random per connection.
    "fts5_locale",
    "fts5_source_id",
    "fts5",
];

/// Modules whose content lives in ordinary tables, so replicas agree on it.
const MODULES_ALLOWED: &[&str] = &["fts5", "fts4", "fts3", "rtree", "rtree_i32"];

/// Tables that show how this process laid out the file, or what it holds in memory.
const TABLES_DENIED: &[&str] = &[
    "dbstat",
    "sqlite_dbpage",
    "sqlite_stmt",
    "bytecode",
    "tables_used",
    "sqlite_temp_schema",
    "sqlite_temp_master",
];

/// PRAGMAs that read. With `true` they take an argument that names what is read.
const PRAGMAS_READING: &[(&str, bool)] = &[
    ("table_info", true),
    ("table_xinfo", true),
    ("table_list", true),
    ("index_list", true),
    ("index_info", true),
    ("index_xinfo", true),
    ("foreign_key_list", true),
    ("foreign_key_check", true),
    ("integrity_check", true),
    ("quick_check", true),
    ("collation_list", false),
    ("encoding", false),
    ("foreign_keys", false),
    ("freelist_count", false),
    ("function_list", false),
    ("page_count", false),
    ("page_size", false),
    ("schema_version", false),
    ("user_version", false),
    ("application_id", false),
    ("data_version", false),
    ("journal_mode", false),
];

fn named(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

fn begins_with(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// The name a statement would touch, where hidden tables must not occur.
fn touched<'c>(action: &AuthAction<'c>) -> Option<&'c str> {
    match *action {
        AuthAction::CreateIndex { table_name, .. }
        | AuthAction::CreateTable { table_name }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::Delete { table_name }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::DropTrigger { table_name, .. }
        | AuthAction::Insert { table_name }
        | AuthAction::Read { table_name, .. }
        | AuthAction::Update { table_name, .. }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::Analyze { table_name }
        | AuthAction::CreateVtable { table_name, .. }
        | AuthAction::DropVtable { table_name, .. } => Some(table_name),
        AuthAction::CreateView { view_name } | AuthAction::DropView { view_name } => Some(view_name),
        _ => None,
    }
}

fn note_facts(gate: &Gate, action: &AuthAction<'_>) {
    match *action {
        AuthAction::CreateTable { table_name } => {
            *gate.created_table.lock().unwrap_or_else(PoisonError::into_inner) = Some(table_name.to_owned());
            gate.note(Facts::CREATE_TABLE);
            gate.note(Facts::SCHEMA);
        }
        AuthAction::CreateIndex { .. }
        | AuthAction::CreateTrigger { .. }
        | AuthAction::CreateView { .. }
        | AuthAction::CreateVtable { .. }
        | AuthAction::DropIndex { .. }
        | AuthAction::DropTable { .. }
        | AuthAction::DropTrigger { .. }
        | AuthAction::DropView { .. }
        | AuthAction::DropVtable { .. }
        | AuthAction::AlterTable { .. }
        | AuthAction::Reindex { .. } => gate.note(Facts::SCHEMA),
        AuthAction::Insert { .. } | AuthAction::Update { .. } | AuthAction::Delete { .. } => {
            gate.note(Facts::ROWS);
        }
        AuthAction::Select => gate.note(Facts::SELECT),
        AuthAction::Function { function_name } => {
            if function_name.eq_ignore_ascii_case("changes") {
                gate.note(Facts::CHANGES_FUNCTION);
            } else if function_name.eq_ignore_ascii_case("last_insert_rowid") {
                gate.note(Facts::LAST_INSERT_FUNCTION);
            }
        }
        _ => {}
    }
}

fn authorize(gate: &Gate, context: &AuthContext<'_>) -> Authorization {
    let mode = gate.mode();
    if mode == Mode::Internal {
        return Authorization::Allow;
    }
    let action = &context.action;
    if let Some(name) = touched(action)
        && begins_with(name, HIDDEN_PREFIX)
    {
        return gate
            .refuse(format!("names beginning with {HIDDEN_PREFIX} are reserved; choose another name"));
    }
    if mode == Mode::Nested {
        return match action {
            AuthAction::Attach { .. } | AuthAction::Detach { .. } => {
                gate.refuse("other database files are out of reach".to_owned())
            }
            _ => Authorization::Allow,
        };
    }
    note_facts(gate, action);
    authorize_user(gate, mode, action)
}

fn authorize_user(gate: &Gate, mode: Mode, action: &AuthAction<'_>) -> Authorization {
    match *action {
        AuthAction::Attach { .. } | AuthAction::Detach { .. } => gate.refuse(
            "ATTACH, DETACH and VACUUM INTO are refused: other database files are out of reach".to_owned(),
        ),
        AuthAction::Transaction { .. } | AuthAction::Savepoint { .. } => gate.refuse(
            "BEGIN, COMMIT, ROLLBACK and SAVEPOINT are refused: send the statements of one transaction together, with `transaction` set"
                .to_owned(),
        ),
        AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. }
        | AuthAction::DropTempIndex { .. }
        | AuthAction::DropTempTable { .. }
        | AuthAction::DropTempTrigger { .. }
        | AuthAction::DropTempView { .. } => {
            gate.refuse("temporary objects are refused: they live in one process only".to_owned())
        }
        AuthAction::Analyze { .. } => {
            gate.refuse("ANALYZE is refused: its statistics would change how replicas run statements".to_owned())
        }
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name }
            if begins_with(table_name, "sqlite_stat") =>
        {
            gate.refuse("writes to sqlite_stat tables are refused: they would change how replicas run statements".to_owned())
        }
        AuthAction::CreateVtable { module_name, .. } if !named(MODULES_ALLOWED, module_name) => {
            gate.refuse(format!("virtual table module {module_name} is refused; available: {}", MODULES_ALLOWED.join(", ")))
        }
        AuthAction::Function { function_name } if named(FUNCTIONS_DENIED, function_name) => {
            gate.refuse(format!("function {function_name}() is refused: its result depends on the process"))
        }
        AuthAction::Pragma { pragma_name, pragma_value } => authorize_pragma(gate, mode, pragma_name, pragma_value),
        AuthAction::Read { table_name, column_name } => authorize_read(gate, mode, table_name, column_name),
        AuthAction::Unknown { .. } => gate.refuse("this kind of statement is not known to the sandbox".to_owned()),
        _ => Authorization::Allow,
    }
}

fn authorize_read(gate: &Gate, mode: Mode, table: &str, column: &str) -> Authorization {
    if named(TABLES_DENIED, table) {
        return gate.refuse(format!("table {table} is refused: its content depends on the process"));
    }
    if mode == Mode::Read {
        return Authorization::Allow;
    }
    if begins_with(table, "pragma_") {
        return gate.refuse(format!("{table} is refused in writes; read it with a query first"));
    }
    if column == "rootpage" && named(&["sqlite_schema", "sqlite_master"], table) {
        // Where a table begins in the file is no part of what replicas agree on: NULL.
        return Authorization::Ignore;
    }
    Authorization::Allow
}

fn authorize_pragma(gate: &Gate, mode: Mode, name: &str, value: Option<&str>) -> Authorization {
    if mode == Mode::Apply {
        return gate.refuse(format!(
            "PRAGMA {name} is refused in writes: settings are fixed, and PRAGMAs that read go into a query"
        ));
    }
    let known = PRAGMAS_READING.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    match known {
        Some((_, takes_argument)) if *takes_argument || value.is_none() => Authorization::Allow,
        Some(_) => gate.refuse(format!("setting PRAGMA {name} is refused: settings are fixed")),
        None => gate.refuse(format!("PRAGMA {name} is refused: settings are fixed")),
    }
}

/// The update hook: sees every row written to a table with rowids.
unsafe extern "C" fn row_written(
    gate: *mut std::ffi::c_void,
    _operation: std::ffi::c_int,
    _database: *const std::ffi::c_char,
    _table: *const std::ffi::c_char,
    rowid: ffi::sqlite3_int64,
) {
    if rowid == i64::MAX {
        // SAFETY: the gate outlives the connection, see `Connection`'s field order.
        unsafe { (*gate.cast::<Gate>()).largest_rowid.store(true, Ordering::Relaxed) };
    }
}

/// Puts a connection into the sandbox.
pub(crate) fn confine(connection: &Connection, gate: &Arc<Gate>, options: &Options) -> Result<(), Fault> {
    let confine = || -> rusqlite::Result<()> {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
        // A plan follows from the text and the schema alone: otherwise a statement compiles itself
        // again for the values it is given, while it runs and its steps are counted.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        set_limits(connection, options)?;
        let shared = Arc::clone(gate);
        connection.authorizer(Some(move |context: AuthContext<'_>| authorize(&shared, &context)))
    };
    confine().map_err(|error| Fault::from_rusqlite("setting up the sandbox", &error))?;
    // SAFETY: the gate is kept alive by the connection's owner until after the connection closes.
    unsafe {
        ffi::sqlite3_update_hook(connection.handle(), Some(row_written), Arc::as_ptr(gate).cast_mut().cast());
    }
    Ok(())
}

fn set_limits(connection: &Connection, options: &Options) -> rusqlite::Result<()> {
    let bounded = |value: usize| i32::try_from(value).unwrap_or(i32::MAX);
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, bounded(options.value_bytes_max))?;
    connection.set_limit(Limit::SQLITE_LIMIT_SQL_LENGTH, bounded(options.statement_bytes_max))?;
    connection.set_limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER, bounded(options.parameters_max))?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_WORKER_THREADS, 0)?;
    Ok(())
}
