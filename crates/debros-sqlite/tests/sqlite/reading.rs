//! Readers beside a writer.

use std::cell::Cell;
use std::path::PathBuf;

use debros_sqlite::{
    ErrorClass, Operation, Options, PoolError, Reader, ReaderPool, Statement, StatementOutcome, Value, Writer,
};

use crate::replica::{Replica, START_MS, each, entry, environment, only_value};

const NEVER: &dyn Fn() -> bool = &|| false;

fn database() -> (tempfile::TempDir, PathBuf, Replica) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = Replica { writer: Writer::open(&path, Options::default()).expect("opens") };
    replica.must(&["CREATE TABLE t (id INTEGER PRIMARY KEY, a)", "INSERT INTO t (a) VALUES ('x'), ('y')"]);
    (folder, path, replica)
}

fn read(reader: &mut Reader, sql: &str) -> StatementOutcome {
    reader.query(&[Statement::new(sql)], &environment(9), NEVER).expect("no fault").outcomes.remove(0)
}

#[test]
fn a_reader_sees_what_is_applied_and_up_to_where() {
    let (_folder, path, mut replica) = database();
    let mut reader = Reader::open(&path, Options::default()).expect("opens");
    let count = [Statement::new("SELECT count(*) FROM t"), Statement::new("SELECT unixepoch()")];
    let seen = reader.query(&count, &environment(9), NEVER).expect("no fault");
    assert_eq!((only_value(&seen.outcomes[0]), seen.applied_index), (Value::Integer(2), 1));
    assert_eq!(only_value(&seen.outcomes[1]), Value::Integer((START_MS / 1000) as i64 + 9));
    // The schema changes under a kept statement.
    replica.must(&["ALTER TABLE t ADD COLUMN b DEFAULT 5", "INSERT INTO t (a) VALUES ('z')"]);
    let seen = reader.query(&count, &environment(9), NEVER).expect("no fault");
    assert_eq!((only_value(&seen.outcomes[0]), seen.applied_index), (Value::Integer(3), 2));
    let StatementOutcome::Rows(rows) = read(&mut reader, "SELECT * FROM t") else { panic!() };
    assert_eq!(rows.columns, ["id", "a", "b"]);
    assert_eq!(reader.content_hash().expect("no fault"), (replica.hash(), 2));
}

#[test]
fn a_reader_never_writes_and_says_what_to_use() {
    let (_folder, path, mut replica) = database();
    let before = replica.hash();
    let mut reader = Reader::open(&path, Options::default()).expect("opens");
    for sql in [
        "INSERT INTO t (a) VALUES (1)",
        "DELETE FROM t",
        "UPDATE t SET a = 1 RETURNING a",
        "CREATE TABLE u (a)",
        "DROP TABLE t",
        "WITH c AS (SELECT 1) INSERT INTO t (a) SELECT * FROM c",
        "VACUUM",
        "VACUUM INTO 'copied'",
    ] {
        let outcome = read(&mut reader, sql);
        let error = outcome.error().expect(sql);
        assert_eq!(error.class, ErrorClass::NotReadOnly, "{sql}: {error:?}");
        assert!(error.message.contains("execute"), "{error}");
    }
    for sql in [
        "BEGIN",
        "ATTACH 'x' AS y",
        "PRAGMA query_only = OFF",
        "PRAGMA user_version = 3",
        "SELECT * FROM _debros_state",
        "SELECT load_extension('x')",
    ] {
        let outcome = read(&mut reader, sql);
        assert_eq!(outcome.error().map(|error| error.class), Some(ErrorClass::Denied), "{sql}");
    }
    for sql in [
        "SELECT 1",
        "PRAGMA table_info(t)",
        "SELECT name FROM pragma_table_info('t')",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
        "PRAGMA user_version",
    ] {
        let outcome = read(&mut reader, sql);
        assert!(outcome.error().is_none(), "{sql}: {outcome:?}");
    }
    assert!(read(&mut reader, "SELEKT").error().is_some());
    assert_eq!(replica.hash(), before);
}

#[test]
fn a_read_ends_when_its_deadline_is_over() {
    let (_folder, path, _replica) = database();
    let mut reader = Reader::open(&path, Options::default()).expect("opens");
    let looks = Cell::new(0);
    let expired = || {
        looks.set(looks.get() + 1);
        looks.get() > 100
    };
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
    let read_endless = |reader: &mut Reader| {
        reader
            .query(&[Statement::new(endless)], &environment(9), &expired)
            .expect("no fault")
            .outcomes
            .remove(0)
    };
    assert_eq!(read_endless(&mut reader).error().map(|error| error.class), Some(ErrorClass::BudgetExceeded));
    assert!(read(&mut reader, "SELECT nowhere").error().is_some());
    assert_eq!(only_value(&read(&mut reader, "SELECT count(*) FROM t")), Value::Integer(2));
}

#[test]
fn a_pool_is_bounded_and_never_waits() {
    let (_folder, path, _replica) = database();
    let pool = ReaderPool::new(&path, Options::default(), 2);
    let mut first = pool.take().expect("free");
    let second = pool.take().expect("free");
    assert!(matches!(pool.take(), Err(PoolError::Busy(2))));
    assert!(read(&mut first, "SELECT 1").error().is_none());
    drop(second);
    assert!(pool.take().is_ok());
    assert!(matches!(
        ReaderPool::new(path.with_file_name("none"), Options::default(), 1).take(),
        Err(PoolError::Fault(_))
    ));
}

#[test]
fn a_database_in_memory_is_read_through_its_writer() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)"]);
    let mut query = |sql: &str| {
        replica.writer.query(&[Statement::new(sql)], &environment(9), NEVER).expect("no fault").remove(0)
    };
    assert_eq!(only_value(&query("SELECT a FROM t")), Value::Integer(1));
    assert!(query("PRAGMA table_info(t)").error().is_none());
    assert_eq!(query("DELETE FROM t").error().map(|error| error.class), Some(ErrorClass::NotReadOnly));
    // What was compiled for a read is not taken for a write.
    replica.denied("PRAGMA table_info(t)");
    let barrier = replica.writer.applied_index() + 1;
    replica.apply(&[entry(barrier, Operation::Barrier)]);
    replica.run(each(&["INSERT INTO t VALUES (2)"]));
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 2);
}
