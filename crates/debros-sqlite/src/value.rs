//! What goes into a statement and what comes out of it: plain data in SQLite's five types.
//!
//! Knows nothing of connections. Named parameters carry their bare name; the prefix in the SQL
//! (`:`, `@` or `$`) is no part of it.

use crate::SqlError;

/// One typed SQLite value.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// NULL.
    #[default]
    Null,
    /// A 64-bit signed integer.
    Integer(i64),
    /// A 64-bit float. SQLite stores a NaN as NULL.
    Real(f64),
    /// UTF-8 text; invalid bytes read from a database are replaced by U+FFFD.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl Value {
    /// Bytes this value adds to a result, for the limit on results.
    pub(crate) fn size_bytes(&self) -> usize {
        match self {
            Self::Null => 1,
            Self::Integer(_) | Self::Real(_) => 8,
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        }
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value)
    }
}

/// The parameters of a statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Parameters {
    /// For `?` and `?NNN`, in order. Their number must match the statement's.
    Positional(Vec<Value>),
    /// For `:name`, `@name` and `$name`, by bare name. Each must occur in the statement, and each
    /// of the statement's must be given.
    Named(Vec<(String, Value)>),
}

impl Default for Parameters {
    fn default() -> Self {
        Self::Positional(Vec::new())
    }
}

/// One SQL statement with its parameters.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statement {
    /// Exactly one statement; a trailing semicolon and comments are fine.
    pub sql: String,
    /// Its parameters.
    pub parameters: Parameters,
}

impl Statement {
    /// A statement without parameters.
    #[must_use]
    pub fn new(sql: impl Into<String>) -> Self {
        Self { sql: sql.into(), parameters: Parameters::default() }
    }

    /// A statement with positional parameters.
    #[must_use]
    pub fn with(sql: impl Into<String>, positional: impl IntoIterator<Item = Value>) -> Self {
        Self { sql: sql.into(), parameters: Parameters::Positional(positional.into_iter().collect()) }
    }
}

/// The rows a statement gave.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Declared types of the columns, lower case; empty where an expression has none.
    pub types: Vec<String>,
    /// The rows, each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
}

/// What one statement did. Every variant is the same on every replica.
#[derive(Debug, Clone, PartialEq)]
pub enum StatementOutcome {
    /// It gave rows, and rows were asked for.
    Rows(Rows),
    /// It changed rows, or its rows were not asked for.
    Counts {
        /// The rowid of the last row this statement inserted; 0 when it inserted none.
        last_insert_id: i64,
        /// Rows inserted, updated or deleted by this statement, without those of its triggers.
        rows_affected: u64,
    },
    /// It failed and changed nothing.
    Error(SqlError),
}

impl StatementOutcome {
    /// The error, if this is one.
    #[must_use]
    pub fn error(&self) -> Option<&SqlError> {
        match self {
            Self::Error(error) => Some(error),
            Self::Rows(_) | Self::Counts { .. } => None,
        }
    }
}
