//! When to dial somebody again who did not answer.
//!
//! Pure arithmetic on a count of failures; the clock and the randomness come from outside.
//!
//! Invariants: whoever is alone tries again within [`CAP_ALONE`] plus jitter, for ever; nobody who
//! has company dials a peer that stays away more often than every [`CAP_LOST`].

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// A node that restarts is back within a second or two.
const CAP_ALONE: Duration = Duration::from_secs(1);
/// For a peer that has been away for long, while there are others.
const CAP_LOST: Duration = Duration::from_secs(30);
/// After so many failures, half a minute, a peer counts as lost.
const FAILURES_UNTIL_LOST: u32 = 30;
/// Pauses are drawn from this much around their length, so that nodes that lost the same peer at
/// once do not return to it at once.
const JITTER: std::ops::Range<f64> = 0.8..1.4;

/// The pause after so many failures in a row.
pub(super) fn pause(failures: u32, alone: bool) -> Duration {
    let pause = if alone || failures < FAILURES_UNTIL_LOST {
        FIRST.saturating_mul(1 << failures.min(10)).min(CAP_ALONE)
    } else {
        CAP_ALONE.saturating_mul(1 << (failures - FAILURES_UNTIL_LOST).min(10)).min(CAP_LOST)
    };
    jitter(pause)
}

/// A time around this one.
pub(super) fn jitter(length: Duration) -> Duration {
    length.mul_f64(rand::random_range(JITTER))
}

/// Any time up to this one.
pub(super) fn up_to(length: Duration) -> Duration {
    length.mul_f64(rand::random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_for_the_lost_to_half_a_minute() {
        assert!(pause(0, true) < Duration::from_millis(150));
        for failures in 0..100 {
            assert!(pause(failures, true) <= CAP_ALONE.mul_f64(JITTER.end));
            assert!(pause(failures, false) <= CAP_LOST.mul_f64(JITTER.end));
        }
        assert!(pause(20, false) <= CAP_ALONE.mul_f64(JITTER.end));
        assert!(pause(99, false) >= CAP_LOST.mul_f64(JITTER.start));
        assert!(pause(u32::MAX, true) >= CAP_ALONE.mul_f64(JITTER.start));
    }
}
