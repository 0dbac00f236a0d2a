//! How much memory some kind of work may take on this node at a time: whoever wants some waits for a moment, and is
//! then sent elsewhere.

use std::sync::Arc;
use std::time::Duration;

use debros_proto::{ErrorCode, Failure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What is counted: a semaphore cannot count that many bytes.
const UNIT_BYTES: usize = 1024;

/// The memory that is left.
pub(super) struct Budget {
    limit: (&'static str, usize),
    wait_max: Duration,
    left: Arc<Semaphore>,
}

/// Memory that was given; gives it back when it is dropped.
#[must_use]
pub(super) struct Given {
    _units: OwnedSemaphorePermit,
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Budget {
    /// A budget under the name of its limit.
    pub(super) fn new(limit: (&'static str, usize), wait_max: Duration) -> Self {
        Self { limit, wait_max, left: Arc::new(Semaphore::new(units(limit.1) as usize)) }
    }

    /// The bytes that are given.
    pub(super) fn used(&self) -> usize {
        self.limit.1.saturating_sub(self.left.available_permits().saturating_mul(UNIT_BYTES))
    }

    /// Takes so many bytes, or all there are when that is more, as soon as they are there.
    ///
    /// # Errors
    /// `BUSY` when they are not in time.
    pub(super) async fn take(&self, bytes: usize, deadline: Instant) -> Result<Given, Failure> {
        let wanted = units(bytes.min(self.limit.1));
        let until = deadline.min(Instant::now() + self.wait_max);
        match tokio::time::timeout_at(until, self.left.clone().acquire_many_owned(wanted)).await {
            Ok(Ok(units)) => Ok(Given { _units: units }),
            Ok(Err(_)) | Err(_) => {
                let (name, bytes) = self.limit;
                let message =
                    format!("this node has no memory left for this, {name} is {bytes} bytes: ask another");
                Err(Failure::new(ErrorCode::Busy, message).elsewhere())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use debros_proto::ErrorCode;
    use tokio::time::Instant;

    use super::Budget;

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_may_be_taken_again() {
        let budget = Budget::new(("LIMIT", 10_240), Duration::from_secs(1));
        let deadline = Instant::now() + Duration::from_secs(10);
        let first = budget.take(6000, deadline).await.unwrap();
        let refused = budget.take(6000, deadline).await.err().expect("there is no room");
        assert_eq!((refused.code, Instant::now() + Duration::from_secs(9)), (ErrorCode::Busy, deadline));
        assert!(refused.message.contains("LIMIT"), "{refused}");
        let (second, ()) = tokio::join!(budget.take(usize::MAX, deadline), async { drop(first) });
        drop(second.unwrap());
        let past = budget.take(1, deadline).await;
        assert!(past.is_ok(), "all was given back");
    }
}
