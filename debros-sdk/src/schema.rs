//! Tables and columns of a database, read by SQLite's own means. Knows which tables are the
//! platform's own and leaves them out.

use serde::Deserialize;

use crate::error::Error;
use crate::result::QueryResult;

/// The tables of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaInfo {
    /// In the order of their names.
    pub tables: Vec<TableInfo>,
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its name.
    pub name: String,
    /// In the order of their definition.
    pub columns: Vec<ColumnInfo>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnInfo {
    /// Its name.
    pub name: String,
    /// The declared type as it was written; empty where none was.
    pub data_type: String,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// The DEFAULT as an SQL expression.
    pub default_value: Option<String>,
    /// Whether it belongs to the primary key.
    pub primary_key: bool,
}

/// Names of all tables but SQLite's and the platform's own.
pub(crate) const TABLES: &str = "SELECT name FROM sqlite_schema WHERE type = 'table' \
     AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE '\\_debros\\_%' ESCAPE '\\' ORDER BY name";

/// The statement that lists a table's columns.
pub(crate) fn columns_of(table: &str) -> Result<String, Error> {
    Ok(format!("PRAGMA table_info({})", quoted(table)?))
}

/// A name as an SQL identifier.
pub(crate) fn quoted(name: &str) -> Result<String, Error> {
    if name.is_empty() || name.contains('\0') {
        return Err(Error::invalid("a table name is at least one character and has no NUL in it"));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

#[derive(Deserialize)]
struct TableInfoRow {
    name: String,
    r#type: String,
    notnull: bool,
    dflt_value: Option<String>,
    pk: i64,
}

/// Puts the answers to [`TABLES`] and [`columns_of`] together.
pub(crate) fn assemble(tables: Vec<String>, columns: &[QueryResult]) -> Result<SchemaInfo, Error> {
    let tables = tables.into_iter().zip(columns).map(|(name, result)| {
        let columns = result.rows_as::<TableInfoRow>()?.into_iter().map(|row| ColumnInfo {
            name: row.name,
            data_type: row.r#type,
            nullable: !row.notnull && row.pk == 0,
            default_value: row.dflt_value,
            primary_key: row.pk > 0,
        });
        Ok(TableInfo { name, columns: columns.collect() })
    });
    Ok(SchemaInfo { tables: tables.collect::<Result<_, Error>>()? })
}

#[cfg(test)]
mod tests {
    use super::{assemble, quoted};
    use crate::result::QueryResult;
    use crate::value::Value;

    #[test]
    fn a_table_name_cannot_break_out_of_its_quotes() {
        assert_eq!(quoted("a\"; DROP TABLE b; --").unwrap(), "\"a\"\"; DROP TABLE b; --\"");
        assert!(quoted("").is_err());
    }

    #[test]
    fn columns_are_described_as_sqlite_tells() {
        let names = ["cid", "name", "type", "notnull", "dflt_value", "pk"];
        let row = |name: &str, notnull: i64, default: Value, pk: i64| {
            vec![0.into(), name.into(), "TEXT".into(), notnull.into(), default, pk.into()]
        };
        let result = QueryResult {
            columns: names.map(str::to_owned).to_vec(),
            rows: vec![row("id", 0, Value::Null, 1), row("n", 1, "'x'".into(), 0)],
            ..QueryResult::default()
        };
        let schema = assemble(vec!["t".into()], &[result]).unwrap();
        let [id, n] = schema.tables[0].columns.as_slice() else { panic!("two columns") };
        assert!(id.primary_key && !id.nullable && id.default_value.is_none());
        assert!(!n.primary_key && !n.nullable);
        assert_eq!(n.default_value.as_deref(), Some("'x'"));
    }
}
