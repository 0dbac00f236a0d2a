//! One hash over everything replicas must agree on.
//!
//! Covers the schema, the rows of all tables (hidden sessions and results among them), log time,
//! limits and what numbers begin with. Leaves out what may differ between equal replicas: the layout of the file, the
//! caller's bookkeeping. Each row is written with its types and lengths, so no two contents read
//! the same.

use rusqlite::ffi;
use sha2::{Digest, Sha256};

use crate::connection::Connection;
use crate::prepared::Prepared;
use crate::state::State;
use crate::{Fault, LeaseTime, Value};

const DURING: &str = "hashing the content";

/// Hashes what the connection sees in its current transaction.
pub(crate) fn content_hash(connection: &Connection, state: &State) -> Result<[u8; 32], Fault> {
    let mut hasher = Sha256::new();
    hasher.update(state.log_time_ms.to_le_bytes());
    hasher.update(state.max_bytes.to_le_bytes());
    hasher.update(state.numbers_from.to_le_bytes());
    let LeaseTime { now_ms, clock, clock_ms } = state.lease_time;
    [now_ms, clock, clock_ms].iter().for_each(|number| hasher.update(number.to_le_bytes()));
    // The rowids of the schema decide the order in which indexes and triggers are considered.
    hash_rows(
        connection,
        &mut hasher,
        "SELECT rowid, type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid",
    )?;
    for table in tables(connection)? {
        hasher.update([b'T']);
        hash_text(&mut hasher, table.name.as_bytes());
        hash_rows(connection, &mut hasher, &table.query(connection)?)?;
    }
    Ok(hasher.finalize().into())
}

struct Table {
    name: String,
    without_rowid: bool,
}

/// All tables with rows of their own. Virtual tables have none: theirs are in shadow tables.
fn tables(connection: &Connection) -> Result<Vec<Table>, Fault> {
    let mut list = connection.internal(
        DURING,
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'shadow') \
         AND name NOT IN ('sqlite_schema', '_debros_state') ORDER BY name",
    )?;
    let mut tables = Vec::new();
    connection.run_internal(DURING, &mut list, &[], |row| {
        tables.push(Table {
            name: String::from_utf8_lossy(row.column_bytes(0)).into_owned(),
            without_rowid: row.column_integer(1) != 0,
        });
    })?;
    Ok(tables)
}

impl Table {
    /// A query for all rows in the order of the table's key.
    fn query(&self, connection: &Connection) -> Result<String, Fault> {
        let mut columns = Vec::new();
        let mut key = Vec::new();
        let mut info = connection.internal(DURING, "SELECT name, pk, hidden FROM pragma_table_xinfo(?1)")?;
        connection.run_internal(DURING, &mut info, &[Value::Text(self.name.clone())], |row| {
            let name = String::from_utf8_lossy(row.column_bytes(0)).into_owned();
            let position = row.column_integer(1);
            if position > 0 {
                key.push((position, quoted(&name)));
            }
            // Generated columns that are not stored follow from the others.
            if row.column_integer(2) != 2 {
                columns.push(name);
            }
        })?;
        let table = quoted(&self.name);
        let selected: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        if self.without_rowid {
            key.sort();
            let order: Vec<String> = key.into_iter().map(|(_, name)| name).collect();
            return Ok(format!(
                "SELECT {} FROM main.{table} ORDER BY {}",
                selected.join(", "),
                order.join(", ")
            ));
        }
        let free = ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|alias| !columns.iter().any(|name| name.eq_ignore_ascii_case(alias)));
        let selected = selected.join(", ");
        Ok(match free {
            Some(rowid) => format!("SELECT {rowid}, {selected} FROM main.{table} ORDER BY {rowid}"),
            // All three names are taken by columns: a scan of the table still goes by rowid.
            None => format!("SELECT {selected} FROM main.{table} NOT INDEXED"),
        })
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn hash_rows(connection: &Connection, hasher: &mut Sha256, sql: &str) -> Result<(), Fault> {
    let mut rows = connection.internal(DURING, sql)?;
    let columns = rows.column_count();
    connection.run_internal(DURING, &mut rows, &[], |row| {
        hasher.update([b'R']);
        for column in 0..columns {
            hash_column(hasher, row, column);
        }
    })
}

fn hash_column(hasher: &mut Sha256, row: &Prepared, column: i32) {
    match row.column_storage(column) {
        ffi::SQLITE_INTEGER => {
            hasher.update([1]);
            hasher.update(row.column_integer(column).to_le_bytes());
        }
        ffi::SQLITE_FLOAT => {
            hasher.update([2]);
            hasher.update(row.column_real(column).to_bits().to_le_bytes());
        }
        ffi::SQLITE_TEXT => {
            hasher.update([3]);
            hash_text(hasher, row.column_bytes(column));
        }
        ffi::SQLITE_BLOB => {
            hasher.update([4]);
            hash_text(hasher, row.column_bytes(column));
        }
        _ => hasher.update([5]),
    }
}

fn hash_text(hasher: &mut Sha256, bytes: &[u8]) {
    hasher.update((bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
