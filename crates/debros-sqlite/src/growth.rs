//! How large the file can be at most, without asking SQLite.
//!
//! The limit on a database's size is checked around every statement, and `PRAGMA page_count` is compiled
//! anew each time it runs. While the limit is far away a bound is enough: a page that a transaction adds
//! is dirty, so it is in the page cache until the commit, or was spilled from it.

use crate::connection::Connection;
use crate::options::PAGE_BYTES;

/// SQLite counts spilled pages in so many bits.
const SPILLED_MASK: u32 = u32::MAX >> 1;

/// An upper bound of the file's pages.
#[derive(Debug)]
pub(crate) struct Growth {
    /// The bound when it was last counted or settled.
    pages: u64,
    /// The spilled pages at that time.
    spilled: u32,
}

impl Growth {
    /// Nothing is known yet.
    pub(crate) fn unknown() -> Self {
        Self { pages: u64::MAX, spilled: 0 }
    }

    /// The file has this many pages.
    pub(crate) fn counted(&mut self, connection: &Connection, pages: u64) {
        *self = Self { pages, spilled: connection.spilled_pages() };
    }

    /// The file has no more pages than this, with those that the open transaction added.
    pub(crate) fn pages_at_most(&self, connection: &Connection) -> u64 {
        let spilled = connection.spilled_pages().wrapping_sub(self.spilled) & SPILLED_MASK;
        let cached = connection.cached_bytes() / PAGE_BYTES;
        self.pages.saturating_add(cached).saturating_add(u64::from(spilled))
    }

    /// To be told before each commit: later, what the transaction added may leave the cache unseen.
    pub(crate) fn settle(&mut self, connection: &Connection) {
        self.counted(connection, self.pages_at_most(connection));
    }
}
