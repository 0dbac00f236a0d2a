//! How writes that several writers make come along: how many were acknowledged, and the longest time without one. It does
//! not know what is written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::time::sleep;

/// Writes are away for seconds at most; this is for a machine at its limit.
const RESUMED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A writer's rest between two writes; none where a load should be as heavy as it can be.
pub(crate) async fn pause(rest: Duration) {
    if !rest.is_zero() {
        sleep(rest).await;
    }
}

/// Counts acknowledgements.
#[derive(Default)]
pub(crate) struct Pace {
    pauses: Mutex<Pauses>,
    count: AtomicU64,
}

#[derive(Default)]
struct Pauses {
    last: Option<Instant>,
    longest: Duration,
}

impl Pace {
    /// Takes note of an acknowledged write.
    pub(crate) fn acknowledge(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (now, mut pauses) = (Instant::now(), self.pauses());
        let pause = pauses.last.map_or(Duration::ZERO, |last| now - last);
        pauses.longest = pauses.longest.max(pause);
        pauses.last = Some(now);
    }

    /// How many writes are acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Forgets the pauses so far.
    pub(crate) fn begin_round(&self) {
        self.pauses().longest = Duration::ZERO;
    }

    /// The longest time between two acknowledgements, of whichever writers, in this round.
    pub(crate) fn longest_pause(&self) -> Duration {
        self.pauses().longest
    }

    /// Waits until so many more writes are acknowledged.
    pub(crate) async fn more(&self, writes: u64) -> Result<()> {
        let (started, wanted) = (Instant::now(), self.acknowledged() + writes);
        while self.acknowledged() < wanted {
            if started.elapsed() > RESUMED_WITHIN {
                let acknowledged = self.acknowledged();
                bail!("{acknowledged} of {wanted} writes are acknowledged after {RESUMED_WITHIN:?}");
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    fn pauses(&self) -> MutexGuard<'_, Pauses> {
        self.pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
