//! What survives a crash, what is durable, and how a snapshot takes a database's place.

use std::fs;
use std::path::{Path, PathBuf};

use debros_sqlite::{
    Batch, EntryEnvironment, Fault, Generations, Options, Reader, Statement, Value, Writer, inspect_snapshot,
};

use crate::replica::{Replica, each, encode, environment, only_value, write};

fn open(path: &Path) -> Replica {
    Replica { writer: Writer::open(path, Options::default()).expect("opens") }
}

fn insert(replica: &mut Replica) {
    let next = replica.writer.applied_index() + 1;
    replica.must(&[&format!("INSERT INTO t VALUES ({next})")]);
}

/// Copies a database's files as they are now, as a crash would leave them.
fn crash_image(path: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).expect("a folder");
    for suffix in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        if from.exists() {
            fs::copy(&from, to.join(from.file_name().expect("a name"))).expect("copies");
        }
    }
    to.join(path.file_name().expect("a name"))
}

#[test]
fn the_applied_index_equals_the_data_after_a_crash_at_any_point() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    for round in 0..20 {
        insert(&mut replica);
        if round % 7 == 3 {
            replica.writer.checkpoint().expect("no fault");
        }
        let image = crash_image(&path, &folder.path().join(format!("crash{round}")));
        let mut restored = open(&image);
        assert_eq!(restored.writer.applied_index(), replica.writer.applied_index());
        assert_eq!(restored.writer.bookkeeping(), replica.writer.bookkeeping());
        assert_eq!(restored.hash(), replica.hash());
        let applied = restored.writer.applied_index() as i64;
        assert_eq!(restored.integer("SELECT max(a) FROM t"), applied);
    }
    // The log torn at any byte loses whole batches only.
    let image = crash_image(&path, &folder.path().join("whole"));
    let log = fs::read(image.with_extension("sqlite-wal")).expect("a log");
    for cut in (0..log.len()).step_by(2048) {
        let torn = crash_image(&path, &folder.path().join("torn"));
        fs::write(torn.with_extension("sqlite-wal"), &log[..cut]).expect("writes");
        let mut restored = open(&torn);
        let applied = restored.writer.applied_index();
        if applied > 1 {
            assert_eq!(restored.integer("SELECT max(a) FROM t"), applied as i64);
        }
        drop(restored);
        fs::remove_dir_all(folder.path().join("torn")).expect("removes");
    }
}

#[test]
fn a_reopened_writer_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    replica.apply(&[crate::replica::entry(2, debros_sqlite::Operation::SetLimits { max_bytes: 1 << 30 })]);
    let (hash, time) = (replica.hash(), replica.writer.log_time_unix_ms());
    drop(replica);
    let mut replica = open(&path);
    assert_eq!((replica.hash(), replica.writer.log_time_unix_ms()), (hash, time));
    assert_eq!((replica.writer.bookkeeping(), replica.writer.max_bytes()), (b"2".as_slice(), 1 << 30));
    replica.writer.note_applied(9, b"nine").expect("no fault");
    drop(replica);
    let replica = open(&path);
    assert_eq!((replica.writer.applied_index(), replica.writer.bookkeeping()), (9, b"nine".as_slice()));
}

#[test]
fn only_a_complete_checkpoint_is_durable() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    assert_eq!(replica.writer.checkpoint().expect("no fault"), Some(1));
    // A reader in the middle of a read holds back the log that was written since.
    let reader = rusqlite::Connection::open(&path).expect("opens");
    reader.execute_batch("BEGIN; SELECT count(*) FROM t;").expect("reads");
    insert(&mut replica);
    assert_eq!(replica.writer.checkpoint().expect("no fault"), None);
    // What is not in the file is not durable: without its log the database is at the old index.
    let image = crash_image(&path, &folder.path().join("crash"));
    fs::remove_file(image.with_extension("sqlite-wal")).expect("removes");
    assert_eq!(open(&image).writer.applied_index(), 1);
    reader.execute_batch("COMMIT").expect("ends");
    assert_eq!(replica.writer.checkpoint().expect("no fault"), Some(2));
    let image = crash_image(&path, &folder.path().join("crash2"));
    fs::remove_file(image.with_extension("sqlite-wal")).expect("removes");
    assert_eq!(open(&image).writer.applied_index(), 2);
    assert_eq!(Replica::in_memory().writer.checkpoint().expect("no fault"), None);
}

#[test]
fn a_snapshot_holds_what_its_metadata_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    insert(&mut replica);
    let mut reader = Reader::open(&path, Options::default()).expect("opens");
    let snapshot = folder.path().join("snap shot?.sqlite");
    let info = reader.snapshot_to(&snapshot).expect("no fault");
    insert(&mut replica);
    assert_eq!((info.applied_index, info.bookkeeping.as_slice()), (2, b"2".as_slice()));
    assert_eq!(inspect_snapshot(&snapshot).expect("no fault"), info);
    let beside: Vec<_> = fs::read_dir(folder.path())
        .expect("lists")
        .map(|entry| entry.expect("lists").file_name())
        .filter(|name| name.to_string_lossy().starts_with("snap"))
        .collect();
    assert_eq!(beside.len(), 1, "nothing is left beside a snapshot: {beside:?}");
    let mut restored = open(&snapshot);
    assert_eq!(restored.integer("SELECT max(a) FROM t"), 2);
    // Writers make them too, over an older file.
    let info = replica.writer.snapshot_to(folder.path().join("again")).expect("no fault");
    assert_eq!(info.applied_index, 3);
    replica.writer.snapshot_to(folder.path().join("again")).expect("no fault");
    assert!(matches!(inspect_snapshot(folder.path().join("none")), Err(Fault::File { .. })));
    fs::write(folder.path().join("garbage"), b"not a database, certainly not").expect("writes");
    assert!(inspect_snapshot(folder.path().join("garbage")).is_err());
}

#[test]
fn installing_replaces_everything_even_with_an_old_log_beside() {
    let folder = tempfile::tempdir().expect("a folder");
    // The leader's snapshot.
    let mut leader = open(&folder.path().join("leader.sqlite"));
    leader.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    for _ in 0..5 {
        insert(&mut leader);
    }
    // A replica with other data, all of it in its write-ahead log; it crashes, so the log stays.
    let root = folder.path().join("db");
    let mut generations = Generations::open(&root).expect("opens");
    let old = generations.database_path();
    let mut replica = open(&old);
    replica.must(&["CREATE TABLE stale (a)"]);

    // The trap: renaming over the file. SQLite finds the old log and serves what is in it.
    let trap = crash_image(&old, &folder.path().join("trap"));
    let renamed = folder.path().join("renamed.sqlite");
    leader.writer.snapshot_to(&renamed).expect("no fault");
    fs::rename(&renamed, &trap).expect("renames");
    let trapped = Writer::open(&trap, Options::default());
    assert!(
        trapped.map_or(true, |writer| writer.applied_index() != leader.writer.applied_index()),
        "renaming over a database beside its log was harmless: this test shows nothing"
    );

    let incoming = generations.prepare().expect("no fault");
    leader.writer.snapshot_to(incoming.path()).expect("no fault");
    generations.install(incoming).expect("no fault");
    // The crash comes before the old generation is removed.
    drop(replica);
    let generations = Generations::open(&root).expect("opens");
    assert_ne!(generations.database_path(), old);
    let mut installed = open(&generations.database_path());
    assert_eq!(installed.hash(), leader.hash());
    assert_eq!(installed.writer.applied_index(), 6);
    assert!(!old.exists(), "the old generation is removed");
}

#[test]
fn an_interrupted_installation_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let generations = Generations::open(folder.path()).expect("opens");
    let mut replica = open(&generations.database_path());
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    drop(replica);
    let incoming = generations.prepare().expect("no fault");
    fs::write(incoming.path(), b"half a snaps").expect("writes");
    drop((incoming, generations));
    let generations = Generations::open(folder.path()).expect("opens");
    assert_eq!(generations.current(), 1);
    assert_eq!(open(&generations.database_path()).writer.applied_index(), 1);
    fs::write(folder.path().join("CURRENT"), "one").expect("writes");
    assert!(matches!(Generations::open(folder.path()), Err(Fault::Unusable { .. })));
}

#[test]
fn a_fault_is_never_a_result_and_keeps_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    // Someone else holds the write lock: BUSY.
    let intruder = rusqlite::Connection::open(&path).expect("opens");
    intruder.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let entries = [write(2, each(&["INSERT INTO t VALUES (1)"]))];
    let batch = Batch { entries: &entries, applied_index: 2, bookkeeping: b"2" };
    let fault = replica.writer.apply_batch(batch, &encode).expect_err("a fault");
    assert!(matches!(fault, Fault::Sqlite { code, .. } if code & 0xff == 5), "{fault}");
    assert_eq!(replica.writer.applied_index(), 1);
    intruder.execute_batch("ROLLBACK").expect("unlocks");
    replica.writer.apply_batch(batch, &encode).expect("the same batch may be applied again");
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 1);
    // Bookkeeping that does not fit.
    let large = vec![1; 30_000];
    let batch = Batch { entries: &[], applied_index: 9, bookkeeping: &large };
    let fault = replica.writer.apply_batch(batch, &encode).expect_err("a fault");
    assert!(matches!(fault, Fault::BookkeepingTooLarge { .. }), "{fault}");
    replica.writer.note_applied(9, &large[..20_000]).expect("this much fits");
    drop(replica);
    assert_eq!(open(&path).writer.bookkeeping(), &large[..20_000]);
}

#[test]
fn a_broken_page_is_a_fault() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"]);
    replica.must(&["WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 300) INSERT INTO t SELECT x, zeroblob(1000) FROM c"]);
    replica.writer.checkpoint().expect("no fault");
    drop(replica);
    let mut bytes = fs::read(&path).expect("reads");
    let length = bytes.len();
    bytes[length - 40 * 4096..].fill(0xee);
    fs::write(&path, bytes).expect("writes");
    let mut replica = open(&path);
    let entries = [write(3, each(&["SELECT sum(length(b)) FROM t"]))];
    let batch = Batch { entries: &entries, applied_index: 3, bookkeeping: b"3" };
    let fault = replica.writer.apply_batch(batch, &encode).expect_err("a fault");
    assert!(matches!(fault, Fault::Sqlite { code, .. } if code & 0xff == 11), "{fault}");
}

#[test]
fn a_full_disk_is_a_fault_and_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY, b)"]);
    let fill = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 30000) \
                INSERT INTO t SELECT x, zeroblob(1000) FROM c";
    let small = "INSERT INTO t VALUES (-1, 'small')";
    // The first fails while it spills pages, the second only at the commit.
    for sql in [fill, small] {
        let next = replica.writer.applied_index() + 1;
        let entries = [write(next, each(&[sql]))];
        let batch = Batch { entries: &entries, applied_index: next, bookkeeping: b"next" };
        // Room comes back at once: an outcome made of the refusal would be committed.
        full_disk::begin();
        let applied = replica.writer.apply_batch(batch, &encode);
        assert!(full_disk::struck());
        let fault = applied.expect_err(sql);
        assert!(fault.is_disk_full(), "{fault}");
        assert_eq!(replica.writer.applied_index(), next - 1);
        replica.writer.apply_batch(batch, &encode).expect("there is room again");
    }
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 30_001);
}

/// A disk that is full for this thread's next write, below SQLite's own system calls.
mod full_disk {
    use std::cell::Cell;
    use std::ffi::{CStr, c_int, c_void};

    use rusqlite::ffi;

    thread_local! {
        /// Writes yet to be refused.
        static REFUSALS: Cell<u32> = const { Cell::new(0) };
    }

    type Write = unsafe extern "C" fn(c_int, *const c_void, usize) -> isize;
    type WriteAt = unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize;

    fn refuse() -> bool {
        let left = REFUSALS.get();
        if left > 0 {
            REFUSALS.set(left - 1);
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = libc::ENOSPC };
        }
        left > 0
    }

    unsafe extern "C" fn write(file: c_int, bytes: *const c_void, length: usize) -> isize {
        // SAFETY: the arguments are passed on.
        if refuse() { -1 } else { unsafe { libc::write(file, bytes, length) } }
    }

    unsafe extern "C" fn write_at(file: c_int, bytes: *const c_void, length: usize, offset: i64) -> isize {
        // SAFETY: the arguments are passed on.
        if refuse() { -1 } else { unsafe { libc::pwrite(file, bytes, length, offset) } }
    }

    fn replace(name: &CStr, call: ffi::sqlite3_syscall_ptr) {
        // SAFETY: the platform's VFS lives as long as the process; the functions have the
        // signatures of the calls they replace, and behave like them for other threads.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(std::ptr::null());
            let set = (*vfs).xSetSystemCall.expect("unix");
            // Those SQLite was built without are not found.
            set(vfs, name.as_ptr(), call);
        }
    }

    pub(crate) fn begin() {
        // SAFETY: SQLite casts them back before it calls them.
        unsafe {
            replace(c"write", std::mem::transmute::<Write, ffi::sqlite3_syscall_ptr>(write));
            let write_at = std::mem::transmute::<WriteAt, ffi::sqlite3_syscall_ptr>(write_at);
            replace(c"pwrite", write_at);
            replace(c"pwrite64", write_at);
        }
        REFUSALS.set(1);
    }

    /// Whether a write was refused.
    pub(crate) fn struck() -> bool {
        REFUSALS.get() == 0
    }
}

#[test]
fn reads_go_on_beside_a_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("database.sqlite");
    let mut replica = open(&path);
    replica.must(&["CREATE TABLE t (a INTEGER PRIMARY KEY)"]);
    let mut reader = Reader::open(&path, Options::default()).expect("opens");
    for expected in 1..=10 {
        insert(&mut replica);
        let environment: EntryEnvironment = environment(expected);
        let seen = reader
            .query(&[Statement::new("SELECT count(*) FROM t")], &environment, &|| false)
            .expect("no fault");
        assert_eq!(only_value(&seen.outcomes[0]), Value::Integer(expected as i64));
    }
}

#[test]
fn an_entry_is_never_applied_a_second_time() {
    let mut replica = Replica::in_memory();
    replica.must(&["CREATE TABLE t (a)"]);
    let again = [write(replica.writer.applied_index(), each(&["INSERT INTO t VALUES (1)"]))];
    let batch = Batch { entries: &again, applied_index: again[0].index, bookkeeping: &[] };
    let refused = replica.writer.apply_batch(batch, &encode);
    assert!(matches!(refused, Err(Fault::AppliedBefore { index: 1, applied_index: 1 })), "{refused:?}");
    assert_eq!(replica.integer("SELECT count(*) FROM t"), 0);
}
