//! The tables behind registers, and what each operation does to them.

use super::read::{RegisterReads, exist};
use super::{RegisterChange, RegisterOperation, RegisterOutcome, RegisterRefusal};
use crate::connection::Connection;
use crate::prepared::Prepared;
use crate::{Fault, Options, Value};

const DURING: &str = "keeping registers";

const CREATE: &str = "
    CREATE TABLE _debros_register (
        key BLOB PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE INDEX _debros_register_by_lease ON _debros_register (lease) WHERE lease > 0;
    CREATE TABLE _debros_lease (
        id INTEGER PRIMARY KEY, expires_ms INTEGER NOT NULL, ttl_ms INTEGER NOT NULL);
    CREATE INDEX _debros_lease_by_expiry ON _debros_lease (expires_ms, id);
";

/// When an operation is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// The entry's number.
    pub(crate) number: u64,
    /// Its lease time.
    pub(crate) now_ms: u64,
}

/// The statements that keep registers.
#[derive(Debug)]
pub(crate) struct RegisterStore {
    reads: RegisterReads,
    put: Prepared,
    delete: Prepared,
    keys_of_lease: Prepared,
    count_of_lease: Prepared,
    delete_of_lease: Prepared,
    grant: Prepared,
    find_lease: Prepared,
    renew: Prepared,
    end: Prepared,
    count: Prepared,
    due: Prepared,
    next: Prepared,
    /// When the next lease is due, once it was looked up.
    next_due_ms: Option<Option<u64>>,
}

/// A number as these tables hold it.
pub(super) fn number(row: &Prepared, column: i32) -> u64 {
    u64::try_from(row.column_integer(column)).unwrap_or(0)
}

pub(super) fn integer(number: u64) -> Value {
    Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
}

fn blob(bytes: &[u8]) -> Value {
    Value::Blob(bytes.to_vec())
}

impl RegisterStore {
    /// `None` while there are no registers.
    pub(crate) fn find(connection: &Connection) -> Result<Option<Self>, Fault> {
        if exist(connection)? { Self::new(connection).map(Some) } else { Ok(None) }
    }

    /// Makes the tables, within the caller's transaction.
    pub(crate) fn create(connection: &Connection) -> Result<Self, Fault> {
        connection.internal_batch("creating the tables of registers", CREATE)?;
        Self::new(connection)
    }

    fn new(connection: &Connection) -> Result<Self, Fault> {
        let prepare = |sql| connection.internal(DURING, sql);
        Ok(Self {
            reads: RegisterReads::new(connection)?,
            put: prepare(
                "INSERT INTO _debros_register VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) \
                 DO UPDATE SET value = excluded.value, version = excluded.version, lease = excluded.lease",
            )?,
            delete: prepare("DELETE FROM _debros_register WHERE key = ?1")?,
            keys_of_lease: prepare(
                "SELECT key FROM _debros_register INDEXED BY _debros_register_by_lease \
                 WHERE lease = ?1 AND lease > 0 ORDER BY key",
            )?,
            count_of_lease: prepare(
                "SELECT count(*) FROM (SELECT 1 FROM _debros_register INDEXED BY _debros_register_by_lease \
                 WHERE lease = ?1 AND lease > 0 LIMIT ?2)",
            )?,
            delete_of_lease: prepare(
                "DELETE FROM _debros_register INDEXED BY _debros_register_by_lease \
                 WHERE lease = ?1 AND lease > 0",
            )?,
            grant: prepare("INSERT INTO _debros_lease VALUES (?1, ?2, ?3)")?,
            find_lease: prepare("SELECT ttl_ms FROM _debros_lease WHERE id = ?1")?,
            renew: prepare("UPDATE _debros_lease SET expires_ms = ?2 WHERE id = ?1")?,
            end: prepare("DELETE FROM _debros_lease WHERE id = ?1")?,
            count: prepare("SELECT count(*) FROM _debros_lease")?,
            due: prepare(
                "SELECT id FROM _debros_lease WHERE expires_ms <= ?1 ORDER BY expires_ms, id LIMIT ?2",
            )?,
            next: prepare("SELECT expires_ms FROM _debros_lease ORDER BY expires_ms LIMIT 1")?,
            next_due_ms: None,
        })
    }

    pub(crate) fn reads(&mut self) -> &mut RegisterReads {
        &mut self.reads
    }

    /// Forgets what was looked up: something was undone.
    pub(crate) fn forget(&mut self) {
        self.next_due_ms = None;
    }

    /// The lease time at which the next lease is due.
    pub(crate) fn next_due_ms(&mut self, connection: &Connection) -> Result<Option<u64>, Fault> {
        if let Some(known) = self.next_due_ms {
            return Ok(known);
        }
        let mut due = None;
        connection.run_internal(DURING, &mut self.next, &[], |row| due = Some(number(row, 0)))?;
        self.next_due_ms = Some(due);
        Ok(due)
    }

    /// Does what an operation asks for; adds to `changes` what it changed.
    pub(crate) fn apply(
        &mut self,
        connection: &Connection,
        moment: Moment,
        operation: &RegisterOperation,
        options: &Options,
        changes: &mut Vec<RegisterChange>,
    ) -> Result<RegisterOutcome, Fault> {
        let mut work = Work { store: self, connection, moment, options, changes };
        match operation {
            RegisterOperation::Put { key, value, lease, expected } => work.put(key, value, *lease, *expected),
            RegisterOperation::Delete { key, expected } => work.delete(key, *expected),
            RegisterOperation::Increment { key, delta } => work.increment(key, *delta),
            RegisterOperation::GrantLease { ttl_ms } => work.grant(*ttl_ms),
            RegisterOperation::KeepAlive { lease } => work.keep_alive(*lease),
            RegisterOperation::RevokeLease { lease } => work.revoke(*lease),
            RegisterOperation::ExpireLeases => work.expire(),
        }
    }
}

/// One operation under way.
struct Work<'a> {
    store: &'a mut RegisterStore,
    connection: &'a Connection,
    moment: Moment,
    options: &'a Options,
    changes: &'a mut Vec<RegisterChange>,
}

impl Work<'_> {
    fn put(
        &mut self,
        key: &[u8],
        value: &[u8],
        lease: u64,
        expected: Option<u64>,
    ) -> Result<RegisterOutcome, Fault> {
        if lease != 0 && self.ttl_of(lease)?.is_none() {
            return Ok(RegisterOutcome::Refused(RegisterRefusal::NoSuchLease(lease)));
        }
        if let Some(conflict) = self.conflict(key, expected)? {
            return Ok(conflict);
        }
        if lease != 0 && self.is_full(lease, key)? {
            let max = self.options.registers_per_lease_max;
            return Ok(RegisterOutcome::Refused(RegisterRefusal::TooManyOfLease(max)));
        }
        self.set(key, value, lease)?;
        Ok(RegisterOutcome::Written { version: self.moment.number })
    }

    fn delete(&mut self, key: &[u8], expected: Option<u64>) -> Result<RegisterOutcome, Fault> {
        if let Some(conflict) = self.conflict(key, expected)? {
            return Ok(conflict);
        }
        let Some(found) = self.store.reads.get(self.connection, key)? else {
            return Ok(RegisterOutcome::Deleted { version: 0 });
        };
        self.run(|store| &mut store.delete, &[blob(key)])?;
        self.changes.push(self.deletion(key.to_vec(), found.lease));
        Ok(RegisterOutcome::Deleted { version: found.version })
    }

    fn increment(&mut self, key: &[u8], delta: i64) -> Result<RegisterOutcome, Fault> {
        let found = self.store.reads.get(self.connection, key)?;
        let (value, lease) = match &found {
            None => (0, 0),
            Some(register) => {
                match std::str::from_utf8(&register.value).ok().and_then(|text| text.parse().ok()) {
                    Some(value) => (value, register.lease),
                    None => return Ok(RegisterOutcome::Refused(RegisterRefusal::NotANumber)),
                }
            }
        };
        let Some(sum) = i64::checked_add(value, delta) else {
            return Ok(RegisterOutcome::Refused(RegisterRefusal::Overflow { value, delta }));
        };
        self.set(key, sum.to_string().as_bytes(), lease)?;
        Ok(RegisterOutcome::Incremented { value: sum, version: self.moment.number })
    }

    fn grant(&mut self, ttl_ms: u64) -> Result<RegisterOutcome, Fault> {
        let mut alive = 0;
        self.rows(|store| &mut store.count, &[], |row| alive = number(row, 0))?;
        let max = self.options.leases_max;
        if alive >= max as u64 {
            return Ok(RegisterOutcome::Refused(RegisterRefusal::TooManyLeases(max)));
        }
        let Moment { number, now_ms } = self.moment;
        let values = [integer(number), integer(now_ms.saturating_add(ttl_ms)), integer(ttl_ms)];
        self.run(|store| &mut store.grant, &values)?;
        self.store.next_due_ms = None;
        Ok(RegisterOutcome::Lease { id: number, ttl_ms })
    }

    fn keep_alive(&mut self, lease: u64) -> Result<RegisterOutcome, Fault> {
        let Some(ttl_ms) = self.ttl_of(lease)? else {
            return Ok(RegisterOutcome::Refused(RegisterRefusal::NoSuchLease(lease)));
        };
        let values = [integer(lease), integer(self.moment.now_ms.saturating_add(ttl_ms))];
        self.run(|store| &mut store.renew, &values)?;
        self.store.next_due_ms = None;
        Ok(RegisterOutcome::Lease { id: lease, ttl_ms })
    }

    fn revoke(&mut self, lease: u64) -> Result<RegisterOutcome, Fault> {
        if self.ttl_of(lease)?.is_none() {
            return Ok(RegisterOutcome::Refused(RegisterRefusal::NoSuchLease(lease)));
        }
        let keys = self.end(lease)?;
        Ok(RegisterOutcome::Revoked { keys })
    }

    fn expire(&mut self) -> Result<RegisterOutcome, Fault> {
        let mut due = Vec::new();
        let values = [integer(self.moment.now_ms), integer(self.options.leases_ended_per_entry_max as u64)];
        self.rows(|store| &mut store.due, &values, |row| due.push(number(row, 0)))?;
        for lease in &due {
            self.end(*lease)?;
        }
        Ok(RegisterOutcome::Expired { leases: due.len() as u64 })
    }

    /// Ends a lease; gives how many registers went with it.
    fn end(&mut self, lease: u64) -> Result<u64, Fault> {
        let mut keys = Vec::new();
        let values = [integer(lease)];
        self.rows(|store| &mut store.keys_of_lease, &values, |row| keys.push(row.column_bytes(0).to_vec()))?;
        self.run(|store| &mut store.delete_of_lease, &values)?;
        self.run(|store| &mut store.end, &values)?;
        self.store.next_due_ms = None;
        let count = keys.len() as u64;
        for key in keys {
            self.changes.push(self.deletion(key, lease));
        }
        Ok(count)
    }

    fn set(&mut self, key: &[u8], value: &[u8], lease: u64) -> Result<(), Fault> {
        let version = self.moment.number;
        let values = [blob(key), blob(value), integer(version), integer(lease)];
        self.run(|store| &mut store.put, &values)?;
        self.changes.push(RegisterChange { key: key.to_vec(), value: Some(value.to_vec()), version, lease });
        Ok(())
    }

    /// What there is instead of the expected version.
    fn conflict(&mut self, key: &[u8], expected: Option<u64>) -> Result<Option<RegisterOutcome>, Fault> {
        let Some(expected) = expected else { return Ok(None) };
        let found = self.store.reads.get(self.connection, key)?;
        let version = found.as_ref().map_or(0, |register| register.version);
        if version == expected {
            return Ok(None);
        }
        let value = found.map(|register| register.value);
        let value = value.filter(|value| value.len() <= self.options.conflict_value_bytes_max);
        Ok(Some(RegisterOutcome::Conflict { version, value }))
    }

    fn ttl_of(&mut self, lease: u64) -> Result<Option<u64>, Fault> {
        let mut ttl = None;
        self.rows(|store| &mut store.find_lease, &[integer(lease)], |row| ttl = Some(number(row, 0)))?;
        Ok(ttl)
    }

    /// Whether the lease has no room for a key that is not among its own.
    fn is_full(&mut self, lease: u64, key: &[u8]) -> Result<bool, Fault> {
        let max = self.options.registers_per_lease_max as u64;
        let mut count = 0;
        let values = [integer(lease), integer(max)];
        self.rows(|store| &mut store.count_of_lease, &values, |row| count = number(row, 0))?;
        if count < max {
            return Ok(false);
        }
        let found = self.store.reads.get(self.connection, key)?;
        Ok(found.is_none_or(|register| register.lease != lease))
    }

    fn deletion(&self, key: Vec<u8>, lease: u64) -> RegisterChange {
        RegisterChange { key, value: None, version: self.moment.number, lease }
    }

    fn run(
        &mut self,
        statement: impl FnOnce(&mut RegisterStore) -> &mut Prepared,
        values: &[Value],
    ) -> Result<(), Fault> {
        self.rows(statement, values, |_| ())
    }

    fn rows(
        &mut self,
        statement: impl FnOnce(&mut RegisterStore) -> &mut Prepared,
        values: &[Value],
        row: impl FnMut(&Prepared),
    ) -> Result<(), Fault> {
        self.connection.run_internal(DURING, statement(self.store), values, row)
    }
}
