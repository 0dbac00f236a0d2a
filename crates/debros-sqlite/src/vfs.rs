//! The VFS all our connections use: the platform's own, with three methods replaced.
//!
//! - Time comes from the entry being applied, never from a clock.
//! - A write that the file system refuses for want of space is remembered, because SQLite has the
//!   same code (`SQLITE_FULL`) for its own limits, and only the former is a fault.
//! - SQLite's own generator (WAL salts, names of temporary files; never seen by statements) is
//!   seeded through `std`, so nothing opens a random device.
//!
//! Besides that, `'localtime'` is UTC for the whole process: time zones are environment.
//! Everything else (files, locks, shared memory) is the platform's.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Mutex, OnceLock};

use rusqlite::ffi;

use crate::Fault;

/// The name connections are opened with.
pub(crate) const NAME: &CStr = c"debros";
/// The Unix epoch as SQLite counts: milliseconds since noon in Greenwich on 24 November 4714 BC.
const UNIX_EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;
const JULIAN_DAY_MS: f64 = 86_400_000.0;

thread_local! {
    static NOW_UNIX_MS: Cell<i64> = const { Cell::new(0) };
    static DISK_FULL: Cell<bool> = const { Cell::new(false) };
}

/// Sets what `now` is for statements run on this thread.
pub(crate) fn set_now(unix_ms: u64) {
    NOW_UNIX_MS.set(i64::try_from(unix_ms).unwrap_or(i64::MAX - UNIX_EPOCH_JULIAN_MS));
}

/// Whether the file system refused bytes on this thread since the last call.
pub(crate) fn take_disk_full() -> bool {
    DISK_FULL.replace(false)
}

/// The platform's VFS; its methods know only the `sqlite3_vfs` they are given.
struct Base {
    open: unsafe extern "C" fn(
        *mut ffi::sqlite3_vfs,
        ffi::sqlite3_filename,
        *mut ffi::sqlite3_file,
        c_int,
        *mut c_int,
    ) -> c_int,
}

static BASE: OnceLock<Base> = OnceLock::new();
static REGISTERED: OnceLock<Result<(), c_int>> = OnceLock::new();

/// Registers the VFS, once per process.
pub(crate) fn register() -> Result<(), Fault> {
    REGISTERED.get_or_init(register_once).map_err(|code| Fault::Sqlite {
        code,
        message: "the VFS was refused".to_owned(),
        during: "registering the VFS",
    })
}

fn register_once() -> Result<(), c_int> {
    // SAFETY: sqlite3_initialize may be called at any time; sqlite3_vfs_find(NULL) gives the
    // default VFS, which lives as long as the process.
    let default = unsafe {
        ffi::sqlite3_initialize();
        ffi::sqlite3_vfs_find(std::ptr::null())
    };
    if default.is_null() {
        return Err(ffi::SQLITE_ERROR);
    }
    // SAFETY: a VFS is plain data, and the platform's methods find all they need in the copy.
    let mut ours = unsafe { *default };
    let Some(open) = ours.xOpen else { return Err(ffi::SQLITE_ERROR) };
    BASE.get_or_init(|| Base { open });
    ours.pNext = std::ptr::null_mut();
    ours.zName = NAME.as_ptr();
    ours.xOpen = Some(open_file);
    ours.xRandomness = Some(randomness);
    ours.xCurrentTime = Some(current_time);
    ours.xCurrentTimeInt64 = Some(current_time_int64);
    let ours = Box::leak(Box::new(ours));
    // SAFETY: `ours` is leaked, so it outlives every connection. SQLite seeds its generator from
    // the default VFS: ours is the default just for that, then the platform's is again.
    unsafe {
        let code = ffi::sqlite3_vfs_register(ours, 1);
        if code != ffi::SQLITE_OK {
            return Err(code);
        }
        let mut drawn = [0u8; 1];
        ffi::sqlite3_randomness(1, drawn.as_mut_ptr().cast());
        let code = ffi::sqlite3_vfs_register(default, 1);
        if code != ffi::SQLITE_OK {
            return Err(code);
        }
        let local: unsafe extern "C" fn(*const c_void, *mut c_void) -> c_int = local_time_is_utc;
        ffi::sqlite3_test_control(ffi::SQLITE_TESTCTRL_LOCALTIME_FAULT, 2 as c_int, local);
    }
    Ok(())
}

unsafe extern "C" fn current_time_int64(_vfs: *mut ffi::sqlite3_vfs, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite passes a valid pointer.
    unsafe { *out = NOW_UNIX_MS.get() + UNIX_EPOCH_JULIAN_MS };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time(_vfs: *mut ffi::sqlite3_vfs, out: *mut f64) -> c_int {
    // SAFETY: SQLite passes a valid pointer.
    unsafe { *out = (NOW_UNIX_MS.get() + UNIX_EPOCH_JULIAN_MS) as f64 / JULIAN_DAY_MS };
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_vfs: *mut ffi::sqlite3_vfs, bytes: c_int, out: *mut c_char) -> c_int {
    let Ok(length) = usize::try_from(bytes) else { return 0 };
    // SAFETY: SQLite passes a buffer of `bytes` bytes.
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), length) };
    let keys = RandomState::new();
    for (counter, chunk) in out.chunks_mut(8).enumerate() {
        let mut hasher = keys.build_hasher();
        hasher.write_usize(counter);
        let word = hasher.finish().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes
}

/// SQLite's hook in place of `localtime()`: returns 0 when it filled in the time.
unsafe extern "C" fn local_time_is_utc(time: *const c_void, out: *mut c_void) -> c_int {
    // SAFETY: SQLite passes a `time_t` and a `struct tm`.
    let filled = unsafe { libc::gmtime_r(time.cast(), out.cast()) };
    c_int::from(filled.is_null())
}

unsafe extern "C" fn open_file(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(base) = BASE.get() else { return ffi::SQLITE_CANTOPEN };
    // SAFETY: the arguments are passed on as SQLite gave them; `file` has room for the platform's
    // file, because szOsFile is the platform's.
    unsafe {
        let code = (base.open)(vfs, name, file, flags, out_flags);
        if code == ffi::SQLITE_OK && !(*file).pMethods.is_null() {
            (*file).pMethods = watched((*file).pMethods);
        }
        code
    }
}

/// One of the platform's method tables with our `xWrite`, and the method it calls.
struct Watched {
    original: usize,
    table: &'static ffi::sqlite3_io_methods,
    write: WriteMethod,
}

type WriteMethod =
    unsafe extern "C" fn(*mut ffi::sqlite3_file, *const c_void, c_int, ffi::sqlite3_int64) -> c_int;

/// The platform has a handful of method tables (locking styles), so this list stays that short.
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

/// The watched copy of a method table, made on first sight.
fn watched(original: *const ffi::sqlite3_io_methods) -> *const ffi::sqlite3_io_methods {
    let mut tables = WATCHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = tables.iter().find(|known| known.original == original as usize) {
        return known.table;
    }
    // SAFETY: method tables are constants of the platform's VFS.
    let mut table = unsafe { *original };
    let Some(write) = table.xWrite else { return original };
    table.xWrite = Some(write_watched);
    let table: &'static ffi::sqlite3_io_methods = Box::leak(Box::new(table));
    tables.push(Watched { original: original as usize, table, write });
    table
}

thread_local! {
    /// The last table a thread wrote through, so that the common case takes no lock.
    static LAST_WRITE: Cell<(usize, Option<WriteMethod>)> = const { Cell::new((0, None)) };
}

fn write_method(table: *const ffi::sqlite3_io_methods) -> Option<WriteMethod> {
    let (last, method) = LAST_WRITE.get();
    if last == table as usize {
        return method;
    }
    let tables = WATCHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let method = tables.iter().find(|known| std::ptr::eq(known.table, table)).map(|known| known.write);
    LAST_WRITE.set((table as usize, method));
    method
}

unsafe extern "C" fn write_watched(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: only files opened by `open_file` have this method, so the file is valid and its
    // table is one of ours; the arguments are passed on.
    unsafe {
        let Some(write) = write_method((*file).pMethods) else { return ffi::SQLITE_IOERR_WRITE };
        let code = write(file, bytes, length, offset);
        if code & 0xff == ffi::SQLITE_FULL {
            DISK_FULL.set(true);
        }
        code
    }
}
