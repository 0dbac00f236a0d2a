//! Time, chance and history come from the entry.

use std::process::Command;

use debros_sqlite::{
    BatchEntry, EntryOutcome, ErrorClass, Operation, Statement, StatementOutcome, Value, Write,
};

use crate::replica::{Replica, START_MS, each, environment, only_value, write};

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

#[test]
fn time_is_the_entrys_and_stands_still_within_it() {
    let mut replica = Replica::in_memory();
    // Index 1, so START_MS + 1 s: 2023-11-14 22:13:21.
    let outcomes = replica.must(&[
        "SELECT datetime('now')",
        "SELECT CURRENT_TIMESTAMP",
        "SELECT unixepoch('now', 'subsec')",
        "SELECT strftime('%s', 'now')",
        "SELECT date()",
        "SELECT julianday('now') = julianday('2023-11-14 22:13:21')",
    ]);
    let expected = [
        text("2023-11-14 22:13:21"),
        text("2023-11-14 22:13:21"),
        Value::Real(1_700_000_001.0),
        text("1700000001"),
        text("2023-11-14"),
        Value::Integer(1),
    ];
    assert_eq!(outcomes.iter().map(only_value).collect::<Vec<_>>(), expected);
}

#[test]
fn one_cached_statement_sees_each_entrys_time_within_a_batch() {
    let mut replica = Replica::in_memory();
    let entries: Vec<_> = (1..=3).map(|index| write(index, each(&["SELECT unixepoch()"]))).collect();
    let seen: Vec<_> = replica
        .apply(&entries)
        .into_iter()
        .map(|applied| match applied.outcome {
            EntryOutcome::Executed(outcomes) => only_value(&outcomes[0]),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seen, [1, 2, 3].map(|second| Value::Integer((START_MS / 1000) as i64 + second)));
}

#[test]
fn log_time_never_goes_back_and_moves_by_bounded_steps() {
    let mut replica = Replica::in_memory();
    let stamped = |index, unix_ms| BatchEntry {
        index,
        environment: debros_sqlite::EntryEnvironment { unix_ms, ..environment(index) },
        stamp: debros_sqlite::Stamp::default(),
        operation: Operation::Write(each(&["SELECT 1"])),
    };
    replica.apply(&[stamped(1, START_MS)]);
    replica.apply(&[stamped(2, START_MS - 500)]);
    assert_eq!(replica.writer.log_time_unix_ms(), START_MS);
    replica.apply(&[stamped(3, START_MS * 2)]);
    assert_eq!(replica.writer.log_time_unix_ms(), START_MS + 3_600_000);
}

/// Not a test of its own: run by the next one under another time zone.
#[test]
fn local_time_is_utc() {
    let mut replica = Replica::in_memory();
    assert_eq!(replica.integer("SELECT datetime('now', 'localtime') = datetime('now')"), 1);
}

#[test]
fn local_time_is_utc_in_any_time_zone() {
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "environment::local_time_is_utc"])
        .env("TZ", "Asia/Tokyo")
        .env("TZDIR", "/usr/share/zoneinfo")
        .env("TZ", "JST-9")
        .status()
        .expect("runs");
    assert!(status.success());
}

#[test]
fn random_follows_the_seed_and_works_in_defaults() {
    let run = || {
        let mut replica = Replica::in_memory();
        // trusted_schema=OFF refuses functions in DEFAULT that are not INNOCUOUS.
        replica.must(&[
            "CREATE TABLE t (id INTEGER PRIMARY KEY, r DEFAULT (random()), b DEFAULT (randomblob(16)), at DEFAULT CURRENT_TIMESTAMP)",
            "INSERT INTO t DEFAULT VALUES",
            "INSERT INTO t DEFAULT VALUES",
            "CREATE TABLE shuffled AS SELECT id FROM t ORDER BY random()",
        ]);
        assert_eq!(
            replica.integer("SELECT count(DISTINCT r) + count(DISTINCT b) + length(max(b)) FROM t"),
            20
        );
        replica.hash()
    };
    assert_eq!(run(), run());

    let mut replica = Replica::in_memory();
    let first = replica.value("SELECT random()");
    let second = replica.value("SELECT random()");
    assert_ne!(first, second, "entries with other seeds draw other numbers");
}

#[test]
fn randomblob_is_bounded_as_any_value() {
    let mut replica = Replica::in_memory();
    assert_eq!(replica.refused("SELECT randomblob(1000000000)").class, ErrorClass::LimitExceeded);
    assert_eq!(replica.integer("SELECT length(randomblob(0)) + length(randomblob(NULL))"), 2);
}

#[test]
fn history_does_not_leak_between_entries() {
    let look = ["SELECT last_insert_rowid()", "SELECT changes()", "SELECT total_changes()"];
    let mut fresh = Replica::in_memory();
    fresh.must(&["CREATE TABLE t (a)"]);
    fresh.must(&["INSERT INTO t VALUES (1), (2), (3)"]);
    let seen: Vec<_> = fresh.must(&look).iter().map(only_value).collect();
    assert_eq!(seen, vec![Value::Integer(0); 3]);
    // Within an entry they mean what they always do.
    let outcomes = fresh.must(&[
        "INSERT INTO t VALUES (4), (5)",
        "SELECT last_insert_rowid()",
        "SELECT changes()",
        "DELETE FROM t WHERE a = 1",
        "SELECT total_changes()",
        "INSERT INTO t VALUES (last_insert_rowid())",
        "SELECT max(a) FROM t",
    ]);
    assert_eq!(only_value(&outcomes[1]), Value::Integer(5));
    assert_eq!(only_value(&outcomes[2]), Value::Integer(2));
    assert_eq!(only_value(&outcomes[4]), Value::Integer(3));
    assert_eq!(only_value(&outcomes[6]), Value::Integer(5));
    // A schema change does not count rows, so what came before must not show through it.
    let outcomes = fresh.must(&["CREATE TABLE u (a)", "SELECT changes()"]);
    assert_eq!(only_value(&outcomes[1]), Value::Integer(0));
}

#[test]
fn counts_speak_of_their_own_statement() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE)"]);
    let outcomes = replica.must(&[
        "INSERT INTO t (a) VALUES ('x'), ('y')",
        "INSERT OR IGNORE INTO t (a) VALUES ('x')",
        "UPDATE t SET a = a || '!'",
        "CREATE TABLE u (a)",
        "DELETE FROM t",
    ]);
    let counts = |last_insert_id, rows_affected| StatementOutcome::Counts { last_insert_id, rows_affected };
    assert_eq!(outcomes, [counts(2, 2), counts(0, 0), counts(0, 2), counts(0, 0), counts(0, 2)]);
}

#[test]
fn a_plan_follows_from_the_text_alone() {
    // Without the planner's stability guarantee a bound pattern that begins with letters makes
    // SQLite compile the statement again, to go by the index.
    let mut replica = Replica::in_memory();
    replica.must(&[
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE)",
        "CREATE INDEX by_name ON t (name)",
        "INSERT INTO t (name) VALUES ('ab3'), ('ab2'), ('zz'), ('ab1')",
    ]);
    let statements = vec![Statement::with("SELECT id FROM t WHERE name LIKE ?", ["ab%".into()])];
    let EntryOutcome::Executed(outcomes) =
        replica.run(Write { statements, return_rows: true, ..Write::default() })
    else {
        panic!()
    };
    let StatementOutcome::Rows(rows) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(rows.rows, [1, 2, 4].map(|id| vec![Value::Integer(id)]));
}

#[test]
fn what_virtual_tables_write_for_themselves_is_no_part_of_history() {
    // FTS5 writes what it held back at the next savepoint or commit, whichever comes first.
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE VIRTUAL TABLE find USING fts5(body)", "CREATE TABLE t (a)"]);
    let outcomes = replica.must(&[
        "INSERT INTO t VALUES (1), (2), (3)",
        "INSERT INTO find VALUES ('a'), ('b')",
        "SELECT changes()",
        "SELECT last_insert_rowid()",
        "SELECT total_changes()",
    ]);
    let seen: Vec<_> = outcomes[2..].iter().map(only_value).collect();
    assert_eq!(seen, [2, 2, 5].map(Value::Integer));
}

#[test]
fn changes_inside_a_trigger_is_the_triggers_own() {
    let mut replica = Replica::in_memory();
    replica.must(&[
        "CREATE TABLE event (kind)",
        "CREATE TABLE tally (kind PRIMARY KEY, count)",
        "CREATE TRIGGER tallied AFTER INSERT ON event BEGIN \
           UPDATE tally SET count = count + 1 WHERE kind = new.kind; \
           INSERT INTO tally SELECT new.kind, 1 WHERE changes() = 0; END",
        "INSERT INTO event VALUES ('a'), ('b'), ('a')",
    ]);
    assert_eq!(replica.integer("SELECT count FROM tally WHERE kind = 'a'"), 2);
}
