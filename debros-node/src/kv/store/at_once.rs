//! Whether a read is made where it is asked for, or on the reader's thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A read where it is asked for that takes longer has waited for the disk.
const READ_AT_ONCE_MAX: Duration = Duration::from_millis(1);
/// After one such, reads go to the reader's thread for so long.
const READ_BESIDE: Duration = Duration::from_secs(1);
/// Whether points are read where they are asked for. That saves two changes of threads as long as what is read
/// is in memory, and would hold up everything else while the disk is waited for.
pub(super) struct AtOnce {
    opened: Instant,
    /// Not before so many milliseconds after it was opened.
    not_before_ms: AtomicU64,
}

impl AtOnce {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), not_before_ms: AtomicU64::new(0) }
    }

    pub(super) fn may(&self, now: Instant) -> bool {
        self.since_opened_ms(now) >= self.not_before_ms.load(Ordering::Relaxed)
    }

    pub(super) fn took(&self, began: Instant) {
        let now = Instant::now();
        if now - began > READ_AT_ONCE_MAX {
            self.not_before_ms.store(self.since_opened_ms(now + READ_BESIDE), Ordering::Relaxed);
        }
    }

    fn since_opened_ms(&self, at: Instant) -> u64 {
        u64::try_from((at - self.opened).as_millis()).unwrap_or(u64::MAX)
    }
}
