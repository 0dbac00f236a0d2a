//! Replicas that are given the same entries are equal, however the entries were batched, whenever
//! a replica was started again, and whether it began from the log or from a snapshot.

use debros_sqlite::{BatchEntry, EntryEnvironment, EntryOutcome, Operation, Options, Write, Writer};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

use crate::replica::{Replica, each, entry, environment, in_session, together, write};

/// Statements that try what makes replicas differ.
const STATEMENTS: &[&str] = &[
    "INSERT INTO t (a) VALUES (random())",
    "INSERT INTO t (a, at) VALUES (hex(randomblob(8)), datetime('now', 'localtime'))",
    "INSERT INTO t DEFAULT VALUES RETURNING *",
    "INSERT INTO t (a) SELECT a FROM t ORDER BY random() LIMIT 3",
    "INSERT OR ROLLBACK INTO u VALUES (1, 'taken')",
    "INSERT OR ROLLBACK INTO u SELECT abs(random() % 6), 'maybe'",
    "INSERT OR REPLACE INTO u SELECT abs(random() % 6), 'replaced'",
    "INSERT OR FAIL INTO u VALUES (7, 'a'), (1, 'b')",
    "INSERT OR IGNORE INTO u VALUES (1, 'ignored')",
    "INSERT INTO u VALUES (1, 'x') ON CONFLICT DO UPDATE SET v = v || random()",
    "INSERT INTO guarded VALUES (random() % 3)",
    "INSERT INTO child VALUES (abs(random() % 4))",
    "INSERT OR IGNORE INTO parent VALUES (abs(random() % 4))",
    "DELETE FROM parent WHERE id = abs(random() % 4)",
    "INSERT INTO t (a) VALUES (last_insert_rowid())",
    "INSERT INTO t (a) VALUES (changes())",
    "INSERT INTO t (a) VALUES (total_changes())",
    "SELECT last_insert_rowid(), changes(), total_changes(), random(), datetime('now')",
    "INSERT INTO auto DEFAULT VALUES",
    "DELETE FROM auto WHERE id = (SELECT max(id) FROM auto)",
    "UPDATE sqlite_sequence SET seq = seq + abs(random() % 3)",
    "DELETE FROM t WHERE rowid IN (SELECT rowid FROM t ORDER BY random() LIMIT 2)",
    "UPDATE t SET a = random() WHERE id % 3 = 0",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) INSERT INTO t (a) SELECT x FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1500) INSERT INTO t (a) SELECT x FROM c WHERE x % 100 = 0",
    "CREATE TABLE IF NOT EXISTS extra (a, b)",
    "CREATE TABLE extra AS SELECT * FROM t ORDER BY random()",
    "CREATE INDEX IF NOT EXISTS extra_index ON t (at)",
    "DROP INDEX IF EXISTS extra_index",
    "DROP TABLE IF EXISTS extra",
    "INSERT INTO extra SELECT id, a FROM t WHERE a LIKE '%1%'",
    "ALTER TABLE extra ADD COLUMN c DEFAULT 5",
    "INSERT INTO find VALUES ('some words ' || random())",
    "INSERT INTO find SELECT a FROM t LIMIT 5",
    "DELETE FROM find WHERE rowid % 3 = 1",
    "INSERT INTO find (find) VALUES ('optimize')",
    "SELECT count(*) FROM find WHERE find MATCH 'words'",
    "INSERT INTO old_find VALUES ('older words ' || random())",
    "DELETE FROM old_find WHERE docid % 2 = 1",
    "INSERT INTO box SELECT abs(random() % 50), 0, abs(random() % 9)",
    "INSERT INTO t (id) VALUES (9223372036854775807)",
    "INSERT INTO guarded SELECT zeroblob(5000) FROM t LIMIT 40",
    "DELETE FROM guarded",
    "SELECT * FROM nowhere",
    "SYNTAX ERROR",
    "BEGIN",
    "ROLLBACK",
    "PRAGMA foreign_keys = OFF",
    "ANALYZE",
];

const SCHEMA: &[&str] = &[
    "CREATE TABLE t (id INTEGER PRIMARY KEY, a DEFAULT (random()), at DEFAULT CURRENT_TIMESTAMP)",
    "CREATE TABLE u (id INTEGER PRIMARY KEY, v)",
    "INSERT INTO u VALUES (1, 'first')",
    "CREATE TABLE guarded (a)",
    "CREATE TRIGGER guard BEFORE INSERT ON guarded WHEN new.a < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END",
    "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
    "CREATE TABLE child (p REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED)",
    "CREATE TABLE auto (id INTEGER PRIMARY KEY AUTOINCREMENT, at DEFAULT (unixepoch('now', 'subsec')))",
    "CREATE TABLE log (what, changed, at)",
    "CREATE TRIGGER logged AFTER INSERT ON u BEGIN INSERT INTO log VALUES (new.v, changes(), random()); END",
    "CREATE VIRTUAL TABLE find USING fts5(body)",
    "CREATE VIRTUAL TABLE old_find USING fts4(body)",
    "CREATE VIRTUAL TABLE box USING rtree(id, low, high)",
];

fn arbitrary_write() -> impl Strategy<Value = Write> {
    (
        prop::collection::vec(0..STATEMENTS.len(), 1..5),
        any::<bool>(),
        any::<bool>(),
        prop::option::of(1..6u64),
    )
        .prop_map(|(chosen, transaction, return_rows, sequence)| {
            let sql: Vec<&str> = chosen.into_iter().map(|place| STATEMENTS[place]).collect();
            let write = if transaction { together(&sql) } else { each(&sql) };
            let write = Write { return_rows, ..write };
            match sequence {
                // Session 2 exists; a sequence that comes again is a retry.
                Some(sequence) => in_session(write, 2, sequence, 0),
                None => write,
            }
        })
}

fn arbitrary_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        20 => arbitrary_write().prop_map(Operation::Write),
        1 => Just(Operation::OpenSession { lifetime_ms: 100_000 }),
        1 => (300_000..700_000u64).prop_map(|max_bytes| Operation::SetLimits { max_bytes }),
        1 => Just(Operation::Barrier),
    ]
}

fn entries(operations: Vec<Operation>) -> Vec<BatchEntry> {
    let mut entries = vec![write(1, each(SCHEMA)), entry(2, Operation::OpenSession { lifetime_ms: 0 })];
    for (index, operation) in (3..).zip(operations) {
        let environment = EntryEnvironment { step_budget: 20_000, ..environment(index) };
        // Of several versions, one after another.
        let stamp = debros_sqlite::Stamp {
            numbers_from: index % 3 * 1_000_000,
            clock: index / 7 % 3,
            clock_ms: index * 1000,
        };
        entries.push(BatchEntry { index, environment, stamp, operation });
    }
    entries
}

fn apply(replica: &mut Replica, entries: &[BatchEntry], size: usize) -> Vec<EntryOutcome> {
    let batches = entries.chunks(size);
    batches.flat_map(|batch| replica.apply(batch)).map(|applied| applied.outcome).collect()
}

proptest! {
    // A quarter of what PROPTEST_CASES asks for (256 by default): each case opens many files.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn batching_restarts_and_snapshots_do_not_show(
        operations in prop::collection::vec(arbitrary_operation(), 1..40),
        size in 2..60usize,
        restart_every in 1..20usize,
    ) {
        let entries = entries(operations);
        let folder = tempfile::tempdir().expect("a folder");

        let mut one_by_one = Replica::in_memory();
        let expected = apply(&mut one_by_one, &entries, 1);

        let mut batched = Replica::in_memory();
        prop_assert_eq!(&apply(&mut batched, &entries, size), &expected);
        prop_assert_eq!(batched.hash(), one_by_one.hash());

        // Starts again every so often, so its caches are cold at other places; half of the
        // starts are from a snapshot.
        let mut path = folder.path().join("0");
        let mut outcomes = Vec::new();
        for (round, part) in entries.chunks(restart_every).enumerate() {
            let mut replica = Replica { writer: Writer::open(&path, Options::default()).expect("opens") };
            outcomes.extend(apply(&mut replica, part, size));
            if round % 2 == 1 {
                path = folder.path().join((round + 1).to_string());
                replica.writer.snapshot_to(&path).expect("no fault");
            }
        }
        prop_assert_eq!(&outcomes, &expected);
        let mut restarted = Replica { writer: Writer::open(&path, Options::default()).expect("opens") };
        prop_assert_eq!(restarted.hash(), one_by_one.hash());
    }
}

#[test]
fn the_hash_tells_contents_apart() {
    let hash = |sql: &[&str]| {
        let mut replica = Replica::in_memory();
        replica.must(sql);
        replica.hash()
    };
    let base = hash(&["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, '2')"]);
    for other in [
        &["CREATE TABLE t (a, b)", "INSERT INTO t VALUES ('1', 2)"][..],
        &["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1.0, '2')"],
        &["CREATE TABLE t (a, b)", "INSERT INTO t (rowid, a, b) VALUES (7, 1, '2')"],
        &["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, '2'), (1, '2')"],
        &["CREATE TABLE t (a,  b)", "INSERT INTO t VALUES (1, '2')"],
        &["CREATE TABLE t (a, b) WITHOUT ROWID"],
    ] {
        let sql: Vec<&str> = other.to_vec();
        if sql.len() == 2 {
            assert_ne!(hash(&sql), base, "{sql:?}");
        }
    }
    assert_eq!(hash(&["CREATE TABLE t (a, b)", "INSERT INTO t VALUES (1, '2')"]), base);
    // Tables without rowids, with all names of the rowid taken, with generated columns, with a
    // quote in the name.
    hash(&[
        "CREATE TABLE w (a, b, PRIMARY KEY (b, a)) WITHOUT ROWID",
        "CREATE TABLE r (rowid, oid, _rowid_)",
        "INSERT INTO r VALUES (3, 2, 1), (1, 2, 3)",
        "CREATE TABLE g (a, b AS (a + 1), c AS (a + 2) STORED)",
        "INSERT INTO g VALUES (1)",
        "CREATE TABLE \"odd \"\" name\" (\"odd \"\" column\")",
    ]);
}
