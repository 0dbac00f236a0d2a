//! Sizes as people write them: `64MiB`, `1GB`, or a plain number of bytes.
//!
//! `KiB`, `MiB`, ... are powers of 1024, `KB`, `MB`, ... powers of 1000, whatever their case. A lone `G` is refused
//! because half its writers mean one and half the other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The first unit that divides a size is the one it is printed in.
const BINARY: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DECIMAL: [(&str, u64); 4] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize {
    bytes: u64,
}

impl ByteSize {
    /// A size in bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidByteSize {
    /// The text does not begin with a whole number.
    #[error("it has to begin with a whole number")]
    NumberMissing,
    /// A unit that is not known.
    #[error("`{unit}` is not a unit; use KiB, MiB, GiB or TiB (or KB, MB, GB, TB for powers of 1000)")]
    UnitUnknown {
        /// The unit as written.
        unit: String,
    },
    /// More bytes than 64 bits count.
    #[error("it is larger than any file can be")]
    TooLarge,
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let number = &text[..text.len() - unit.len()];
        if number.is_empty() {
            return Err(InvalidByteSize::NumberMissing);
        }
        let unit = unit.trim();
        let scale = if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
            1
        } else {
            let known = BINARY.iter().chain(&DECIMAL).find(|(name, _)| name.eq_ignore_ascii_case(unit));
            known.ok_or_else(|| InvalidByteSize::UnitUnknown { unit: unit.to_owned() })?.1
        };
        let bytes = number.parse::<u64>().ok().and_then(|count| count.checked_mul(scale));
        Ok(Self { bytes: bytes.ok_or(InvalidByteSize::TooLarge)? })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, scale): &&(&str, u64)| self.bytes >= *scale && self.bytes.is_multiple_of(*scale);
        match BINARY.iter().find(exact).or_else(|| DECIMAL.iter().find(exact)) {
            Some((unit, scale)) => write!(f, "{}{unit}", self.bytes / scale),
            None => write!(f, "{}B", self.bytes),
        }
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ByteSize {
    type Error = InvalidByteSize;

    fn try_from(text: String) -> Result<Self, InvalidByteSize> {
        text.parse()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> String {
        size.to_string()
    }
}
