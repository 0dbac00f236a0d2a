//! Log time: the one clock replicas agree on.
//!
//! It is derived from the stamps in the entries alone: it never goes back, and one entry moves it
//! forward by a bounded amount, so that one wrong clock cannot carry it away.

/// The log time of an entry stamped `stamp_ms` after an entry at `previous_ms`, in milliseconds
/// since the Unix epoch. A previous time of 0 means that there was none: any stamp is taken.
#[must_use]
pub fn advance_log_time(previous_ms: u64, stamp_ms: u64, step_max_ms: u64) -> u64 {
    if previous_ms == 0 {
        return stamp_ms;
    }
    stamp_ms.min(previous_ms.saturating_add(step_max_ms)).max(previous_ms)
}

#[cfg(test)]
mod tests {
    use super::advance_log_time;

    #[test]
    fn never_back_and_forward_by_a_bounded_step() {
        assert_eq!(advance_log_time(0, 1_700_000_000_000, 10), 1_700_000_000_000);
        assert_eq!(advance_log_time(100, 50, 10), 100);
        assert_eq!(advance_log_time(100, 105, 10), 105);
        assert_eq!(advance_log_time(100, 1_000_000, 10), 110);
        assert_eq!(advance_log_time(u64::MAX, 1, 10), u64::MAX);
    }
}
