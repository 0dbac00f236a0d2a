//! SHA-256 as this project's own commands use it: over parts with their lengths, so that no two lists of parts run together, and over
//! files as the rest of the world does.

use std::fmt::Write as _;
use std::io::{self, Write};

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

/// Passes on what is written, and knows its digest.
pub(crate) struct Sha256Writer<W> {
    to: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Sha256Writer<W> {
    /// Nothing was written yet.
    pub(crate) fn new(to: W) -> Self {
        Self { to, digest: Sha256::new(), bytes: 0 }
    }

    /// How many bytes were written, and their digest in hexadecimal.
    pub(crate) fn finish(mut self) -> io::Result<(u64, String)> {
        self.to.flush()?;
        Ok((self.bytes, hex(&self.digest.finalize())))
    }
}

impl<W: Write> Write for Sha256Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
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
