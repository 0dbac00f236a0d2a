//! The cluster secret: what a peer must know to be let in.
//!
//! Decides what is good enough as a secret; how it is proved is the business of admission. A dialer
//! without the secret still sees a proof made with it, so whatever can be guessed offline is no
//! secret: it is generated, never thought up.
//!
//! Invariant: its bytes never appear in logs or debug output.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// As many bytes as the proof's hash has.
const SECRET_BYTES_MIN: usize = 32;
/// A repeated word is long and yet no secret: 32 characters of base64 or hexadecimal nearly always
/// have more different ones than this.
const DIFFERENT_BYTES_MIN: usize = 8;
/// More than anybody generates; keeps a wrong file from being read whole.
const SECRET_BYTES_MAX: usize = 4096;
/// Bytes of randomness in a generated secret.
const GENERATED_BYTES: usize = 32;

/// A secret that all members of a cluster and their clients share.
#[derive(Clone)]
pub struct ClusterSecret(Arc<[u8]>);

/// Why a secret was refused.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the cluster secret {path}: check that it exists and that this user may read it")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Easy to guess.
    #[error(
        "the cluster secret is too weak ({reason}): generate one, for example with `openssl rand -base64 48`"
    )]
    Weak {
        /// What is wrong with it.
        reason: String,
    },
    /// Not a secret.
    #[error(
        "the cluster secret has more than {SECRET_BYTES_MAX} bytes: check that the path names the right file"
    )]
    TooLong,
}

impl ClusterSecret {
    /// A new secret from the system's randomness.
    pub fn generate() -> Self {
        let bytes: [u8; GENERATED_BYTES] = rand::random();
        Self(URL_SAFE_NO_PAD.encode(bytes).into_bytes().into())
    }

    /// Reads a secret from a file; white space around it does not count.
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(SECRET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::from_bytes(&bytes)
    }

    /// Takes what somebody else keeps; white space around it does not count.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() > SECRET_BYTES_MAX {
            return Err(SecretError::TooLong);
        }
        let bytes = bytes.trim_ascii();
        if bytes.len() < SECRET_BYTES_MIN {
            let reason = format!("{} bytes, at least {SECRET_BYTES_MIN} are needed", bytes.len());
            return Err(SecretError::Weak { reason });
        }
        let different = bytes.iter().collect::<BTreeSet<_>>().len();
        if different < DIFFERENT_BYTES_MIN {
            return Err(SecretError::Weak { reason: format!("only {different} different characters") });
        }
        Ok(Self(bytes.into()))
    }

    /// The secret as it is written to a file. Handle it as what it is.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClusterSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_secrets_are_good_and_differ() {
        let (first, second) = (ClusterSecret::generate(), ClusterSecret::generate());
        assert_ne!(first.reveal(), second.reveal());
        let again = ClusterSecret::from_bytes(first.reveal()).unwrap();
        assert_eq!(again.reveal(), first.reveal());
        assert_eq!(format!("{first:?}"), "ClusterSecret(..)");
    }

    #[test]
    fn white_space_around_a_secret_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let secret = ClusterSecret::generate();
        std::fs::write(&path, [b" ", secret.reveal(), b"\n"].concat()).unwrap();
        assert_eq!(ClusterSecret::from_file(&path).unwrap().reveal(), secret.reveal());
    }

    #[test]
    fn weak_secrets_are_refused_with_a_way_out() {
        for weak in [b"".as_slice(), b"password", b"correct horse battery staple", &[b'a'; 64]] {
            let refusal = ClusterSecret::from_bytes(weak).unwrap_err();
            assert!(refusal.to_string().contains("openssl rand"), "{refusal}");
        }
        assert!(matches!(ClusterSecret::from_bytes(&[7; 5000]), Err(SecretError::TooLong)));
        let missing = ClusterSecret::from_file(Path::new("/nonexistent/secret")).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/secret"));
    }
}
