//! Reading registers, on a connection that writes or only reads.

use crate::connection::Connection;
use crate::prepared::Prepared;
use crate::{Fault, HeldLease, LeasePage, LeaseQuery, Register, RegisterPage, RegisterQuery, Value};

const DURING: &str = "reading registers";

/// The statements that read registers.
#[derive(Debug)]
pub(crate) struct RegisterReads {
    find: Prepared,
    list: Prepared,
    leases: Prepared,
}

/// Whether this database has registers.
pub(super) fn exist(connection: &Connection) -> Result<bool, Fault> {
    let mut look =
        connection.internal(DURING, "SELECT 1 FROM sqlite_schema WHERE name = '_debros_register'")?;
    let mut found = false;
    connection.run_internal(DURING, &mut look, &[], |_| found = true)?;
    Ok(found)
}

impl RegisterReads {
    /// `None` while there are no registers.
    pub(crate) fn find(connection: &Connection) -> Result<Option<Self>, Fault> {
        if exist(connection)? { Self::new(connection).map(Some) } else { Ok(None) }
    }

    pub(super) fn new(connection: &Connection) -> Result<Self, Fault> {
        let prepare = |sql| connection.internal(DURING, sql);
        Ok(Self {
            find: prepare("SELECT key, value, version, lease FROM _debros_register WHERE key = ?1")?,
            list: prepare(
                "SELECT key, value, version, lease FROM _debros_register WHERE key >= ?1 ORDER BY key",
            )?,
            // One statement, so that leases and keys are of one moment.
            leases: prepare(
                "SELECT l.id, l.ttl_ms, l.expires_ms, r.key FROM _debros_lease l \
                 LEFT JOIN _debros_register r INDEXED BY _debros_register_by_lease \
                 ON r.lease = l.id AND r.lease > 0 WHERE l.id > ?1 ORDER BY l.id, r.key",
            )?,
        })
    }

    pub(crate) fn get(&mut self, connection: &Connection, key: &[u8]) -> Result<Option<Register>, Fault> {
        let mut found = None;
        let values = [Value::Blob(key.to_vec())];
        connection.run_internal(DURING, &mut self.find, &values, |row| found = Some(register(row)))?;
        Ok(found)
    }

    pub(crate) fn list(
        &mut self,
        connection: &Connection,
        query: &RegisterQuery,
    ) -> Result<RegisterPage, Fault> {
        let RegisterQuery { prefix, after, limit, bytes_max } = query;
        let mut page = RegisterPage::default();
        let mut bytes = 0;
        let values = [Value::Blob(first(prefix, after))];
        connection.run_while(DURING, &mut self.list, &values, |row| {
            if !row.column_bytes(0).starts_with(prefix) {
                return false;
            }
            if page.registers.len() >= *limit || bytes >= *bytes_max {
                page.more = true;
                return false;
            }
            let register = register(row);
            bytes += register.key.len() + register.value.len();
            page.registers.push(register);
            true
        })?;
        Ok(page)
    }
}

impl RegisterReads {
    pub(crate) fn leases(&mut self, connection: &Connection, query: LeaseQuery) -> Result<LeasePage, Fault> {
        let LeaseQuery { after, limit, bytes_max } = query;
        let mut page = LeasePage::default();
        let mut bytes = 0;
        connection.run_while(DURING, &mut self.leases, &[super::store::integer(after)], |row| {
            let id = super::store::number(row, 0);
            if page.leases.last().is_none_or(|last| last.id != id) {
                if page.leases.len() >= limit || bytes >= bytes_max {
                    page.more = true;
                    return false;
                }
                let (ttl_ms, due_ms) = (super::store::number(row, 1), super::store::number(row, 2));
                page.leases.push(HeldLease { id, ttl_ms, due_ms, keys: Vec::new() });
            }
            let (key, lease) = (row.column_bytes(3), page.leases.last_mut().expect("just pushed"));
            // No key is empty: nothing goes with the lease.
            if !key.is_empty() {
                bytes += key.len();
                lease.keys.push(key.to_vec());
            }
            true
        })?;
        Ok(page)
    }
}

/// The smallest key that has the prefix and comes after another.
fn first(prefix: &[u8], after: &[u8]) -> Vec<u8> {
    if after.is_empty() || after < prefix {
        return prefix.to_vec();
    }
    // Nothing lies between a key and the same one with a zero behind it.
    [after, &[0]].concat()
}

fn register(row: &Prepared) -> Register {
    Register {
        key: row.column_bytes(0).to_vec(),
        value: row.column_bytes(1).to_vec(),
        version: super::store::number(row, 2),
        lease: super::store::number(row, 3),
    }
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn a_page_goes_on_right_behind_the_last_key() {
        assert_eq!(first(b"a", b""), b"a");
        assert_eq!(first(b"", b""), b"");
        assert_eq!(first(b"b", b"a"), b"b");
        assert_eq!(first(b"a", b"a"), b"a\0");
        assert_eq!(first(b"a", b"ab"), b"ab\0");
    }
}
