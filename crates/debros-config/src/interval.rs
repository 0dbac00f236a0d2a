//! Durations as people write them: `500ms`, `10s`, `1h30m`.
//!
//! Whole numbers with a unit only; a bare number is refused because nobody agrees on its unit. The precision is
//! one millisecond, which is also that of the timers behind the keys.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// One leap year. Longer waits are a typing error, and values near the end of the range overflow a clock.
const INTERVAL_MS_MAX: u64 = 366 * DAY;

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Largest first, which is the order of printing.
const UNITS: [(&str, u64); 5] = [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];

/// A duration of whole milliseconds, at most 366 days when parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interval {
    milliseconds: u64,
}

impl Interval {
    /// A duration of whole seconds.
    pub const fn from_seconds(seconds: u32) -> Self {
        Self { milliseconds: seconds as u64 * SECOND }
    }

    /// A duration of milliseconds.
    pub const fn from_milliseconds(milliseconds: u64) -> Self {
        Self { milliseconds }
    }

    /// The same as the standard library's type.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterval {
    /// A number without a unit.
    #[error("a unit is missing; write `{number}s` for seconds or `{number}ms` for milliseconds")]
    UnitMissing {
        /// The number as written.
        number: String,
    },
    /// A unit that is not known.
    #[error("`{unit}` is not a unit; use ms, s, m, h or d")]
    UnitUnknown {
        /// The unit as written.
        unit: String,
    },
    /// No number where one has to stand.
    #[error("it has to be whole numbers, each with its unit, as in `1h30m`")]
    NumberMissing,
    /// Past the longest duration.
    #[error("the longest is 366d")]
    TooLong,
}

impl FromStr for Interval {
    type Err = InvalidInterval;

    fn from_str(text: &str) -> Result<Self, InvalidInterval> {
        let mut rest = text;
        let mut total: u64 = 0;
        loop {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, after) = rest.split_at(digits);
            if number.is_empty() {
                return Err(InvalidInterval::NumberMissing);
            }
            let letters = after.len() - after.trim_start_matches(char::is_alphabetic).len();
            let (unit, next) = after.split_at(letters);
            if unit.is_empty() {
                return Err(match next {
                    "" => InvalidInterval::UnitMissing { number: number.to_owned() },
                    _ => InvalidInterval::NumberMissing,
                });
            }
            let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
                return Err(InvalidInterval::UnitUnknown { unit: unit.to_owned() });
            };
            total = number
                .parse::<u64>()
                .ok()
                .and_then(|count| count.checked_mul(*scale))
                .and_then(|part| total.checked_add(part))
                .filter(|total| *total <= INTERVAL_MS_MAX)
                .ok_or(InvalidInterval::TooLong)?;
            if next.is_empty() {
                return Ok(Self { milliseconds: total });
            }
            rest = next;
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days are only read: `24h` stays as the user wrote it.
        let mut rest = self.milliseconds;
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, scale) in &UNITS[1..] {
            if rest >= *scale {
                write!(f, "{}{unit}", rest / scale)?;
                rest %= scale;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Interval {
    type Error = InvalidInterval;

    fn try_from(text: String) -> Result<Self, InvalidInterval> {
        text.parse()
    }
}

impl From<Interval> for String {
    fn from(interval: Interval) -> String {
        interval.to_string()
    }
}
