//! What statements are refused, and that refusing leaves no mark.

use debros_sqlite::{
    BatchEntry, EntryOutcome, ErrorClass, Operation, Options, Parameters, RegisterOperation, RegisterOutcome,
    RegisterRefusal, RegisterWrite, SessionWrite, Statement, StatementOutcome, Value, Write, Writer,
};

use crate::replica::{Replica, STEPS, each, entry, environment, write};

#[test]
fn what_reaches_beyond_the_database_is_denied() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let before = replica.integer("SELECT count(*) FROM sqlite_schema");
    for sql in [
        "ATTACH ':memory:' AS other",
        "DETACH main",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "END",
        "SAVEPOINT s",
        "RELEASE entry",
        "ROLLBACK TO statement",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA foreign_keys = OFF",
        "PRAGMA writable_schema = ON",
        "PRAGMA table_info(t)",
        "SELECT load_extension('x')",
        "SELECT sqlite_version()",
        "SELECT sqlite_source_id()",
        "SELECT sqlite_compileoption_used('X')",
        "SELECT fts5_locale('en', 'x')",
        "SELECT fts3_tokenizer('simple')",
        "CREATE TEMP TABLE x (a)",
        "CREATE TEMP VIEW x AS SELECT 1",
        "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
        "ANALYZE",
        "ANALYZE t",
        "SELECT * FROM pragma_table_info('t')",
        "SELECT count(*) FROM pragma_compile_options",
        "INSERT INTO t SELECT name FROM pragma_index_list('t')",
        "SELECT * FROM dbstat",
        "CREATE VIRTUAL TABLE x USING dbstat",
        "CREATE VIRTUAL TABLE x USING fts4aux(t)",
        "EXPLAIN INSERT INTO t VALUES (1)",
        "EXPLAIN QUERY PLAN SELECT * FROM t",
    ] {
        replica.denied(sql);
    }
    for sql in [
        "VACUUM",
        "VACUUM INTO '/tmp/debros-vacuum-into'",
        "INSERT INTO sqlite_schema VALUES ('table', 'x', 'x', 0, 'CREATE TABLE x (a)')",
        "UPDATE sqlite_schema SET sql = 'x'",
    ] {
        replica.refused(sql);
    }
    assert_eq!(replica.integer("SELECT count(*) FROM sqlite_schema"), before);
    assert!(!std::path::Path::new("/tmp/debros-vacuum-into").exists());
    assert_eq!(
        replica.value("SELECT max(rootpage) FROM sqlite_schema"),
        Value::Null,
        "where tables lie in the file is no part of what replicas agree on"
    );
}

#[test]
fn planner_statistics_cannot_be_forged() {
    let mut replica = Replica::in_memory();
    let error = replica.refused("CREATE TABLE sqlite_stat1 (tbl, idx, stat)");
    assert_eq!(error.class, ErrorClass::Statement);
    for sql in ["INSERT INTO sqlite_stat1 VALUES ('t', NULL, '1')", "DELETE FROM sqlite_stat4"] {
        replica.refused(sql);
    }
}

#[test]
fn hidden_tables_are_out_of_reach() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    for sql in [
        "SELECT * FROM _debros_state",
        "SELECT count(*) FROM _DEBROS_session",
        "UPDATE _debros_state SET data = x''",
        "DELETE FROM _debros_result",
        "DROP TABLE _debros_state",
        "DROP INDEX _debros_session_by_expiry",
        "ALTER TABLE _debros_state RENAME TO x",
        "ALTER TABLE t RENAME TO _debros_mine",
        "CREATE TABLE _debros_mine (a)",
        "CREATE VIEW _debros_view AS SELECT 1",
        "CREATE VIEW v AS SELECT * FROM _debros_session",
        "CREATE INDEX i ON _debros_result (session)",
        "CREATE TABLE child (s REFERENCES _debros_session(id) ON DELETE CASCADE)",
        "CREATE TRIGGER tr AFTER INSERT ON _debros_result BEGIN DELETE FROM t; END",
        "CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM _debros_result; END",
        "CREATE VIRTUAL TABLE f USING fts5(data, content='_debros_state')",
    ] {
        replica.denied(sql);
    }
    assert_eq!(replica.integer("SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE '\\_debros\\_%' ESCAPE '\\' AND sql LIKE '%debros%'"), 0);
}

#[test]
fn names_drawn_at_random_are_refused() {
    let mut replica = Replica::in_memory();
    replica.denied("CREATE TABLE t AS SELECT 1 AS x, 2 AS x, 3 AS x, 4 AS x, 5 AS x, 6 AS x");
    replica.denied("SELECT * FROM (SELECT 1 AS x, 2 AS x, 3 AS x, 4 AS x, 5 AS x, 6 AS x)");
    replica.must(&["CREATE VIEW v AS SELECT 1 AS x, 2 AS x, 3 AS x, 4 AS x, 5 AS x, 6 AS x"]);
    replica.denied("CREATE TABLE t AS SELECT * FROM v");
    assert_eq!(replica.integer("SELECT count(*) FROM sqlite_schema WHERE name = 't'"), 0);
    replica.must(&[
        "CREATE TABLE t AS SELECT 1 AS x, 2 AS x, 3 AS x, 4 AS X, 5 AS x",
        "CREATE TABLE u AS SELECT 1 AS \"at 12:30\"",
    ]);
}

#[test]
fn the_largest_rowid_is_refused() {
    // SQLite would draw the next rowid from a generator of the process.
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (id INTEGER PRIMARY KEY, a)", "INSERT INTO t VALUES (1, 'kept')"]);
    for sql in [
        "INSERT INTO t VALUES (9223372036854775807, 'x')",
        "INSERT INTO t VALUES (9223372036854775807, 'x'), (NULL, 'random')",
        "UPDATE t SET id = 9223372036854775807",
        "INSERT INTO t VALUES (1, 'x') ON CONFLICT DO UPDATE SET id = 9223372036854775807",
    ] {
        assert_eq!(replica.refused(sql).class, ErrorClass::LimitExceeded, "{sql}");
    }
    assert_eq!(replica.integer("SELECT sum(id) FROM t"), 1);
    // The row after the largest of all is never drawn.
    replica.must(&["INSERT INTO t (a) VALUES ('next')"]);
    assert_eq!(replica.integer("SELECT max(id) FROM t"), 2);
}

#[test]
fn what_a_user_can_bring_about_is_never_a_fault() {
    let mut replica = Replica::in_memory();
    // AUTOINCREMENT that is used up reports "disk full".
    replica.must(&[
        "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "INSERT INTO a DEFAULT VALUES",
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
    ]);
    assert_eq!(replica.refused("INSERT INTO a DEFAULT VALUES").class, ErrorClass::LimitExceeded);
    // An index that does not match its external content reports "disk image is malformed".
    replica.must(&[
        "CREATE TABLE doc (id INTEGER PRIMARY KEY, body)",
        "CREATE VIRTUAL TABLE find USING fts5(body, content='doc', content_rowid='id')",
        "INSERT INTO find (rowid, body) VALUES (1, 'words that doc does not hold')",
    ]);
    assert_eq!(
        replica.refused("INSERT INTO find (find, rank) VALUES ('integrity-check', 1)").class,
        ErrorClass::Statement
    );
    // An R-tree written while it is read reports a lock.
    replica.must(&["CREATE VIRTUAL TABLE box USING rtree(id, x0, x1)", "INSERT INTO box VALUES (1, 0, 1)"]);
    replica.run(each(&["INSERT INTO box SELECT id + 1, x0, x1 FROM box"]));
    replica.must(&["SELECT count(*) FROM box"]);
    // FTS5's own errors.
    replica.refused("SELECT * FROM find WHERE find MATCH '\"'");
}

#[test]
fn limits_hold() {
    let options = Options {
        value_bytes_max: 10_000,
        statement_bytes_max: 1000,
        result_rows_max: 10,
        ..Options::default()
    };
    let mut replica = Replica { writer: Writer::in_memory(options).expect("memory") };
    replica.must(&["CREATE TABLE t (a)"]);
    let mut class = |sql: &str| replica.refused(sql).class;
    assert_eq!(class("INSERT INTO t VALUES (zeroblob(20000))"), ErrorClass::LimitExceeded);
    assert_eq!(class(&format!("SELECT '{}'", "x".repeat(2000))), ErrorClass::LimitExceeded);
    assert_eq!(
        class(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100) SELECT x FROM c"
        ),
        ErrorClass::LimitExceeded
    );
    assert_eq!(class("SELECT 1; SELECT 2"), ErrorClass::Statement);
    assert_eq!(class("SELECT 1; /* none */ ; SELECT 2"), ErrorClass::Statement);
    assert_eq!(class(" -- nothing"), ErrorClass::Statement);
    assert_eq!(class("SELECT 1\0"), ErrorClass::Statement);
    replica.must(&["SELECT 1; -- a comment", "SELECT 1 ; ; /* another */"]);
    let big = Write {
        statements: vec![Statement::with("INSERT INTO t VALUES (?)", [Value::Blob(vec![0; 20_000])])],
        ..Write::default()
    };
    let EntryOutcome::Executed(outcomes) = replica.run(big) else { panic!() };
    assert_eq!(outcomes[0].error().map(|error| error.class), Some(ErrorClass::LimitExceeded));
}

#[test]
fn parameters_must_fit() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a, b)"]);
    let mut run = |sql: &str, parameters: Parameters| {
        let statements = vec![Statement { sql: sql.to_owned(), parameters }];
        let EntryOutcome::Executed(mut outcomes) =
            replica.run(Write { statements, return_rows: true, ..Write::default() })
        else {
            panic!()
        };
        outcomes.remove(0)
    };
    let named = |pairs: &[(&str, i64)]| {
        Parameters::Named(
            pairs.iter().map(|(name, value)| ((*name).to_owned(), Value::Integer(*value))).collect(),
        )
    };
    let positional =
        |values: &[i64]| Parameters::Positional(values.iter().copied().map(Value::Integer).collect());
    for (sql, parameters) in [
        ("INSERT INTO t VALUES (?, ?)", positional(&[1])),
        ("INSERT INTO t VALUES (?, ?)", positional(&[1, 2, 3])),
        ("INSERT INTO t VALUES (?, ?)", named(&[("a", 1)])),
        ("INSERT INTO t VALUES (:a, :b)", named(&[("a", 1)])),
        ("INSERT INTO t VALUES (:a, :b)", named(&[("a", 1), ("b", 2), ("c", 3)])),
    ] {
        let outcome = run(sql, parameters);
        assert_eq!(outcome.error().map(|error| error.class), Some(ErrorClass::Parameters), "{outcome:?}");
    }
    assert!(run("INSERT INTO t VALUES (:a, $b)", named(&[("b", 2), ("a", 1)])).error().is_none());
    assert!(run("INSERT INTO t VALUES (?2, ?1)", positional(&[1, 2])).error().is_none());
    let StatementOutcome::Rows(rows) = run("SELECT a, b FROM t ORDER BY a", positional(&[])) else {
        panic!()
    };
    assert_eq!(rows.rows, [[Value::Integer(1), Value::Integer(2)], [Value::Integer(2), Value::Integer(1)]]);
}

#[test]
fn the_size_of_the_database_is_limited_alike_everywhere() {
    let fill = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 50) \
                INSERT INTO t SELECT zeroblob(4000) FROM c";
    let mut entries = vec![
        entry(1, debros_sqlite::Operation::SetLimits { max_bytes: 1 << 20 }),
        write(2, each(&["CREATE TABLE t (a)"])),
    ];
    entries.extend((3..12).map(|index| write(index, each(&[fill]))));
    entries.push(write(12, each(&["DELETE FROM t", fill])));
    let mut together = Replica::in_memory();
    let at_once: Vec<_> = together.apply(&entries).into_iter().map(|applied| applied.outcome).collect();
    let mut alone = Replica::in_memory();
    let one_by_one: Vec<_> =
        entries.iter().map(|entry| alone.apply(std::slice::from_ref(entry)).remove(0).outcome).collect();
    assert_eq!(at_once, one_by_one);
    let refused = at_once
        .iter()
        .filter(|outcome| match outcome {
            EntryOutcome::Executed(outcomes) => outcomes
                .iter()
                .any(|outcome| outcome.error().is_some_and(|error| error.class == ErrorClass::LimitExceeded)),
            _ => false,
        })
        .count();
    assert_eq!(refused, 5, "{at_once:?}");
    assert!(
        matches!(&at_once[11], EntryOutcome::Executed(outcomes) if outcomes.iter().all(|outcome| outcome.error().is_none()))
    );
    assert_eq!(together.hash(), alone.hash());
}

/// A database of 4 MiB, and its limit far below that: then what is done to it.
fn over_its_limit() -> Vec<BatchEntry> {
    let fill = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000) \
                INSERT INTO t SELECT x, zeroblob(4000) FROM c";
    let register = |operation| Operation::Register(RegisterWrite { operation, session: None });
    let put = |value: &str| RegisterOperation::Put {
        key: b"k".to_vec(),
        value: value.into(),
        lease: 0,
        expected: None,
    };
    let mut operations = vec![
        Operation::Write(each(&["CREATE TABLE t (id INTEGER PRIMARY KEY, a)", fill])),
        register(put("small")),
        Operation::SetLimits { max_bytes: 1 << 20 },
        Operation::Write(each(&["INSERT INTO t VALUES (5000, zeroblob(40000))"])),
        register(put(&"large".repeat(10_000))),
        // Of one statement more than the overshoot: SQLite itself stops it.
        Operation::Write(each(&["INSERT INTO t SELECT id + 9000, a FROM t"])),
    ];
    // The hidden tables grow by far more than a page.
    for _ in 0..20 {
        operations.push(Operation::OpenSession { lifetime_ms: 0 });
        let session = operations.len() as u64;
        operations.extend((1..=100).map(|sequence| {
            let session = Some(SessionWrite { session, sequence, acknowledged: 0 });
            Operation::Write(Write { session, ..each(&["UPDATE t SET a = 1 WHERE id = 5001"]) })
        }));
    }
    operations.push(register(RegisterOperation::Delete { key: b"k".to_vec(), expected: None }));
    operations.push(Operation::Write(each(&["DELETE FROM t WHERE id > 10"])));
    operations.push(Operation::Write(each(&["INSERT INTO t VALUES (5000, zeroblob(40000))"])));
    (1..).zip(operations).map(|(index, operation)| entry(index, operation)).collect()
}

#[test]
fn a_limit_far_below_the_size_refuses_growth_and_nothing_else() {
    let options = Options { overshoot_bytes: 1 << 20, ..Options::default() };
    let entries = over_its_limit();
    let folder = tempfile::tempdir().expect("a folder");
    let outcomes = |name: &str, batch: usize, reopened: bool| {
        let path = folder.path().join(name);
        let open = || Replica { writer: Writer::open(&path, options.clone()).expect("opens") };
        let (mut replica, mut outcomes) = (open(), Vec::new());
        for entries in entries.chunks(batch) {
            outcomes.extend(replica.apply(entries).into_iter().map(|applied| applied.outcome));
            if reopened {
                drop(replica);
                replica = open();
            }
        }
        (outcomes, replica.hash())
    };
    let alone = outcomes("alone", 1, false);
    let class = |entry: usize| match &alone.0[entry] {
        EntryOutcome::Executed(outcomes) => outcomes[0].error().map(|error| error.class),
        other => panic!("{other:?}"),
    };
    assert_eq!((class(3), class(5)), (Some(ErrorClass::LimitExceeded), Some(ErrorClass::LimitExceeded)));
    let full = RegisterOutcome::Refused(RegisterRefusal::DatabaseFull { max_bytes: 1 << 20 });
    assert_eq!(alone.0[4], EntryOutcome::Register(full));
    for outcome in &alone.0[6..] {
        let fine = match outcome {
            EntryOutcome::SessionOpened { .. } => true,
            EntryOutcome::Executed(outcomes) => outcomes.iter().all(|outcome| outcome.error().is_none()),
            EntryOutcome::Register(outcome) => matches!(outcome, RegisterOutcome::Deleted { .. }),
            _ => false,
        };
        assert!(fine, "{outcome:?}");
    }
    assert_eq!(outcomes("together", 4096, false), alone);
    assert_eq!(outcomes("reopened", 50, true), alone);
}

#[test]
fn the_limit_strikes_at_the_same_entry_whatever_the_page_cache_holds() {
    // Far from the limit the size is only estimated. Transactions larger than the page cache, and many
    // small ones behind each other, both have to end at the same row.
    let fill = |rows: u32| {
        let sql = format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {rows}) \
             INSERT INTO t SELECT zeroblob(4000) FROM c"
        );
        each(&[&sql])
    };
    let mut entries = vec![
        entry(1, debros_sqlite::Operation::SetLimits { max_bytes: 64 << 20 }),
        write(2, each(&["CREATE TABLE t (a)"])),
    ];
    for index in 3..40 {
        entries.push(write(index, fill(if index % 9 == 0 { 5_000 } else { 40 })));
    }
    let refused = |replica: &mut Replica, batch: usize| {
        let mut refused = Vec::new();
        for entries in entries.chunks(batch) {
            for (entry, applied) in entries.iter().zip(replica.apply(entries)) {
                if let EntryOutcome::Executed(outcomes) = applied.outcome
                    && outcomes.iter().any(|outcome| outcome.error().is_some())
                {
                    refused.push(entry.index);
                }
            }
        }
        (refused, replica.integer("SELECT count(*) FROM t"), replica.hash())
    };
    let folder = tempfile::tempdir().expect("a folder");
    let in_file = |name: &str| Replica {
        writer: Writer::open(folder.path().join(name), Options::default()).expect("opens"),
    };
    let alone = refused(&mut in_file("alone"), 1);
    assert!(!alone.0.is_empty() && alone.0.len() < 30, "{:?}", alone.0);
    assert_eq!(refused(&mut in_file("together"), 40), alone);
    assert_eq!(refused(&mut Replica::in_memory(), 7), alone);
}

#[test]
fn a_budget_ends_an_entry_at_the_same_step_whatever_came_before() {
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    assert_eq!(replica.refused(endless).class, ErrorClass::BudgetExceeded);
    // It is the entry's, not the statement's.
    let EntryOutcome::Executed(outcomes) =
        replica.run(each(&["INSERT INTO t VALUES (1)", endless, "INSERT INTO t VALUES (2)"]))
    else {
        panic!()
    };
    assert!(outcomes[0].error().is_none());
    assert!(
        outcomes[1..]
            .iter()
            .all(|outcome| outcome.error().is_some_and(|error| error.class == ErrorClass::BudgetExceeded))
    );
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);

    // The smallest budget with which a statement succeeds is the same for a statement just
    // compiled, one run many times before, and one that writes.
    let smallest = |sql: &str, warm: bool| {
        let (mut low, mut high) = (1, STEPS);
        let mut replica = Replica::in_memory();
        replica.must(&["CREATE TABLE t (a)", "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 700) INSERT INTO t SELECT x FROM c"]);
        while low < high {
            let budget = (low + high) / 2;
            if !warm {
                replica.must(&["CREATE TABLE flush (a)", "DROP TABLE flush"]);
            }
            let index = replica.writer.applied_index() + 1;
            let mut tried = write(index, together_with_rollback(sql));
            tried.environment = debros_sqlite::EntryEnvironment { step_budget: budget, ..environment(index) };
            match replica.apply(&[tried]).remove(0).outcome {
                EntryOutcome::RolledBack { statement: 0, .. } => low = budget + 1,
                EntryOutcome::RolledBack { .. } => high = budget,
                other => panic!("{other:?}"),
            }
        }
        low
    };
    for sql in ["SELECT sum(a) FROM t", "UPDATE t SET a = a + 1", "INSERT INTO t SELECT a FROM t"] {
        let warm = smallest(sql, true);
        assert!(warm > 1000, "{sql}: {warm}");
        assert_eq!(warm, smallest(sql, false), "{sql}");
    }
}

/// Runs `sql` and fails afterwards, so that trying it changes nothing.
fn together_with_rollback(sql: &str) -> Write {
    crate::replica::together(&[sql, "SELECT nothing"])
}

#[test]
fn work_inside_virtual_tables_does_not_count() {
    // How much of it there is depends on what the module holds in memory. With a budget so small
    // that the module's own statements exceed it, the statement must still succeed.
    let mut replica = Replica::in_memory();
    replica.must(&[
        "CREATE VIRTUAL TABLE f USING fts5(body)",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000) INSERT INTO f SELECT 'word' || x || ' and text ' || (x % 7) FROM c",
    ]);
    let index = replica.writer.applied_index() + 1;
    let mut optimise = write(index, each(&["INSERT INTO f (f) VALUES ('rebuild')"]));
    optimise.environment = debros_sqlite::EntryEnvironment { step_budget: 100, ..environment(index) };
    let EntryOutcome::Executed(outcomes) = replica.apply(&[optimise]).remove(0).outcome else { panic!() };
    assert!(outcomes[0].error().is_none(), "{outcomes:?}");
    assert_eq!(replica.integer("SELECT count(*) FROM f WHERE f MATCH 'word17'"), 1);
}
