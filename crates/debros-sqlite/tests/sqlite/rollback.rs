//! Statements that end the transaction, and violations that only a commit would show.

use debros_sqlite::{EntryOutcome, ErrorClass, Statement, StatementOutcome, Value, Write};

use crate::replica::{Replica, each, together, write};

fn setup() -> Replica {
    let mut replica = Replica::in_memory();
    replica.must(&[
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a UNIQUE)",
        "CREATE TABLE guarded (a)",
        "CREATE TRIGGER guard BEFORE INSERT ON guarded WHEN new.a < 0 BEGIN SELECT RAISE(ROLLBACK, 'negative'); END",
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (p REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO t VALUES (1, 'one')",
    ]);
    replica
}

fn errors(outcome: &EntryOutcome) -> Vec<bool> {
    match outcome {
        EntryOutcome::Executed(outcomes) => {
            outcomes.iter().map(|outcome| outcome.error().is_some()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_statement_that_ends_the_transaction_fails() {
    for poison in ["INSERT OR ROLLBACK INTO t VALUES (1, 'again')", "INSERT INTO guarded VALUES (-1)"] {
        let mut replica = setup();
        let first = replica.writer.applied_index() + 1;
        let applied = replica.apply(&[
            write(first, each(&["INSERT INTO t VALUES (2, 'before')"])),
            write(
                first + 1,
                each(&[
                    "INSERT INTO t VALUES (3, 'same entry')",
                    poison,
                    "INSERT INTO t VALUES (4, 'same entry, later')",
                ]),
            ),
            write(first + 2, together(&["INSERT INTO t VALUES (5, 'undone')", poison])),
            write(first + 3, each(&["INSERT INTO t VALUES (6, 'after')"])),
        ]);
        assert_eq!(errors(&applied[0].outcome), [false]);
        assert_eq!(errors(&applied[1].outcome), [false, true, false], "{poison}");
        let EntryOutcome::RolledBack { statement: 1, error } = &applied[2].outcome else {
            panic!("{applied:?}")
        };
        assert_eq!(error.class, ErrorClass::Constraint);
        assert_eq!(errors(&applied[3].outcome), [false]);
        assert_eq!(
            replica.value("SELECT group_concat(id) FROM (SELECT id FROM t ORDER BY id)"),
            Value::Text("1,2,3,4,6".into())
        );
        assert_eq!(replica.writer.applied_index(), first + 4);
    }
}

#[test]
fn a_spent_budget_that_ends_the_transaction_fails_alone() {
    let mut replica = setup();
    let endless =
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) INSERT INTO guarded SELECT x FROM c";
    let first = replica.writer.applied_index() + 1;
    let applied = replica.apply(&[
        write(first, each(&["INSERT INTO t VALUES (2, 'before')"])),
        write(first + 1, each(&[endless])),
        write(first + 2, each(&["INSERT INTO t VALUES (3, 'after')"])),
    ]);
    let EntryOutcome::Executed(outcomes) = &applied[1].outcome else { panic!() };
    assert_eq!(outcomes[0].error().map(|error| error.class), Some(ErrorClass::BudgetExceeded));
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 3);
    assert_eq!(replica.integer("SELECT count(*) FROM guarded"), 0);
}

#[test]
fn statements_that_end_the_transaction_are_bounded() {
    let mut replica = setup();
    let poison = "INSERT INTO guarded VALUES (-1)";
    let outcome =
        replica.run(each(&[poison, poison, poison, poison, "INSERT INTO t VALUES (9, 'late')", poison]));
    assert_eq!(errors(&outcome), [true; 6]);
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
}

#[test]
fn a_deferred_violation_is_not_mended_by_the_next_entry() {
    let violate = || each(&["INSERT INTO child VALUES (7)"]);
    let mend = || each(&["INSERT INTO parent VALUES (7)"]);
    let mut batched = setup();
    let first = batched.writer.applied_index() + 1;
    let at_once: Vec<_> = batched
        .apply(&[write(first, violate()), write(first + 1, mend())])
        .into_iter()
        .map(|applied| applied.outcome)
        .collect();
    let mut alone = setup();
    let one_by_one = vec![alone.run(violate()), alone.run(mend())];
    assert_eq!(at_once, one_by_one);
    assert_eq!(errors(&at_once[0]), [true]);
    assert_eq!(batched.integer("SELECT count(*) FROM child"), 0);
    // Within one transaction it is mended.
    let outcome = batched.run(together(&["INSERT INTO child VALUES (8)", "INSERT INTO parent VALUES (8)"]));
    assert!(matches!(outcome, EntryOutcome::Executed(_)), "{outcome:?}");
    let outcome = batched.run(together(&["INSERT INTO child VALUES (9)"]));
    assert!(matches!(outcome, EntryOutcome::RolledBack { statement: 1, .. }), "{outcome:?}");
}

#[test]
fn a_transaction_is_all_or_nothing_and_a_failed_statement_leaves_nothing() {
    let mut replica = setup();
    let outcome = replica.run(together(&[
        "INSERT INTO t VALUES (2, 'two')",
        "CREATE TABLE made (a)",
        "INSERT INTO made VALUES (1)",
        "INSERT INTO t VALUES (1, 'again')",
    ]));
    assert!(matches!(outcome, EntryOutcome::RolledBack { statement: 3, .. }), "{outcome:?}");
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
    assert_eq!(replica.refused("SELECT * FROM made").class, ErrorClass::Statement);
    // OR FAIL would keep the rows before the failing one.
    replica.refused("INSERT OR FAIL INTO t VALUES (2, 'two'), (1, 'again')");
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
}

#[test]
fn rows_are_returned_only_when_asked_for() {
    let mut replica = setup();
    let statements = vec![Statement::new("INSERT INTO t VALUES (2, 'two') RETURNING id, a AS name")];
    let outcome = replica.run(Write { statements: statements.clone(), ..Write::default() });
    assert_eq!(
        outcome,
        EntryOutcome::Executed(vec![StatementOutcome::Counts { last_insert_id: 2, rows_affected: 1 }])
    );
    let EntryOutcome::Executed(outcomes) =
        replica.run(each(&["UPDATE t SET a = upper(a) RETURNING id, a AS name"]))
    else {
        panic!()
    };
    let StatementOutcome::Rows(rows) = &outcomes[0] else { panic!("{outcomes:?}") };
    assert_eq!(
        (rows.columns.as_slice(), rows.rows.len()),
        (["id".to_owned(), "name".to_owned()].as_slice(), 2)
    );
    assert_eq!(rows.rows[1], [Value::Integer(2), Value::Text("TWO".into())]);
    let StatementOutcome::Rows(rows) = &replica.must(&["SELECT id, a, a || 'x' FROM t LIMIT 1"])[0] else {
        panic!()
    };
    assert_eq!(rows.types, ["integer", "", ""]);
}
