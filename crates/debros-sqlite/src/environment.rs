//! The pinned environment: what statements see of time, chance and history.
//!
//! Installed before each entry on the thread that applies it and read by the VFS and by the
//! overridden functions. Invariant: nothing a statement computes depends on anything that is not
//! in the entry or in the database.

use std::cell::{Cell, RefCell};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ffi};
use sha2::{Digest, Sha256};

use crate::{Fault, vfs};

thread_local! {
    static GENERATOR: RefCell<Generator> = const { RefCell::new(Generator::new([0; 32])) };
    static TOTAL_CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// A stream of bytes from a seed: SHA-256 in counter mode. Nothing is computed until it is used,
/// as most entries never ask.
struct Generator {
    seed: [u8; 32],
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Generator {
    const fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0, block: [0; 32], used: 32 }
    }

    fn fill(&mut self, mut out: &mut [u8]) {
        while !out.is_empty() {
            if self.used == self.block.len() {
                let mut hasher = Sha256::new();
                hasher.update(self.seed);
                hasher.update(self.counter.to_le_bytes());
                self.block = hasher.finalize().into();
                self.counter += 1;
                self.used = 0;
            }
            let take = out.len().min(self.block.len() - self.used);
            let (now, rest) = out.split_at_mut(take);
            now.copy_from_slice(&self.block[self.used..self.used + take]);
            self.used += take;
            out = rest;
        }
    }
}

/// Makes time and chance those of one entry, for statements run on this thread.
pub(crate) fn install(unix_ms: u64, seed: [u8; 32]) {
    vfs::set_now(unix_ms);
    GENERATOR.with_borrow_mut(|generator| *generator = Generator::new(seed));
    set_total_changes(0);
}

/// Makes `total_changes()` this. SQLite's own never starts again, and counts what virtual tables
/// write for themselves, at moments that depend on how entries are batched.
pub(crate) fn set_total_changes(rows: u64) {
    TOTAL_CHANGES.set(rows);
}

/// Replaces the functions that read process-wide state. They are INNOCUOUS because
/// `trusted_schema=OFF` refuses all others in DEFAULT, CHECK, triggers and views.
pub(crate) fn override_functions(connection: &Connection, value_bytes_max: usize) -> Result<(), Fault> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_INNOCUOUS;
    let define = || -> rusqlite::Result<()> {
        connection.create_scalar_function("random", 0, flags, |_| Ok(random()))?;
        connection.create_scalar_function("randomblob", 1, flags, move |context| {
            random_blob(context, value_bytes_max)
        })?;
        connection.create_scalar_function("total_changes", 0, flags, |_| Ok(TOTAL_CHANGES.get() as i64))
    };
    define().map_err(|error| Fault::from_rusqlite("replacing functions", &error))
}

fn random() -> i64 {
    let mut bytes = [0; 8];
    GENERATOR.with_borrow_mut(|generator| generator.fill(&mut bytes));
    i64::from_le_bytes(bytes)
}

fn random_blob(context: &Context<'_>, value_bytes_max: usize) -> rusqlite::Result<Vec<u8>> {
    // As SQLite's own: anything that is not a number above 1 gives one byte.
    let asked = match context.get_raw(0) {
        ValueRef::Integer(number) => number,
        ValueRef::Real(number) => number as i64,
        ValueRef::Text(text) => {
            std::str::from_utf8(text).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1)
        }
        ValueRef::Null | ValueRef::Blob(_) => 1,
    };
    let length = usize::try_from(asked.max(1)).unwrap_or(usize::MAX);
    if length > value_bytes_max {
        // Without words of our own: with them the code would be lost.
        return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_TOOBIG), None));
    }
    let mut bytes = vec![0; length];
    GENERATOR.with_borrow_mut(|generator| generator.fill(&mut bytes));
    Ok(bytes)
}
