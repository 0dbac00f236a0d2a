//! How fast time goes for rules: as it does, in what is written and shipped; faster where somebody waits to see an alert fire and clear.
//! Whatever of a rule is a span of time is made here, so that nothing is forgotten when it is hurried.

use std::fmt;

/// So many minutes of the rules go by in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tempo(u64);

impl Tempo {
    /// As it is.
    pub(crate) const REAL: Self = Self(1);

    /// So many times as fast.
    pub(crate) const fn times(factor: u64) -> Self {
        Self(factor)
    }

    /// So many seconds of the rules, in seconds that go by.
    pub(crate) fn seconds(self, seconds: u64) -> u64 {
        seconds / self.0
    }

    /// So many minutes of the rules, in Prometheus' notation.
    pub(super) fn minutes(self, minutes: u64) -> String {
        let seconds = self.seconds(minutes * 60);
        let units = [(24 * 3600, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
        let whole = units.into_iter().find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit));
        whole.map_or_else(|| "0m".to_owned(), |(unit, letter)| format!("{}{letter}", seconds / unit))
    }
}

impl fmt::Display for Tempo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Tempo;

    #[test]
    fn spans_are_in_the_largest_whole_unit() {
        let real = [0, 5, 60, 90, 3 * 24 * 60].map(|minutes| Tempo::REAL.minutes(minutes));
        assert_eq!(real, ["0m", "5m", "1h", "90m", "3d"]);
        let hurried = [0, 1, 5, 60, 3 * 24 * 60].map(|minutes| Tempo::times(10).minutes(minutes));
        assert_eq!(hurried, ["0m", "6s", "30s", "6m", "432m"]);
    }
}
