//! Prepared statements over SQLite's own handles, and the cache that keeps them.
//!
//! Directly on the C interface because the hot path binds borrowed values, reads step counters
//! and resets them, none of which the wrapper offers. Knows nothing of what a statement may do.
//!
//! Invariant: a statement in the cache was compiled against the current schema. The owner clears
//! the cache whenever the schema may have changed, because a stale statement recompiles itself
//! while it runs, and those steps would count on some replicas only.

use std::collections::HashMap;
use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use rusqlite::ffi;

use crate::sandbox::Facts;
use crate::{Parameters, Value};

/// Longer texts are not kept: they are mostly literals and hardly ever the same again.
const CACHED_SQL_BYTES_MAX: usize = 8 << 10;

/// A raw failure: SQLite's extended code and its words.
#[derive(Debug)]
pub(crate) struct RawError {
    pub(crate) code: c_int,
    pub(crate) message: String,
}

impl RawError {
    /// What the connection says about its last call.
    pub(crate) fn last(database: NonNull<ffi::sqlite3>) -> Self {
        // SAFETY: the handle is valid; the message is copied before any other call.
        unsafe {
            let code = ffi::sqlite3_extended_errcode(database.as_ptr());
            let message = CStr::from_ptr(ffi::sqlite3_errmsg(database.as_ptr()));
            Self { code, message: message.to_string_lossy().into_owned() }
        }
    }
}

/// Why parameters could not be bound.
#[derive(Debug)]
pub(crate) enum BindError {
    /// They do not fit the statement.
    Mismatch(String),
    /// SQLite refused a value.
    Sqlite(RawError),
}

/// One compiled statement.
#[derive(Debug)]
pub(crate) struct Prepared {
    handle: NonNull<ffi::sqlite3_stmt>,
    database: NonNull<ffi::sqlite3>,
    pub(crate) facts: Facts,
}

// SAFETY: a statement is used by one thread at a time, together with its connection.
unsafe impl Send for Prepared {}

impl Drop for Prepared {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and is finalised once, before its connection closes.
        unsafe { ffi::sqlite3_finalize(self.handle.as_ptr()) };
    }
}

/// What compiling gave.
pub(crate) enum Compiled {
    /// A statement, and the number of bytes of the text it took.
    Statement(Prepared, usize),
    /// Nothing but white space and comments, and the number of bytes up to its end.
    Nothing(usize),
}

/// Compiles the first statement of a text.
pub(crate) fn compile(
    database: NonNull<ffi::sqlite3>,
    sql: &str,
    persistent: bool,
) -> Result<Compiled, RawError> {
    let flags = if persistent { ffi::SQLITE_PREPARE_PERSISTENT } else { 0 };
    let mut handle = std::ptr::null_mut();
    let mut tail = std::ptr::null();
    let length = c_int::try_from(sql.len()).unwrap_or(c_int::MAX);
    // SAFETY: the text is valid for `length` bytes; the out pointers are valid.
    let code = unsafe {
        ffi::sqlite3_prepare_v3(database.as_ptr(), sql.as_ptr().cast(), length, flags, &mut handle, &mut tail)
    };
    if code != ffi::SQLITE_OK {
        return Err(RawError::last(database));
    }
    let taken = if tail.is_null() { sql.len() } else { tail as usize - sql.as_ptr() as usize };
    let Some(handle) = NonNull::new(handle) else { return Ok(Compiled::Nothing(taken)) };
    Ok(Compiled::Statement(Prepared { handle, database, facts: Facts::default() }, taken))
}

impl Prepared {
    /// Whether it changes nothing in the database.
    pub(crate) fn is_readonly(&self) -> bool {
        // SAFETY: the handle is valid.
        unsafe { ffi::sqlite3_stmt_readonly(self.handle.as_ptr()) != 0 }
    }

    /// Whether it is an EXPLAIN.
    pub(crate) fn is_explain(&self) -> bool {
        // SAFETY: the handle is valid.
        unsafe { ffi::sqlite3_stmt_isexplain(self.handle.as_ptr()) != 0 }
    }

    /// Runs to the next row: `true`, or to the end: `false`.
    pub(crate) fn step(&mut self) -> Result<bool, RawError> {
        // SAFETY: the handle is valid.
        match unsafe { ffi::sqlite3_step(self.handle.as_ptr()) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => Ok(false),
            _ => Err(RawError::last(self.database)),
        }
    }

    /// Makes it ready to run again and forgets its parameters.
    pub(crate) fn reset(&mut self) {
        // SAFETY: the handle is valid. The code repeats that of the last step.
        unsafe {
            ffi::sqlite3_reset(self.handle.as_ptr());
            ffi::sqlite3_clear_bindings(self.handle.as_ptr());
        }
    }

    /// Steps of its own program since the last call; work done inside virtual tables, whose
    /// amount depends on what they hold in memory, is not in it.
    pub(crate) fn take_steps(&mut self) -> u64 {
        // SAFETY: the handle is valid.
        let steps =
            unsafe { ffi::sqlite3_stmt_status(self.handle.as_ptr(), ffi::SQLITE_STMTSTATUS_VM_STEP, 1) };
        u64::from(steps.cast_unsigned())
    }

    /// Binds parameters. They are borrowed: reset before they go.
    pub(crate) fn bind(&mut self, parameters: &Parameters) -> Result<(), BindError> {
        // SAFETY: the handle is valid.
        let expected = unsafe { ffi::sqlite3_bind_parameter_count(self.handle.as_ptr()) };
        match parameters {
            Parameters::Positional(values) => {
                if usize::try_from(expected) != Ok(values.len()) {
                    return Err(BindError::Mismatch(format!(
                        "the statement has {expected} parameters, but {} were given",
                        values.len()
                    )));
                }
                for (place, value) in (1..).zip(values) {
                    self.bind_value(place, value)?;
                }
                Ok(())
            }
            Parameters::Named(values) => self.bind_named(expected, values),
        }
    }

    fn bind_named(&mut self, expected: c_int, values: &[(String, Value)]) -> Result<(), BindError> {
        let mut bound = vec![false; values.len()];
        for place in 1..=expected {
            // SAFETY: the handle is valid; the name lives as long as the statement.
            let name = unsafe {
                let name = ffi::sqlite3_bind_parameter_name(self.handle.as_ptr(), place);
                if name.is_null() { None } else { Some(CStr::from_ptr(name).to_string_lossy().into_owned()) }
            };
            let Some(bare) = name
                .as_deref()
                .and_then(|name| name.get(1..))
                .filter(|_| !name.as_deref().is_some_and(|name| name.starts_with('?')))
            else {
                return Err(BindError::Mismatch(format!(
                    "parameter {place} of the statement has no name; give positional parameters"
                )));
            };
            let Some(found) = values.iter().position(|(given, _)| given == bare) else {
                return Err(BindError::Mismatch(format!("parameter {bare} of the statement was not given")));
            };
            bound[found] = true;
            self.bind_value(place, &values[found].1)?;
        }
        match bound.iter().position(|bound| !bound) {
            Some(unused) => Err(BindError::Mismatch(format!(
                "parameter {} was given, but the statement has none of that name",
                values[unused].0
            ))),
            None => Ok(()),
        }
    }

    /// Binds one value. It is borrowed: reset before it goes.
    pub(crate) fn bind_value(&mut self, place: c_int, value: &Value) -> Result<(), BindError> {
        let handle = self.handle.as_ptr();
        // SAFETY: the handle is valid, and callers reset the statement before the values go, so
        // SQLite need not copy them. A zero-length slice's pointer is dangling but not null.
        let code = unsafe {
            match value {
                Value::Null => ffi::sqlite3_bind_null(handle, place),
                Value::Integer(number) => ffi::sqlite3_bind_int64(handle, place, *number),
                Value::Real(number) => ffi::sqlite3_bind_double(handle, place, *number),
                Value::Text(text) => ffi::sqlite3_bind_text64(
                    handle,
                    place,
                    text.as_ptr().cast(),
                    text.len() as u64,
                    ffi::SQLITE_STATIC(),
                    ffi::SQLITE_UTF8 as u8,
                ),
                Value::Blob(bytes) => ffi::sqlite3_bind_blob64(
                    handle,
                    place,
                    bytes.as_ptr().cast(),
                    bytes.len() as u64,
                    ffi::SQLITE_STATIC(),
                ),
            }
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(BindError::Sqlite(RawError::last(self.database))) }
    }

    pub(crate) fn column_count(&self) -> c_int {
        // SAFETY: the handle is valid.
        unsafe { ffi::sqlite3_column_count(self.handle.as_ptr()) }
    }

    pub(crate) fn column_name(&self, column: c_int) -> String {
        // SAFETY: the handle is valid and the column exists; NULL means out of memory, and an
        // empty name is harmless then.
        unsafe { text_or_empty(ffi::sqlite3_column_name(self.handle.as_ptr(), column)) }
    }

    /// The column's declared type in lower case; empty for an expression.
    pub(crate) fn column_type(&self, column: c_int) -> String {
        // SAFETY: as above; NULL means that there is none.
        let mut declared =
            unsafe { text_or_empty(ffi::sqlite3_column_decltype(self.handle.as_ptr(), column)) };
        declared.make_ascii_lowercase();
        declared
    }

    /// The bytes of a text or blob column of the current row.
    pub(crate) fn column_bytes(&self, column: c_int) -> &[u8] {
        // SAFETY: the handle stands on a row; the bytes live until the next step or reset, both
        // of which need `&mut self`.
        unsafe {
            let pointer = ffi::sqlite3_column_blob(self.handle.as_ptr(), column);
            let length = ffi::sqlite3_column_bytes(self.handle.as_ptr(), column);
            match usize::try_from(length) {
                Ok(length) if !pointer.is_null() => std::slice::from_raw_parts(pointer.cast(), length),
                _ => &[],
            }
        }
    }

    pub(crate) fn column_integer(&self, column: c_int) -> i64 {
        // SAFETY: the handle stands on a row.
        unsafe { ffi::sqlite3_column_int64(self.handle.as_ptr(), column) }
    }

    pub(crate) fn column_real(&self, column: c_int) -> f64 {
        // SAFETY: the handle stands on a row.
        unsafe { ffi::sqlite3_column_double(self.handle.as_ptr(), column) }
    }

    /// The storage class of a column of the current row (`SQLITE_INTEGER` ...).
    pub(crate) fn column_storage(&self, column: c_int) -> c_int {
        // SAFETY: the handle stands on a row.
        unsafe { ffi::sqlite3_column_type(self.handle.as_ptr(), column) }
    }

    pub(crate) fn column_value(&self, column: c_int) -> Value {
        match self.column_storage(column) {
            ffi::SQLITE_INTEGER => Value::Integer(self.column_integer(column)),
            ffi::SQLITE_FLOAT => Value::Real(self.column_real(column)),
            ffi::SQLITE_TEXT => Value::Text(String::from_utf8_lossy(self.column_bytes(column)).into_owned()),
            ffi::SQLITE_BLOB => Value::Blob(self.column_bytes(column).to_vec()),
            _ => Value::Null,
        }
    }
}

/// # Safety
/// `text` is NULL or a C string.
unsafe fn text_or_empty(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// A statement's place in the cache, valid until the next call that changes the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot(Option<usize>);

#[derive(Debug)]
struct Kept {
    sql: Box<str>,
    prepared: Prepared,
    last_used: u64,
}

/// The most recently used statements of a connection, by text.
#[derive(Debug)]
pub(crate) struct StatementCache {
    kept: Vec<Kept>,
    by_text: HashMap<Box<str>, usize>,
    /// Holds a statement too long to keep while it runs.
    passing: Option<Prepared>,
    capacity: usize,
    clock: u64,
}

impl StatementCache {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            kept: Vec::with_capacity(capacity),
            by_text: HashMap::with_capacity(capacity),
            passing: None,
            capacity,
            clock: 0,
        }
    }

    /// Whether a statement of this length is kept.
    pub(crate) fn keeps(&self, sql: &str) -> bool {
        sql.len() <= CACHED_SQL_BYTES_MAX
    }

    /// Where the statement of this text is kept.
    pub(crate) fn find(&mut self, sql: &str) -> Option<Slot> {
        let found = *self.by_text.get(sql)?;
        self.clock += 1;
        self.kept[found].last_used = self.clock;
        Some(Slot(Some(found)))
    }

    /// The statement in a slot.
    pub(crate) fn at(&mut self, slot: Slot) -> &mut Prepared {
        match slot.0 {
            Some(place) => &mut self.kept[place].prepared,
            None => self.passing.as_mut().expect("a passing statement stays until the cache changes"),
        }
    }

    /// Keeps a statement, in place of the one unused for longest when full.
    pub(crate) fn put(&mut self, sql: &str, prepared: Prepared) -> Slot {
        if !self.keeps(sql) {
            self.passing = Some(prepared);
            return Slot(None);
        }
        self.clock += 1;
        let kept = Kept { sql: sql.into(), prepared, last_used: self.clock };
        let place = if self.kept.len() < self.capacity {
            self.kept.push(kept);
            self.kept.len() - 1
        } else {
            let oldest = (0..self.kept.len()).min_by_key(|place| self.kept[*place].last_used).unwrap_or(0);
            self.by_text.remove(&self.kept[oldest].sql);
            self.kept[oldest] = kept;
            oldest
        };
        self.by_text.insert(sql.into(), place);
        Slot(Some(place))
    }

    /// Forgets all statements: the schema may have changed.
    pub(crate) fn clear(&mut self) {
        self.by_text.clear();
        self.kept.clear();
        self.passing = None;
    }
}
