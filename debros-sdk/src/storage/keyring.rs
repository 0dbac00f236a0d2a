//! Keys, and what one encrypted value or payload looks like. Knows no storage and no pub/sub.
//!
//! ```text
//! 1 byte   format: 1 for a stored value, 2 for a message's payload
//! 4 bytes  id of the key, big-endian
//! 24 bytes nonce, random
//! ...      the value in XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), then its 16-byte tag
//! ```
//!
//! Invariant: the header, the namespace and the storage key or topic are authenticated with the value, so that a
//! value that was copied under another key does not open there.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, OsRng, Payload};
use chacha20poly1305::{AeadCore, KeyInit, XChaCha20Poly1305, XNonce};
use debros_proto::limits;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};
use crate::statement::too_large;

/// What was encrypted. One does not open as the other, though they share keys and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// A stored value, under its storage key.
    Value,
    /// A message's payload, under its topic.
    Message,
}

impl Sealed {
    fn format(self) -> u8 {
        match self {
            Self::Value => 1,
            Self::Message => 2,
        }
    }

    /// How it is called where it does not open.
    fn told(self, name: &str) -> String {
        match self {
            Self::Value => format!("the value under {name:?}"),
            Self::Message => format!("a message of {name:?}"),
        }
    }

    fn limit(self) -> (&'static str, usize) {
        match self {
            Self::Value => {
                ("STORAGE_VALUE_BYTES_MAX, less what encryption adds,", limits::STORAGE_VALUE_BYTES_MAX)
            }
            Self::Message => ("MESSAGE_BYTES_MAX, less what encryption adds,", limits::MESSAGE_BYTES_MAX),
        }
    }
}

const HEADER_BYTES: usize = 5;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// What encryption adds to a value.
const ADDED_BYTES: usize = HEADER_BYTES + NONCE_BYTES + TAG_BYTES;

/// Bytes of an [`EncryptionKey`].
const KEY_BYTES: usize = 32;

/// A key of 256 bits. Its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct EncryptionKey(Zeroizing<[u8; KEY_BYTES]>);

impl EncryptionKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        let mut key = XChaCha20Poly1305::generate_key(&mut OsRng);
        bytes.copy_from_slice(&key);
        zeroize::Zeroize::zeroize(key.as_mut_slice());
        Self(bytes)
    }

    /// A key that was kept. It must be random bytes, not a password.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The key, to keep.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(..)")
    }
}

/// The key that encrypts, and older ones that still decrypt. Keys are told apart by numbers that the
/// application gives; a number stands for one key for ever.
pub struct Keyring {
    current: u32,
    /// A cipher is its key, and wipes it when it is dropped.
    ciphers: BTreeMap<u32, XChaCha20Poly1305>,
}

impl Keyring {
    /// A keyring with one key, which encrypts.
    pub fn new(id: u32, key: &EncryptionKey) -> Self {
        Self { current: id, ciphers: BTreeMap::from([(id, cipher(key))]) }
    }

    /// Adds a key that decrypts what was encrypted before.
    ///
    /// # Errors
    /// `InvalidArgument` when a key with that number is there.
    pub fn with_older(mut self, id: u32, key: &EncryptionKey) -> Result<Self, Error> {
        if self.ciphers.insert(id, cipher(key)).is_some() {
            return Err(Error::invalid(format!(
                "the keyring holds a key {id} already; give each its own id"
            )));
        }
        Ok(self)
    }

    /// Encrypts a value for a storage key.
    pub(crate) fn seal(&self, namespace: &str, key: &str, value: &[u8]) -> Result<Bytes, Error> {
        self.seal_as(Sealed::Value, namespace, key, value)
    }

    /// Encrypts something under its name.
    pub(crate) fn seal_as(
        &self,
        what: Sealed,
        namespace: &str,
        key: &str,
        value: &[u8],
    ) -> Result<Bytes, Error> {
        let (name, max) = what.limit();
        let room = max - ADDED_BYTES;
        if value.len() > room {
            return Err(too_large(name, room, value.len()));
        }
        let header = header(what, self.current);
        let nonce = XChaCha20Poly1305::generate_nonce(&mut OsRng);
        let associated = associated(&header, namespace, key);
        let sealed = self.ciphers[&self.current].encrypt(&nonce, Payload { msg: value, aad: &associated });
        let sealed = sealed.map_err(|_| Error::new(ErrorKind::Internal, "a value could not be encrypted"))?;
        Ok(Bytes::from([header.as_slice(), nonce.as_slice(), &sealed].concat()))
    }

    /// Decrypts a value that is stored under a storage key.
    pub(crate) fn open(&self, namespace: &str, key: &str, sealed: &[u8]) -> Result<Bytes, Error> {
        self.open_as(Sealed::Value, namespace, key, sealed)
    }

    /// Decrypts something under its name.
    pub(crate) fn open_as(
        &self,
        what: Sealed,
        namespace: &str,
        key: &str,
        sealed: &[u8],
    ) -> Result<Bytes, Error> {
        let id = key_id(what, key, sealed)?;
        let Some(cipher) = self.ciphers.get(&id) else {
            let told = what.told(key);
            let message = format!("{told} is encrypted with key {id}; add it to the keyring");
            return Err(Error::new(ErrorKind::UnknownKey, message));
        };
        let (nonce, sealed) = sealed[HEADER_BYTES..].split_at(NONCE_BYTES);
        let associated = associated(&header(what, id), namespace, key);
        let opened = cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: &associated });
        opened.map(Bytes::from).map_err(|_| {
            let told = what.told(key);
            let message = format!(
                "{told} was changed, or copied from elsewhere, or key {id} is another one than it was"
            );
            Error::new(ErrorKind::Corrupt, message)
        })
    }

    /// Whether a value is encrypted with the current key.
    pub(crate) fn is_current(&self, key: &str, sealed: &[u8]) -> Result<bool, Error> {
        Ok(key_id(Sealed::Value, key, sealed)? == self.current)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<&u32> = self.ciphers.keys().collect();
        f.debug_struct("Keyring").field("current", &self.current).field("ids", &ids).finish_non_exhaustive()
    }
}

fn cipher(key: &EncryptionKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(key.as_bytes().into())
}

fn header(what: Sealed, id: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [what.format(), a, b, c, d]
}

/// The header, then the namespace with its length before it, so that no other pair gives the same bytes.
fn associated(header: &[u8], namespace: &str, key: &str) -> Vec<u8> {
    let length = u8::try_from(namespace.len()).expect("a namespace has at most 63 bytes");
    [header, &[length], namespace.as_bytes(), key.as_bytes()].concat()
}

fn key_id(what: Sealed, key: &str, sealed: &[u8]) -> Result<u32, Error> {
    match sealed.split_first_chunk::<HEADER_BYTES>() {
        Some(([format, a, b, c, d], rest))
            if *format == what.format() && rest.len() >= NONCE_BYTES + TAG_BYTES =>
        {
            Ok(u32::from_be_bytes([*a, *b, *c, *d]))
        }
        _ => {
            let message = format!("{} is not encrypted, or by a newer version", what.told(key));
            Err(Error::new(ErrorKind::Corrupt, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ADDED_BYTES, EncryptionKey, Keyring, Sealed};
    use crate::error::ErrorKind;

    #[test]
    fn every_changed_bit_and_every_other_place_is_noticed() {
        let keys = Keyring::new(1, &EncryptionKey::generate());
        let sealed = keys.seal("app", "key", b"value").unwrap();
        assert_eq!(sealed.len(), b"value".len() + ADDED_BYTES);
        assert_eq!(keys.open("app", "key", &sealed).unwrap(), "value");
        assert_ne!(keys.seal("app", "key", b"value").unwrap(), sealed, "nonces are random");
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            let error = keys.open("app", "key", &changed).unwrap_err();
            // The id of the key is in bytes 1 to 4.
            let kind = if (8..40).contains(&bit) { ErrorKind::UnknownKey } else { ErrorKind::Corrupt };
            assert_eq!(error.kind(), kind, "{bit}: {error}");
        }
        for (namespace, key) in [("app", "key2"), ("app", "ke"), ("ap", "pkey"), ("other", "key")] {
            assert_eq!(keys.open(namespace, key, &sealed).unwrap_err().kind(), ErrorKind::Corrupt);
        }
        for length in 0..sealed.len() {
            assert_eq!(keys.open("app", "key", &sealed[..length]).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn a_message_does_not_open_as_a_stored_value_of_the_same_name() {
        let keys = Keyring::new(1, &EncryptionKey::generate());
        let sealed = keys.seal_as(Sealed::Message, "app", "name", b"words").unwrap();
        assert_eq!(keys.open_as(Sealed::Message, "app", "name", &sealed).unwrap(), "words");
        assert_eq!(keys.open("app", "name", &sealed).unwrap_err().kind(), ErrorKind::Corrupt);
        let mut disguised = sealed.to_vec();
        disguised[0] = 1;
        assert_eq!(keys.open("app", "name", &disguised).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn a_keyring_tells_its_ids_and_never_its_keys() {
        let key = EncryptionKey::from_bytes([7; 32]);
        let keys = Keyring::new(2, &key).with_older(1, &EncryptionKey::generate()).unwrap();
        assert_eq!(format!("{keys:?} {key:?}"), "Keyring { current: 2, ids: [1, 2], .. } EncryptionKey(..)");
        assert_eq!(keys.with_older(2, &key).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    /// What was stored years ago must open.
    #[test]
    fn the_format_is_the_one_that_values_were_stored_in() {
        let keys = Keyring::new(1, &EncryptionKey::from_bytes([7; 32]));
        let stored = GOLDEN
            .as_bytes()
            .chunks(2)
            .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap());
        assert_eq!(keys.open("app", "key", &stored.collect::<Vec<u8>>()).unwrap(), "value");
    }

    const GOLDEN: &str = "0100000001000102030405060708090a0b0c0d0e0f1011121314151617de76c7f09f3b9d78b4540b8235b0fc4b9f09eb634c";
}
