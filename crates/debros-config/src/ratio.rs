//! A part of a whole, as people write it: `0`, `0.01`, `1`.
//!
//! Kept in millionths, so that it is equal to itself and prints as it was written.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

const WHOLE: u32 = 1_000_000;
/// Digits of a millionth.
const DECIMALS_MAX: usize = 6;

/// A number from 0 to 1 with at most six decimals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ratio {
    millionths: u32,
}

impl Ratio {
    /// So many millionths, the whole at most.
    pub const fn from_millionths(millionths: u32) -> Self {
        Self { millionths: if millionths > WHOLE { WHOLE } else { millionths } }
    }

    /// The same as a number from 0 to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.millionths) / f64::from(WHOLE)
    }
}

/// A text is no part of a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it has to be a number from 0 to 1 with at most six decimals")]
pub struct InvalidRatio;

impl FromStr for Ratio {
    type Err = InvalidRatio;

    fn from_str(text: &str) -> Result<Self, InvalidRatio> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS_MAX {
            return Err(InvalidRatio);
        }
        let whole: u32 = whole.parse().ok().filter(|whole| *whole <= 1).ok_or(InvalidRatio)?;
        let decimals: u32 = format!("{decimals:0<DECIMALS_MAX$}").parse().map_err(|_| InvalidRatio)?;
        let millionths = whole * WHOLE + decimals;
        if millionths > WHOLE { Err(InvalidRatio) } else { Ok(Self { millionths }) }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, decimals) = (self.millionths / WHOLE, self.millionths % WHOLE);
        if decimals == 0 {
            return write!(f, "{whole}");
        }
        let decimals = format!("{decimals:0DECIMALS_MAX$}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

impl fmt::Debug for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Ratio {
    type Error = InvalidRatio;

    fn try_from(text: String) -> Result<Self, InvalidRatio> {
        text.parse()
    }
}

impl From<Ratio> for String {
    fn from(ratio: Ratio) -> Self {
        ratio.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidRatio, Ratio};

    #[test]
    fn ratios_are_read_and_printed() {
        for (text, millionths, printed) in [
            ("0", 0, "0"),
            ("1", 1_000_000, "1"),
            ("1.000", 1_000_000, "1"),
            ("0.01", 10_000, "0.01"),
            ("0.000001", 1, "0.000001"),
            ("00.50", 500_000, "0.5"),
        ] {
            let ratio: Ratio = text.parse().expect(text);
            assert_eq!((ratio, ratio.to_string()), (Ratio::from_millionths(millionths), printed.to_owned()));
        }
        assert!((Ratio::from_millionths(10_000).as_f64() - 0.01).abs() < f64::EPSILON);
        assert_eq!(Ratio::from_millionths(u32::MAX).to_string(), "1");
    }

    #[test]
    fn what_is_no_part_of_a_whole_is_refused() {
        for text in
            ["", ".", "1.", ".5", "1.000001", "2", "-0.1", "0.0000001", "1e-3", "1%", "٠", "99999999999"]
        {
            assert_eq!(text.parse::<Ratio>(), Err(InvalidRatio), "{text}");
        }
    }
}
