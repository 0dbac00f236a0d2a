//! Registers: versions, conditions, leases, and that replicas agree on them.

use debros_sqlite::{
    AppliedEntry, BatchEntry, EntryEnvironment, EntryOutcome, HeldLease, LeaseQuery, Operation, Options,
    Reader, Register, RegisterChange, RegisterOperation, RegisterOutcome, RegisterQuery, RegisterRefusal,
    RegisterWrite, SessionWrite, Stamp, Writer,
};

use crate::replica::{Replica, START_MS, each, encode, entry, write};

fn register(index: u64, operation: RegisterOperation) -> BatchEntry {
    entry(index, Operation::Register(RegisterWrite { operation, session: None }))
}

fn put(key: &str, value: &str, lease: u64, expected: Option<u64>) -> RegisterOperation {
    RegisterOperation::Put { key: key.into(), value: value.into(), lease, expected }
}

fn set(key: &str, value: &str) -> RegisterOperation {
    put(key, value, 0, None)
}

fn delete(key: &str, expected: Option<u64>) -> RegisterOperation {
    RegisterOperation::Delete { key: key.into(), expected }
}

fn increment(key: &str, delta: i64) -> RegisterOperation {
    RegisterOperation::Increment { key: key.into(), delta }
}

fn applied(replica: &mut Replica, operation: RegisterOperation) -> (RegisterOutcome, Vec<RegisterChange>) {
    let index = replica.writer.applied_index() + 1;
    let AppliedEntry { outcome, changes, .. } = replica.apply(&[register(index, operation)]).remove(0);
    match outcome {
        EntryOutcome::Register(outcome) => (outcome, changes),
        other => panic!("{other:?}"),
    }
}

fn run(replica: &mut Replica, operation: RegisterOperation) -> RegisterOutcome {
    applied(replica, operation).0
}

fn value(replica: &mut Replica, key: &str) -> Option<String> {
    let register = replica.writer.get_register(key.as_bytes()).expect("no fault");
    register.map(|register| String::from_utf8(register.value).expect("text"))
}

fn all(prefix: &str, after: &str, limit: usize) -> RegisterQuery {
    RegisterQuery { prefix: prefix.into(), after: after.into(), limit, bytes_max: 1 << 20 }
}

#[test]
fn a_version_is_the_number_that_set_it_and_grows_across_a_deletion() {
    let mut replica = Replica::in_memory();
    assert_eq!(replica.writer.get_register(b"k").unwrap(), None);
    assert_eq!(run(&mut replica, put("k", "a", 0, Some(0))), RegisterOutcome::Written { version: 1 });
    let conflict = RegisterOutcome::Conflict { version: 1, value: Some(b"a".to_vec()) };
    assert_eq!(run(&mut replica, put("k", "b", 0, Some(0))), conflict);
    assert_eq!(run(&mut replica, delete("k", Some(7))), conflict);
    assert_eq!(run(&mut replica, put("k", "b", 0, Some(1))), RegisterOutcome::Written { version: 4 });
    let (outcome, changes) = applied(&mut replica, delete("k", Some(4)));
    assert_eq!(outcome, RegisterOutcome::Deleted { version: 4 });
    assert_eq!(changes, [RegisterChange { key: b"k".to_vec(), value: None, version: 5, lease: 0 }]);
    let (outcome, changes) = applied(&mut replica, delete("k", None));
    assert_eq!((outcome, changes.len()), (RegisterOutcome::Deleted { version: 0 }, 0));
    assert_eq!(
        run(&mut replica, put("k", "c", 0, Some(4))),
        RegisterOutcome::Conflict { version: 0, value: None }
    );
    assert_eq!(run(&mut replica, put("k", "c", 0, Some(0))), RegisterOutcome::Written { version: 8 });
}

#[test]
fn numbers_begin_where_entries_say_and_never_go_back() {
    const FROM: u64 = 5 << 40;
    let mut replica = Replica::in_memory();
    assert_eq!(run(&mut replica, set("k", "before")), RegisterOutcome::Written { version: 1 });
    let stamp = |entry: BatchEntry, numbers_from| BatchEntry {
        stamp: Stamp { numbers_from, ..Stamp::default() },
        ..entry
    };
    let applied = replica.apply(&[
        stamp(entry(2, Operation::OpenSession { lifetime_ms: 0 }), FROM),
        stamp(register(3, RegisterOperation::GrantLease { ttl_ms: 1000 }), FROM),
        // Of a leader of an older version.
        register(4, set("k", "after")),
    ]);
    assert!(matches!(applied[0].outcome, EntryOutcome::SessionOpened { session, .. } if session == FROM + 2));
    let lease = RegisterOutcome::Lease { id: FROM + 3, ttl_ms: 1000 };
    assert_eq!(applied[1].outcome, EntryOutcome::Register(lease));
    let written = RegisterOutcome::Written { version: FROM + 4 };
    assert_eq!(applied[2].outcome, EntryOutcome::Register(written));
    assert_eq!((replica.writer.revision(), replica.writer.applied_index()), (FROM + 4, 4));
    assert_eq!(replica.writer.get_register(b"k").unwrap().unwrap().version, FROM + 4);
    let session = Some(SessionWrite { session: FROM + 2, sequence: 1, acknowledged: 0 });
    let write = RegisterWrite { operation: put("k", "last", FROM + 3, Some(FROM + 4)), session };
    let applied = replica.apply(&[entry(5, Operation::Register(write))]);
    let written = RegisterOutcome::Written { version: FROM + 5 };
    assert_eq!(applied[0].outcome, EntryOutcome::Register(written));
}

#[test]
fn a_lease_goes_by_steady_clocks_whatever_the_time_of_day() {
    const HOUR_MS: u64 = 3_600_000;
    let mut replica = Replica::in_memory();
    let mut at = |unix_ms: u64, (clock, clock_ms): (u64, u64), operation: RegisterOperation| {
        let entry = register(replica.writer.applied_index() + 1, operation);
        let environment = EntryEnvironment { unix_ms, ..entry.environment };
        let stamp = Stamp { clock, clock_ms, numbers_from: 0 };
        match replica.apply(&[BatchEntry { environment, stamp, ..entry }]).remove(0).outcome {
            EntryOutcome::Register(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    };
    let grant = || RegisterOperation::GrantLease { ttl_ms: 2_000 };
    let expired = |leases| RegisterOutcome::Expired { leases };
    let start = START_MS;
    assert_eq!(at(start, (7, 500), grant()), RegisterOutcome::Lease { id: 1, ttl_ms: 2_000 });
    // An hour ahead, and so is log time; then as it should be again.
    assert_eq!(at(start + HOUR_MS, (7, 1_000), RegisterOperation::ExpireLeases), expired(0));
    assert_eq!(at(start + 1_900, (7, 2_499), RegisterOperation::ExpireLeases), expired(0));
    assert_eq!(at(start + 2_000, (7, 2_500), RegisterOperation::ExpireLeases), expired(1));
    // Another leader, with a clock that began at another time.
    assert_eq!(at(start, (7, 2_600), grant()), RegisterOutcome::Lease { id: 5, ttl_ms: 2_000 });
    assert_eq!(at(start, (9, 900_000), RegisterOperation::ExpireLeases), expired(0));
    assert_eq!(at(start, (9, 901_999), RegisterOperation::ExpireLeases), expired(0));
    assert_eq!(at(start, (9, 902_000), RegisterOperation::ExpireLeases), expired(1));
}

#[test]
fn only_numbers_are_added_to() {
    let mut replica = Replica::in_memory();
    assert_eq!(run(&mut replica, increment("n", -3)), RegisterOutcome::Incremented { value: -3, version: 1 });
    assert_eq!(run(&mut replica, increment("n", 5)), RegisterOutcome::Incremented { value: 2, version: 2 });
    assert_eq!(value(&mut replica, "n").as_deref(), Some("2"));
    let overflow = RegisterRefusal::Overflow { value: 2, delta: i64::MAX };
    assert_eq!(run(&mut replica, increment("n", i64::MAX)), RegisterOutcome::Refused(overflow));
    run(&mut replica, set("n", "two"));
    assert_eq!(run(&mut replica, increment("n", 1)), RegisterOutcome::Refused(RegisterRefusal::NotANumber));
}

#[test]
fn a_retry_in_a_session_gets_the_first_outcome() {
    let mut replica = Replica::in_memory();
    let opened = replica.apply(&[entry(1, Operation::OpenSession { lifetime_ms: 0 })]).remove(0).outcome;
    assert!(matches!(opened, EntryOutcome::SessionOpened { session: 1, .. }));
    let session = Some(SessionWrite { session: 1, sequence: 1, acknowledged: 0 });
    let once =
        |index| entry(index, Operation::Register(RegisterWrite { operation: increment("n", 1), session }));
    let applied = replica.apply(&[once(2), once(3)]);
    let first = encode(&applied[0].outcome);
    assert_eq!((applied[0].changes.len(), applied[1].changes.len()), (1, 0));
    assert_eq!(applied[1].outcome, EntryOutcome::Repeated(Some(first)));
    assert_eq!(value(&mut replica, "n").as_deref(), Some("1"));
}

#[test]
fn registers_are_listed_in_the_order_of_their_bytes_by_a_literal_prefix() {
    let mut replica = Replica::in_memory();
    for key in ["a", "a%", "a%b", "a%\u{10ffff}", "ab", "b", "A"] {
        run(&mut replica, set(key, "v"));
    }
    let keys = |page: &[Register]| -> Vec<String> {
        page.iter().map(|register| String::from_utf8_lossy(&register.key).into_owned()).collect()
    };
    let page = replica.writer.list_registers(&all("a%", "", 10)).unwrap();
    assert_eq!(
        (keys(&page.registers), page.more),
        (vec!["a%".into(), "a%b".into(), "a%\u{10ffff}".into()], false)
    );
    let page = replica.writer.list_registers(&all("", "", 3)).unwrap();
    assert_eq!((keys(&page.registers), page.more), (vec!["A".into(), "a".into(), "a%".into()], true));
    let page = replica.writer.list_registers(&all("", "a%", 10)).unwrap();
    assert_eq!(keys(&page.registers), ["a%b", "a%\u{10ffff}", "ab", "b"]);
    let small = RegisterQuery { bytes_max: 1, ..all("", "", 10) };
    let page = replica.writer.list_registers(&small).unwrap();
    assert_eq!((page.registers.len(), page.more), (1, true));
}

#[test]
fn a_lease_takes_its_registers_with_it_when_its_time_is_up() {
    let mut replica = Replica::in_memory();
    assert_eq!(
        run(&mut replica, RegisterOperation::GrantLease { ttl_ms: 5_000 }),
        RegisterOutcome::Lease { id: 1, ttl_ms: 5_000 }
    );
    run(&mut replica, put("lock", "me", 1, Some(0)));
    run(&mut replica, put("other", "me", 1, None));
    // A write without the lease takes the key out of it; an increment leaves it there.
    run(&mut replica, set("other", "0"));
    run(&mut replica, put("counter", "1", 1, None));
    run(&mut replica, increment("counter", 1));
    assert_eq!(replica.writer.next_lease_due_ms().unwrap(), Some(START_MS + 6_000));
    // The entries are a second apart: this is entry 7, the lease is due since entry 6.
    let kept = run(&mut replica, RegisterOperation::KeepAlive { lease: 1 });
    assert_eq!(kept, RegisterOutcome::Lease { id: 1, ttl_ms: 5_000 });
    assert_eq!(run(&mut replica, RegisterOperation::ExpireLeases), RegisterOutcome::Expired { leases: 0 });
    for _ in 0..4 {
        run(&mut replica, set("tick", "x"));
    }
    let (outcome, changes) = applied(&mut replica, RegisterOperation::ExpireLeases);
    assert_eq!(outcome, RegisterOutcome::Expired { leases: 1 });
    let gone: Vec<&[u8]> = changes.iter().map(|change| change.key.as_slice()).collect();
    assert_eq!(gone, [b"counter".as_slice(), b"lock"]);
    assert!(changes.iter().all(|change| change.value.is_none() && change.version == 13));
    assert_eq!(value(&mut replica, "lock"), None);
    assert_eq!(value(&mut replica, "other").as_deref(), Some("0"));
    assert_eq!(replica.writer.next_lease_due_ms().unwrap(), None);
    let gone = RegisterOutcome::Refused(RegisterRefusal::NoSuchLease(1));
    assert_eq!(run(&mut replica, RegisterOperation::KeepAlive { lease: 1 }), gone);
    assert_eq!(run(&mut replica, RegisterOperation::RevokeLease { lease: 1 }), gone);
    assert_eq!(run(&mut replica, put("lock", "me", 1, None)), gone);
}

#[test]
fn a_revoked_lease_ends_at_once() {
    let mut replica = Replica::in_memory();
    run(&mut replica, RegisterOperation::GrantLease { ttl_ms: 60_000 });
    run(&mut replica, put("a", "1", 1, None));
    run(&mut replica, put("b", "1", 1, None));
    let (outcome, changes) = applied(&mut replica, RegisterOperation::RevokeLease { lease: 1 });
    assert_eq!((outcome, changes.len()), (RegisterOutcome::Revoked { keys: 2 }, 2));
    assert!(replica.writer.list_registers(&all("", "", 10)).unwrap().registers.is_empty());
}

#[test]
fn leases_are_listed_with_their_keys_in_pages() {
    let mut replica = Replica::in_memory();
    let list = |replica: &mut Replica, after, limit, bytes_max| {
        let page = replica.writer.list_leases(LeaseQuery { after, limit, bytes_max }).expect("no fault");
        let keys = |lease: &HeldLease| -> Vec<String> {
            lease.keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect()
        };
        (page.leases.iter().map(|lease| (lease.id, keys(lease))).collect::<Vec<_>>(), page.more)
    };
    assert_eq!(list(&mut replica, 0, 10, 100), (vec![], false));
    for ttl_ms in [5_000, 6_000, 7_000] {
        run(&mut replica, RegisterOperation::GrantLease { ttl_ms });
    }
    for (key, lease) in [("c", 1), ("a", 1), ("b", 3), ("other", 0)] {
        run(&mut replica, put(key, "", lease, None));
    }
    let (one, two, three) = ((1, vec!["a".into(), "c".into()]), (2, vec![]), (3, vec!["b".into()]));
    let all = vec![one.clone(), two.clone(), three.clone()];
    assert_eq!(list(&mut replica, 0, 10, 100), (all, false));
    assert_eq!(list(&mut replica, 0, 2, 100), (vec![one.clone(), two.clone()], true));
    assert_eq!(list(&mut replica, 2, 2, 100), (vec![three], false));
    assert_eq!(list(&mut replica, 0, 10, 1), (vec![one], true));
    let lease = replica.writer.list_leases(LeaseQuery { after: 1, limit: 1, bytes_max: 1 }).unwrap();
    assert_eq!((lease.leases[0].ttl_ms, lease.leases[0].due_ms), (6_000, START_MS + 2_000 + 6_000));
}

#[test]
fn leases_and_their_registers_are_bounded() {
    let options = Options {
        leases_max: 2,
        registers_per_lease_max: 2,
        leases_ended_per_entry_max: 1,
        ..Options::default()
    };
    let mut replica = Replica { writer: Writer::in_memory(options).expect("memory") };
    let grant = || RegisterOperation::GrantLease { ttl_ms: 1_000 };
    run(&mut replica, grant());
    run(&mut replica, grant());
    assert_eq!(run(&mut replica, grant()), RegisterOutcome::Refused(RegisterRefusal::TooManyLeases(2)));
    run(&mut replica, put("a", "", 1, None));
    run(&mut replica, put("b", "", 1, None));
    assert_eq!(
        run(&mut replica, put("c", "", 1, None)),
        RegisterOutcome::Refused(RegisterRefusal::TooManyOfLease(2))
    );
    assert!(matches!(run(&mut replica, put("a", "again", 1, None)), RegisterOutcome::Written { .. }));
    for leases in [1, 1, 0] {
        assert_eq!(run(&mut replica, RegisterOperation::ExpireLeases), RegisterOutcome::Expired { leases });
    }
}

#[test]
fn a_full_database_takes_no_more_registers_and_lets_them_go() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    run(&mut replica, set("first", "x"));
    let index = replica.writer.applied_index() + 1;
    replica.apply(&[entry(index, Operation::SetLimits { max_bytes: 300_000 })]);
    let (outcome, changes) = applied(&mut replica, set("big", &"x".repeat(400_000)));
    let full = RegisterOutcome::Refused(RegisterRefusal::DatabaseFull { max_bytes: 300_000 });
    assert_eq!((outcome, changes.len()), (full, 0));
    assert_eq!(value(&mut replica, "big"), None);
    assert!(matches!(run(&mut replica, set("small", "x")), RegisterOutcome::Written { .. }));
    assert!(matches!(run(&mut replica, delete("first", None)), RegisterOutcome::Deleted { .. }));
}

#[test]
fn replicas_agree_however_entries_are_batched_and_whatever_rolls_back() {
    let entries: Vec<BatchEntry> = vec![
        write(1, each(&["CREATE TABLE t (a UNIQUE)"])),
        register(2, RegisterOperation::GrantLease { ttl_ms: 2_000 }),
        register(3, put("lock", "me", 2, Some(0))),
        // Ends the transaction of the batch, which made the tables of the registers.
        write(4, each(&["INSERT INTO t VALUES (1)", "INSERT OR ROLLBACK INTO t VALUES (1)"])),
        register(5, increment("n", 4)),
        register(6, RegisterOperation::ExpireLeases),
        write(7, each(&["CREATE TABLE u AS SELECT count(*) AS n FROM sqlite_schema"])),
        register(8, delete("n", Some(5))),
    ];
    let (mut together, mut one_by_one) = (Replica::in_memory(), Replica::in_memory());
    let at_once = together.apply(&entries);
    let singly: Vec<AppliedEntry> =
        entries.iter().map(|entry| one_by_one.apply(std::slice::from_ref(entry)).remove(0)).collect();
    assert_eq!(at_once, singly);
    assert_eq!(together.hash(), one_by_one.hash());
    assert_eq!(
        at_once[5].changes,
        [RegisterChange { key: b"lock".to_vec(), value: None, version: 6, lease: 2 }]
    );
}

#[test]
fn the_content_hash_and_a_snapshot_hold_the_registers() {
    let folder = tempfile::tempdir().unwrap();
    let mut replica = Replica { writer: Writer::open(folder.path().join("a"), Options::default()).unwrap() };
    let mut reader = Reader::open(folder.path().join("a"), Options::default()).unwrap();
    assert_eq!(reader.get_register(b"k").unwrap(), None);
    run(&mut replica, set("k", "v"));
    let before = replica.hash();
    run(&mut replica, put("k", "v", 0, Some(1)));
    assert_ne!(before, replica.hash());
    let expected = Register { key: b"k".to_vec(), value: b"v".to_vec(), version: 2, lease: 0 };
    assert_eq!(reader.get_register(b"k").unwrap().as_ref(), Some(&expected));
    assert_eq!(reader.list_registers(&all("", "", 5)).unwrap().registers, std::slice::from_ref(&expected));
    replica.writer.snapshot_to(folder.path().join("b")).unwrap();
    let mut copy = Writer::open(folder.path().join("b"), Options::default()).unwrap();
    assert_eq!(copy.get_register(b"k").unwrap(), Some(expected));
}

#[test]
fn no_statement_reaches_registers_whether_they_are_there_yet_or_not() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let early = [
        "CREATE TABLE _debros_register (a)",
        "CREATE VIEW v AS SELECT * FROM _debros_register",
        "CREATE TRIGGER tr AFTER INSERT ON t BEGIN DELETE FROM _debros_register; END",
        "CREATE TABLE child (k REFERENCES _debros_register(key) ON DELETE CASCADE)",
    ];
    for sql in early {
        replica.denied(sql);
    }
    run(&mut replica, set("k", "v"));
    let late = [
        "SELECT value FROM _debros_register",
        "INSERT INTO _debros_register VALUES (x'00', x'00', 1, 0)",
        "DELETE FROM _debros_lease",
        "DROP TABLE _debros_register",
        "DROP INDEX _debros_register_by_lease",
        "CREATE TRIGGER tr AFTER INSERT ON _debros_register BEGIN DELETE FROM t; END",
    ];
    for sql in early.iter().chain(&late) {
        replica.denied(sql);
    }
    // What is a user's own is as free as before.
    replica.must(&["CREATE TABLE u (a)", "CREATE INDEX i ON u (a)", "DROP TABLE t"]);
}
