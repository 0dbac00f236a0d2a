//! The time of leases: what the steady clocks of those who proposed entries have gone on by.
//!
//! Clocks of the day are set forward and back, and log time follows them: where it ran ahead it stands still until
//! they catch up, for an hour if need be. A lease is relied upon and waited for, so it goes by clocks that nobody
//! sets. Each proposer reads its own, which began at any time; two readings of the same clock say how long it was
//! between them. Readings of different clocks say nothing, so the time in which one proposer follows another does
//! not count: a lease never ends early by its holder's clock, and later by that time.
//!
//! Entries may stand in the log in another order than they were stamped in. A reading is compared with the greatest
//! before it, so none counts twice, and nothing that was before a lease was granted counts against the lease.

use crate::Stamp;

/// Where the time of leases stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseTime {
    /// In milliseconds, since any moment.
    pub now_ms: u64,
    /// The clock that was read last; 0 while no entry has said: then it is log time, as before there was this.
    pub clock: u64,
    /// Its greatest reading.
    pub clock_ms: u64,
}

impl LeaseTime {
    /// How long it has been when this clock reads so much; `None` when another one was read last.
    #[must_use]
    pub fn since(&self, clock: u64, clock_ms: u64) -> Option<u64> {
        (clock != 0 && clock == self.clock).then(|| clock_ms.saturating_sub(self.clock_ms))
    }

    /// The time of an entry, by its stamp; `log_times_ms` are those of the entry before it and its own.
    pub(crate) fn advance(self, stamp: &Stamp, log_times_ms: (u64, u64), step_max_ms: u64) -> Self {
        let Stamp { clock, clock_ms, numbers_from: _ } = *stamp;
        let now_ms = match (self.clock, clock) {
            (0, 0) => log_times_ms.1,
            (0, _) => log_times_ms.0,
            _ => self.now_ms,
        };
        // Of a proposer of an older version.
        if clock == 0 {
            return Self { now_ms, ..self };
        }
        match self.since(clock, clock_ms) {
            Some(since) => Self {
                now_ms: now_ms.saturating_add(since.min(step_max_ms)),
                clock,
                clock_ms: clock_ms.max(self.clock_ms),
            },
            None => Self { now_ms, clock, clock_ms },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LeaseTime;
    use crate::Stamp;

    const STEP_MAX: u64 = 1000;

    /// Where each reading brings it.
    fn times(readings: &[(u64, u64)]) -> Vec<u64> {
        let mut time = LeaseTime::default();
        let read = |&(clock, clock_ms): &(u64, u64)| {
            time = time.advance(&Stamp { clock, clock_ms, numbers_from: 0 }, (70, 75), STEP_MAX);
            time.now_ms
        };
        readings.iter().map(read).collect()
    }

    #[test]
    fn what_one_clock_goes_on_by_counts_once() {
        assert_eq!(times(&[(1, 500), (1, 510), (1, 505), (1, 512)]), [70, 80, 80, 82]);
        assert_eq!(times(&[(1, 0), (1, u64::MAX)]), [70, 70 + STEP_MAX]);
    }

    #[test]
    fn what_lies_between_two_clocks_does_not_count() {
        assert_eq!(times(&[(1, 500), (2, 9), (2, 10), (1, 900), (1, 901)]), [70, 70, 71, 71, 72]);
    }

    #[test]
    fn it_is_log_time_until_a_clock_was_read() {
        assert_eq!(times(&[(0, 0), (0, 0), (3, 5), (0, 0), (3, 9)]), [75, 75, 70, 70, 74]);
    }
}
