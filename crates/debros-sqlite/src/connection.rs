//! One SQLite connection in our VFS and sandbox, with its statement cache.
//!
//! Everything here is used by one thread at a time. What to do with results and failures is
//! decided by `execute` (users' statements) and the callers of [`Connection::internal`] (ours).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use rusqlite::config::DbConfig;
use rusqlite::{OpenFlags, ffi};

use crate::prepared::{BindError, Compiled, Prepared, RawError, Slot, StatementCache, compile};
use crate::sandbox::{Gate, Mode, confine};
use crate::{ErrorClass, Fault, Options, SqlError, Value, environment, error, vfs};

/// How many steps a program runs between two looks at its budget.
pub(crate) const STEPS_PER_LOOK: u64 = 1000;

/// Where a connection's database lives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In a file, with a write-ahead log.
    File(&'a Path),
    /// In this connection's memory.
    Memory,
}

/// Counts looks of the progress handler and says when to stop.
#[derive(Debug, Default)]
struct Watch {
    looks_left: Cell<u64>,
    fired: Cell<bool>,
}

/// A connection.
pub(crate) struct Connection {
    // The order of fields is the order of closing: statements, then the connection, then what
    // its hooks point to.
    pub(crate) cache: StatementCache,
    pub(crate) raw: rusqlite::Connection,
    pub(crate) gate: Arc<Gate>,
    watch: Box<Watch>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connection").field("path", &self.raw.path()).finish_non_exhaustive()
    }
}

/// What a page cache did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheAccesses {
    /// Pages that it had.
    pub hits: u64,
    /// Pages that it had to read.
    pub misses: u64,
    /// Pages written to the write-ahead log.
    pub writes: u64,
    /// Pages among these that were written before their transaction's end, for want of room.
    pub spills: u64,
}

/// What went wrong while a user's statement was compiled, bound or run.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// A deterministic refusal.
    Refused(SqlError),
    /// The progress handler stopped it.
    Stopped,
    /// This machine's trouble.
    Fault(Fault),
}

impl Connection {
    pub(crate) fn open(place: Place<'_>, options: &Options) -> Result<Self, Fault> {
        vfs::register()?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let opened = match place {
            Place::File(path) => rusqlite::Connection::open_with_flags_and_vfs(path, flags, vfs::NAME),
            Place::Memory => rusqlite::Connection::open_in_memory_with_flags_and_vfs(flags, vfs::NAME),
        };
        let raw = opened.map_err(|error| Fault::from_rusqlite("opening the database", &error))?;
        let gate = Arc::new(Gate::default());
        let connection =
            Self { cache: StatementCache::new(options.statement_cache), raw, gate, watch: Box::default() };
        confine(&connection.raw, &connection.gate, options)?;
        environment::override_functions(&connection.raw, options.value_bytes_max)?;
        connection.internal_batch(
            "setting up the connection",
            &format!(
                "PRAGMA temp_store = MEMORY; PRAGMA cache_size = -{};",
                (options.page_cache_bytes / 1024).max(1)
            ),
        )?;
        Ok(connection)
    }

    /// Opens a finished copy without changing it.
    pub(crate) fn open_snapshot(path: &Path) -> Result<Self, Fault> {
        vfs::register()?;
        // Immutable: its header asks for a write-ahead log, which must not be made beside it.
        let uri = format!("file:{}?immutable=1", percent_encoded(path));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let raw = rusqlite::Connection::open_with_flags_and_vfs(uri, flags, vfs::NAME)
            .map_err(|error| Fault::from_rusqlite("opening a snapshot", &error))?;
        Ok(Self { cache: StatementCache::new(1), raw, gate: Arc::default(), watch: Box::default() })
    }

    /// Leaves the write-ahead log as it is when this connection is the last to close.
    pub(crate) fn keep_wal_on_close(&self) -> Result<(), Fault> {
        self.raw
            .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
            .map(drop)
            .map_err(|error| Fault::from_rusqlite("setting up the connection", &error))
    }

    /// What the page cache did since this was last asked.
    pub(crate) fn take_cache_accesses(&self) -> CacheAccesses {
        let take = |what: c_int| {
            let (mut current, mut highest) = (0, 0);
            // SAFETY: the handle and the out pointers are valid.
            let code = unsafe {
                ffi::sqlite3_db_status(self.handle().as_ptr(), what, &mut current, &mut highest, 1)
            };
            if code == ffi::SQLITE_OK { u64::try_from(current).unwrap_or(0) } else { 0 }
        };
        CacheAccesses {
            hits: take(ffi::SQLITE_DBSTATUS_CACHE_HIT),
            misses: take(ffi::SQLITE_DBSTATUS_CACHE_MISS),
            writes: take(ffi::SQLITE_DBSTATUS_CACHE_WRITE),
            spills: take(ffi::SQLITE_DBSTATUS_CACHE_SPILL),
        }
    }

    /// Moves the write-ahead log into the file as far as readers let it. Tells whether all of it
    /// was moved and synced.
    pub(crate) fn checkpoint(&self) -> Result<bool, Fault> {
        let (mut in_log, mut moved) = (-1, -1);
        // SAFETY: the handle and the out pointers are valid.
        let code = unsafe {
            ffi::sqlite3_wal_checkpoint_v2(
                self.handle().as_ptr(),
                c"main".as_ptr(),
                ffi::SQLITE_CHECKPOINT_PASSIVE,
                &mut in_log,
                &mut moved,
            )
        };
        match code {
            ffi::SQLITE_OK => Ok(in_log >= 0 && in_log == moved),
            // Another connection is checkpointing or recovering: nothing is known.
            code if code & 0xff == ffi::SQLITE_BUSY => Ok(false),
            _ => Err(internal_fault("checkpointing", RawError::last(self.handle()))),
        }
    }

    pub(crate) fn handle(&self) -> NonNull<ffi::sqlite3> {
        // SAFETY: the handle is valid as long as the connection, and an open one is not null.
        unsafe { NonNull::new_unchecked(self.raw.handle()) }
    }

    /// Whether no transaction is open.
    pub(crate) fn is_autocommit(&self) -> bool {
        self.raw.is_autocommit()
    }

    /// Whether foreign keys are violated in a way that only COMMIT would tell.
    pub(crate) fn has_deferred_violations(&self) -> bool {
        self.status(ffi::SQLITE_DBSTATUS_DEFERRED_FKS) != 0
    }

    /// Bytes of all pages in the page cache, those of temporary tables included.
    pub(crate) fn cached_bytes(&self) -> u64 {
        u64::from(self.status(ffi::SQLITE_DBSTATUS_CACHE_USED))
    }

    /// Pages that were written before their transaction's end, for want of room in the page cache;
    /// starts again at zero after 2^31.
    pub(crate) fn spilled_pages(&self) -> u32 {
        self.status(ffi::SQLITE_DBSTATUS_CACHE_SPILL)
    }

    fn status(&self, which: std::ffi::c_int) -> u32 {
        let (mut current, mut highest) = (0, 0);
        // SAFETY: the handle and the out pointers are valid.
        unsafe {
            ffi::sqlite3_db_status(self.handle().as_ptr(), which, &mut current, &mut highest, 0);
        }
        // SQLite cuts these numbers to 31 bits.
        current.cast_unsigned()
    }

    /// Runs SQL of ours that gives no rows we need.
    pub(crate) fn internal_batch(&self, during: &'static str, sql: &str) -> Result<(), Fault> {
        self.gate.enter(Mode::Internal);
        self.raw.execute_batch(sql).map_err(|error| Fault::from_rusqlite(during, &error))
    }

    /// Compiles a statement of ours, to be kept by the caller.
    pub(crate) fn internal(&self, during: &'static str, sql: &str) -> Result<Prepared, Fault> {
        self.gate.enter(Mode::Internal);
        match compile(self.handle(), sql, true) {
            Ok(Compiled::Statement(prepared, _)) => Ok(prepared),
            Ok(Compiled::Nothing(_)) => Err(internal_fault(
                during,
                RawError { code: ffi::SQLITE_MISUSE, message: "no statement".to_owned() },
            )),
            Err(error) => Err(internal_fault(during, error)),
        }
    }

    /// Runs a kept statement of ours to its end; `row` sees each row.
    pub(crate) fn run_internal(
        &self,
        during: &'static str,
        prepared: &mut Prepared,
        values: &[Value],
        row: impl FnMut(&Prepared),
    ) -> Result<(), Fault> {
        self.run_raw(prepared, values, row).map_err(|error| internal_fault(during, error))
    }

    /// As [`Self::run_internal`], until `row` has seen enough and says `false`.
    pub(crate) fn run_while(
        &self,
        during: &'static str,
        prepared: &mut Prepared,
        values: &[Value],
        row: impl FnMut(&Prepared) -> bool,
    ) -> Result<(), Fault> {
        self.run_raw_while(prepared, values, row).map_err(|error| internal_fault(during, error))
    }

    /// As [`Self::run_internal`], for callers that judge failures themselves.
    pub(crate) fn run_raw(
        &self,
        prepared: &mut Prepared,
        values: &[Value],
        mut row: impl FnMut(&Prepared),
    ) -> Result<(), RawError> {
        self.run_raw_while(prepared, values, |prepared| {
            row(prepared);
            true
        })
    }

    fn run_raw_while(
        &self,
        prepared: &mut Prepared,
        values: &[Value],
        mut row: impl FnMut(&Prepared) -> bool,
    ) -> Result<(), RawError> {
        self.gate.switch(Mode::Internal);
        let ran = (|| {
            for (place, value) in (1..).zip(values) {
                prepared.bind_value(place, value).map_err(|error| match error {
                    BindError::Sqlite(error) => error,
                    BindError::Mismatch(message) => RawError { code: ffi::SQLITE_RANGE, message },
                })?;
            }
            while prepared.step()? && row(prepared) {}
            Ok(())
        })();
        prepared.reset();
        ran
    }

    /// The compiled form of a user's statement: exactly one, within the sandbox.
    pub(crate) fn prepare(&mut self, mode: Mode, sql: &str) -> Result<Slot, Trouble> {
        let sql = sql.trim();
        if let Some(slot) = self.cache.find(sql) {
            return Ok(slot);
        }
        if sql.contains('\0') {
            return Err(Trouble::Refused(SqlError::ours(
                ErrorClass::Statement,
                "the statement contains a NUL character; pass such text as a parameter",
            )));
        }
        let persistent = self.cache.keeps(sql);
        self.gate.enter(mode);
        let compiled = compile(self.handle(), sql, persistent);
        let facts = self.gate.facts();
        let extra = match &compiled {
            Ok(Compiled::Statement(_, taken)) if *taken < sql.len() => self.has_statement(&sql[*taken..]),
            _ => false,
        };
        self.gate.switch(Mode::Internal);
        match compiled {
            Err(error) => Err(self.trouble("compiling a statement", error)),
            Ok(Compiled::Nothing(_)) => {
                Err(Trouble::Refused(SqlError::ours(ErrorClass::Statement, "the statement is empty")))
            }
            Ok(Compiled::Statement(..)) if extra => Err(Trouble::Refused(SqlError::ours(
                ErrorClass::Statement,
                "the text holds several statements; send each as a statement of its own",
            ))),
            Ok(Compiled::Statement(mut prepared, _)) => {
                prepared.facts = facts;
                Ok(self.cache.put(sql, prepared))
            }
        }
    }

    /// Whether a text holds anything but white space, comments and semicolons.
    fn has_statement(&self, mut text: &str) -> bool {
        while !text.is_empty() {
            match compile(self.handle(), text, false) {
                // An empty statement between semicolons: look behind it.
                Ok(Compiled::Nothing(taken)) if taken > 0 => text = &text[taken.min(text.len())..],
                Ok(Compiled::Nothing(_)) => return false,
                Ok(Compiled::Statement(..)) | Err(_) => return true,
            }
        }
        false
    }

    /// Sorts a raw failure of a user's statement.
    pub(crate) fn trouble(&self, during: &'static str, raw: RawError) -> Trouble {
        let refusal = self.gate.take_refusal();
        // Whatever the code: a virtual table may report the interruption in its own words.
        if self.was_stopped() {
            return Trouble::Stopped;
        }
        match error::judge(raw.code, vfs::take_disk_full()) {
            error::Verdict::Fault => Trouble::Fault(internal_fault(during, raw)),
            error::Verdict::Result(class) => {
                let denied = refusal
                    .filter(|_| raw.code & 0xff == ffi::SQLITE_AUTH || raw.code & 0xff == ffi::SQLITE_ERROR);
                let class = if denied.is_some() { ErrorClass::Denied } else { class };
                let message = denied.unwrap_or(raw.message);
                Trouble::Refused(SqlError { message, sqlite_code: raw.code, class })
            }
        }
    }

    /// Installs the progress handler; until [`Self::allow_looks`] says otherwise it stops nothing.
    pub(crate) fn watch_steps(&self) {
        self.allow_looks(u64::MAX);
        let watch: *const Watch = &raw const *self.watch;
        // SAFETY: the watch outlives the connection, see the order of fields.
        unsafe {
            ffi::sqlite3_progress_handler(
                self.handle().as_ptr(),
                STEPS_PER_LOOK as c_int,
                Some(look),
                watch.cast_mut().cast(),
            );
        }
    }

    /// Stops a statement after this many looks, [`STEPS_PER_LOOK`] steps each, counting also the
    /// work inside virtual tables and of the compiler.
    pub(crate) fn allow_looks(&self, looks: u64) {
        self.watch.looks_left.set(looks);
        self.watch.fired.set(false);
    }

    /// Whether the progress handler stopped a statement.
    pub(crate) fn was_stopped(&self) -> bool {
        self.watch.fired.get()
    }

    /// Runs `work` with statements stopped as soon as `expired` says so.
    pub(crate) fn with_deadline<T>(
        &mut self,
        expired: &dyn Fn() -> bool,
        work: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let deadline = Deadline { expired, fired: &raw const self.watch.fired };
        self.watch.fired.set(false);
        // SAFETY: the handler is removed below, before `deadline` goes; should `work` panic, the
        // guard removes it.
        unsafe {
            ffi::sqlite3_progress_handler(
                self.handle().as_ptr(),
                STEPS_PER_LOOK as c_int,
                Some(look_at_deadline),
                (&raw const deadline).cast_mut().cast(),
            );
        }
        let guard = HandlerGuard(self.handle());
        let result = work(self);
        drop(guard);
        self.watch.fired.set(false);
        result
    }
}

/// A path as it may stand in a URI.
fn percent_encoded(path: &Path) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                encoded.push(char::from(*byte));
            }
            other => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

/// A failure of a statement of ours, or one of this machine.
pub(crate) fn internal_fault(during: &'static str, raw: RawError) -> Fault {
    Fault::Sqlite { code: raw.code, message: raw.message, during }
}

unsafe extern "C" fn look(watch: *mut c_void) -> c_int {
    // SAFETY: the pointer was given to `watch_steps` and outlives the connection.
    let watch = unsafe { &*watch.cast::<Watch>() };
    match watch.looks_left.get() {
        0 => {
            watch.fired.set(true);
            1
        }
        left => {
            watch.looks_left.set(left - 1);
            0
        }
    }
}

struct Deadline<'a> {
    expired: &'a dyn Fn() -> bool,
    fired: *const Cell<bool>,
}

unsafe extern "C" fn look_at_deadline(deadline: *mut c_void) -> c_int {
    // SAFETY: `with_deadline` keeps both alive while the handler is installed.
    unsafe {
        let deadline = &*deadline.cast::<Deadline<'_>>();
        let expired = (deadline.expired)();
        if expired {
            (*deadline.fired).set(true);
        }
        c_int::from(expired)
    }
}

struct HandlerGuard(NonNull<ffi::sqlite3>);

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        // SAFETY: the connection is borrowed by the guard's user.
        unsafe { ffi::sqlite3_progress_handler(self.0.as_ptr(), 0, None, std::ptr::null_mut()) };
    }
}
