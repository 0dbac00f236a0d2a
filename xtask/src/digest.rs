//! SHA-256 as this project's own commands use it: over parts with their lengths, so that no two lists of parts run together, and over
//! files as the rest of the world does.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// Characters of a digest in a name that people read.
const SHORT: usize = 12;

/// A digest of parts.
pub(crate) struct Digest(Sha256);

impl Digest {
    /// Of nothing yet.
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds a part.
    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// Its first characters.
    pub(crate) fn short(self) -> String {
        hex(&self.0.finalize())[..SHORT].to_owned()
    }
}

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Digest, sha256};

    #[test]
    fn parts_do_not_run_together() {
        let of = |parts: &[&str]| {
            let mut digest = Digest::new();
            parts.iter().for_each(|part| digest.update(part.as_bytes()));
            digest.short()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_eq!(of(&["a"]).len(), 12);
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
