//! Exactly-once writes.

use debros_sqlite::{BatchEntry, EntryOutcome, Operation, Options, Writer};

use crate::replica::{Replica, START_MS, each, encode, entry, environment, in_session, write};

fn open(replica: &mut Replica) -> u64 {
    let index = replica.writer.applied_index() + 1;
    match replica.apply(&[entry(index, Operation::OpenSession { lifetime_ms: 0 })]).remove(0).outcome {
        EntryOutcome::SessionOpened { session, .. } => session,
        other => panic!("{other:?}"),
    }
}

fn insert() -> debros_sqlite::Write {
    each(&["INSERT INTO t VALUES (random()) RETURNING a"])
}

#[test]
fn a_retry_gets_the_first_outcome_and_executes_nothing() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let session = open(&mut replica);
    let index = replica.writer.applied_index() + 1;
    // Both copies may even be in one batch.
    let applied = replica.apply(&[
        write(index, in_session(insert(), session, 1, 0)),
        write(index + 1, in_session(insert(), session, 1, 0)),
    ]);
    let first = encode(&applied[0].outcome);
    assert_eq!(applied[0].encoded.as_deref(), Some(first.as_slice()));
    assert_eq!(applied[1].outcome, EntryOutcome::Repeated(Some(first.clone())));
    assert_eq!(replica.run(in_session(insert(), session, 1, 0)), EntryOutcome::Repeated(Some(first)));
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
    // A failure is an outcome as well.
    let failing = || each(&["INSERT INTO nowhere VALUES (1)"]);
    let failed = encode(&replica.run(in_session(failing(), session, 2, 0)));
    replica.must(&["CREATE TABLE nowhere (a)"]);
    assert_eq!(replica.run(in_session(failing(), session, 2, 0)), EntryOutcome::Repeated(Some(failed)));
}

#[test]
fn an_unknown_session_is_never_created_silently() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    assert_eq!(replica.run(in_session(insert(), 77, 1, 0)), EntryOutcome::SessionExpired);
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 0);
}

#[test]
fn acknowledged_results_are_forgotten_and_never_executed_again() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let session = open(&mut replica);
    for sequence in 1..=17 {
        replica.run(in_session(insert(), session, sequence, sequence));
    }
    assert_eq!(replica.run(in_session(insert(), session, 16, 0)), EntryOutcome::ResultForgotten);
    assert!(matches!(replica.run(in_session(insert(), session, 17, 0)), EntryOutcome::Repeated(Some(_))));
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 17);
    // A client that never acknowledges is bounded.
    for sequence in 18..=304 {
        replica.run(in_session(insert(), session, sequence, 0));
    }
    assert_eq!(replica.run(in_session(insert(), session, 48, 0)), EntryOutcome::ResultForgotten);
    assert!(matches!(replica.run(in_session(insert(), session, 49, 0)), EntryOutcome::Repeated(Some(_))));
}

#[test]
fn sequences_may_arrive_out_of_order() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let session = open(&mut replica);
    for sequence in [3, 1, 2] {
        assert!(matches!(replica.run(in_session(insert(), session, sequence, 1)), EntryOutcome::Executed(_)));
    }
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 3);
}

#[test]
fn a_result_too_large_to_keep_is_still_not_executed_again() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let session = open(&mut replica);
    let large = || each(&["INSERT INTO t VALUES (hex(zeroblob(100000))) RETURNING a"]);
    let outcome = replica.run(in_session(large(), session, 1, 0));
    assert!(matches!(outcome, EntryOutcome::Executed(_)));
    assert_eq!(replica.run(in_session(large(), session, 1, 0)), EntryOutcome::Repeated(None));
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
}

#[test]
fn sessions_expire_by_log_time_and_are_bounded_in_number() {
    let options = Options { sessions_max: 3, session_lifetime_max_ms: 1_000_000, ..Options::default() };
    let mut replica = Replica { writer: Writer::in_memory(options).expect("memory") };
    replica.must(&["CREATE TABLE t (a)"]);
    let sessions: Vec<u64> = (0..3).map(|_| open(&mut replica)).collect();
    // The first is used, so the second is the one longest idle.
    let late = |index, seconds: u64, operation| BatchEntry {
        index,
        environment: debros_sqlite::EntryEnvironment {
            unix_ms: START_MS + seconds * 1000,
            ..environment(index)
        },
        stamp: debros_sqlite::Stamp::default(),
        operation,
    };
    let index = replica.writer.applied_index() + 1;
    replica.apply(&[late(index, 900, Operation::Write(in_session(insert(), sessions[0], 1, 0)))]);
    open(&mut replica);
    assert_eq!(replica.run(in_session(insert(), sessions[1], 1, 0)), EntryOutcome::SessionExpired);
    assert!(matches!(replica.run(in_session(insert(), sessions[2], 1, 0)), EntryOutcome::Executed(_)));
    assert!(matches!(replica.run(in_session(insert(), sessions[0], 1, 0)), EntryOutcome::Repeated(_)));
    let index = replica.writer.applied_index() + 1;
    let expired =
        replica.apply(&[late(index, 2500, Operation::Write(in_session(insert(), sessions[0], 2, 0)))]);
    assert_eq!(expired[0].outcome, EntryOutcome::SessionExpired);
}
